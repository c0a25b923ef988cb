// The GPU's top-k of landmarks for batches of queries against the CPU twin, bit by bit. Skipped where there is no GPU.
#include "kernels/landmark_topk_batch_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/landmark_topk_cuda.h"
#include "tests/kernels/landmark_parity.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

class LandmarkTopKBatchCuda : public GpuTest {
 protected:
  // Twice with one workspace, of any contents at first.
  static void expect_parity(const std::vector<Bf16>& queries, size_t dim, const std::vector<Bf16>& landmarks,
                            uint32_t k) {
    const size_t n = landmarks.size() / dim, count = queries.size() / dim;
    SCOPED_TRACE("n " + std::to_string(n) + " dim " + std::to_string(dim) + " queries " + std::to_string(count) +
                 " k " + std::to_string(k));
    std::vector<std::vector<ScoredChunk>> expected;
    for (size_t q = 0; q < count; ++q)
      expected.push_back(on_cpu(std::span(queries).subspan(q * dim, dim), landmarks, k));
    const DeviceArray<Bf16> device_queries(queries), device_landmarks(landmarks);
    const DeviceArray<float> dots(count * k);
    const DeviceArray<uint64_t> chunks(count * k);
    const DeviceArray<std::byte> workspace(cuda::landmark_topk_batch_workspace(k));
    if (!is_unfilled()) workspace.fill(0xa5);
    for (int call = 0; call < 2; ++call) {
      dots.fill(0xff);
      chunks.fill(0xff);
      must(cuda::landmark_topk_batch({.queries = device_queries.data(),
                                      .count = static_cast<uint32_t>(count),
                                      .landmarks = device_landmarks.data(),
                                      .n = n,
                                      .dim = static_cast<uint32_t>(dim),
                                      .k = k,
                                      .dots = dots.data(),
                                      .chunks = chunks.data(),
                                      .workspace = workspace.data()},
                                     nullptr));
      const auto found_dots = dots.host();
      const auto found_chunks = chunks.host();
      for (size_t q = 0; q < count; ++q) {
        expect_found(expected[q], std::span(found_dots).subspan(q * k, k), std::span(found_chunks).subspan(q * k, k),
                     "query " + std::to_string(q));
        if (HasFatalFailure()) return;
      }
    }
  }
};

