// The GPU's late interaction against plain loops with fused multiply-add, and against its CPU twin where that has it,
// too: bit by bit. Skipped where there is no GPU.
#include "kernels/late_interaction_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/late_interaction.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

constexpr size_t width = cuda::late_head_dim;

struct Problem {
  LateShape shape;
  size_t n, chunks;
  std::vector<float> q = random_floats(n * shape.heads * width, 1);
  std::vector<Bf16> k = rounded(random_floats(chunks * of_chunk(), 2));

  static Problem of(size_t kv_heads, size_t group, size_t tokens, size_t n, size_t chunks) {
    return {{.heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = width, .tokens = tokens}, n, chunks};
  }
  size_t of_chunk() const { return shape.tokens * shape.kv_heads * width; }
  const Bf16* keys(size_t chunk) const { return k.data() + chunk * of_chunk(); }
  std::string name() const {
    return std::to_string(shape.heads) + " heads, " + std::to_string(shape.kv_heads) + " KV heads, " +
           std::to_string(shape.tokens) + " tokens, " + std::to_string(n) + " of the question, " +
           std::to_string(chunks) + " chunks";
  }

  // One place more, which must stay as it was.
  std::vector<float> on_gpu() const {
    const DeviceArray<float> device_q(q);
    const DeviceArray<Bf16> device_k(k);
    const DeviceArray<float> scores(chunks + 1);
    must(cuda::late_interaction({.q = device_q.data(),
                                 .k = device_k.data(),
                                 .scores = scores.data(),
                                 .n = static_cast<uint32_t>(n),
                                 .heads = static_cast<uint32_t>(shape.heads),
                                 .kv_heads = static_cast<uint32_t>(shape.kv_heads),
                                 .head_dim = static_cast<uint32_t>(width),
                                 .tokens = static_cast<uint32_t>(shape.tokens),
                                 .chunks = static_cast<uint32_t>(chunks)},
                                nullptr));
    std::vector<float> found = scores.host();
    EXPECT_TRUE(std::isnan(found.back())) << "written behind the scores";
    found.pop_back();
    return found;
  }

  float by_loops(size_t chunk) const {
    float sum = 0;
    for (size_t token = 0; token < n; ++token) {
      float best = -std::numeric_limits<float>::infinity();
      for (size_t head = 0; head < shape.heads; ++head) {
        const float* const query = q.data() + (token * shape.heads + head) * width;
        for (size_t at = 0; at < shape.tokens; ++at) {
          const Bf16* const key = keys(chunk) + (at * shape.kv_heads + head / (shape.heads / shape.kv_heads)) * width;
          float dot = 0;
          for (size_t i = 0; i < width; ++i) dot = std::fma(query[i], to_float(key[i]), dot);
          best = std::max(best, dot);
        }
      }
      sum += best;
    }
    return sum / static_cast<float>(n) / std::sqrt(static_cast<float>(width));
  }

  void expect_parity() const {
    SCOPED_TRACE(name());
    const std::vector<float> found = on_gpu();
    std::vector<float> expected;
    for (size_t chunk = 0; chunk < chunks; ++chunk) expected.push_back(by_loops(chunk));
    EXPECT_TRUE(same_bits<float>(found, expected));
    const bool is_fused = std::string_view(cpu_isa_name()) != "SSE4";
    if (shape.tokens % 16 != 0 || !is_fused) return;  // the twin takes no other
    for (size_t chunk = 0; chunk < chunks; ++chunk)
      EXPECT_EQ(found[chunk], late_score_cpu(shape, q.data(), n, keys(chunk))) << "chunk " << chunk;
  }
};

using LateInteractionCuda = GpuTest;

TEST_F(LateInteractionCuda, HasTheBitsOfTheTwinForEveryShape) {
  for (const size_t kv_heads : {1, 2, 3, 4, 5})
    for (const size_t group : {1, 2, 6, 7})
      for (const size_t tokens : {1, 16, 31, 32, 33, 63, 64, 80})
        for (const size_t n : {1, 7, 8, 9}) Problem::of(kv_heads, group, tokens, n, 3).expect_parity();
}

TEST_F(LateInteractionCuda, TakesOneQuestionTokenAndAsManyAsItMay) {
  for (const size_t n : {1, 2, 127, 128, 129, 1024}) Problem::of(1, 6, 64, n, 2).expect_parity();
}

