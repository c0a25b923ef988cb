#include "kernels/late_interaction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace recalld {
namespace {

class LateInteraction : public ::testing::Test {
 protected:
  std::vector<float> numbers(size_t count) {
    std::vector<float> made(count);
    for (float& each : made) each = std::normal_distribution<float>()(random_);
    return made;
  }
  std::vector<Bf16> keys(const LateShape& shape) {
    std::vector<Bf16> made;
    for (const float each : numbers(shape.tokens * shape.kv_heads * shape.head_dim)) made.push_back(to_bf16(each));
    return made;
  }
  std::mt19937 random_{11};
};

TEST_F(LateInteraction, IsThatOfPlainLoops) {
  for (const LateShape& shape : {LateShape{.heads = 6, .kv_heads = 1, .head_dim = 64, .tokens = 64},
                                 LateShape{.heads = 1, .kv_heads = 1, .head_dim = 16, .tokens = 16},
                                 LateShape{.heads = 8, .kv_heads = 4, .head_dim = 48, .tokens = 48},
                                 LateShape{.heads = 3, .kv_heads = 3, .head_dim = 128, .tokens = 80}}) {
    const std::vector<Bf16> k = keys(shape);
    for (const size_t n : {1, 2, 3, 5, 17, 128}) {
      const std::vector<float> q = numbers(n * shape.heads * shape.head_dim);
      const float expected = late_score_reference(shape, q.data(), n, k.data());
      // A logit is a sum of head_dim products of order 1, over the root of head_dim.
      EXPECT_NEAR(late_score_cpu(shape, q.data(), n, k.data()), expected, 2e-5f)
          << shape.heads << " heads, " << shape.kv_heads << " KV heads, d " << shape.head_dim << ", " << n << " tokens";
    }
  }
}

TEST_F(LateInteraction, TakesTheBestKeyOfAnyHeadForEachToken) {
  const LateShape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .tokens = 32};
  std::vector<Bf16> k(shape.tokens * shape.head_dim, to_bf16(0));
  k[31 * 16 + 3] = to_bf16(8);   // the last key answers to dimension 3
  k[0 * 16 + 5] = to_bf16(-16);  // and the first one against dimension 5
  std::vector<float> q(2 * 2 * 16);
  q[0 * 32 + 16 + 3] = 1;  // first token, second head
  q[1 * 32 + 0 + 5] = 1;   // second token, first head: other keys give 0
  EXPECT_FLOAT_EQ(late_score_cpu(shape, q.data(), 2, k.data()), (8 / 4.0f + 0) / 2);
  EXPECT_FLOAT_EQ(late_score_reference(shape, q.data(), 2, k.data()), (8 / 4.0f + 0) / 2);
}

}  // namespace
}  // namespace recalld
