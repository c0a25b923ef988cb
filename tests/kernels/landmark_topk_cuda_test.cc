// The GPU's top-k of landmarks against its CPU twin, bit by bit. Skipped where there is no GPU.
#include "kernels/landmark_topk_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "tests/kernels/landmark_parity.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

class LandmarkTopKCuda : public GpuTest {
 protected:
  // Twice with one workspace, which a call leaves as it needs it.
  static void expect_parity(const std::vector<Bf16>& query, const std::vector<Bf16>& landmarks, uint32_t k) {
    const size_t n = landmarks.size() / query.size();
    SCOPED_TRACE("n " + std::to_string(n) + " dim " + std::to_string(query.size()) + " k " + std::to_string(k));
    const auto expected = on_cpu(query, landmarks, k);
    const DeviceArray<Bf16> device_query(query), device_landmarks(landmarks);
    const DeviceArray<float> dots(k);
    const DeviceArray<uint64_t> chunks(k);
    const DeviceArray<std::byte> workspace(cuda::landmark_topk_workspace(k));
    workspace.fill(0);
    for (int call = 0; call < 2; ++call) {
      dots.fill(0xff);
      chunks.fill(0xff);
      must(cuda::landmark_topk({.query = device_query.data(),
                                .landmarks = device_landmarks.data(),
                                .n = n,
                                .dim = static_cast<uint32_t>(query.size()),
                                .k = k,
                                .dots = dots.data(),
                                .chunks = chunks.data(),
                                .workspace = workspace.data()},
                               nullptr));
      expect_found(expected, dots.host(), chunks.host(), "");
    }
  }
};

TEST_F(LandmarkTopKCuda, HasTheBitsAndTheOrderOfTheCpu) {
  for (const size_t dim : {32, 64, 96, 256, 320, 1024, 2560, 8192}) {
    for (const size_t n : {1, 7, 8, 9, 63, 64, 65, 1000, 20'000}) {
      if (n * dim > (size_t{8} << 20)) continue;
      const auto query = rounded(random_floats(dim, 1)), landmarks = rounded(random_floats(dim * n, 2 + n));
      for (const uint32_t k : {1, 8, 32, 33, 64, 65, 128}) expect_parity(query, landmarks, k);
    }
  }
}

TEST_F(LandmarkTopKCuda, ManyRoundsFindWhatOneFinds) {
  const size_t dim = 32;
  const auto query = rounded(random_floats(dim, 7));
  for (const size_t n : {16'384, 16'897, 70'000, 300'000}) {
    const auto landmarks = rounded(random_floats(dim * n, n));
    for (const uint32_t k : {1, 2, 3, 7, 8, 9, 31, 128}) expect_parity(query, landmarks, k);
  }
}

TEST_F(LandmarkTopKCuda, TheBestMayAllLieTogether) {
  const size_t dim = 32;
  const std::vector<Bf16> query(dim, to_bf16(1.0f));
  for (const size_t n : {500, 16'000, 40'000}) {
    for (const size_t first : {size_t{0}, n / 2, n - 128}) {
      std::vector<Bf16> landmarks(dim * n);
      for (size_t i = 0; i < 128; ++i) landmarks[(first + i) * dim] = to_bf16(static_cast<float>(1 + i % 100));
      for (const uint32_t k : {1, 5, 8, 16, 128}) expect_parity(query, landmarks, k);
    }
  }
}

TEST_F(LandmarkTopKCuda, AWorkspaceServesEveryKInTurn) {
  const size_t dim = 64, n = 20'000;
  const auto query = rounded(random_floats(dim, 8)), landmarks = rounded(random_floats(dim * n, 9));
  const DeviceArray<Bf16> device_query(query), device_landmarks(landmarks);
  const DeviceArray<float> dots(cuda::landmark_topk_max);
  const DeviceArray<uint64_t> chunks(cuda::landmark_topk_max);
  const DeviceArray<std::byte> workspace(cuda::landmark_topk_workspace(cuda::landmark_topk_max));
  workspace.fill(0);
  for (const uint32_t k : {8, 128, 1, 33, 8, 9, 64, 3}) {
    for (const size_t some : {n, n / 2, size_t{100}}) {
      must(cuda::landmark_topk({.query = device_query.data(),
                                .landmarks = device_landmarks.data(),
                                .n = some,
                                .dim = dim,
                                .k = k,
                                .dots = dots.data(),
                                .chunks = chunks.data(),
                                .workspace = workspace.data()},
                               nullptr));
      const auto expected = on_cpu(query, {landmarks.begin(), landmarks.begin() + dim * some}, k);
      const auto found_dots = dots.host();
      const auto found_chunks = chunks.host();
      expect_found(expected, std::span(found_dots).first(expected.size()),
                   std::span(found_chunks).first(expected.size()), "k " + std::to_string(k));
    }
  }
}

TEST_F(LandmarkTopKCuda, TiesGoToTheLowerChunk) {
  std::mt19937 random(3);
  const size_t dim = 64;
  std::vector<Bf16> query(dim, to_bf16(1.0f)), landmarks(dim * 5000);
  for (size_t row = 0; row < 5000; ++row) landmarks[row * dim] = to_bf16(static_cast<float>(random() % 5));
  for (const uint32_t k : {1, 8, 128}) expect_parity(query, landmarks, k);
  expect_parity(query, std::vector<Bf16>(dim * 300), 128);
}

TEST_F(LandmarkTopKCuda, ExtremeNumbersKeepTheirOrder) {
  std::mt19937 random(5);
  const size_t dim = 32;
  std::vector<Bf16> query(dim, to_bf16(1.0f)), landmarks(dim * 400);
  for (size_t row = 0; row < 400; ++row)
    for (size_t i = 0; i < 2; ++i) landmarks[row * dim + i * 7] = to_bf16(extremes[random() % extremes.size()]);
  for (const uint32_t k : {8, 100, 128}) expect_parity(query, landmarks, k);
}

TEST_F(LandmarkTopKCuda, ShapesThatAreOutOfBoundsAreRefused) {
  EXPECT_EQ(cuda::landmark_topk({.n = 1, .dim = 33, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk({.n = 1, .dim = 8224, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk({.n = 1, .dim = 32, .k = 0}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk({.n = 1, .dim = 32, .k = 129}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk({.n = 0xffffffff, .dim = 32, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk({.n = 0, .dim = 32, .k = 1}, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace recalld
