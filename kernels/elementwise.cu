// All of these are bound by memory. A norm has one warp per row or head, so that its sum has one order whatever else is
// in the call; it reads the row twice, the second time from the L1 cache, which holds rows of any width in use. The
// others have one thread per four elements. Blocks of eight warps everywhere.
#include <cuda_runtime.h>

#include "kernels/elementwise_cuda.h"
#include "kernels/elementwise_device.cuh"

namespace recalld::cuda {
namespace {

using namespace elementwise;

__device__ __forceinline__ float silu(float x) {
  return x / (1.0f + expf(-x));
}
__device__ __forceinline__ float4 silu(float4 x) {
  return {silu(x.x), silu(x.y), silu(x.z), silu(x.w)};
}

// The warp's row from row(i), four elements from the i-th on. Nobody but the lane that reads elements writes them,
// after its last look at them: out may be the row.
template <class Row, class Out>
__device__ __forceinline__ void norm_row(const Row& row, const float* weight, uint32_t width, float eps, Out* out) {
  const float scale = norm_scale(row, width, eps);
  for (uint32_t i = threadIdx.x % warp * 4; i < width; i += warp * 4)
    store(product(product(row(i), scale), load(weight + i)), out + i);
}

template <class Out>
__global__ void __launch_bounds__(threads) rmsnorm_kernel(const RmsNorm norm, Out* y) {
  const uint32_t index = warp_of_grid();  // of [rows, heads]
  if (index >= norm.rows * norm.heads) return;
  const float* const x = norm.x + static_cast<size_t>(index / norm.heads) * norm.x_stride +
                         static_cast<size_t>(index % norm.heads) * norm.width;
  norm_row([x](uint32_t i) { return load(x + i); }, norm.weight, norm.width, norm.eps,
           y + static_cast<size_t>(index) * norm.width);
}

template <class In>
__global__ void __launch_bounds__(threads) gated_rmsnorm_kernel(const GatedRmsNorm norm, const In* y, Bf16* out) {
  const uint32_t index = warp_of_grid();
  if (index >= norm.rows) return;
  const float* const z = norm.z + static_cast<size_t>(index) * norm.z_stride;
  const In* const y_row = y + static_cast<size_t>(index) * norm.width;
  norm_row([z, y_row](uint32_t i) { return product(load(y_row + i), silu(load(z + i))); }, norm.weight, norm.width,
           norm.eps, out + static_cast<size_t>(index) * norm.width);
}

__global__ void __launch_bounds__(threads)
    swiglu_kernel(const float* gate_up, size_t count, uint32_t width, Bf16* out) {
  const size_t i = element_of_grid();
  if (i >= count) return;
  const float* const gate = gate_up + i / width * 2 * width + i % width;
  store(product(silu(load(gate)), load(gate + width)), out + i);
}

__global__ void __launch_bounds__(threads)
    embedding_lookup_kernel(const Bf16* table, const uint32_t* tokens, size_t count, uint32_t width, float* y) {
  const size_t i = element_of_grid();
  if (i >= count) return;
  store(load(table + static_cast<size_t>(tokens[i / width]) * width + i % width), y + i);
}

__global__ void __launch_bounds__(threads) add_kernel(const float* x, size_t count, float* y) {
  const size_t i = element_of_grid();
  if (i >= count) return;
  store(sum(load(y + i), load(x + i)), y + i);
}

__global__ void __launch_bounds__(threads) to_bf16_kernel(const float* x, size_t count, Bf16* y) {
  const size_t i = element_of_grid();
  if (i >= count) return;
  store(load(x + i), y + i);
}

template <class Out>
cudaError_t launch_rmsnorm(const RmsNorm& norm, Out* y, cudaStream_t stream) {
  const uint64_t rows = uint64_t{norm.rows} * norm.heads;
  if (norm.heads == 0 || !in_bounds(rows, norm.width) || !is_stride(norm.x_stride, uint64_t{norm.heads} * norm.width))
    return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  rmsnorm_kernel<<<blocks_of_rows(rows), threads, 0, stream>>>(norm, y);
  return cudaGetLastError();
}

template <class In>
cudaError_t launch_gated_rmsnorm(const GatedRmsNorm& norm, const In* y, Bf16* out, cudaStream_t stream) {
  if (!in_bounds(norm.rows, norm.width) || !is_stride(norm.z_stride, norm.width)) return cudaErrorInvalidValue;
  if (norm.rows == 0) return cudaSuccess;
  gated_rmsnorm_kernel<<<blocks_of_rows(norm.rows), threads, 0, stream>>>(norm, y, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t rmsnorm(const RmsNorm& norm, float* y, cudaStream_t stream) {
  return launch_rmsnorm(norm, y, stream);
}
cudaError_t rmsnorm(const RmsNorm& norm, Bf16* y, cudaStream_t stream) {
  return launch_rmsnorm(norm, y, stream);
}

cudaError_t gated_rmsnorm(const GatedRmsNorm& norm, const Bf16* y, Bf16* out, cudaStream_t stream) {
  return launch_gated_rmsnorm(norm, y, out, stream);
}
cudaError_t gated_rmsnorm(const GatedRmsNorm& norm, const float* y, Bf16* out, cudaStream_t stream) {
  return launch_gated_rmsnorm(norm, y, out, stream);
}

cudaError_t swiglu(const float* gate_up, uint32_t rows, uint32_t width, Bf16* out, cudaStream_t stream) {
  if (!in_bounds(rows, width)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const uint64_t count = uint64_t{rows} * width;
  swiglu_kernel<<<blocks_of_elements(count), threads, 0, stream>>>(gate_up, count, width, out);
  return cudaGetLastError();
}

cudaError_t embedding_lookup(const Bf16* table, const uint32_t* tokens, uint32_t rows, uint32_t width, float* y,
                             cudaStream_t stream) {
  if (!in_bounds(rows, width)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const uint64_t count = uint64_t{rows} * width;
  embedding_lookup_kernel<<<blocks_of_elements(count), threads, 0, stream>>>(table, tokens, count, width, y);
  return cudaGetLastError();
}

cudaError_t add(const float* x, uint32_t rows, uint32_t width, float* y, cudaStream_t stream) {
  if (!in_bounds(rows, width)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const uint64_t count = uint64_t{rows} * width;
  add_kernel<<<blocks_of_elements(count), threads, 0, stream>>>(x, count, y);
  return cudaGetLastError();
}

cudaError_t to_bf16(const float* x, uint32_t rows, uint32_t width, Bf16* y, cudaStream_t stream) {
  if (!in_bounds(rows, width)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const uint64_t count = uint64_t{rows} * width;
  to_bf16_kernel<<<blocks_of_elements(count), threads, 0, stream>>>(x, count, y);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
