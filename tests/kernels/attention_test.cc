// The encoder's and HSA's attention, SwiGLU and chunk weights against plain loops.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/encoder_attention.h"
#include "kernels/hsa_attention.h"
#include "kernels/swiglu.h"
#include "tests/support/random_floats.h"
#include "tests/support/tensor_near.h"

namespace recalld {
namespace {

std::vector<float> widen(const std::vector<Bf16>& values) {
  std::vector<float> wide;
  for (const Bf16 value : values) wide.push_back(to_float(value));
  return wide;
}

TEST(EncoderAttention, EqualsPlainLoopsInBothPrecisionsWithAndWithoutBias) {
  for (const EncoderAttentionShape shape :
       {EncoderAttentionShape{65, 6, 64}, EncoderAttentionShape{64, 1, 32}, EncoderAttentionShape{17, 3, 96}}) {
    const auto qkv = random_floats(shape.rows * 3 * shape.width(), 1, 2), bias = random_floats(3 * shape.width(), 2);
    const auto q_norm = random_floats(shape.head_dim, 3), k_norm = random_floats(shape.head_dim, 4);
    for (const float* with_bias : {static_cast<const float*>(nullptr), bias.data()}) {
      const EncoderAttentionWeights weights{with_bias, q_norm.data(), k_norm.data(), 1e-5f};
      std::vector<float> expected(shape.rows * shape.width()), got(expected.size());
      encoder_attention_reference(shape, 10000, qkv.data(), weights, expected.data());
      EncoderAttention::make(ProductType::f32, shape, 10000).run(qkv.data(), weights, got.data());
      EXPECT_TRUE(tensor_near(got, expected, 1e-5)) << shape.rows << " rows";
      if (!cpu_multiplies_bf16()) continue;
      std::vector<Bf16> rounded(expected.size());
      EncoderAttention::make(ProductType::bf16, shape, 10000).run(qkv.data(), weights, rounded.data());
      EXPECT_TRUE(tensor_near(widen(rounded), expected, 3e-2)) << shape.rows << " rows";
    }
  }
}

TEST(EncoderAttention, LeavesNothingOfALargerShapeBehind) {
  const EncoderAttentionShape large{65, 2, 64}, small{65, 2, 32};
  const auto x = random_floats(65 * 3 * large.width(), 5), norm = random_floats(64, 6);
  const EncoderAttentionWeights weights{nullptr, norm.data(), norm.data(), 1e-5f};
  const EncoderAttention narrow = EncoderAttention::make(ProductType::f32, small, 10000);
  std::vector<float> before(65 * small.width()), after(before.size()), out(65 * large.width());
  narrow.run(x.data(), weights, before.data());
  EncoderAttention::make(ProductType::f32, large, 10000).run(x.data(), weights, out.data());
  narrow.run(x.data(), weights, after.data());
  EXPECT_EQ(before, after);
}

TEST(Swiglu, MultipliesTheGateIntoTheOtherHalf) {
  const size_t rows = 3, width = 48;
  const auto x = random_floats(rows * 2 * width, 7, 3);
  std::vector<float> expected, got(rows * width);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < width; ++i) {
      const float gate = x[row * 2 * width + i], up = x[row * 2 * width + width + i];
      expected.push_back(gate / (1 + std::exp(-gate)) * up);
    }
  }
  swiglu_cpu(x.data(), rows, width, got.data());
  EXPECT_TRUE(tensor_near(got, expected, 1e-6));
  std::vector<Bf16> rounded(got.size());
  swiglu_cpu(x.data(), rows, width, rounded.data());
  EXPECT_TRUE(tensor_near(widen(rounded), expected, 5e-3));
}

TEST(HsaAttention, WeighsASoftmaxInsideEachChunk) {
  // Two heads share a KV head that lies beside another one.
  const HsaShape shape{.heads = 2, .head_dim = 16, .tokens = 4, .stride = 32};
  const auto q = random_floats(2 * 16, 8), k = random_floats(2 * 4 * 32, 9), v = random_floats(2 * 4 * 32, 10);
  const HsaChunk chunks[] = {{k.data() + 16, v.data() + 16, 0.75f},
                             {k.data() + 4 * 32 + 16, v.data() + 4 * 32 + 16, 0.25f}};
  std::vector<float> expected(2 * 16), got(expected.size());
  for (size_t head = 0; head < 2; ++head) {
    for (const HsaChunk& chunk : chunks) {
      double e[4], sum = 0;
      for (size_t t = 0; t < 4; ++t) {
        double dot = 0;
        for (size_t i = 0; i < 16; ++i) dot += static_cast<double>(q[head * 16 + i] * chunk.k[t * 32 + i]);
        sum += e[t] = std::exp(dot / 4);
      }
      for (size_t t = 0; t < 4; ++t)
        for (size_t i = 0; i < 16; ++i)
          expected[head * 16 + i] += chunk.weight * static_cast<float>(e[t] / sum) * chunk.v[t * 32 + i];
    }
  }
  hsa_attention_cpu(shape, q.data(), chunks, got.data());
  EXPECT_TRUE(tensor_near(got, expected, 1e-5));
  hsa_attention_cpu(shape, q.data(), std::span<const HsaChunk>(), got.data());
  EXPECT_THAT(got, ::testing::Each(0.0f));
  got[0] = 1;
  hsa_attention_cpu(shape, q.data(), std::span<const HsaStoredChunk>(), got.data());
  EXPECT_THAT(got, ::testing::Each(0.0f));
}

