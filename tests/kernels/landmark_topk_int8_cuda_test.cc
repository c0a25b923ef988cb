// The GPU's top-k of landmarks by way of their 8-bit codes against the CPU twin, bit by bit. Skipped where there is no
// GPU.
#include "kernels/landmark_topk_int8_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
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

enum class Where { device, host };

class LandmarkTopKInt8Cuda : public GpuTest {
 protected:
  // The codes of one landmark; returns its scale.
  static float to_int8(std::span<const Bf16> landmark, std::span<int8_t> codes) {
    float most = 0;
    bool finite = true;
    for (const Bf16 element : landmark) {
      finite = finite && std::isfinite(to_float(element));
      most = std::max(most, std::abs(to_float(element)));
    }
    const bool fits = finite && (most == 0 || most >= std::ldexp(1.0f, -100));
    const float scale = fits ? most / 127 : std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < landmark.size(); ++i)
      codes[i] = static_cast<int8_t>(fits && most != 0 ? std::nearbyint(to_float(landmark[i]) / scale) : 0);
    return scale;
  }

  // Twice with one workspace, of any contents at first.
  static void expect_parity(const std::vector<Bf16>& query, const std::vector<Bf16>& landmarks, uint32_t k,
                            Where where = Where::device) {
    const size_t dim = query.size(), n = landmarks.size() / dim;
    SCOPED_TRACE("n " + std::to_string(n) + " dim " + std::to_string(dim) + " k " + std::to_string(k));
    const auto expected = on_cpu(query, landmarks, k);
    const DeviceArray<Bf16> device_query(query), device_landmarks(landmarks);
    const DeviceArray<int8_t> codes(n * dim);
    const DeviceArray<float> scales(n), dots(k);
    const DeviceArray<uint64_t> chunks(k);
    const DeviceArray<std::byte> workspace(cuda::landmark_topk_int8_workspace(k));
    if (!is_unfilled()) workspace.fill(0xa5);
    must(cuda::landmarks_to_int8(device_landmarks.data(), n, static_cast<uint32_t>(dim), codes.data(), scales.data(),
                                 nullptr));
    const auto found_codes = codes.host();
    const auto found_scales = scales.host();
    std::vector<int8_t> expected_codes(dim);
    for (size_t row = 0; row < n; row += 1 + n / 1000) {
      ASSERT_EQ(found_scales[row], to_int8(std::span(landmarks).subspan(row * dim, dim), expected_codes)) << row;
      ASSERT_EQ(std::memcmp(&found_codes[row * dim], expected_codes.data(), dim), 0) << "row " << row;
    }
    Bf16* mapped = nullptr;
    if (where == Where::host) {
      must(cudaMallocHost(reinterpret_cast<void**>(&mapped), n * dim * sizeof(Bf16)));
      std::memcpy(mapped, landmarks.data(), n * dim * sizeof(Bf16));
    }
    for (int call = 0; call < 2; ++call) {
      dots.fill(0xff);
      chunks.fill(0xff);
      must(cuda::landmark_topk_int8({.query = device_query.data(),
                                     .codes = codes.data(),
                                     .scales = scales.data(),
                                     .landmarks = where == Where::host ? mapped : device_landmarks.data(),
                                     .n = n,
                                     .dim = static_cast<uint32_t>(dim),
                                     .k = k,
                                     .dots = dots.data(),
                                     .chunks = chunks.data(),
                                     .workspace = workspace.data()},
                                    nullptr));
      expect_found(expected, dots.host(), chunks.host(), "");
      if (HasFatalFailure()) break;
    }
    if (mapped != nullptr) must(cudaFreeHost(mapped));
  }
};

