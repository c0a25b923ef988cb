// All of these are bound by memory. A norm has one warp per row or head, so that its sum has one order whatever else is
// in the call; it reads the row twice, the second time from the L1 cache, which holds rows of any width in use. The
// others have one thread per four elements. Blocks of eight warps everywhere.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/elementwise_cuda.h"

namespace recalld::cuda {
namespace {

constexpr unsigned everyone = 0xffffffff;
constexpr int warp = 32, block_warps = 8, threads = block_warps * warp;

__device__ __forceinline__ float4 load(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ float4 load(const Bf16* from) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(from);
  return {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u), __uint_as_float(pairs.y << 16),
          __uint_as_float(pairs.y & 0xffff0000u)};
}

__device__ __forceinline__ void store(float4 value, float* to) {
  *reinterpret_cast<float4*>(to) = value;
}
__device__ __forceinline__ void store(float4 value, Bf16* to) {
  __nv_bfloat162* const pairs = reinterpret_cast<__nv_bfloat162*>(to);
  pairs[0] = __floats2bfloat162_rn(value.x, value.y);
  pairs[1] = __floats2bfloat162_rn(value.z, value.w);
}

__device__ __forceinline__ float4 product(float4 a, float4 b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}

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
  const uint32_t first = threadIdx.x % warp * 4;
  float squares = 0;
  for (uint32_t i = first; i < width; i += warp * 4) {
    const float4 v = row(i);
    squares = fmaf(v.x, v.x, squares);
    squares = fmaf(v.y, v.y, squares);
    squares = fmaf(v.z, v.z, squares);
    squares = fmaf(v.w, v.w, squares);
  }
  // Each lane ends with the same bits: both sides of a pair add the same two numbers.
#pragma unroll
  for (int other = warp / 2; other > 0; other /= 2) squares += __shfl_xor_sync(everyone, squares, other);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
  for (uint32_t i = first; i < width; i += warp * 4)
    store(product(product(row(i), {scale, scale, scale, scale}), load(weight + i)), out + i);
}

__device__ __forceinline__ uint32_t warp_of_grid() {
  return blockIdx.x * block_warps + threadIdx.x / warp;
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

// The first of this thread's four elements of [rows, width].
__device__ __forceinline__ size_t element_of_grid() {
  return (static_cast<size_t>(blockIdx.x) * threads + threadIdx.x) * 4;
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
  const float4 a = load(y + i), b = load(x + i);
  store({a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}, y + i);
}

bool in_bounds(uint64_t rows, uint32_t width) {
  return rows <= elementwise_rows_max && width > 0 && width <= elementwise_width_max && width % 16 == 0;
}
bool is_stride(uint32_t stride, uint64_t width) {
  return stride % 4 == 0 && stride >= width;
}

// Blocks for one warp each of `rows`, and for one thread for every four of `count` elements.
unsigned blocks_of_rows(uint64_t rows) {
  return static_cast<unsigned>((rows + block_warps - 1) / block_warps);
}
unsigned blocks_of_elements(uint64_t count) {
  return static_cast<unsigned>((count + 4 * threads - 1) / (4 * threads));
}
static_assert(uint64_t{elementwise_rows_max} * elementwise_width_max / (4 * threads) < uint64_t{1} << 31,
              "a grid has fewer than 2^31 blocks");

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

}  // namespace recalld::cuda
