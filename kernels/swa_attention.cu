// Many tokens: a block has the tokens of one block of 64 of a stream, counted from the stream's begin, and one head;
// each of its four warps has 16 queries. It goes through the blocks of keys that they see, oldest first, so what a
// token gets is summed in the same order wherever the keys come from: those of the call from scratch, older ones from
// the ring. The queries stay in registers and are rotated anew for each block of keys.
//
// One token: a block of threads has one head of one stream, and each thread every 256th key.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/swa_attention_cuda.h"
#include "kernels/tensor_core_device.cuh"

namespace recalld::cuda {
namespace {

using namespace tensor_core;

constexpr int dim = swa_head_dim, half = dim / 2;
constexpr int block_tokens = 64;
constexpr int head_floats = 16;  // of a state: swa_head_floats of kernels/swa_attention.h
constexpr int threads = 2 * block_tokens;
constexpr int pitch = dim + 8;  // of rows in shared memory: eight rows at one column are in different banks
constexpr int key_tiles = block_tokens / 8, dim_tiles = dim / 8;

struct Streams {
  SwaStream items[swa_streams_max];
  uint32_t first_tile[swa_streams_max];
  uint32_t count;
};

// The ring of a stream's state.
struct Ring {
  float *keys, *values;
  uint32_t blocks, kv_heads;

  __device__ __forceinline__ Ring(const SwaAttention& all, float* state)
      : blocks(all.window / block_tokens + 1), kv_heads(all.kv_heads) {
    keys = state + head_floats;
    values = keys + static_cast<size_t>(blocks) * block_tokens * kv_heads * dim;
  }
  // Of a token, counted as the state counts.
  __device__ __forceinline__ size_t row(uint32_t token, uint32_t kv_head) const {
    const uint32_t block = token / block_tokens % blocks;
    return (static_cast<size_t>(block) * kv_heads + kv_head) * block_tokens * dim + token % block_tokens * dim;
  }
};

__device__ __forceinline__ uint32_t tokens_read(const float* state) {
  return static_cast<uint32_t>(*state);
}
// Less the rounds of the ring before the last one.
__device__ __forceinline__ void advance(const SwaAttention& all, float* state, uint32_t tokens) {
  const uint32_t ring = all.window + block_tokens, read = tokens_read(state) + tokens;
  *state = static_cast<float>(read < 2 * ring ? read : ring + read % ring);
}

// What a block of the grid works on: one block of 64 tokens of a stream.
struct Tile {
  SwaStream stream;
  uint32_t read;   // tokens before the call
  uint32_t block;  // of the stream

