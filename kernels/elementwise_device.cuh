// What the small kernels share: rows in fours of elements, the norm of a row, and how many blocks there are.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/elementwise_cuda.h"

namespace recalld::cuda::elementwise {

inline constexpr unsigned everyone = 0xffffffff;
inline constexpr int warp = 32, block_warps = 8, threads = block_warps * warp;

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

__device__ __forceinline__ float4 sum(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ __forceinline__ float4 product(float4 a, float4 b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}
__device__ __forceinline__ float4 product(float4 a, float b) {
  return {a.x * b, a.y * b, a.z * b, a.w * b};
}

// 1 / sqrt(mean(x²) + eps) of the warp's row from row(i), four elements from the i-th on; the same in every lane.
template <class Row>
__device__ __forceinline__ float norm_scale(const Row& row, uint32_t width, float eps) {
  float squares = 0;
  for (uint32_t i = threadIdx.x % warp * 4; i < width; i += warp * 4) {
    const float4 v = row(i);
    squares = fmaf(v.x, v.x, squares);
    squares = fmaf(v.y, v.y, squares);
    squares = fmaf(v.z, v.z, squares);
    squares = fmaf(v.w, v.w, squares);
  }
  // Each lane ends with the same bits: both sides of a pair add the same two numbers.
#pragma unroll
  for (int other = warp / 2; other > 0; other /= 2) squares += __shfl_xor_sync(everyone, squares, other);
  return 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

__device__ __forceinline__ uint32_t warp_of_grid() {
  return blockIdx.x * block_warps + threadIdx.x / warp;
}

// The first of this thread's four elements.
__device__ __forceinline__ size_t element_of_grid() {
  return (static_cast<size_t>(blockIdx.x) * threads + threadIdx.x) * 4;
}

inline bool in_bounds(uint64_t rows, uint64_t width) {
  return rows <= elementwise_rows_max && width > 0 && width <= elementwise_width_max && width % 16 == 0;
}
inline bool is_stride(uint32_t stride, uint64_t width) {
  return stride % 4 == 0 && stride >= width;
}

// Blocks for one warp each of `rows`, and for one thread for every four of `count` elements.
inline unsigned blocks_of_rows(uint64_t rows) {
  return static_cast<unsigned>((rows + block_warps - 1) / block_warps);
}
inline unsigned blocks_of_elements(uint64_t count) {
  return static_cast<unsigned>((count + 4 * threads - 1) / (4 * threads));
}
static_assert(uint64_t{elementwise_rows_max} * elementwise_width_max / (4 * threads) < uint64_t{1} << 31,
              "a grid has fewer than 2^31 blocks");

}  // namespace recalld::cuda::elementwise
