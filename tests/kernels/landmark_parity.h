// What the tests of the GPU's top-k of landmarks share: the CPU's answer, and the comparison with it bit by bit.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/landmark_topk.h"

namespace recalld {

inline std::vector<ScoredChunk> on_cpu(std::span<const Bf16> query, const std::vector<Bf16>& landmarks, size_t k) {
  const size_t n = landmarks.size() / query.size();
  std::vector<float> dots(n);
  landmark_dots_cpu(query, landmarks.data(), n, dots.data());
  TopK best(k);
  for (size_t i = 0; i < n; ++i) best.offer({i, dots[i]});
  return best.take();
}

// But for the sign of a zero and the payload of a NaN, `dots` and `chunks` [k] have the bits of what is expected, and
// behind it, where there are fewer landmarks than k, the bytes 0xff that they were filled with.
inline void expect_found(std::span<const ScoredChunk> expected, std::span<const float> dots,
                         std::span<const uint64_t> chunks, const std::string& which) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(chunks[i], expected[i].chunk) << which << " place " << i;
    if (std::isnan(expected[i].dot))
      ASSERT_TRUE(std::isnan(dots[i])) << which << " place " << i;
    else
      ASSERT_EQ(std::bit_cast<uint32_t>(dots[i] + 0.0f), std::bit_cast<uint32_t>(expected[i].dot + 0.0f))
          << which << " place " << i;
  }
  for (size_t i = expected.size(); i < chunks.size(); ++i)
    ASSERT_EQ(chunks[i], ~uint64_t{0}) << which << " place " << i << ": nothing is written beyond the landmarks";
}

inline const std::vector<float> extremes{0.0f,
                                         -0.0f,
                                         1e-38f,
                                         -1e-38f,
                                         std::ldexp(1.0f, -130),
                                         3e38f,
                                         -3e38f,
                                         std::numeric_limits<float>::infinity(),
                                         -std::numeric_limits<float>::infinity(),
                                         std::numeric_limits<float>::quiet_NaN()};

}  // namespace recalld