  __device__ __forceinline__ Tile(const Streams& streams, uint32_t index) {
    uint32_t i = 0;
    while (i + 1 < streams.count && streams.first_tile[i + 1] <= index) ++i;
    stream = streams.items[i];
    read = tokens_read(stream.state);
    block = read / block_tokens + (index - streams.first_tile[i]);
  }
  __device__ __forceinline__ bool is_there() const { return block * block_tokens < read + stream.tokens; }
  // Whether a token is of this call, and its row then.
  __device__ __forceinline__ bool has(uint32_t token) const { return token >= read && token - read < stream.tokens; }
  __device__ __forceinline__ size_t row(uint32_t token) const { return stream.first + (token - read); }
};

__device__ __forceinline__ float4 load(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

// Half of a row of q or k, in one of two neighbouring lanes: 16 elements of the row's first half from 16 * part on, and
// those that they are rotated with.
constexpr int part_pairs = half / 2;
struct Pairs {
  alignas(16) float first[part_pairs];
  alignas(16) float second[part_pairs];

  __device__ __forceinline__ void load_row(const float* row, int part) {
#pragma unroll
    for (int i = 0; i < part_pairs; i += 4) {
      reinterpret_cast<float4&>(first[i]) = load(row + part * part_pairs + i);
      reinterpret_cast<float4&>(second[i]) = load(row + half + part * part_pairs + i);
    }
  }
  // Both lanes of a row, and all others of the warp, call it together.
  __device__ __forceinline__ void norm(const float* weight, int part, float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < part_pairs; ++i) squares = fmaf(second[i], second[i], fmaf(first[i], first[i], squares));
    squares += __shfl_xor_sync(everyone, squares, 1);
    const float scale = 1.0f / sqrtf(squares / dim + eps);
#pragma unroll
    for (int i = 0; i < part_pairs; ++i) {
      first[i] = first[i] * scale * __ldg(weight + part * part_pairs + i);
      second[i] = second[i] * scale * __ldg(weight + half + part * part_pairs + i);
    }
  }
  // Rotated and rounded. cos, sin: of the angle · to: the row
  __device__ __forceinline__ void store_rotated(const float* cos, const float* sin, int part, Bf16* to) const {
#pragma unroll
    for (int i = 0; i < part_pairs; i += 2) {
      const float2 c = *reinterpret_cast<const float2*>(cos + part * part_pairs + i);
      const float2 s = *reinterpret_cast<const float2*>(sin + part * part_pairs + i);
      *reinterpret_cast<uint32_t*>(to + part * part_pairs + i) =
          pack(fmaf(-second[i], s.x, first[i] * c.x), fmaf(-second[i + 1], s.y, first[i + 1] * c.y));
      *reinterpret_cast<uint32_t*>(to + half + part * part_pairs + i) =
          pack(fmaf(first[i], s.x, second[i] * c.x), fmaf(first[i + 1], s.y, second[i + 1] * c.y));
    }
  }
};

// 32 elements, rounded. from: 16-byte aligned
__device__ __forceinline__ void round_part(const float* from, Bf16* to) {
#pragma unroll
  for (int i = 0; i < half; i += 4) {
    const float4 x = load(from + i);
    *reinterpret_cast<uint2*>(to + i) = {pack(x.x, x.y), pack(x.z, x.w)};
  }
}

// Keys and values of the call, as products take them. Grid: tiles, KV heads; two threads a token.
__global__ void __launch_bounds__(threads) prepare_kernel(const SwaAttention all, const Streams streams) {
  const Tile tile(streams, blockIdx.x);
  if (!tile.is_there()) return;
  const int row = static_cast<int>(threadIdx.x) / 2, part = static_cast<int>(threadIdx.x) % 2;
  const uint32_t token = tile.block * block_tokens + row;
  const bool there = tile.has(token);
  const float* const k =
      all.qkv + (there ? tile.row(token) : tile.stream.first) * all.qkv_stride + (all.heads + blockIdx.y) * dim;
  Pairs pairs;
  pairs.load_row(k, part);
  pairs.norm(all.k_norm, part, all.eps);
  if (!there) return;
  const size_t to = (tile.row(token) * all.kv_heads + blockIdx.y) * dim;
  pairs.store_rotated(all.cos + row * half, all.sin + row * half, part, all.k + to);
  round_part(k + all.kv_heads * dim + part * half, all.v + to + part * half);
}

__device__ __forceinline__ uint32_t pair_at(const Bf16* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}

// What a quad of lanes has of two rows: that of lane / 4 and the one 8 below.
struct Rows {
  float low, high;
};

// Grid: tiles, heads.
__global__ void __launch_bounds__(threads) attend_kernel(const SwaAttention all, const Streams streams, Bf16* out) {
  __shared__ __align__(16) Bf16 queries[block_tokens][pitch], keys[block_tokens][pitch], values[block_tokens][pitch];
  const Tile tile(streams, blockIdx.x);
  if (!tile.is_there()) return;
  const int lane = static_cast<int>(threadIdx.x) % warp, first_row = static_cast<int>(threadIdx.x) / warp * tile_rows;
  // Who prepares which row.
  const int row = static_cast<int>(threadIdx.x) / 2, part = static_cast<int>(threadIdx.x) % 2;
  const uint32_t head = blockIdx.y, kv_head = head / (all.heads / all.kv_heads);
  const uint32_t own_token = tile.block * block_tokens + row;
  Pairs query;
  query.load_row(
      all.qkv + (tile.has(own_token) ? tile.row(own_token) : tile.stream.first) * all.qkv_stride + head * dim, part);
  query.norm(all.q_norm, part, all.eps);

  const Ring ring(all, tile.stream.state);
  const uint32_t window_blocks = all.window / block_tokens, before = min(tile.block, window_blocks);
  constexpr float scale = 1.44269504f / 8;  // log2(e) / √dim
  static_assert(dim == 64);
  float o[dim_tiles][4] = {};
  Rows top = {-INFINITY, -INFINITY}, sum = {0, 0};
  const int low = first_row + lane / 4, high = low + 8, column = lane % 4 * 2;
  for (uint32_t distance = before + 1; distance-- > 0;) {
    __syncthreads();  // the block before has been read
    query.store_rotated(all.cos + (distance * block_tokens + row) * half,
                        all.sin + (distance * block_tokens + row) * half, part, queries[row]);
    const uint32_t token = (tile.block - distance) * block_tokens + row;
    Bf16 *const to_key = &keys[row][part * half], *const to_value = &values[row][part * half];
    if (token < tile.read) {
      const size_t from = ring.row(token, kv_head) + part * half;
      round_part(ring.keys + from, to_key);
      round_part(ring.values + from, to_value);
    } else {
      const bool there = tile.has(token);
      const size_t from = there ? (tile.row(token) * all.kv_heads + kv_head) * dim + part * half : 0;
#pragma unroll
      for (int i = 0; i < half; i += 8) {
        *reinterpret_cast<uint4*>(to_key + i) = there ? *reinterpret_cast<const uint4*>(all.k + from + i) : uint4{};
        *reinterpret_cast<uint4*>(to_value + i) = there ? *reinterpret_cast<const uint4*>(all.v + from + i) : uint4{};
      }
    }
    __syncthreads();

    float scores[key_tiles][4] = {};
#pragma unroll
    for (int step = 0; step < dim; step += 16) {
      const uint4 a = {pair_at(&queries[low][step + column]), pair_at(&queries[high][step + column]),
                       pair_at(&queries[low][step + column + 8]), pair_at(&queries[high][step + column + 8])};
#pragma unroll
      for (int i = 0; i < key_tiles; ++i) {
        const Bf16* const key = &keys[8 * i + lane / 4][step + column];
        multiply(scores[i], a, pair_at(key), pair_at(key + 8));
      }
    }
    if (distance == 0 || distance == window_blocks) {
#pragma unroll
      for (int i = 0; i < key_tiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = 8 * i + column + j % 2, asks = j < 2 ? low : high;
          if (distance == 0 ? key > asks : key < asks) scores[i][j] = -INFINITY;
        }
      }
    }

    Rows block_top = top;
#pragma unroll
    for (int i = 0; i < key_tiles; ++i) {
      block_top.low = fmaxf(block_top.low, fmaxf(scores[i][0], scores[i][1]));
      block_top.high = fmaxf(block_top.high, fmaxf(scores[i][2], scores[i][3]));
    }
    block_top = {max_of_quad(block_top.low), max_of_quad(block_top.high)};
    const Rows shrink = {exp2_fast((top.low - block_top.low) * scale), exp2_fast((top.high - block_top.high) * scale)};
    top = block_top;
    sum = {sum.low * shrink.low, sum.high * shrink.high};
#pragma unroll
    for (int i = 0; i < dim_tiles; ++i) {
      o[i][0] *= shrink.low;
      o[i][1] *= shrink.low;
      o[i][2] *= shrink.high;
      o[i][3] *= shrink.high;
    }
#pragma unroll
    for (int i = 0; i < key_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[i][j] = exp2_fast((scores[i][j] - (j < 2 ? top.low : top.high)) * scale);
      sum.low += scores[i][0] + scores[i][1];
      sum.high += scores[i][2] + scores[i][3];
    }
#pragma unroll
    for (int step = 0; step < block_tokens / 16; ++step) {
      const auto& left = scores[2 * step];
      const auto& right = scores[2 * step + 1];
      const uint4 shares = {pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]),
                            pack(right[2], right[3])};
#pragma unroll
      for (int i = 0; i < dim_tiles; i += 2) {
        const uint4 b = load_transposed(&values[16 * step + lane % 16][8 * i + lane / 16 * 8]);
        multiply(o[i], shares, b.x, b.y);
        multiply(o[i + 1], shares, b.z, b.w);
      }
    }
  }

  sum = {sum_of_quad(sum.low), sum_of_quad(sum.high)};
  const uint32_t first = tile.block * block_tokens;
  const auto write = [&](int of_row, float total, int element) {
    if (!tile.has(first + of_row)) return;
    Bf16* const to = out + (tile.row(first + of_row) * all.heads + head) * dim + column;
#pragma unroll
    for (int i = 0; i < dim_tiles; ++i)
      *reinterpret_cast<uint32_t*>(to + 8 * i) =
          pack(__fdiv_rn(o[i][element], total), __fdiv_rn(o[i][element + 1], total));
  };
  write(low, sum.low, 0);
  write(high, sum.high, 2);
}

