#include "tools/bench/gpu_timing.cuh"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace recalld::bench {
namespace {

__global__ void read_all(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 parts[8];
#pragma unroll
    for (int p = 0; p < 8; ++p) parts[p] = __ldcs(data + i + p * stride);
#pragma unroll
    for (int p = 0; p < 8; ++p) sum ^= parts[p].x ^ parts[p].y ^ parts[p].z ^ parts[p].w;
  }
  for (; i < count; i += stride) sum ^= data[i].x;
  if (sum == 0x12345678) *sink = sum;
}

// Leaves none of what the L2 cache held before.
__global__ void read_through_cache(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x)
    sum ^= data[i].x;
  if (sum == 0x12345678) *sink = sum;
}

__global__ void nothing() {}

using Enqueue = std::function<void(cudaStream_t, int call)>;

// prepare: enqueues what comes before each replay and is not timed.
double median_us(const Enqueue& enqueue, const std::function<void(cudaStream_t)>& prepare) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  must(cudaStreamCreate(&stream), "make a stream");
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int call = 0; call < calls_of_graph; ++call) enqueue(stream, call);
  must(cudaStreamEndCapture(stream, &graph), "capture");
  must(cudaGraphInstantiate(&executable, graph, 0), "make a graph");
  cudaEvent_t begin = nullptr, end = nullptr;
  must(cudaEventCreate(&begin), "make an event");
  must(cudaEventCreate(&end), "make an event");
  std::vector<float> times;
  for (int replay = 0; replay < replays + 2; ++replay) {
    prepare(stream);
    must(cudaEventRecord(begin, stream), "record");
    must(cudaGraphLaunch(executable, stream), "launch");
    must(cudaEventRecord(end, stream), "record");
    must(cudaEventSynchronize(end), "run");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "read the clock");
    if (replay >= 2) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + replays / 2, times.end());
  must(cudaEventDestroy(begin), "drop an event");
  must(cudaEventDestroy(end), "drop an event");
  must(cudaGraphExecDestroy(executable), "drop the graph");
  must(cudaGraphDestroy(graph), "drop the graph");
  must(cudaStreamDestroy(stream), "drop the stream");
  return times[replays / 2] * 1e3 / calls_of_graph;
}

}  // namespace

void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "kernels: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

double time_us(const Enqueue& enqueue) {
  return median_us(enqueue, [](cudaStream_t) {});
}

double time_cold_us(const Enqueue& enqueue) {
  auto* const data = device_memory<uint4>(cold_bytes / sizeof(uint4));
  auto* const sink = device_memory<uint32_t>(1);
  must(cudaMemset(data, 1, cold_bytes), "fill");
  const double us = median_us(enqueue, [&](cudaStream_t stream) {
    read_through_cache<<<1024, 256, 0, stream>>>(data, cold_bytes / sizeof(uint4), sink);
    must(cudaGetLastError(), "launch read_through_cache");
  });
  must(cudaFree(data), "free");
  must(cudaFree(sink), "free");
  return us;
}

double empty_us() {
  return time_us([](cudaStream_t stream, int) {
    nothing<<<1, 32, 0, stream>>>();
    must(cudaGetLastError(), "launch nothing");
  });
}

double read_rate() {
  constexpr size_t bytes = size_t{2} << 30;
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "find a GPU");
  auto* const data = device_memory<uint4>(bytes / sizeof(uint4));
  auto* const sink = device_memory<uint32_t>(1);
  must(cudaMemset(data, 1, bytes), "fill");
  const double us = time_us([&](cudaStream_t stream, int) {
    read_all<<<card.multiProcessorCount * 8, 256, 0, stream>>>(data, bytes / sizeof(uint4), sink);
    must(cudaGetLastError(), "launch read_all");
  });
  must(cudaFree(data), "free");
  must(cudaFree(sink), "free");
  return static_cast<double>(bytes) / us;
}

double bus_rate() {
  void* host = nullptr;
  must(cudaHostAlloc(&host, cold_bytes, cudaHostAllocMapped), "allocate pinned memory");
  auto* const data = device_memory<std::byte>(cold_bytes);
  const double us = time_us([&](cudaStream_t stream, int) {
    must(cudaMemcpyAsync(data, host, cold_bytes, cudaMemcpyHostToDevice, stream), "copy");
  });
  must(cudaFree(data), "free");
  must(cudaFreeHost(host), "free");
  return static_cast<double>(cold_bytes) / us;
}

}  // namespace recalld::bench
