// Arrays in the memory of an NVIDIA GPU, for tests.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
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

template <class T>
class DeviceArray {
 public:
  // Filled with bytes 0xff: a NaN, where nothing is written.
  explicit DeviceArray(size_t count) : count_(count) {
    must(cudaMalloc(&data_, std::max<size_t>(1, count) * sizeof(T)));
    fill(0xff);
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

}  // namespace recalld
