// As a step of generating looks: what the host is told and what it tells lies in pinned memory, and one thread waits in
// cudaStreamSynchronize(). All kernels have one thread.
#include "tools/bench/gpu_look.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/device_memory.h"

namespace recalld::bench {
namespace {

constexpr int looks = 301, looks_before = 20;    // those before are not counted
constexpr unsigned long long work_ns = 150'000;  // longer than the launches behind it take

// As long as the part of a token that comes before its selection: the launches behind it hide there, as they do then.
__global__ void work(unsigned long long ns) {
  unsigned long long begin = 0, now = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  while (now - begin < ns);
}

__global__ void decide(const uint32_t* takes_branch, uint32_t* told, cudaGraphConditionalHandle branch) {
  *told = *takes_branch;
  cudaGraphSetConditional(branch, *takes_branch);
}

__global__ void nothing() {}

#define RETURN_IF_FAILED(call) \
  if (const cudaError_t status = (call); status != cudaSuccess) return status

class Look {
 public:
  cudaError_t prepare(size_t kernels_of_branch) {
    RETURN_IF_FAILED(cuda::Stream::open(stream_));
    RETURN_IF_FAILED(cuda::PinnedBuffer::allocate(2 * sizeof(uint32_t), words_));
    return cuda::Graph::capture_if(
        stream_.get(),
        [&](cudaGraphConditionalHandle branch) {
          decide<<<1, 1, 0, stream_.get()>>>(words_.as<uint32_t>(), words_.as<uint32_t>() + 1, branch);
          return cudaGetLastError();
        },
        [&] {
          for (size_t i = 0; i < kernels_of_branch; ++i) nothing<<<1, 1, 0, stream_.get()>>>();
          return cudaGetLastError();
        },
        graph_);
  }

  // The branch is taken at once, or after a look. us: of all
  cudaError_t run(bool looks_at_host, double& us) const {
    *words_.as<uint32_t>() = looks_at_host ? 0 : 1;
    const auto start = std::chrono::steady_clock::now();
    work<<<1, 1, 0, stream_.get()>>>(work_ns);
    RETURN_IF_FAILED(cudaGetLastError());
    RETURN_IF_FAILED(graph_.launch(stream_.get()));
    RETURN_IF_FAILED(cudaStreamSynchronize(stream_.get()));
    if (looks_at_host) {
      *words_.as<uint32_t>() = 1;
      nothing<<<1, 1, 0, stream_.get()>>>();
      RETURN_IF_FAILED(cudaGetLastError());
      RETURN_IF_FAILED(graph_.launch(stream_.get()));
      RETURN_IF_FAILED(cudaStreamSynchronize(stream_.get()));
    }
    us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
    return cudaSuccess;
  }

 private:
  cuda::Stream stream_;
  cuda::PinnedBuffer words_;  // [2] whether the branch is taken, and what the host is told
  cuda::Graph graph_;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

std::optional<double> empty_look_us(size_t kernels_of_branch) {
  Look look;
  if (look.prepare(kernels_of_branch) != cudaSuccess) return std::nullopt;
  std::vector<double> with, without;
  for (int i = 0; i < looks_before + looks; ++i) {
    double with_us = 0, without_us = 0;
    if (look.run(true, with_us) != cudaSuccess || look.run(false, without_us) != cudaSuccess) return std::nullopt;
    if (i < looks_before) continue;
    with.push_back(with_us);
    without.push_back(without_us);
  }
  return median(with) - median(without);
}

}  // namespace recalld::bench