TEST_F(LandmarkTopKBatchCuda, HasTheBitsAndTheOrderOfTheCpu) {
  for (const size_t dim : {32, 64, 96, 256, 320, 1024, 2560, 8192}) {
    for (const size_t n : {1, 7, 31, 32, 33, 255, 1000, 20'000}) {
      if (n * dim > (size_t{6} << 20)) continue;
      const auto landmarks = rounded(random_floats(dim * n, 2 + n));
      for (const size_t count : {1, 7, 8, 9, 17, 33, 64}) {
        const auto queries = rounded(random_floats(dim * count, 1 + count));
        for (const uint32_t k : {1, 8, 33, 128}) {
          expect_parity(queries, dim, landmarks, k);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(LandmarkTopKBatchCuda, AgreesWhereOnlyASampleSetsTheFloor) {
  const size_t dim = 64, n = 300'000;
  const auto landmarks = rounded(random_floats(dim * n, 11)), queries = rounded(random_floats(dim * 5, 12));
  for (const uint32_t k : {1, 8, 40, 128}) expect_parity(queries, dim, landmarks, k);
}

TEST_F(LandmarkTopKBatchCuda, LandmarksMuchLargerThanTheOthersAreFound) {
  const size_t dim = 96, n = 100'000;
  std::mt19937 random(13);
  auto landmarks = rounded(random_floats(dim * n, 14));
  for (int i = 0; i < 12; ++i) {
    const size_t row = random() % n;
    for (size_t j = 0; j < dim; ++j)
      landmarks[row * dim + j] = to_bf16(to_float(landmarks[row * dim + j]) * std::ldexp(1.0f, 10 * i));
  }
  const auto queries = rounded(random_floats(dim * 20, 15));
  for (const uint32_t k : {1, 8, 100}) expect_parity(queries, dim, landmarks, k);
}

// Rows of the same numbers in other orders, which nearly cancel out: what tells them apart is rounding alone, and the
// tensor cores round otherwise. Fewer rows than there is room for candidates, then more.
TEST_F(LandmarkTopKBatchCuda, TheMarginCoversTheRoundingOfTensorCores) {
  std::mt19937 random(17);
  for (const size_t dim : {64, 256, 1024}) {
    for (const size_t n : {1500, 7000}) {
      auto numbers = random_floats(dim / 2, 18, 30);
      std::vector<float> row(numbers);
      for (const float number : numbers) row.push_back(-number);
      std::vector<Bf16> landmarks;
      for (size_t i = 0; i < n; ++i) {
        std::shuffle(row.begin(), row.end(), random);
        for (const float number : row) landmarks.push_back(to_bf16(number));
      }
      std::vector<Bf16> queries(dim * 9, to_bf16(1.0f));
      for (size_t q = 0; q < 9; ++q)
        for (size_t i = 0; i < dim; ++i) queries[q * dim + i] = to_bf16(std::ldexp(1.0f, static_cast<int>(q)));
      for (const uint32_t k : {1, 8, 128}) expect_parity(queries, dim, landmarks, k);
    }
  }
}

// What tensor cores cut off puts rows in the wrong order. Products of 256 are met by small ones, which are lost when
// they are added to them one step after the other, but not in the order that counts, where few of them meet. Few rows
// gain by all their small products. The others lose by theirs, or have none, and gain 0.9 of the difference by one
// product, which every order keeps. So the few are the best, but seem worse by nearly all that is lost, and with the
// margin cut to a tenth (where the others have none, to a twentieth) they would not be found: this whether sums keep no
// bit below their last one while products are added, one, or two, a query for each. The scores lie on both sides of
// 256.125, as the search takes the last 12 bits of the k-th best one for 0.
TEST_F(LandmarkTopKBatchCuda, TheMarginCoversWhatTensorCoresCutOff) {
  const auto ulp_of_sum = std::ldexp(1.0f, -15);
  for (const size_t dim : {64, 256, 1024, 8192}) {
    for (const float small_of_others : {-1.0f, 0.0f}) {
      std::vector<Bf16> queries;
      for (const int exponent : {-16, -17, -18}) {
        const float small = to_float(to_bf16(std::ldexp(1.98f, exponent)));
        const float difference = (1 - small_of_others) * small * static_cast<float>(dim - 4);
        const float gain = to_float(to_bf16(std::floor(0.9f * difference / (2 * ulp_of_sum)) * (2 * ulp_of_sum)));
        for (const float element : {256.0f, 0.125f, -gain / 2, gain}) queries.push_back(to_bf16(element));
        queries.resize(queries.size() + dim - 4, to_bf16(small));
      }
      const size_t n = dim > 1024 ? 1000 : 4000, one_of = n / 130;
      std::vector<Bf16> landmarks(dim * n, to_bf16(1.0f));
      for (size_t row = 0; row < n; ++row) {
        Bf16* const elements = landmarks.data() + row * dim;
        if (row % one_of == 3)
          elements[3] = to_bf16(0.0f);
        else
          std::fill_n(elements + 4, dim - 4, to_bf16(small_of_others));
      }
      for (const uint32_t k : {1, 8, 128}) expect_parity(queries, dim, landmarks, k);
    }
  }
}

TEST_F(LandmarkTopKBatchCuda, TiesGoToTheLowerChunkHoweverMany) {
  std::mt19937 random(3);
  const size_t dim = 64, n = 40'000;
  std::vector<Bf16> queries(dim * 10, to_bf16(1.0f)), landmarks(dim * n);
  for (size_t row = 0; row < n; ++row) {
    landmarks[row * dim] = to_bf16(static_cast<float>(random() % 5));
    landmarks[row * dim + 1] = to_bf16(static_cast<float>(random() % 20'000 == 0));
  }
  // Some queries tell the few apart, and some do not.
  for (size_t q = 0; q < 10; q += 3) queries[q * dim + 1] = to_bf16(100.0f);
  for (const uint32_t k : {1, 8, 128}) expect_parity(queries, dim, landmarks, k);
  expect_parity(queries, dim, std::vector<Bf16>(dim * 30'000), 128);
}

TEST_F(LandmarkTopKBatchCuda, ExtremeNumbersKeepTheirOrder) {
  std::mt19937 random(5);
  const size_t dim = 32;
  for (const size_t kinds : {5, 7, 10}) {
    for (const size_t n : {400, 30'000}) {
      std::vector<Bf16> queries(dim * 9, to_bf16(1.0f)), landmarks(dim * n);
      for (size_t q = 1; q < 9; ++q) queries[q * dim] = to_bf16(q < 5 ? 1.5f : extremes[q]);
      for (size_t row = 0; row < n; ++row)
        for (size_t i = 0; i < 2; ++i) landmarks[row * dim + i * 7] = to_bf16(extremes[random() % kinds]);
      for (const uint32_t k : {8, 100, 128}) expect_parity(queries, dim, landmarks, k);
    }
  }
}

TEST_F(LandmarkTopKBatchCuda, ShapesThatAreOutOfBoundsAreRefused) {
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 1, .n = 1, .dim = 33, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 1, .n = 1, .dim = 8224, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 1, .n = 1, .dim = 32, .k = 0}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 1, .n = 1, .dim = 32, .k = 129}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 1, .n = 0xffffffff, .dim = 32, .k = 1}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 65, .n = 1, .dim = 32, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 0, .n = 1, .dim = 32, .k = 1}, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::landmark_topk_batch({.count = 1, .n = 0, .dim = 32, .k = 1}, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace recalld
