#include "kernels/late_interaction.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/late_interaction_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

// The largest q · k of 4 rows of q over all keys into `best`, where it is larger. The keys are transposed, so that a
// vector holds as many keys and nothing is summed across its lanes but the maximum.
// q: 4 rows of head_dim · keys: [head_dim, tokens] · best: [4]
void best_keys(size_t head_dim, size_t tokens, const float* const* q, const float* keys, float* best) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  for (size_t first = 0; first < tokens; first += 2 * lanes) {
    // Where one vector is left it is computed twice.
    const size_t second = first + lanes < tokens ? first + lanes : first;
    auto a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    for (size_t i = 0; i < head_dim; ++i) {
      const auto a = hn::LoadU(d, keys + i * tokens + first), b = hn::LoadU(d, keys + i * tokens + second);
      const auto q0 = hn::Set(d, q[0][i]), q1 = hn::Set(d, q[1][i]), q2 = hn::Set(d, q[2][i]), q3 = hn::Set(d, q[3][i]);
      a0 = hn::MulAdd(q0, a, a0);
      b0 = hn::MulAdd(q0, b, b0);
      a1 = hn::MulAdd(q1, a, a1);
      b1 = hn::MulAdd(q1, b, b1);
      a2 = hn::MulAdd(q2, a, a2);
      b2 = hn::MulAdd(q2, b, b2);
      a3 = hn::MulAdd(q3, a, a3);
      b3 = hn::MulAdd(q3, b, b3);
    }
    best[0] = std::max(best[0], hn::GetLane(hn::MaxOfLanes(d, hn::Max(a0, b0))));
    best[1] = std::max(best[1], hn::GetLane(hn::MaxOfLanes(d, hn::Max(a1, b1))));
    best[2] = std::max(best[2], hn::GetLane(hn::MaxOfLanes(d, hn::Max(a2, b2))));
    best[3] = std::max(best[3], hn::GetLane(hn::MaxOfLanes(d, hn::Max(a3, b3))));
  }
}

// best: [n] the largest q · k of each question token
void best_of_tokens(const LateShape& shape, const float* q, size_t n, const Bf16* k, float* best) {
  const size_t width = shape.head_dim, group = shape.heads / shape.kv_heads, stride = shape.kv_heads * width;
  std::vector<float> keys(width * shape.tokens);  // [head_dim, tokens]
  for (size_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    for (size_t token = 0; token < shape.tokens; ++token)
      for (size_t i = 0; i < width; ++i)
        keys[i * shape.tokens + token] = to_float(k[token * stride + kv_head * width + i]);
    // A row a token and a head of the group; four at a time, of which the last may be there more than once.
    const size_t rows = n * group;
    for (size_t row = 0; row < rows; row += 4) {
      const float* four[4];
      float found[4];
      size_t token[4];
      for (size_t i = 0; i < 4; ++i) {
        const size_t at = std::min(row + i, rows - 1);
        token[i] = at / group;
        four[i] = q + (token[i] * shape.heads + kv_head * group + at % group) * width;
        found[i] = best[token[i]];
      }
      best_keys(width, shape.tokens, four, keys.data(), found);
      for (size_t i = 0; i < 4; ++i) best[token[i]] = std::max(best[token[i]], found[i]);
    }
  }
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(best_of_tokens);

namespace {

float mean_logit(const LateShape& shape, const std::vector<float>& best) {
  float sum = 0;
  for (const float each : best) sum += each;
  return sum / static_cast<float>(best.size()) / std::sqrt(static_cast<float>(shape.head_dim));
}

}  // namespace

float late_score_cpu(const LateShape& shape, const float* q, size_t n, const Bf16* k) {
  assert(n > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim % 16 == 0 && shape.tokens % 16 == 0);
  std::vector<float> best(n, -std::numeric_limits<float>::infinity());
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(best_of_tokens)(shape, q, n, k, best.data());
  return mean_logit(shape, best);
}

float late_score_reference(const LateShape& shape, const float* q, size_t n, const Bf16* k) {
  const size_t width = shape.head_dim, group = shape.heads / shape.kv_heads;
  std::vector<float> best(n, -std::numeric_limits<float>::infinity());
  for (size_t row = 0; row < n * shape.heads; ++row) {
    for (size_t token = 0; token < shape.tokens; ++token) {
      float dot = 0;
      for (size_t i = 0; i < width; ++i)
        dot += q[row * width + i] * to_float(k[(token * shape.kv_heads + row % shape.heads / group) * width + i]);
      best[row / shape.heads] = std::max(best[row / shape.heads], dot);
    }
  }
  return mean_logit(shape, best);
}

}  // namespace recalld
#endif  // HWY_ONCE
