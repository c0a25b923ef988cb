// The reference is the Triton kernel of the paper on one H200. Selections of a prefill: "model", by the shipped model
// itself (select_by_model()); "random", where each token chooses anew; "shared", where it keeps its predecessor's
// chunks but for one, every second time. The floor of a prefill is the time of its products at the rate that mma.sync
// reaches here in registers alone.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/hsa_attention.h"
#include "kernels/hsa_attention_cuda.h"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"
#include "tools/bench/model_selections.h"

namespace recalld::bench {
namespace {

constexpr uint32_t dim = cuda::hsa_head_dim, chunk_tokens = cuda::hsa_chunk_tokens;

template <class T>
T* device_copy(const std::vector<T>& values) {
  T* const data = device_memory<T>(values.size());
  must(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  return data;
}

__global__ void fill(uint32_t* data, size_t count, uint32_t seed) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 2246822519u, x ^= x >> 13;
    // Two bf16 of either sign, between 0.5 and 2.
    data[i] = (x & 0x80ff80ffu) | 0x3f003f00u;
  }
}

// Products of 16 x 8 x 16 in eight independent chains a warp.
__global__ void multiply_only(int rounds, float* sink) {
  float d[8][4] = {};
  const uint32_t one = 0x3f803f80u + threadIdx.x;
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (auto& chain : d)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, "
          "{%0, %1, %2, %3};"
          : "+f"(chain[0]), "+f"(chain[1]), "+f"(chain[2]), "+f"(chain[3])
          : "r"(one));
  float sum = 0;
#pragma unroll
  for (const auto& chain : d) sum += chain[0] + chain[1] + chain[2] + chain[3];
  if (sum == 1) *sink = sum;
}

enum class Choice { random, shared, model };

const char* name_of(Choice choice) {
  return choice == Choice::random ? "random" : choice == Choice::shared ? "shared" : "model";
}

// Random or shared ones, of descending ids.
std::vector<uint32_t> selections(Choice choice, uint32_t tokens, uint32_t k, uint32_t chunks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint32_t> all(chunks), result, now;
  std::iota(all.begin(), all.end(), 0u);
  for (uint32_t token = 0; token < tokens; ++token) {
    if (choice == Choice::random || token == 0) {
      now.clear();
      std::ranges::sample(all, std::back_inserter(now), k, random);
      std::ranges::reverse(now);
    } else if (random() % 2 == 0) {
      now.erase(now.begin() + random() % k);
      uint32_t next = 0;
      do next = random() % chunks;
      while (std::ranges::find(now, next) != now.end());
      now.insert(std::ranges::upper_bound(now, next, std::greater()), next);
    }
    result.insert(result.end(), now.begin(), now.end());
  }
  return result;
}

struct Shape {
  uint32_t tokens, heads, k, chunks;
  Choice choice;
};

