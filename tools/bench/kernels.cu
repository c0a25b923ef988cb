// What the CUDA kernels take, beside what the card could do at best in the same run.
//
// Usage: kernels
// Checks that landmark_topk agrees with its CPU twin, then times it in CUDA graphs: medians over several replays of a
// graph of many calls. "cold" takes its inputs in turn from more than the card's L2 cache holds, "warm" the same one
// again. The floor is the time in which the card reads the landmarks, at the rate that a kernel which only reads
// reaches here on 2 GiB.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "kernels/landmark_topk.h"
#include "kernels/landmark_topk_cuda.h"

using namespace recalld;

namespace {

constexpr size_t gib = size_t{1} << 30;
constexpr int calls_of_graph = 24, replays = 15;
constexpr size_t cold_bytes = size_t{256} << 20;

void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "kernels: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <class T>
T* device_memory(size_t count) {
  void* data = nullptr;
  must(cudaMalloc(&data, count * sizeof(T)), "allocate device memory");
  return static_cast<T*>(data);
}

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

__global__ void fill(uint32_t* data, size_t count, uint32_t seed) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 2246822519u, x ^= x >> 13;
    // Two bf16 of either sign, between 0.5 and 2.
    data[i] = (x & 0x80ff80ffu) | 0x3f003f00u;
  }
}

// Microseconds of one call, the median over the replays.
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

struct Buffers {
  Bf16* landmarks = nullptr;
  Bf16* query = nullptr;
  float* dots = nullptr;
  uint64_t* chunks = nullptr;
  void* workspace = nullptr;
};

bool agrees(const Buffers& buffers, uint64_t n, uint32_t dim, uint32_t k) {
  std::vector<Bf16> query(dim), landmarks(n * dim);
  must(cudaMemcpy(query.data(), buffers.query, dim * sizeof(Bf16), cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(landmarks.data(), buffers.landmarks, n * dim * sizeof(Bf16), cudaMemcpyDeviceToHost), "copy");
  std::vector<float> dots(n);
  landmark_dots_cpu(query, landmarks.data(), n, dots.data());
  TopK best(k);
  for (uint64_t i = 0; i < n; ++i) best.offer({i, dots[i]});
  const auto expected = best.take();
  std::vector<float> found(k);
  std::vector<uint64_t> chunks(k);
  must(cudaMemcpy(found.data(), buffers.dots, k * sizeof(float), cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(chunks.data(), buffers.chunks, k * sizeof(uint64_t), cudaMemcpyDeviceToHost), "copy");
  for (uint32_t i = 0; i < expected.size(); ++i)
    if (expected[i].chunk != chunks[i] || expected[i].dot != found[i]) return false;
  return true;
}

}  // namespace

int main() {
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "find a GPU");
  const size_t bytes = 2 * gib;
  Buffers buffers{.landmarks = device_memory<Bf16>(bytes / sizeof(Bf16)),
                  .query = device_memory<Bf16>(8192),
                  .dots = device_memory<float>(cuda::landmark_topk_max),
                  .chunks = device_memory<uint64_t>(cuda::landmark_topk_max)};
  const size_t workspace = cuda::landmark_topk_workspace(cuda::landmark_topk_max);
  buffers.workspace = device_memory<std::byte>(workspace);
  must(cudaMemset(buffers.workspace, 0, workspace), "clear");
  fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(buffers.landmarks), bytes / 4, 1);
  fill<<<16, 256>>>(reinterpret_cast<uint32_t*>(buffers.query), 4096, 2);
  must(cudaDeviceSynchronize(), "fill");

  auto* const sink = device_memory<uint32_t>(1);
  const double read_us = time_us([&](cudaStream_t stream, int) {
    read_all<<<card.multiProcessorCount * 8, 256, 0, stream>>>(reinterpret_cast<const uint4*>(buffers.landmarks),
                                                               bytes / sizeof(uint4), sink);
  });
  const double bytes_per_us = static_cast<double>(bytes) / read_us;
  std::printf("%s, %d multiprocessors, L2 %d MiB; reading 2 GiB: %.1f us, %.0f GB/s\n", card.name,
              card.multiProcessorCount, card.l2CacheSize >> 20, read_us, bytes_per_us / 1e3);
  std::printf("landmark_topk, one query, bf16, graphs of %d calls, medians of %d replays\n", calls_of_graph, replays);
  struct Shape {
    uint64_t n;
    uint32_t dim, k;
  };
  bool all_agree = true;
  for (const Shape& shape :
       {Shape{1 << 20, 1024, 8}, Shape{1 << 20, 1024, 128}, Shape{1 << 20, 256, 8}, Shape{1 << 20, 256, 64},
        Shape{1 << 17, 1024, 8}, Shape{1 << 14, 1024, 8}, Shape{1 << 14, 256, 8}, Shape{1 << 10, 1024, 8}}) {
    const size_t size = shape.n * shape.dim * sizeof(Bf16);
    const auto places = static_cast<int>(std::min<size_t>(bytes / size, std::max<size_t>(1, cold_bytes / size)));
    const auto call = [&](cudaStream_t stream, int place) {
      must(cuda::landmark_topk({.query = buffers.query,
                                .landmarks = buffers.landmarks + place * shape.n * shape.dim,
                                .n = shape.n,
                                .dim = shape.dim,
                                .k = shape.k,
                                .dots = buffers.dots,
                                .chunks = buffers.chunks,
                                .workspace = buffers.workspace},
                               stream),
           "launch landmark_topk");
    };
    call(nullptr, 0);
    must(cudaDeviceSynchronize(), "run landmark_topk");
    const bool right = agrees(buffers, shape.n, shape.dim, shape.k);
    all_agree = all_agree && right;
    const double cold = time_us([&](cudaStream_t stream, int i) { call(stream, i % places); });
    const double warm = time_us([&](cudaStream_t stream, int) { call(stream, 0); });
    const double floor = static_cast<double>(size) / bytes_per_us;
    std::printf("%8lu x %4u, k %3u: %s; cold %8.2f us, %.2f of the read rate; warm %8.2f us; floor %8.2f us\n",
                static_cast<unsigned long>(shape.n), shape.dim, shape.k, right ? "as the CPU" : "NOT AS THE CPU", cold,
                floor / cold, warm, floor);
  }
  return all_agree ? 0 : 1;
}
