// Four warps share a chunk, each 16 of its tokens and then 16 columns of o. A cluster of eight blocks has eight chunks;
// its blocks push their products into each other's shared memory, and each sums an eighth of o. Of several clusters,
// the block that ends last adds the sums of all. So few tokens still keep the card busy. What a tile is and how its
// products are made is told in hsa_attention_device.cuh.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "kernels/hsa_attention_device.cuh"

namespace recalld::cuda::hsa {
namespace {

namespace cg = cooperative_groups;

using tensor_core::load_transposed, tensor_core::shared_address;

constexpr int team_warps = 4, team_threads = team_warps * warp;
constexpr int groups_max = hsa_k_max / group_chunks;
static_assert(team_warps == token_blocks && 2 * team_warps == column_tiles && group_chunks == column_tiles);

__device__ __forceinline__ void copy_piece(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// Where a piece of K or V lies in shared memory, so that neither 8 rows of one column (V) nor 4 pieces of 2
// neighbouring rows (K) share banks.
__device__ __forceinline__ int place_of(int row, int piece) {
  return row * row_pieces + (piece ^ ((row & 1) << 2 | (row >> 1 & 3)));
}

// Where a lane reads V for make_products(): place_of() of its row in the first block of tokens, column tile 0 or 1.
__device__ __forceinline__ int first_value_place(int lane) {
  return place_of(lane % 16, lane / 16);
}

// 16 columns of p · V, from the even column tile `tile` on. v: V of a chunk in shared memory, and first_value_place()
__device__ __forceinline__ void make_products(float (&products)[2][4], const uint4 (&shares)[token_blocks],
                                              const uint4* v, int first_place, int tile) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) products[i][j] = 0;
  const uint32_t from = shared_address(v + (first_place ^ tile));
#pragma unroll
  for (int block = 0; block < token_blocks; ++block) {
    const uint4 b = load_transposed(from + block * 16 * row_pieces * static_cast<uint32_t>(sizeof(uint4)));
    multiply(products[0], shares[block], b.x, b.y);
    multiply(products[1], shares[block], b.z, b.w);
  }
}

// A chunk's K and V of one KV head; rows are `stride` pieces apart.
struct Record {
  const uint4 *k, *v;
  size_t stride;