TEST_F(LandmarkTopKInt8Cuda, HasTheBitsAndTheOrderOfTheCpu) {
  for (const size_t dim : {32, 64, 96, 256, 320, 1024, 2560, 8192}) {
    for (const size_t n : {1, 7, 8, 9, 63, 64, 65, 1000, 20'000}) {
      if (n * dim > (size_t{8} << 20)) continue;
      const auto query = rounded(random_floats(dim, 1)), landmarks = rounded(random_floats(dim * n, 2 + n));
      for (const uint32_t k : {1, 8, 32, 33, 128}) {
        expect_parity(query, landmarks, k);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(LandmarkTopKInt8Cuda, AgreesWhereOnlyASampleSetsTheFloor) {
  const size_t dim = 64, n = 400'000;
  const auto landmarks = rounded(random_floats(dim * n, 11)), query = rounded(random_floats(dim, 12));
  for (const uint32_t k : {1, 8, 40, 128}) expect_parity(query, landmarks, k);
}

TEST_F(LandmarkTopKInt8Cuda, LandmarksMayStayInTheHostsMemory) {
  const size_t dim = 256, n = 10'000;
  const auto landmarks = rounded(random_floats(dim * n, 21)), query = rounded(random_floats(dim, 22));
  for (const uint32_t k : {8, 128}) expect_parity(query, landmarks, k, Where::host);
}

// Few large elements make the codes of the others coarse: the codes alone would choose wrongly.
TEST_F(LandmarkTopKInt8Cuda, TheMarginCoversTheRoundingOfCodes) {
  std::mt19937 random(13);
  const size_t dim = 96, n = 60'000;
  auto landmarks = rounded(random_floats(dim * n, 14));
  for (size_t row = 0; row < n; ++row)
    landmarks[row * dim + random() % dim] = to_bf16(std::ldexp(1.0f, static_cast<int>(random() % 12)));
  for (const float of_query : {0.01f, 1.0f, 1000.0f}) {
    auto query = rounded(random_floats(dim, 15));
    query[5] = to_bf16(of_query);
    for (const uint32_t k : {1, 8, 100}) expect_parity(query, landmarks, k);
  }
}

TEST_F(LandmarkTopKInt8Cuda, TiesGoToTheLowerChunkHoweverMany) {
  std::mt19937 random(3);
  const size_t dim = 32;
  for (const size_t n : {5000, 200'000}) {
    std::vector<Bf16> query(dim, to_bf16(1.0f)), landmarks(dim * n);
    for (size_t row = 0; row < n; ++row) landmarks[row * dim] = to_bf16(static_cast<float>(random() % 5));
    for (const uint32_t k : {1, 8, 128}) expect_parity(query, landmarks, k);
    expect_parity(query, std::vector<Bf16>(dim * n), 128);
  }
}

TEST_F(LandmarkTopKInt8Cuda, ExtremeNumbersKeepTheirOrder) {
  std::mt19937 random(5);
  const size_t dim = 32;
  for (const size_t kinds : {5, 7, 10}) {
    for (const size_t n : {400, 150'000}) {
      std::vector<Bf16> query(dim, to_bf16(1.0f)), landmarks(dim * n);
      for (size_t row = 0; row < n; ++row)
        for (size_t i = 0; i < 2; ++i) landmarks[row * dim + i * 7] = to_bf16(extremes[random() % kinds]);
      for (const uint32_t k : {8, 100, 128}) expect_parity(query, landmarks, k);
      for (const float extreme : extremes) {
        query[0] = to_bf16(extreme);
        expect_parity(query, landmarks, 8);
      }
    }
  }
}

TEST_F(LandmarkTopKInt8Cuda, ShapesThatAreOutOfBoundsAreRefused) {
  EXPECT_EQ(cuda::landmark_topk_int8({.n = 1, .dim = 33, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_int8({.n = 1, .dim = 8224, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_int8({.n = 1, .dim = 32, .k = 0}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_int8({.n = 1, .dim = 32, .k = 129}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_int8({.n = 0xffffffff, .dim = 32, .k = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_topk_int8({.n = 0, .dim = 32, .k = 1}, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace recalld
