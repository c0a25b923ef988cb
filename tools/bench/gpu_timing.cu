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

}  // namespace

void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "kernels: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

double time_us(const std::function<void(cudaStream_t, int call)>& enqueue) {
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
    must(cudaEventRecord(begin, stream), "record");
    must(cudaGraphLaunch(executable, stream), "launch");
    must(cudaEventRecord(end, stream), "record");
    must(cudaEventSynchronize(end), "run");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "read the clock");
    if (replay >= 2) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + replays / 2, times.end());
  must(cudaGraphExecDestroy(executable), "drop the graph");
  must(cudaGraphDestroy(graph), "drop the graph");
  must(cudaStreamDestroy(stream), "drop the stream");
  return times[replays / 2] * 1e3 / calls_of_graph;
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

}  // namespace recalld::bench