// The last tokens of the call into the rings. Grid: tokens from the last one back, streams.
__global__ void __launch_bounds__(threads) keep_kernel(const SwaAttention all, const Streams streams) {
  const SwaStream& stream = streams.items[blockIdx.y];
  if (blockIdx.x >= stream.tokens) return;
  const Ring ring(all, stream.state);
  const uint32_t at = stream.tokens - 1 - blockIdx.x, token = tokens_read(stream.state) + at;
  const size_t from = static_cast<size_t>(stream.first + at) * all.kv_heads * dim;
  for (uint32_t i = threadIdx.x; i < all.kv_heads * dim; i += threads) {
    const size_t to = ring.row(token, i / dim) + i % dim;
    ring.keys[to] = __uint_as_float(static_cast<uint32_t>(all.k[from + i].bits) << 16);
    ring.values[to] = __uint_as_float(static_cast<uint32_t>(all.v[from + i].bits) << 16);
  }
}

__global__ void advance_kernel(const SwaAttention all, const Streams streams) {
  if (threadIdx.x < streams.count) advance(all, streams.items[threadIdx.x].state, streams.items[threadIdx.x].tokens);
}

// ---- One token

constexpr int step_threads = 256;
constexpr int ring_blocks_max = swa_window_max / block_tokens + 1;

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int other = warp / 2; other > 0; other /= 2) x += __shfl_xor_sync(everyone, x, other);
  return x;
}
// A row of which each lane has a pair: elements lane and lane + 32.
__device__ __forceinline__ float2 normed_pair(const float* x, const float* weight, int lane, float eps) {
  const float a = x[lane], b = x[lane + half];
  const float scale = 1.0f / sqrtf(sum_of_warp(fmaf(a, a, b * b)) / dim + eps);
  return {a * scale * weight[lane], b * scale * weight[lane + half]};
}
__device__ __forceinline__ float2 rotated_pair(float2 pair, float cos, float sin) {
  return {fmaf(-pair.y, sin, pair.x * cos), fmaf(pair.x, sin, pair.y * cos)};
}
__device__ __forceinline__ float rounded(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

// Grid: streams, KV heads; a warp.
__global__ void __launch_bounds__(warp) keep_step_kernel(const SwaAttention all, float* const* states) {
  const int lane = static_cast<int>(threadIdx.x);
  float* const state = states[blockIdx.x];
  const Ring ring(all, state);
  const uint32_t token = tokens_read(state), offset = token % block_tokens;
  const float* const k = all.qkv + static_cast<size_t>(blockIdx.x) * all.qkv_stride + (all.heads + blockIdx.y) * dim;
  const float* const v = k + all.kv_heads * dim;
  const float2 pair = rotated_pair(normed_pair(k, all.k_norm, lane, all.eps), all.cos[offset * half + lane],
                                   all.sin[offset * half + lane]);
  const size_t to = ring.row(token, blockIdx.y);
  ring.keys[to + lane] = rounded(pair.x);
  ring.keys[to + lane + half] = rounded(pair.y);
  ring.values[to + lane] = rounded(v[lane]);
  ring.values[to + lane + half] = rounded(v[lane + half]);
}

// Grid: streams, heads.
__global__ void __launch_bounds__(step_threads)
    attend_step_kernel(const SwaAttention all, float* const* states, Bf16* out) {
  __shared__ __align__(16) float queries[ring_blocks_max][dim];  // by how many blocks the keys are behind
  __shared__ float shares[swa_window_max + 1];
  __shared__ float of_warps[step_threads / warp], parts[step_threads / dim][dim];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp, in_block = thread / warp;
  float* const state = states[blockIdx.x];
  const Ring ring(all, state);
  const uint32_t token = tokens_read(state), first = token - min(token, all.window), count = token - first + 1;
  const uint32_t block = token / block_tokens, offset = token % block_tokens, head = blockIdx.y;
  const uint32_t kv_head = head / (all.heads / all.kv_heads);

  const float* const q = all.qkv + static_cast<size_t>(blockIdx.x) * all.qkv_stride + head * dim;
  const float2 pair = normed_pair(q, all.q_norm, lane, all.eps);  // the same in every warp
  for (uint32_t distance = in_block; distance <= block - first / block_tokens; distance += step_threads / warp) {
    const uint32_t angle = (distance * block_tokens + offset) * half + lane;
    const float2 rotated = rotated_pair(pair, all.cos[angle], all.sin[angle]);
    queries[distance][lane] = rotated.x;
    queries[distance][lane + half] = rotated.y;
  }
  __syncthreads();

  // Over the block of threads, in the same order in each of them.
  const auto reduced = [&](float x, auto join) {
#pragma unroll
    for (int other = warp / 2; other > 0; other /= 2) x = join(x, __shfl_xor_sync(everyone, x, other));
    __syncthreads();  // the values before have been read
    if (lane == 0) of_warps[in_block] = x;
    __syncthreads();
    x = of_warps[0];
    for (int i = 1; i < step_threads / warp; ++i) x = join(x, of_warps[i]);
    return x;
  };
  float top = -INFINITY;
  for (uint32_t i = thread; i < count; i += step_threads) {
    const float* const key = ring.keys + ring.row(first + i, kv_head);
    const float* const query = queries[block - (first + i) / block_tokens];
    float dot = 0;
#pragma unroll 4
    for (int j = 0; j < dim; j += 4) {
      const float4 a = load(query + j), b = load(key + j);
      dot = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, dot))));
    }
    shares[i] = dot * 0.125f;  // 1 / √dim
    top = fmaxf(top, shares[i]);
  }
  top = reduced(top, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0;
  for (uint32_t i = thread; i < count; i += step_threads) sum += shares[i] = expf(shares[i] - top);
  sum = reduced(sum, [](float a, float b) { return a + b; });  // and all shares are there

  const int column = thread % dim, group = thread / dim;
  float o = 0;
  for (uint32_t i = group; i < count; i += step_threads / dim)
    o = fmaf(shares[i], ring.values[ring.row(first + i, kv_head) + column], o);
  parts[group][column] = o;
  __syncthreads();
  if (group > 0) return;
  for (int i = 1; i < step_threads / dim; ++i) o += parts[i][column];
  const __nv_bfloat16 result = __float2bfloat16_rn(__fdiv_rn(o, sum));
  out[(static_cast<size_t>(blockIdx.x) * all.heads + head) * dim + column].bits = __bfloat16_as_ushort(result);
}

