// What decode and prefill share. One tile of work is one token, one KV head and up to 16 of its query heads: the 16
// rows of the tensor cores' products. A tile and one chunk give S = q · Kᵀ, p = e^(S - max) and p · V from zero; what
// differs between the two kernels is only who does that, since sums of chunks are made outside the products, by
// o = fma(weight / Σp, p · V, o) in the order of the selection, for eight chunks; those sums are added in order.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "kernels/dependent_launch.cuh"
#include "kernels/hsa_attention_cuda.h"
#include "kernels/tensor_core_device.cuh"

namespace recalld::cuda::hsa {

using tensor_core::everyone, tensor_core::exp2_fast, tensor_core::multiply, tensor_core::pack, tensor_core::warp;

inline constexpr int rows = 16;               // of a tile: query heads
inline constexpr int dim = hsa_head_dim;      // columns of q, K, V and o
inline constexpr int column_tiles = dim / 8;  // a product has 8 columns
inline constexpr int chunk_tokens = hsa_chunk_tokens;
inline constexpr int token_blocks = chunk_tokens / 16;          // a product sums over 16
inline constexpr int row_pieces = dim / 8;                      // of 16 bytes, in a row of K or V
inline constexpr int chunk_pieces = chunk_tokens * row_pieces;  // of K, and of V
inline constexpr int group_chunks = 8;                          // that are summed before their sum is added

// What one lane holds of a product's rows: `low` of row lane / 4, `high` of row lane / 4 + 8.
struct Rows {
  float low, high;
};

__device__ __forceinline__ Rows max_of_quad(Rows top) {
#pragma unroll
  for (int width = 1; width < 4; width *= 2) {
    top.low = fmaxf(top.low, __shfl_xor_sync(everyone, top.low, width));
    top.high = fmaxf(top.high, __shfl_xor_sync(everyone, top.high, width));
  }
  return top;
}

__device__ __forceinline__ void raise(Rows& top, const float (&logits)[4]) {
  top.low = fmaxf(top.low, fmaxf(logits[0], logits[1]));
  top.high = fmaxf(top.high, fmaxf(logits[2], logits[3]));
}

// A lane's part of the sums of p over a chunk, from those of its blocks of tokens.
__device__ __forceinline__ Rows sum_of_lane(const Rows (&blocks)[token_blocks]) {
  Rows sum = blocks[0];
#pragma unroll
  for (int block = 1; block < token_blocks; ++block) sum.low += blocks[block].low, sum.high += blocks[block].high;
  return sum;
}

__device__ __forceinline__ Rows sum_of_quad(Rows sum) {
#pragma unroll
  for (int width = 1; width < 4; width *= 2) {
    sum.low += __shfl_xor_sync(everyone, sum.low, width);
    sum.high += __shfl_xor_sync(everyone, sum.high, width);
  }
  return sum;
}

// A tile's query as four left operands. Which 16 columns a product sums over is free as long as K follows: lane c of a
// quad has columns 8c to 8c + 7 of each half, a piece, so that both q and K are read by pieces.
__device__ __forceinline__ void load_query(const Bf16* q, int heads, int lane, uint4 (&query)[4]) {
  const int row = lane / 4;
  const uint4* const from = reinterpret_cast<const uint4*>(q) + row * row_pieces + lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 low = row < heads ? from[4 * half] : uint4{};
    const uint4 high = row + 8 < heads ? from[8 * row_pieces + 4 * half] : uint4{};
    query[2 * half] = {low.x, high.x, low.y, high.y};
    query[2 * half + 1] = {low.z, high.z, low.w, high.w};
  }
}

// Logits of 8 tokens, before they are scaled. k: pieces lane % 4 and lane % 4 + 4 of token lane / 4.
__device__ __forceinline__ void make_logits(float (&logits)[4], const uint4 (&query)[4], const uint4& k0,
                                            const uint4& k1) {
#pragma unroll
  for (float& logit : logits) logit = 0;
  multiply(logits, query[0], k0.x, k0.y);
  multiply(logits, query[1], k0.z, k0.w);
  multiply(logits, query[2], k1.x, k1.y);
  multiply(logits, query[3], k1.z, k1.w);
}

// e^((logit - top) / √dim). The difference first: it is exact where it matters, however large the logits are.
__device__ __forceinline__ float share(float logit, float top) {
  constexpr float scale = 1.44269504f / 8;  // log2(e) / √dim
  static_assert(dim == 64);
  return exp2_fast((logit - top) * scale);
}

// The shares of 16 tokens, before they are divided by their sum: the left operand of p · V. Adds up a lane's own.
__device__ __forceinline__ uint4 make_shares(const float (&first)[4], const float (&second)[4], const Rows& top,
                                             Rows& sum) {
  const float low[4] = {share(first[0], top.low), share(first[1], top.low), share(second[0], top.low),
                        share(second[1], top.low)};
  const float high[4] = {share(first[2], top.high), share(first[3], top.high), share(second[2], top.high),
                         share(second[3], top.high)};
  sum.low = (low[0] + low[1]) + (low[2] + low[3]);
  sum.high = (high[0] + high[1]) + (high[2] + high[3]);
  return {pack(low[0], low[1]), pack(high[0], high[1]), pack(low[2], low[3]), pack(high[2], high[3])};
}

// A warp has place i of a selection in lane i % 32, register i / 32.
inline constexpr int place_registers = hsa_k_max / warp;

// What one lane knows of a token's selection.
struct Selection {
  int count = 0;                  // of the selected chunks, in every lane
  float scores[place_registers];  // with their decay