TEST(HsaAttention, OfStoredChunksEqualsPlainLoops) {
  for (const HsaShape& shape : {HsaShape{6, 64, 64, 64}, HsaShape{1, 16, 16, 48}, HsaShape{5, 128, 64, 256}}) {
    for (const float spread : {1.0f, 30.0f}) {  // the latter puts nearly all weight on one token
      const size_t numbers = shape.tokens * shape.stride, chunks = 3;
      const auto q = random_floats(shape.heads * shape.head_dim, 11, spread);
      const std::vector<Bf16> kv = rounded(random_floats(2 * chunks * numbers, 12));
      const std::vector<float> wide = widen(kv);
      std::vector<HsaStoredChunk> stored;
      std::vector<HsaChunk> plain;
      for (size_t i = 0; i < chunks; ++i) {
        const size_t k = 2 * i * numbers, v = k + numbers;
        const float weight = 0.5f / static_cast<float>(i + 1);
        stored.push_back({kv.data() + k, kv.data() + v, weight});
        plain.push_back({wide.data() + k, wide.data() + v, weight});
      }
      std::vector<float> expected(q.size()), got(q.size(), 7.0f);
      hsa_attention_cpu(shape, q.data(), plain, expected.data());
      hsa_attention_cpu(shape, q.data(), stored, got.data());
      EXPECT_TRUE(tensor_near(got, expected, 1e-5)) << shape.heads << " heads of " << shape.head_dim;
    }
  }
}

TEST(ChunkWeights, SoftmaxAddsUpToOneAndStickBreakingToLess) {
  const float scores[] = {2.0f, -1.0f, 90.0f};
  float weights[3];
  chunk_weights_cpu({.softmax = true}, scores, weights);
  EXPECT_NEAR(weights[2], 1.0f, 1e-6f);

  const float mild[] = {0.5f, -0.25f, 1.0f};
  chunk_weights_cpu({}, mild, weights);
  // The stick: each takes sigmoid(score) of what the newer ones left.
  float left = 1;
  for (size_t i = 0; i < 3; ++i) {
    const float taken = 1 / (1 + std::exp(-mild[i]));
    EXPECT_NEAR(weights[i], left * taken, 1e-6f);
    left *= 1 - taken;
  }
  // The older ones' scores decay by place.
  const float decayed[] = {0.5f, -0.25f - 0.125f, 1.0f - 2 * 0.125f};
  for (const bool softmax : {false, true}) {
    float expected[3];
    chunk_weights_cpu({.softmax = softmax}, decayed, expected);
    chunk_weights_cpu({.softmax = softmax, .pos_decay = -0.125f}, mild, weights);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(weights[i], expected[i]);
  }

  const float extreme[] = {-200.0f, 200.0f};
  chunk_weights_cpu({}, extreme, weights);
  EXPECT_NEAR(weights[0], 0.0f, 1e-6f);
  EXPECT_NEAR(weights[1], 1.0f, 1e-6f);
}

TEST(ChunkWeights, TheNewestOfThoseNearTheBestHasMostWhereScoresAreRelative) {
  constexpr ChunkWeighting how{.stick_slope = 2, .stick_margin = 4};
  const auto of = [&](std::vector<float> scores) {
    std::vector<float> weights(scores.size());
    chunk_weights_cpu(how, scores, weights);
    EXPECT_NEAR(std::accumulate(weights.begin(), weights.end(), 0.0f), 1.0f, 1e-6f);
    return weights;
  };
  // By the definition in doubles.
  const std::vector<float> scores{3.5f, 5.0f, -2.0f, 4.0f};
  std::vector<double> expected;
  double left = 1, sum = 0;
  for (const float score : scores) {
    const double taken = 1 / (1 + std::exp(-2 * (double{score} - 5 + 4)));
    expected.push_back(left * taken);
    sum += expected.back();
    left *= 1 - taken;
  }
  const std::vector<float> weights = of(scores);
  for (size_t i = 0; i < scores.size(); ++i) EXPECT_NEAR(weights[i], expected[i] / sum, 1e-6) << i;

  EXPECT_GT(of({299.0f, 300.0f, 285.0f})[0], 0.99f);                    // told twice: the newer one
  EXPECT_GT(of({290.0f, 300.0f, 285.0f})[1], 0.99f);                    // newer, and about something else
  EXPECT_EQ(of({290.0f, 300.0f, 285.0f}), of({-10.0f, 0.0f, -15.0f}));  // wherever all of them lie
  EXPECT_EQ(of({-500.0f}), std::vector<float>{1.0f});
}

}  // namespace
}  // namespace recalld
