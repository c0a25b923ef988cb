// Arrays in the memory of an NVIDIA GPU, for tests.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace recalld {

inline void must(cudaError_t status) {
  ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status);
}

inline bool have_gpu() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

// Tests that are skipped where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!have_gpu()) GTEST_SKIP() << "there is no NVIDIA GPU";
  }
};

// Whether arrays are left as they come.
inline bool is_unfilled() {
  static const char* const wanted = std::getenv("RECALLD_TEST_UNFILLED");
  return wanted != nullptr && *wanted != '\0';
}

template <class T>
class DeviceArray {
 public:
  // Filled with bytes 0xff: a NaN, where nothing is written. With RECALLD_TEST_UNFILLED in the environment it is left
  // as it comes, so that compute-sanitizer's initcheck (tools/sanitize_gpu.sh) sees a kernel read what nobody wrote.
  explicit DeviceArray(size_t count) : count_(count) {
    must(cudaMalloc(&data_, std::max<size_t>(1, count) * sizeof(T)));
    if (!is_unfilled()) fill(0xff);
  }
  explicit DeviceArray(std::span<const T> values) : count_(values.size()) {
    must(cudaMalloc(&data_, std::max<size_t>(1, count_) * sizeof(T)));
    must(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  // Sets every byte.
  void fill(int byte) const { must(cudaMemset(data_, byte, count_ * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> values(count_);
    must(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t count_;
  void* data_ = nullptr;
};

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// The greatest difference is at most `tolerance` of the greatest value, and the root mean square of the differences at
// most a third of `tolerance` of that of the values.
inline void expect_near(std::span<const float> found, std::span<const float> expected, float tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  double worst = 0, greatest = 0, error = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_TRUE(std::isfinite(found[i])) << "place " << i;
    const double difference = std::abs(double{found[i]} - expected[i]);
    worst = std::max(worst, difference);
    greatest = std::max(greatest, std::abs(double{expected[i]}));
    error += difference * difference;
    size += double{expected[i]} * expected[i];
  }
  EXPECT_LE(worst, tolerance * greatest);
  EXPECT_LE(std::sqrt(error), tolerance / 3 * std::sqrt(size));
}

}  // namespace recalld
