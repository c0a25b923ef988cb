// One token of each stream: bound by reading and writing states. 256 threads per 16 columns of a head; each has four
// columns of every 64th row.
#include <cuda_runtime.h>

#include "kernels/softplus_device.cuh"
#include "kernels/ssd_scan_cuda.h"
#include "kernels/tensor_core_device.cuh"

namespace recalld::cuda {
namespace {

using tensor_core::everyone, tensor_core::warp;

constexpr int head_dim = ssd_head_dim;

constexpr int update_threads = 256, update_columns = 16;
constexpr int update_rows = update_threads * 4 / update_columns;  // of the state at a time

// grid: (head_dim / update_columns, heads, streams). A thread has four columns of every 64th row.
template <int state_size>
__global__ void __launch_bounds__(update_threads) state_update_kernel(SsdStateUpdate update) {
  constexpr int steps = state_size / update_rows, warps = update_threads / warp;
  __shared__ float4 of_warps[warps][update_columns / 4];
  const uint32_t head = blockIdx.y, token = blockIdx.z;
  const uint32_t lane = threadIdx.x % warp, row = threadIdx.x / 4;
  const uint32_t column = blockIdx.x * update_columns + threadIdx.x % 4 * 4;
  const uint32_t inner = update.heads * head_dim;
  const float* const xbc = update.xbc + static_cast<size_t>(token) * (inner + 2 * state_size);
  const auto cells = [&](int step) {
    return reinterpret_cast<float4*>(update.states[token] +
                                     (static_cast<size_t>(step * update_rows + row) * update.heads + head) * head_dim +
                                     column);
  };
  float4 state[steps];
#pragma unroll
  for (int i = 0; i < steps; ++i) state[i] = *cells(i);
  const float4 x = *reinterpret_cast<const float4*>(xbc + head * head_dim + column);
  const float step = softplus(update.dt[static_cast<size_t>(token) * update.dt_stride + head] + update.dt_bias[head]);
  const float decay = expf(step * update.a[head]);

  float4 sum{};
#pragma unroll
  for (int i = 0; i < steps; ++i) {
    const uint32_t n = i * update_rows + row;
    const float b = step * xbc[inner + n], c = xbc[inner + state_size + n];
    float4& s = state[i];
    s = {fmaf(decay, s.x, b * x.x), fmaf(decay, s.y, b * x.y), fmaf(decay, s.z, b * x.z), fmaf(decay, s.w, b * x.w)};
    *cells(i) = s;
    sum = {fmaf(c, s.x, sum.x), fmaf(c, s.y, sum.y), fmaf(c, s.z, sum.z), fmaf(c, s.w, sum.w)};
  }
#pragma unroll
  for (int width = 4; width < warp; width *= 2) {
    sum.x += __shfl_xor_sync(everyone, sum.x, width);
    sum.y += __shfl_xor_sync(everyone, sum.y, width);
    sum.z += __shfl_xor_sync(everyone, sum.z, width);
    sum.w += __shfl_xor_sync(everyone, sum.w, width);
  }
  if (lane < 4) of_warps[threadIdx.x / warp][lane] = sum;
  __syncthreads();
  if (threadIdx.x >= 4) return;
  const float d = update.d[head];
  float4 y{d * x.x, d * x.y, d * x.z, d * x.w};
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    const float4 part = of_warps[w][lane];
    y = {y.x + part.x, y.y + part.y, y.z + part.z, y.w + part.w};
  }
  *reinterpret_cast<float4*>(update.y + static_cast<size_t>(token) * inner + head * head_dim + column) = y;
}

}  // namespace

cudaError_t ssd_state_update(const SsdStateUpdate& update, cudaStream_t stream) {
  if (update.heads == 0 || update.heads > 65535 || (update.state_size != 64 && update.state_size != 128) ||
      update.count > ssd_streams_max)
    return cudaErrorInvalidValue;
  if (update.count == 0) return cudaSuccess;
  const dim3 grid(head_dim / update_columns, update.heads, update.count);
  if (update.state_size == 64)
    state_update_kernel<64><<<grid, update_threads, 0, stream>>>(update);
  else
    state_update_kernel<128><<<grid, update_threads, 0, stream>>>(update);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
