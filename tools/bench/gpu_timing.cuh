// What the benchmarks of CUDA kernels share: device memory, the clock, and the rates at which the card reads.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>

namespace recalld::bench {

inline constexpr int calls_of_graph = 24, replays = 15;
// Inputs that are taken in turn lie in so much memory, which no card's L2 cache holds.
inline constexpr size_t cold_bytes = size_t{256} << 20;

// Ends the process unless the call was right.
void must(cudaError_t status, const char* what);

template <class T>
T* device_memory(size_t count) {
  void* data = nullptr;
  must(cudaMalloc(&data, count * sizeof(T)), "allocate device memory");
  return static_cast<T*>(data);
}

// Microseconds of one call: of a CUDA graph of calls_of_graph of them, the median over the replays.
double time_us(const std::function<void(cudaStream_t, int call)>& enqueue);
// The same where a replay finds nothing in the L2 cache: calls of a graph should have inputs of their own, or as many
// as lie in cold_bytes.
double time_cold_us(const std::function<void(cudaStream_t, int call)>& enqueue);

// Microseconds of a kernel that does nothing: what the smallest kernels cannot go below.
double empty_us();
// Bytes a microsecond that a kernel reads which does nothing else, from 2 GiB.
double read_rate();
// Bytes a microsecond that come from pinned memory in one copy of cold_bytes.
double bus_rate();

inline const char* verdict(bool right) {
  return right ? "as the CPU" : "NOT AS THE CPU";
}

}  // namespace recalld::bench
