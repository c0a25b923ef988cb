// What the benchmarks of CUDA kernels share: numbers at random in device memory, and how far results are from those of
// the CPU twins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/bf16.h"
#include "tools/bench/gpu_timing.cuh"

namespace recalld::bench {

inline __device__ float random_at(size_t i, uint32_t seed) {  // between -1 and 1
  uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed * 0x9e3779b9u;
  x ^= x >> 16, x *= 2246822519u, x ^= x >> 13, x *= 3266489917u, x ^= x >> 16;
  return static_cast<float>(x) * 0x1p-31f - 1;
}
inline __device__ void set(float* to, float value) {
  *to = value;
}
inline __device__ void set(Bf16* to, float value) {
  to->bits = static_cast<uint16_t>(__float_as_uint(value) >> 16);
}
template <class T>
__global__ void fill_random(T* data, size_t count, uint32_t seed, float middle, float width) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x)
    set(data + i, middle + width * random_at(i, seed));
}
template <class T>
T* random_memory(size_t count, uint32_t seed, float middle = 0, float width = 1) {
  T* const data = device_memory<T>(count);
  fill_random<<<1024, 256>>>(data, count, seed, middle, width);
  must(cudaGetLastError(), "fill");
  return data;
}

// After everything that was enqueued before.
template <class T>
std::vector<T> to_host(const T* data, size_t count) {
  std::vector<T> values(count);
  must(cudaDeviceSynchronize(), "run");
  must(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copy");
  return values;
}

// Device memory that is given back.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : data_(device_memory<T>(count)) {}
  Array(size_t count, uint32_t seed, float middle = 0, float width = 1)
      : data_(random_memory<T>(count, seed, middle, width)) {}
  explicit Array(const std::vector<T>& values) : data_(device_memory<T>(values.size())) {
    must(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() const { return data_; }
  std::vector<T> host(size_t count, size_t first = 0) const { return to_host(data_ + first, count); }

 private:
  T* const data_;
};

inline double value_of(float value) {
  return value;
}
inline double value_of(Bf16 value) {
  return to_float(value);
}

struct Difference {
  double worst = 0, greatest = 0;

  void add(double found, double expected) {
    const double by = std::abs(found - expected);
    worst = std::isnan(by) ? HUGE_VAL : std::max(worst, by);
    greatest = std::max(greatest, std::abs(expected));
  }
  template <class T, class U>
  static Difference of(const std::vector<T>& found, const std::vector<U>& expected) {
    Difference difference;
    if (found.size() != expected.size()) difference.worst = HUGE_VAL;
    for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i)
      difference.add(value_of(found[i]), value_of(expected[i]));
    return difference;
  }
  bool within(double tolerance) const { return worst <= tolerance * greatest; }
};

// What twins may differ by, of the greatest value: their sums have other orders, and a result in bf16 may be rounded to
// the other side.
template <class T>
inline constexpr double tolerance = sizeof(T) == sizeof(float) ? 1e-5 : 8e-3;

// How many sets of so many bytes the calls of a graph take in turn when they are cold.
inline int places_of(double bytes) {
  return static_cast<int>(std::clamp<double>(cold_bytes / bytes + 1, 2, calls_of_graph));
}

struct Times {
  double cold = 0, warm = 0;  // us
};
// call(stream, place) of the places 0 to places - 1
template <class Call>
Times times_of(int places, const Call& call) {
  return {time_cold_us([&](cudaStream_t stream, int i) { call(stream, i % places); }),
          time_us([&](cudaStream_t stream, int) { call(stream, 0); })};
}

}  // namespace recalld::bench