  __device__ __forceinline__ Record(const HsaAttention& all, uint32_t slot, uint32_t kv_head)
      : stride(static_cast<size_t>(all.kv_heads) * row_pieces) {
    k = reinterpret_cast<const uint4*>(all.cache) + 2 * chunk_tokens * stride * slot + kv_head * row_pieces;
    v = k + chunk_tokens * stride;
  }
};

// Of the four warps that share a chunk.
struct Team {
  uint4 v[chunk_pieces];
  uint4 shares[token_blocks][warp];
  Rows sums[token_blocks][warp];
  float tops[token_blocks][rows];
  float weight;
};

// The first threads of a block wait for each other.
__device__ __forceinline__ void meet(int threads) {
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

// Columns 16 * part to 16 * part + 15 of p · V of the chunk at `place`, which lies in `slot`, and its weight / Σp.
__device__ __forceinline__ Rows team_products(const HsaAttention& all, const Tile& tile, const Selection& selection,
                                              const uint4 (&query)[4], int place, uint32_t slot, Team& memory, int part,
                                              int lane, float (&products)[2][4]) {
  const Record record(all, slot, tile.kv_head);
  uint4 k[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      k[i][half] = record.k[(16 * part + 8 * i + lane / 4) * record.stride + 4 * half + lane % 4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Of this warp's columns, which no other one reads.
    const int row = 16 * i + lane / 2, piece = 2 * part + lane % 2;
    copy_piece(&memory.v[place_of(row, piece)], record.v + row * record.stride + piece);
  }
  if (part == 0) {
    float weights[place_registers];
    make_weights(all.weighting, selection, lane, weights);
#pragma unroll
    for (int r = 0; r < place_registers; ++r)
      if (r * warp + lane == place) memory.weight = weights[r];
  }

  float logits[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) make_logits(logits[i], query, k[i][0], k[i][1]);
  Rows top = {-INFINITY, -INFINITY};
  raise(top, logits[0]);
  raise(top, logits[1]);
  top = max_of_quad(top);
  if (lane % 4 == 0) {
    memory.tops[part][lane / 4] = top.low;
    memory.tops[part][lane / 4 + 8] = top.high;
  }
  meet(team_threads);
#pragma unroll
  for (const auto& of_block : memory.tops) {
    top.low = fmaxf(top.low, of_block[lane / 4]);
    top.high = fmaxf(top.high, of_block[lane / 4 + 8]);
  }
  memory.shares[part][lane] = make_shares(logits[0], logits[1], top, memory.sums[part][lane]);
  meet(team_threads);
  uint4 shares[token_blocks];
  Rows sums[token_blocks];
#pragma unroll
  for (int block = 0; block < token_blocks; ++block) {
    shares[block] = memory.shares[block][lane];
    sums[block] = memory.sums[block][lane];
  }
  const Rows sum = sum_of_quad(sum_of_lane(sums));
  const float weight = memory.weight;
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
  make_products(products, shares, memory.v, first_value_place(lane), 2 * part);
  return {__fdiv_rn(weight, sum.low), __fdiv_rn(weight, sum.high)};
}

// For the sums of clusters that share a token.
struct Workspace {
  uint32_t ended[hsa_decode_tiles_max][column_tiles];  // blocks, until all have

  // [groups, column tiles]
  __device__ float2 (*sums(uint32_t tile, uint32_t groups))[column_tiles][rows][4] {
    return reinterpret_cast<float2(*)[column_tiles][rows][4]>(this + 1) + static_cast<size_t>(tile) * groups;
  }
};

// Grid: tokens x groups of chunks x a cluster of column_tiles blocks, KV heads, row tiles. A block has the chunk of its
// rank and sums the column tile of its rank.
__global__ void __launch_bounds__(team_threads) decode_kernel(HsaAttention all) {
  __shared__ Team team;
  __shared__ float2 products[group_chunks][rows][4];
  __shared__ float factors[group_chunks][rows];
  __shared__ bool is_last;
  const cg::cluster_group cluster = cg::this_cluster();
  let_next_kernel_start();
  cluster.barrier_arrive();  // waited for before others' shared memory is written
  const uint32_t rank = cluster.block_rank(), groups_of_k = (all.k + group_chunks - 1) / group_chunks;
  const uint32_t token = blockIdx.x / column_tiles / groups_of_k, group = blockIdx.x / column_tiles % groups_of_k;
  const int lane = static_cast<int>(threadIdx.x) % warp, part = static_cast<int>(threadIdx.x) / warp;
  const Tile tile(all, token, blockIdx.y, blockIdx.z);
  const int first = static_cast<int>(group * group_chunks), place = first + static_cast<int>(rank);
  // No loads by way of __ldg() in this kernel: what they read must not change while it runs, and it starts early.
  await_kernel_before();
  // Its slot is asked for as soon as the chunk is known; what the whole selection is can wait.
  const uint32_t chunk = place < static_cast<int>(all.k) ? all.chunks[tile.first_place + place] : hsa_no_chunk;
  const bool there = chunk != hsa_no_chunk;
  const uint32_t slot = there ? all.page_table[chunk] : 0;
  uint4 query[4];
  load_query(all.q + tile.first_element, tile.heads, lane, query);
  const Selection selection(all, tile.first_place, lane);
  float own[2][4];
  Rows factor;
  if (there) factor = team_products(all, tile, selection, query, place, slot, team, part, lane, own);
  cluster.barrier_wait();
  if (group > 0 && first >= selection.count) return;
  if (there) {
    const int row = lane / 4, pair = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int to = 2 * part + i;
      float2(*const to_products)[4] = cluster.map_shared_rank(products[rank], to);
      to_products[row][pair] = {own[i][0], own[i][1]};
      to_products[row + 8][pair] = {own[i][2], own[i][3]};
      if (pair == 0) {
        float* const to_factors = cluster.map_shared_rank(factors[rank], to);
        to_factors[row] = factor.low;
        to_factors[row + 8] = factor.high;
      }
    }
  }
  cluster.sync();
  constexpr int pair_threads = rows * 4;  // two columns each
  if (threadIdx.x >= pair_threads) return;
  const int row = static_cast<int>(threadIdx.x) / 4, pair = static_cast<int>(threadIdx.x) % 4;
  float2 sum = {0, 0};
#pragma unroll
  for (int i = 0; i < group_chunks; ++i) {
    if (first + i >= selection.count) break;
    sum.x = __fmaf_rn(factors[i][row], products[i][row][pair].x, sum.x);
    sum.y = __fmaf_rn(factors[i][row], products[i][row][pair].y, sum.y);
  }
  const uint32_t groups = (selection.count + group_chunks - 1) / group_chunks;
  if (groups > 1) {
    Workspace& workspace = *static_cast<Workspace*>(all.workspace);
    const uint32_t tile_index = (token * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z;
    auto* const sums = workspace.sums(tile_index, groups_of_k);
    __stcg(&sums[group][rank][row][pair], sum);
    __threadfence();
    meet(pair_threads);
    uint32_t& ended = workspace.ended[tile_index][rank];
    if (threadIdx.x == 0) is_last = atomicAdd(&ended, 1) + 1 == groups;
    meet(pair_threads);
    if (!is_last) return;
    __threadfence();
    float2 of_groups[groups_max];
#pragma unroll
    for (uint32_t i = 0; i < groups_max; ++i)
      if (i < groups) of_groups[i] = __ldcg(&sums[i][rank][row][pair]);
    sum = {0, 0};
#pragma unroll
    for (uint32_t i = 0; i < groups_max; ++i)
      if (i < groups) sum.x += of_groups[i].x, sum.y += of_groups[i].y;
    if (threadIdx.x == 0) ended = 0;  // for the next call
  }
  if (row < tile.heads) write(all, tile.first_element + row * dim + rank * 8 + pair * 2, sum.x, sum.y);
}

}  // namespace

cudaError_t decode(const HsaAttention& all, uint32_t row_tiles, cudaStream_t stream) {
  const uint32_t groups = (all.k + group_chunks - 1) / group_chunks;
  const dim3 grid(all.tokens * groups * column_tiles, all.kv_heads, row_tiles);
  return launch(decode_kernel, grid, team_threads, 0, column_tiles, true, stream, all);
}

size_t decode_workspace(size_t tiles, uint32_t k) {
  const size_t groups = (k + group_chunks - 1) / group_chunks;
  return groups <= 1 ? 0 : sizeof(Workspace) + tiles * groups * rows * dim * sizeof(float);
}

}  // namespace recalld::cuda::hsa