// Places of one call each, of one KV head; a cache a place unless it is larger than is wanted cold. The model's
// selections are the same in all places, others differ.
class Inputs {
 public:
  explicit Inputs(const Shape& shape) : shape_(shape) {
    const size_t record = size_t{2} * chunk_tokens * dim, touched = std::min(shape.chunks, shape.tokens * shape.k);
    places_ = static_cast<int>(std::clamp<size_t>(cold_bytes / (touched * record * sizeof(Bf16)), 4, calls_of_graph));
    const size_t elements = static_cast<size_t>(shape.tokens) * shape.heads * dim;
    q_ = device_memory<Bf16>(elements * places_);
    o_ = device_memory<float>(elements);
    cache_ = device_memory<Bf16>(record * shape.chunks * places_);
    fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(q_), elements * places_ / 2, 1);
    fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(cache_), record * shape.chunks * places_ / 2, 2);
    std::mt19937 random(5);
    std::vector<uint32_t> pages(shape.chunks);
    std::iota(pages.begin(), pages.end(), 0u);
    std::ranges::shuffle(pages, random);
    std::normal_distribution<float> normal;
    ModelSelections chosen;
    if (shape.choice == Choice::model) chosen = select_by_model(shape.chunks, shape.tokens, shape.k);
    for (int place = 0; place < places_; ++place) {
      if (shape.choice != Choice::model) {
        chosen.chunks = selections(shape.choice, shape.tokens, shape.k, shape.chunks, place);
        chosen.scores.resize(chosen.chunks.size());
        std::ranges::generate(chosen.scores, [&] { return normal(random); });
      }
      chunks_host_.insert(chunks_host_.end(), chosen.chunks.begin(), chosen.chunks.end());
      scores_host_.insert(scores_host_.end(), chosen.scores.begin(), chosen.scores.end());
      for (const uint32_t page : pages) pages_host_.push_back(page + place * shape.chunks);
    }
    chunks_ = device_copy(chunks_host_);
    scores_ = device_copy(scores_host_);
    pages_ = device_copy(pages_host_);
    const size_t bytes = cuda::hsa_attention_workspace(shape.tokens, shape.heads, 1, shape.k);
    workspace_ = device_memory<std::byte>(std::max<size_t>(1, bytes));
    must(cudaMemset(workspace_, 0, bytes), "clear");
    must(cudaDeviceSynchronize(), "fill");
  }
  ~Inputs() {
    for (void* data :
         {static_cast<void*>(q_), static_cast<void*>(o_), static_cast<void*>(cache_), static_cast<void*>(chunks_),
          static_cast<void*>(scores_), static_cast<void*>(pages_), static_cast<void*>(workspace_)})
      cudaFree(data);
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  void call(cuda::HsaPath path, cudaStream_t stream, int place) const {
    const size_t selected = static_cast<size_t>(shape_.tokens) * shape_.k;
    must(cuda::hsa_attention({.q = q_ + static_cast<size_t>(shape_.tokens) * shape_.heads * dim * place,
                              .chunks = chunks_ + selected * place,
                              .scores = scores_ + selected * place,
                              .page_table = pages_ + static_cast<size_t>(shape_.chunks) * place,
                              .cache = cache_,
                              .o = o_,
                              .tokens = shape_.tokens,
                              .heads = shape_.heads,
                              .kv_heads = 1,
                              .retrieval_heads = 1,
                              .head_dim = dim,
                              .k = shape_.k,
                              .path = path,
                              .workspace = workspace_},
                             stream),
         "launch hsa_attention");
  }
  double cold_us(cuda::HsaPath path) const {
    return time_cold_us([&](cudaStream_t stream, int i) { call(path, stream, i % places_); });
  }
  double warm_us(cuda::HsaPath path) const {
    return time_us([&](cudaStream_t stream, int) { call(path, stream, 0); });
  }

  // Some tokens of the first place, within the bound of the header.
  bool agrees(cuda::HsaPath path) const {
    const size_t of_token = static_cast<size_t>(shape_.heads) * dim, elements = of_token * shape_.tokens;
    must(cudaMemset(o_, 0xff, elements * sizeof(float)), "clear");
    call(path, nullptr, 0);
    std::vector<float> o(elements);
    std::vector<Bf16> q(elements), cache(size_t{2} * chunk_tokens * dim * shape_.chunks);
    must(cudaMemcpy(o.data(), o_, elements * sizeof(float), cudaMemcpyDeviceToHost), "copy");
    must(cudaMemcpy(q.data(), q_, elements * sizeof(Bf16), cudaMemcpyDeviceToHost), "copy");
    must(cudaMemcpy(cache.data(), cache_, cache.size() * sizeof(Bf16), cudaMemcpyDeviceToHost), "copy");
    std::vector<float> cache32, cache_abs, query(of_token), expected(of_token), bound(of_token), weights(shape_.k);
    for (const Bf16 value : cache) cache32.push_back(to_float(value));
    for (const float value : cache32) cache_abs.push_back(std::abs(value));
    const HsaShape of_head{.heads = shape_.heads, .head_dim = dim, .tokens = chunk_tokens, .stride = dim};
    for (uint32_t token = 0; token < shape_.tokens; token += std::max(1u, shape_.tokens / 40)) {
      const size_t place = static_cast<size_t>(token) * shape_.k;
      for (size_t i = 0; i < of_token; ++i) query[i] = to_float(q[token * of_token + i]);
      chunk_weights_cpu({}, {scores_host_.data() + place, shape_.k}, weights);
      std::vector<HsaChunk> chunks, chunks_abs;
      for (uint32_t i = 0; i < shape_.k; ++i) {
        const size_t k_at = size_t{2} * chunk_tokens * dim * pages_host_[chunks_host_[place + i]];
        const size_t v_at = k_at + chunk_tokens * dim;
        chunks.push_back({cache32.data() + k_at, cache32.data() + v_at, weights[i]});
        chunks_abs.push_back({cache32.data() + k_at, cache_abs.data() + v_at, weights[i]});
      }
      hsa_attention_cpu(of_head, query.data(), chunks, expected.data());
      hsa_attention_cpu(of_head, query.data(), chunks_abs, bound.data());
      for (size_t i = 0; i < of_token; ++i)
        if (!(std::abs(o[token * of_token + i] - expected[i]) <= bound[i] / 256)) return false;
    }
    return true;
  }

  // Chunks that 32 neighbouring tokens select together, on average.
  double chunks_of_32() const {
    size_t sum = 0, count = 0;
    for (uint32_t token = 0; token + 32 <= shape_.tokens; token += 32, ++count) {
      std::vector<uint32_t> ids(chunks_host_.begin() + token * shape_.k,
                                chunks_host_.begin() + (token + 32) * shape_.k);
      std::ranges::sort(ids);
      sum += ids.size() - std::ranges::unique(ids).size();
    }
    return count == 0 ? 0 : static_cast<double>(sum) / static_cast<double>(count);
  }

 private:
  const Shape shape_;
  int places_;
  Bf16 *q_, *cache_;
  float *o_, *scores_;
  uint32_t *chunks_, *pages_;
  std::byte* workspace_;
  std::vector<uint32_t> chunks_host_, pages_host_;
  std::vector<float> scores_host_;
};

}  // namespace

