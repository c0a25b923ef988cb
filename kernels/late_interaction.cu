// One block per chunk. Each warp has question tokens of its own, every eighth, and each of its lanes one key at a time,
// in registers: a product of a query and a key is summed by one thread in one order, and only maxima cross lanes. A
// lane behind the last key takes another one again, which changes no maximum.
#include <cuda_runtime.h>

#include <cmath>

#include "kernels/elementwise_device.cuh"
#include "kernels/late_interaction_cuda.h"

namespace recalld::cuda {
namespace {

using elementwise::block_warps;
using elementwise::everyone;
using elementwise::load;
using elementwise::threads;
using elementwise::warp;

constexpr uint32_t width = late_head_dim;

__device__ __forceinline__ float dot(const float* q, const float (&key)[width]) {
  float sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < width; i += 4) {
    const float4 part = load(q + i);
    sum = __fmaf_rn(part.x, key[i], sum);
    sum = __fmaf_rn(part.y, key[i + 1], sum);
    sum = __fmaf_rn(part.z, key[i + 2], sum);
    sum = __fmaf_rn(part.w, key[i + 3], sum);
  }
  return sum;
}

__global__ void __launch_bounds__(threads) late_kernel(const LateInteraction all) {
  __shared__ float best[late_question_tokens_max];  // until the end each only touched by lane 0 of the token's warp
  const uint32_t lane = threadIdx.x % warp, first_token = threadIdx.x / warp;
  const uint32_t group = all.heads / all.kv_heads;
  const size_t stride = static_cast<size_t>(all.kv_heads) * width;
  const Bf16* const keys = all.k + static_cast<size_t>(blockIdx.x) * all.tokens * stride;
  if (lane == 0)
    for (uint32_t token = first_token; token < all.n; token += block_warps) best[token] = -INFINITY;

  for (uint32_t kv_head = 0; kv_head < all.kv_heads; ++kv_head) {
    for (uint32_t first = 0; first < all.tokens; first += warp) {
      const uint32_t own = min(first + lane, all.tokens - 1);
      const Bf16* const from = keys + own * stride + static_cast<size_t>(kv_head) * width;
      float key[width];
#pragma unroll
      for (uint32_t i = 0; i < width; i += 4) {
        const float4 part = load(from + i);
        key[i] = part.x, key[i + 1] = part.y, key[i + 2] = part.z, key[i + 3] = part.w;
      }
      for (uint32_t token = first_token; token < all.n; token += block_warps) {
        const float* const q = all.q + (static_cast<size_t>(token) * all.heads + kv_head * group) * width;
        float largest = -INFINITY;
#pragma unroll 2  // so that one sum goes on while the other waits for its last product
        for (uint32_t head = 0; head < group; ++head) largest = fmaxf(largest, dot(q + head * width, key));
#pragma unroll
        for (int other = warp / 2; other > 0; other /= 2)
          largest = fmaxf(largest, __shfl_xor_sync(everyone, largest, other));
        if (lane == 0) best[token] = fmaxf(best[token], largest);
      }
    }
  }

  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = 0;
  for (uint32_t token = 0; token < all.n; ++token) sum = __fadd_rn(sum, best[token]);
  const float mean = __fdiv_rn(sum, static_cast<float>(all.n));
  all.scores[blockIdx.x] = __fdiv_rn(mean, __fsqrt_rn(static_cast<float>(width)));
}

}  // namespace

cudaError_t late_interaction(const LateInteraction& late, cudaStream_t stream) {
  if (late.n == 0 || late.n > late_question_tokens_max || late.kv_heads == 0 || late.heads == 0 ||
      late.heads % late.kv_heads != 0 || late.head_dim != width || late.tokens == 0 ||
      late.tokens > late_chunk_tokens_max || late.chunks > 0x7fffffffu)
    return cudaErrorInvalidValue;
  if (late.chunks == 0) return cudaSuccess;
  late_kernel<<<late.chunks, threads, 0, stream>>>(late);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
