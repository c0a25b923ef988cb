// What kernels share that multiply with the tensor cores: products of 16 x 8 x 16 with their operands, and softmax over
// the rows of such a product.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda::tensor_core {

inline constexpr unsigned everyone = 0xffffffff;
inline constexpr int warp = 32;
inline constexpr int tile_rows = 16;  // of a product

// d += a · b, 16 x 8 x 16
__device__ __forceinline__ void multiply(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t shared_address(const void* data) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(data));
}

// Four matrices of 8 x 8 from shared memory; each lane names one row of one of them, by its shared_address().
__device__ __forceinline__ uint4 load_matrices(uint32_t row) {
  uint4 to;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "r"(row)
               : "memory");
  return to;
}
__device__ __forceinline__ uint4 load_transposed(uint32_t row) {
  uint4 to;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "r"(row)
               : "memory");
  return to;
}
__device__ __forceinline__ uint4 load_matrices(const Bf16* row) {
  return load_matrices(shared_address(row));
}
__device__ __forceinline__ uint4 load_transposed(const Bf16* row) {
  return load_transposed(shared_address(row));
}

// Two bf16; the lower half is the first.
__device__ __forceinline__ uint32_t pack(float first, float second) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Over the four lanes that have a row of a product.
__device__ __forceinline__ float max_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(everyone, x, 1));
  return fmaxf(x, __shfl_xor_sync(everyone, x, 2));
}
__device__ __forceinline__ float sum_of_quad(float x) {
  x += __shfl_xor_sync(everyone, x, 1);
  return x + __shfl_xor_sync(everyone, x, 2);
}

}  // namespace recalld::cuda::tensor_core