TEST_F(LateInteractionCuda, TakesOneChunkAndMoreThanTheCardHoldsAtOnce) {
  for (const size_t chunks : {1, 2, 128, 3'000}) Problem::of(1, 2, 64, 3, chunks).expect_parity();
}

TEST_F(LateInteractionCuda, AChunkHasTheSameBitsAmongOthers) {
  const Problem together = Problem::of(2, 3, 64, 20, 300);
  const std::vector<float> all = together.on_gpu();
  for (const size_t chunk : {0, 1, 150, 299}) {
    Problem alone = Problem::of(2, 3, 64, 20, 1);
    alone.k.assign(together.keys(chunk), together.keys(chunk + 1));
    EXPECT_EQ(alone.on_gpu()[0], all[chunk]) << chunk;
  }
}

TEST_F(LateInteractionCuda, TakesTheBestKeyOfAnyHeadForEachToken) {
  for (const size_t best : {0, 31, 32, 62, 63}) {
    for (const size_t head : {0, 2, 3, 5}) {
      Problem problem = Problem::of(2, 3, 64, 2, 2);
      std::ranges::fill(problem.k, to_bf16(0));
      std::ranges::fill(problem.q, 0.0f);
      problem.k[problem.of_chunk() + (best * 2 + head / 3) * width + 5] = to_bf16(8);  // in the second chunk
      problem.q[(6 + head) * width + 5] = 3;                                           // of the second token
      const std::vector<float> found = problem.on_gpu();
      EXPECT_EQ(found[0], 0.0f);
      EXPECT_EQ(found[1], 3 * 8 / 8.0f / 2) << "key " << best << " head " << head;
      problem.q[(6 + head) * width + 5] = -3;  // then every other key is better
      EXPECT_EQ(problem.on_gpu()[1], 0.0f);
    }
  }
}

TEST_F(LateInteractionCuda, EqualKeysAndLogitsOfAnySizeHaveTheBitsOfTheTwin) {
  for (const float scale : {1e-42f, 1e-30f, 1e-3f, 1e4f, 1e30f}) {
    Problem problem = Problem::of(2, 3, 64, 9, 5);
    for (float& each : problem.q) each *= scale;
    for (size_t i = problem.of_chunk(); i < 2 * problem.of_chunk(); ++i)  // a chunk of one key again and again
      problem.k[i] = problem.k[problem.of_chunk() + i % (2 * width)];
    problem.expect_parity();
  }
  // Logits beyond all numbers: the signs of one query and one key are the same everywhere.
  for (const float sign : {1.0f, -1.0f}) {
    Problem problem = Problem::of(1, 2, 64, 3, 2);
    std::ranges::fill(problem.q, sign * 3e38f);
    std::ranges::fill(problem.k, to_bf16(4));
    for (const float score : problem.on_gpu()) EXPECT_EQ(score, sign * std::numeric_limits<float>::infinity());
    problem.expect_parity();
  }
}

TEST_F(LateInteractionCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const cuda::LateInteraction right{.n = 1, .heads = 6, .kv_heads = 2, .head_dim = 64, .tokens = 64, .chunks = 0};
  EXPECT_EQ(cuda::late_interaction(right, nullptr), cudaSuccess);
  const auto refused = [&](auto change) {
    cuda::LateInteraction late = right;
    change(late);
    return cuda::late_interaction(late, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused([](auto& late) { late.n = 0; }));
  EXPECT_TRUE(refused([](auto& late) { late.n = cuda::late_question_tokens_max + 1; }));
  EXPECT_TRUE(refused([](auto& late) { late.heads = 0; }));
  EXPECT_TRUE(refused([](auto& late) { late.heads = 5; }));
  EXPECT_TRUE(refused([](auto& late) { late.kv_heads = 0; }));
  EXPECT_TRUE(refused([](auto& late) { late.head_dim = 128; }));
  EXPECT_TRUE(refused([](auto& late) { late.tokens = 0; }));
  EXPECT_TRUE(refused([](auto& late) { late.tokens = cuda::late_chunk_tokens_max + 1; }));
  EXPECT_TRUE(refused([](auto& late) { late.chunks = 0x80000000u; }));
}

}  // namespace
}  // namespace recalld