__global__ void advance_step_kernel(const SwaAttention all, float* const* states) {
  advance(all, states[threadIdx.x], 1);
}

bool in_bounds(const SwaAttention& all, uint32_t count) {
  return count <= swa_streams_max && all.kv_heads > 0 && all.heads > 0 && all.heads <= 65535 &&
         all.heads % all.kv_heads == 0 && all.window >= block_tokens && all.window <= swa_window_max &&
         all.window % block_tokens == 0 && all.qkv_stride % 4 == 0 &&
         all.qkv_stride >= (uint64_t{all.heads} + 2 * uint64_t{all.kv_heads}) * dim;
}

}  // namespace

cudaError_t swa_attention(const SwaAttention& all, const SwaStream* streams, uint32_t count, Bf16* out,
                          cudaStream_t stream) {
  if (!in_bounds(all, count)) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  Streams table{};
  table.count = count;
  uint64_t tiles = 0;
  uint32_t tokens_most = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (streams[i].tokens == 0) return cudaErrorInvalidValue;
    table.items[i] = streams[i];
    table.first_tile[i] = static_cast<uint32_t>(tiles);
    // One more where the stream begins amid a block of its own, which the device alone knows.
    tiles += (streams[i].tokens + block_tokens - 1) / block_tokens + 1;
    tokens_most = std::max(tokens_most, streams[i].tokens);
  }
  if (tiles > uint64_t{1} << 30) return cudaErrorInvalidValue;
  const auto grid_tiles = static_cast<unsigned>(tiles);
  prepare_kernel<<<dim3(grid_tiles, all.kv_heads), threads, 0, stream>>>(all, table);
  attend_kernel<<<dim3(grid_tiles, all.heads), threads, 0, stream>>>(all, table, out);
  keep_kernel<<<dim3(std::min(tokens_most, all.window + block_tokens), count), threads, 0, stream>>>(all, table);
  advance_kernel<<<1, swa_streams_max, 0, stream>>>(all, table);
  return cudaGetLastError();
}

cudaError_t swa_attention_step(const SwaAttention& all, float* const* states, uint32_t count, Bf16* out,
                               cudaStream_t stream) {
  if (!in_bounds(all, count)) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  keep_step_kernel<<<dim3(count, all.kv_heads), warp, 0, stream>>>(all, states);
  attend_step_kernel<<<dim3(count, all.heads), step_threads, 0, stream>>>(all, states, out);
  advance_step_kernel<<<1, count, 0, stream>>>(all, states);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
