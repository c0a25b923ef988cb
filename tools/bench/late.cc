// What it costs to compare a question's tokens with the keys of 128 chunks, as a hybrid search does it: on the CPU, by
// plain loops, and, where there is a GPU, as the daemon asks it, from records in host memory to scores in host memory.
// Ends with 1 when the GPU's scores have another sum than the CPU's. A CPU without fused multiply-add may differ in the
// last bits.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/late_interaction.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/gpu_setup.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

// Of the checkpoint that is shipped.
constexpr LateShape shape{.heads = 6, .kv_heads = 1, .head_dim = 64, .tokens = 64};
constexpr size_t chunks = 128, key_numbers = shape.tokens * shape.kv_heads * shape.head_dim;
constexpr size_t record_bytes = 2 * key_numbers * sizeof(Bf16);  // K, then V

// score() gives the sum of all scores.
template <class Score>
double milliseconds(Score score, double& sum) {
  std::vector<double> took;
  for (int i = 0; i < 15; ++i) {
    const auto start = std::chrono::steady_clock::now();
    sum = score();
    took.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return median(std::move(took));
}

std::unique_ptr<Gpu> gpu_if_any() try { return open_served_gpu(); } catch (const NoGpu& reason) {
  std::printf("no GPU: %s\n", reason.what());
  return nullptr;
}

}  // namespace

int main() try {
  std::mt19937 random(3);
  std::normal_distribution<float> number;
  std::vector<std::byte> records(chunks * record_bytes);
  std::vector<ByteView> each;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const auto record = std::span(records).subspan(chunk * record_bytes, record_bytes);
    for (size_t i = 0; i < record_bytes; i += sizeof(Bf16)) {
      const Bf16 value = to_bf16(number(random));
      std::memcpy(record.data() + i, &value, sizeof value);
    }
    each.emplace_back(record);
  }
  const auto gpu = gpu_if_any();
  const bool is_fused = std::string_view(cpu_isa_name()) != "SSE4";
  bool right = true;
  for (const size_t n : {8, 16, 32, 128}) {
    std::vector<float> q(n * shape.heads * shape.head_dim);
    for (float& value : q) value = number(random);
    double fast_sum = 0, plain_sum = 0;
    const auto by = [&](auto score) {
      double sum = 0;
      for (const ByteView record : each)
        sum += static_cast<double>(score(shape, q.data(), n, reinterpret_cast<const Bf16*>(record.data())));
      return sum;
    };
    const double fast = milliseconds([&] { return by(late_score_cpu); }, fast_sum);
    const double plain = milliseconds([&] { return by(late_score_reference); }, plain_sum);
    const double flops = 2.0 * static_cast<double>(n * shape.heads * shape.head_dim * shape.tokens * chunks);
    std::printf("%3zu question tokens, %zu chunks, %s: %.2f ms, %.0f GFLOP/s; plain loops %.2f ms, ratio %.1f\n", n,
                chunks, cpu_isa_name(), fast, flops / fast / 1e6, plain, plain / fast);
    if (!gpu) continue;
    double gpu_sum = 0;
    for (const size_t count : {size_t{1}, size_t{8}, chunks}) {
      const double took = milliseconds(
          [&] {
            double sum = 0;
            for (const float score : must(gpu->late_scores(q, std::span(each).first(count)), "compare on the GPU"))
              sum += static_cast<double>(score);
            return sum;
          },
          gpu_sum);
      std::printf("    %s, %3zu chunks: %.3f ms; one thread of the CPU takes %.1f x\n", gpu->name().c_str(), count,
                  took, fast * static_cast<double>(count) / static_cast<double>(chunks) / took);
    }
    const double apart = std::abs(gpu_sum - fast_sum);
    if (apart <= (is_fused ? 0 : 1e-4 * std::abs(fast_sum))) continue;
    std::printf("    sums differ: %.9g, and %.9g on the CPU\n", gpu_sum, fast_sum);
    right = false;
  }
  return right ? 0 : 1;
} catch (const std::exception& reason) {
  std::fprintf(stderr, "late: %s\n", reason.what());
  return 1;
}
