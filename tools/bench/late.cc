// What it costs to compare a question's tokens with the keys of 128 chunks, as a hybrid search does it, and by plain
// loops.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/late_interaction.h"

using namespace recalld;

namespace {

constexpr LateShape shape{.heads = 6, .kv_heads = 1, .head_dim = 64, .tokens = 64};
constexpr size_t chunks = 128;

template <class Score>
double milliseconds(const std::vector<float>& q, size_t n, const std::vector<Bf16>& k, Score score, float& sum) {
  std::vector<double> took;
  for (int i = 0; i < 15; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (size_t chunk = 0; chunk < chunks; ++chunk) sum += score(shape, q.data(), n, k.data() + chunk * 64 * 64);
    took.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::ranges::nth_element(took, took.begin() + 7);
  return took[7];
}

}  // namespace

int main() {
  std::mt19937 random(3);
  std::normal_distribution<float> number;
  std::vector<Bf16> k(chunks * 64 * 64);
  for (Bf16& each : k) each = to_bf16(number(random));
  for (const size_t n : {8, 16, 32, 128}) {
    std::vector<float> q(n * 6 * 64);
    for (float& each : q) each = number(random);
    float sum = 0;
    const double fast = milliseconds(q, n, k, late_score_cpu, sum);
    const double plain = milliseconds(q, n, k, late_score_reference, sum);
    const double flops = 2.0 * static_cast<double>(n) * 6 * 64 * 64 * chunks;
    std::printf("%3zu question tokens, 128 chunks, %s: %.2f ms, %.0f GFLOP/s; plain loops %.2f ms, ratio %.1f (%g)\n",
                n, cpu_isa_name(), fast, flops / fast / 1e6, plain, plain / fast, static_cast<double>(sum));
  }
  return 0;
}