  // Of up to `warp` places, from what has been read of this lane's.
  __device__ __forceinline__ Selection(const HsaAttention& all, uint32_t chunk, float score, int lane) {
#pragma unroll
    for (float& each : scores) each = -INFINITY;
    const bool there = chunk != hsa_no_chunk;
    const float decay = __fmul_rn(static_cast<float>(lane), all.weighting.pos_decay);
    if (there) scores[0] = __fadd_rn(score, decay);
    count = __popc(__ballot_sync(everyone, there));
  }

  __device__ __forceinline__ Selection(const HsaAttention& all, size_t first_place, int lane) {
#pragma unroll
    for (int r = 0; r < place_registers; ++r) {
      scores[r] = -INFINITY;
      if (r * warp >= all.k) continue;
      const uint32_t place = r * warp + lane;
      uint32_t chunk = hsa_no_chunk;
      if (place < all.k) {
        chunk = all.chunks[first_place + place];
        const float decay = __fmul_rn(static_cast<float>(place), all.weighting.pos_decay);
        scores[r] = __fadd_rn(all.scores[first_place + place], decay);
      }
      const bool there = chunk != hsa_no_chunk;
      if (!there) scores[r] = -INFINITY;
      count += __popc(__ballot_sync(everyone, there));
    }
  }
};

__device__ __forceinline__ float best_of(const float (&scores)[place_registers]) {
  float top = -INFINITY;
#pragma unroll
  for (int r = 0; r < place_registers; ++r) top = fmaxf(top, scores[r]);
#pragma unroll
  for (int width = warp / 2; width > 0; width /= 2) top = fmaxf(top, __shfl_xor_sync(everyone, top, width));
  return top;
}

__device__ __forceinline__ void divide_by_sum(int count, float (&weights)[place_registers]) {
  float sum = 0;
#pragma unroll
  for (int r = 0; r < place_registers; ++r)
    if (r * warp < count) sum = __fadd_rn(sum, weights[r]);
#pragma unroll
  for (int width = warp / 2; width > 0; width /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(everyone, sum, width));
#pragma unroll
  for (int r = 0; r < place_registers; ++r) weights[r] = __fdiv_rn(weights[r], sum);
}

// As chunk_weights_cpu(), but for the order of the sums.
__device__ __forceinline__ void make_weights(const ChunkWeighting& how, const Selection& selection, int lane,
                                             float (&weights)[place_registers]) {
  const auto& [count, scores] = selection;
  const bool relative = how.stick_slope > 0;
  const float top = how.softmax || relative ? best_of(scores) : 0;
#pragma unroll
  for (int r = 0; r < place_registers; ++r) weights[r] = 0;
  if (how.softmax) {
#pragma unroll
    for (int r = 0; r < place_registers; ++r)
      if (r * warp + lane < count) weights[r] = expf(scores[r] - top);
    divide_by_sum(count, weights);
    return;
  }
  float newer = 0;  // Σ softplus in the registers before
#pragma unroll
  for (int r = 0; r < place_registers; ++r) {
    if (r * warp >= count) continue;
    const bool there = r * warp + lane < count;
    float score = scores[r];
    if (relative) score = __fmul_rn(how.stick_slope, __fadd_rn(__fsub_rn(score, top), how.stick_margin));
    float broken = there ? __fadd_rn(fmaxf(score, 0.0f), log1pf(expf(-fabsf(score)))) : 0.0f;
#pragma unroll
    for (int width = 1; width < warp; width *= 2) {
      const float before = __shfl_up_sync(everyone, broken, width);
      if (lane >= width) broken = __fadd_rn(before, broken);
    }
    broken = __fadd_rn(newer, broken);
    if (there) weights[r] = expf(__fsub_rn(score, broken));
    newer = __shfl_sync(everyone, broken, warp - 1);
  }
  if (relative) divide_by_sum(count, weights);
}

// One token, one KV head and some of its query heads.
struct Tile {
  uint32_t kv_head;
  int heads;             // of the tile
  size_t first_element;  // of q and o
  size_t first_place;    // of chunks and scores

  __device__ __forceinline__ Tile(const HsaAttention& all, uint32_t token, uint32_t kv_head, uint32_t row_tile)
      : kv_head(kv_head) {
    const uint32_t group_heads = all.heads / all.kv_heads, first_head = row_tile * rows;
    heads = min(rows, static_cast<int>(group_heads - first_head));
    first_element = (static_cast<size_t>(token) * all.heads + kv_head * group_heads + first_head) * dim;
    first_place = (static_cast<size_t>(token) * all.retrieval_heads + (all.retrieval_heads == 1 ? 0 : kv_head)) * all.k;
  }
};

// Zeros get one sign: whether sums of groups were added to a zero must not show.
__device__ __forceinline__ void write(const HsaAttention& all, size_t element, float first, float second) {
  first += 0.0f;
  second += 0.0f;
  if (all.o != nullptr) {
    *reinterpret_cast<float2*>(all.o + element) = {first, second};
  } else {
    *reinterpret_cast<uint32_t*>(all.o_bf16 + element) = pack(first, second);
  }
}

template <class... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), dim3 grid, int threads, size_t shared_bytes, unsigned cluster_blocks,
                   bool starts_early, cudaStream_t stream, Arguments... arguments) {
  if (shared_bytes > 0) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attributes[] = {{}, early_start(starts_early)};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = cluster_blocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = std::size(attributes);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Either enqueues its kernel. row_tiles: of a token and KV head
cudaError_t decode(const HsaAttention& all, uint32_t row_tiles, cudaStream_t stream);
cudaError_t prefill(const HsaAttention& all, uint32_t row_tiles, cudaStream_t stream);

// Bytes that decode needs of a workspace for so many tiles.
size_t decode_workspace(size_t tiles, uint32_t k);

}  // namespace recalld::cuda::hsa
