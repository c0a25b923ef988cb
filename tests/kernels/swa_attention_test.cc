// Sliding-window attention against plain loops over whole streams.
#include "kernels/swa_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/cpu_isa.h"
#include "tests/support/random_floats.h"
#include "tests/support/tensor_near.h"

namespace recalld {
namespace {

const SwaShape shapes[] = {{2, 2, 64, 64}, {6, 2, 32, 128}, {3, 1, 64, 192}, {1, 1, 96, 64}};

struct Stream {
  SwaShape shape;
  size_t tokens;
  std::vector<float> qkv, q_norm, k_norm;

  Stream(const SwaShape& of, size_t count)
      : shape(of),
        tokens(count),
        qkv(random_floats(count * of.qkv_width(), 1, 2)),
        q_norm(random_floats(of.head_dim, 2)),
        k_norm(random_floats(of.head_dim, 3)) {}

  SwaWeights weights() const { return {q_norm.data(), k_norm.data(), 1e-5f}; }
  const float* at(size_t token) const { return qkv.data() + token * shape.qkv_width(); }

  std::vector<float> expected() const {
    std::vector<float> out(tokens * shape.q_width());
    swa_attention_reference(shape, 10000, qkv.data(), weights(), tokens, out.data());
    return out;
  }
  // By calls of these many tokens, the last number again and again; of 1 token: as steps.
  std::vector<float> run(const std::vector<size_t>& cuts, std::vector<float>& state) const {
    const SwaAttention attention = SwaAttention::make(ProductType::f32, shape, 10000);
    std::vector<float> out(tokens * shape.q_width());
    for (size_t done = 0, call = 0; done < tokens; ++call) {
      const size_t count = std::min(tokens - done, cuts[std::min(call, cuts.size() - 1)]);
      float* const to = out.data() + done * shape.q_width();
      if (count == 1)
        attention.step(at(done), weights(), state.data(), to);
      else
        attention.run(at(done), weights(), state.data(), to, count);
      done += count;
    }
    return out;
  }
  std::vector<float> run(const std::vector<size_t>& cuts) const {
    std::vector<float> state(shape.state_floats());
    return run(cuts, state);
  }
};

TEST(SwaAttention, EqualsPlainLoopsHoweverTheStreamIsCut) {
  for (const SwaShape& shape : shapes) {
    const Stream stream(shape, 3 * shape.window + 200);
    const auto expected = stream.expected();
    for (const auto& cuts : std::vector<std::vector<size_t>>{{64}, {1}, {64, 64, 64, 40, 1}, {7, 50}, {64, 63, 64}})
      EXPECT_TRUE(tensor_near(stream.run(cuts), expected, 1e-5))
          << "window " << shape.window << ", first cut " << cuts.front();
  }
}

// A change of one token is seen by it and by the `window` tokens behind it, and by no other.
TEST(SwaAttention, ATokenIsSeenAsFarAsTheWindowReaches) {
  for (const SwaShape& shape : shapes) {
    Stream stream(shape, 2 * shape.window + 128);
    for (const size_t token : {size_t{0}, size_t{63}, size_t{70}}) {
      for (const size_t cut : {64, 1}) {
        const auto before = stream.run({cut});
        for (float& value : std::span(stream.qkv).subspan(token * shape.qkv_width(), shape.qkv_width())) value += 1;
        const auto after = stream.run({cut});
        for (size_t other = 0; other < stream.tokens; ++other) {
          const size_t at = other * shape.q_width();
          const bool same = std::memcmp(&before[at], &after[at], shape.q_width() * sizeof(float)) == 0;
          ASSERT_EQ(same, other < token || other > token + shape.window) << "token " << token << " and " << other;
        }
      }
    }
  }
}

// What was read long ago, and how long ago that is, leaves no trace: the same tokens give the same bits where the ring
// stands in the same place, and nearly the same ones anywhere.
TEST(SwaAttention, AStreamOfAnyLengthKeepsItsPrecision) {
  const SwaShape shape = shapes[0];
  const size_t ring = shape.ring_blocks() * swa_block;
  const Stream noise(shape, ring), stream(shape, 2 * ring);
  std::vector<float> state(shape.state_floats());
  noise.run({64}, state);
  const auto early = stream.run({64}, state);
  for (int round = 0; round < 1000; ++round) noise.run({64}, state);
  const auto late = stream.run({64}, state);
  EXPECT_EQ(early, late);
  EXPECT_LT(state[0], static_cast<float>(2 * ring));
  const Stream shorter(shape, swa_block);
  shorter.run({64}, state);
  noise.run({64}, state);
  const auto elsewhere = stream.run({64}, state);
  EXPECT_TRUE(tensor_near(elsewhere, late, 1e-6));
}

TEST(SwaAttention, Bf16ProductsStayWithinTheirRounding) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << "this CPU has no bf16 products";
  for (const SwaShape& shape : shapes) {
    const Stream stream(shape, 2 * shape.window + 100);
    const SwaAttention attention = SwaAttention::make(ProductType::bf16, shape, 10000);
    for (const size_t cut : {size_t{64}, size_t{1}}) {
      std::vector<float> state(shape.state_floats()), got;
      for (size_t done = 0; done < stream.tokens;) {
        const size_t count = std::min(cut, stream.tokens - done);
        std::vector<Bf16> out(count * shape.q_width());
        if (cut == 1)
          attention.step(stream.at(done), stream.weights(), state.data(), out.data());
        else
          attention.run(stream.at(done), stream.weights(), state.data(), out.data(), count);
        for (const Bf16 value : out) got.push_back(to_float(value));
        done += count;
      }
      EXPECT_TRUE(tensor_near(got, stream.expected(), 3e-2)) << "window " << shape.window << ", cut " << cut;
    }
  }
}

}  // namespace
}  // namespace recalld
