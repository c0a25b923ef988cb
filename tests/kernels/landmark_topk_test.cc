#include "kernels/landmark_topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "tests/support/random_floats.h"

namespace recalld {
namespace {

TEST(LandmarkTopK, FastDotsHaveTheBitsOfTheReference) {
  for (const size_t dim : {32, 64, 96, 256, 320, 1024}) {
    for (const size_t n : {0, 1, 2, 7, 100}) {
      for (const float scale : {1.0f, 1e-15f, 1e18f}) {
        const auto query = rounded(random_floats(dim, 1, scale));
        const auto landmarks = rounded(random_floats(dim * n, 2));
        std::vector<float> fast(n), reference(n);
        landmark_dots_cpu(query, landmarks.data(), n, fast.data());
        landmark_dots_reference(query, landmarks.data(), n, reference.data());
        for (size_t i = 0; i < n; ++i) {
          ASSERT_EQ(std::bit_cast<uint32_t>(fast[i]), std::bit_cast<uint32_t>(reference[i]))
              << "dim " << dim << " landmark " << i << " scale " << scale;
        }
      }
    }
  }
}

TEST(LandmarkTopK, SubnormalSumsAreKept) {
  // 2^-100 * 2^-40 is representable only as a subnormal.
  const std::vector<Bf16> query(32, to_bf16(std::ldexp(1.0f, -100)));
  const std::vector<Bf16> landmark(32, to_bf16(std::ldexp(1.0f, -40)));
  float dot = 0;
  landmark_dots_cpu(query, landmark.data(), 1, &dot);
  EXPECT_EQ(dot, std::ldexp(1.0f, -135));
}

TEST(LandmarkTopK, KeepsTheBestInOrderWhateverTheOrderOfOffering) {
  std::mt19937 random(3);
  std::vector<ScoredChunk> all;
  for (uint64_t chunk = 0; chunk < 300; ++chunk) {
    all.push_back({chunk, static_cast<float>(random() % 40)});  // many ties
  }
  std::vector<ScoredChunk> sorted = all;
  std::sort(sorted.begin(), sorted.end(), better);
  for (const size_t k : {1, 8, 299, 300, 301}) {
    std::shuffle(all.begin(), all.end(), random);
    TopK top(k);
    for (const ScoredChunk& candidate : all) top.offer(candidate);
    const auto best = top.take();
    ASSERT_EQ(best.size(), std::min<size_t>(k, 300));
    for (size_t i = 0; i < best.size(); ++i) {
      EXPECT_EQ(best[i].chunk, sorted[i].chunk);
      EXPECT_EQ(best[i].dot, sorted[i].dot);
    }
    EXPECT_TRUE(top.take().empty());
  }
}

TEST(LandmarkTopK, OfEqualScoresTheLowerChunkComesFirst) {
  TopK top(2);
  for (const uint64_t chunk : {9, 4, 7}) top.offer({chunk, 1.0f});
  const auto best = top.take();
  ASSERT_EQ(best.size(), 2u);
  EXPECT_EQ(best[0].chunk, 4u);
  EXPECT_EQ(best[1].chunk, 7u);
}

TEST(LandmarkTopK, NaNComesAfterEverything) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  TopK top(3);
  top.offer({0, nan});
  top.offer({1, nan});
  top.offer({2, -std::numeric_limits<float>::infinity()});
  top.offer({3, 0.0f});
  const auto best = top.take();
  ASSERT_EQ(best.size(), 3u);
  EXPECT_EQ(best[0].chunk, 3u);
  EXPECT_EQ(best[1].chunk, 2u);
  EXPECT_EQ(best[2].chunk, 0u);
}

}  // namespace
}  // namespace recalld