bool bench_hsa() {
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "find a GPU");
  constexpr int rounds = 1000;
  auto* const sink = device_memory<float>(1);
  const double multiply_us = time_us(
      [&](cudaStream_t stream, int) { multiply_only<<<card.multiProcessorCount, 512, 0, stream>>>(rounds, sink); });
  const double flops_per_us = card.multiProcessorCount * 16.0 * rounds * 8 * (16 * 8 * 16 * 2) / multiply_us;
  std::printf("hsa_attention, 1 KV head of 64, stick-breaking, reference times of one H200; mma.sync %.0f TFLOP/s\n",
              flops_per_us / 1e6);

  bool all_agree = true;
  std::printf("decode\n");
  struct Decode {
    uint32_t tokens, heads, k;
    double reference_us;  // in a CUDA graph; 0 where it was not measured
  };
  for (const Decode& row : {Decode{1, 16, 8, 17}, Decode{1, 16, 64, 97}, Decode{1, 6, 8, 0}, Decode{1, 16, 1, 0},
                            Decode{1, 16, 16, 0}, Decode{1, 16, 32, 0}, Decode{1, 16, 128, 0}, Decode{16, 16, 8, 0},
                            Decode{64, 16, 8, 0}, Decode{16, 16, 64, 0}, Decode{64, 16, 64, 0}}) {
    const Inputs inputs({row.tokens, row.heads, row.k, 1024, Choice::random});
    const bool right = inputs.agrees(cuda::HsaPath::decode);
    all_agree = all_agree && right;
    const double cold = inputs.cold_us(cuda::HsaPath::decode), warm = inputs.warm_us(cuda::HsaPath::decode);
    std::printf("  %2u tokens, %2u heads, k %3u: %s; cold %6.2f us, warm %6.2f us", row.tokens, row.heads, row.k,
                verdict(right), cold, warm);
    if (row.reference_us > 0)
      std::printf("; the reference takes %.1f x, %.1f x", row.reference_us / cold, row.reference_us / warm);
    std::printf("\n");
  }

  std::printf("prefill, %u tokens, 16 heads\n", prefill_tokens);
  struct Prefill {
    uint32_t k, chunks;
    Choice choice;
    double reference_us;
  };
  for (const Prefill& row :
       {Prefill{8, 64, Choice::model, 98}, Prefill{8, 64, Choice::random, 98}, Prefill{8, 64, Choice::shared, 98},
        Prefill{8, 1024, Choice::model, 98}, Prefill{8, 1024, Choice::random, 98}, Prefill{8, 1024, Choice::shared, 98},
        Prefill{64, 1024, Choice::random, 0}, Prefill{64, 1024, Choice::shared, 0}}) {
    const Inputs inputs({prefill_tokens, 16, row.k, row.chunks, row.choice});
    const bool right = inputs.agrees(cuda::HsaPath::prefill);
    all_agree = all_agree && right;
    const double cold = inputs.cold_us(cuda::HsaPath::prefill), warm = inputs.warm_us(cuda::HsaPath::prefill);
    const double floor = 1.0 * prefill_tokens * row.k * 16 * chunk_tokens * dim * 4 / flops_per_us;
    std::printf(
        "  k %2u of %4u chunks, %-6s (%5.1f chunks of 32 tokens): %s; cold %7.2f us, warm %7.2f us; floor %6.2f us",
        row.k, row.chunks, name_of(row.choice), inputs.chunks_of_32(), verdict(right), cold, warm, floor);
    if (row.reference_us > 0)
      std::printf("; the reference takes %.2f x, %.2f x", row.reference_us / cold, row.reference_us / warm);
    std::printf("\n");
  }

  std::printf("both paths, 16 heads, of 1024 chunks, shared, warm: decode, prefill\n");
  for (const uint32_t k : {8, 64}) {
    for (const uint32_t tokens : {64, 128, 256, 512, 1024}) {
      const Inputs inputs({tokens, 16, k, 1024, Choice::shared});
      std::printf("  k %2u, %4u tokens: %7.2f us, %7.2f us\n", k, tokens, inputs.warm_us(cuda::HsaPath::decode),
                  inputs.warm_us(cuda::HsaPath::prefill));
    }
  }
  return all_agree;
}

}  // namespace recalld::bench
