// 16 warps have one or two tiles each, whose o stays in registers. K and V of the chunks that any of them selected go
// through rings in shared memory, newest first, each once a block, by copies of tensors (TMA). A warp waits for the
// chunks of its own tiles only; the last one that is done with K or V has the next one loaded in its place. (A warp for
// the loads alone would leave the others 96 registers each instead of 128, which do not hold two tiles.) What a tile is
// and how its products are made is told in hsa_attention_device.cuh.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/hsa_attention_device.cuh"

namespace recalld::cuda::hsa {
namespace {

using tensor_core::shared_address;

constexpr int tile_warps = 16, prefill_threads = tile_warps * warp;

// A place of a selection, to be sorted: newest chunk first. The upper bits are ~chunk, so that no chunk is last.
using PlaceKey = uint64_t;
constexpr PlaceKey no_place = ~PlaceKey{0};
constexpr int place_bits = 7, tile_bits = 5;
static_assert(hsa_k_max == 1 << place_bits);

__device__ __forceinline__ PlaceKey key_of(uint32_t chunk, int tile, int place) {
  if (chunk == hsa_no_chunk) return no_place;
  return static_cast<PlaceKey>(~chunk) << (tile_bits + place_bits) | static_cast<uint32_t>(tile << place_bits | place);
}
__device__ __forceinline__ uint32_t chunk_of(PlaceKey key) {
  return ~static_cast<uint32_t>(key >> (tile_bits + place_bits));
}
__device__ __forceinline__ uint32_t tile_and_place_of(PlaceKey key) {
  return static_cast<uint32_t>(key) & ((1u << (tile_bits + place_bits)) - 1);
}

// Sorts n keys, a power of two, by all threads of the block.
__device__ void sort(PlaceKey* keys, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += prefill_threads) {
        const int first = 2 * i - (i & (stride - 1)), second = first + stride;
        const PlaceKey a = keys[first], b = keys[second];
        if ((a > b) == ((first & size) == 0)) keys[first] = b, keys[second] = a;
      }
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void wait_for(uint64_t* barrier) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], 0;\n@!done bra again;\n}" ::"r"(
          shared_address(barrier))
      : "memory");
  __syncwarp();
}

// Adds a chunk's products to the sums of one tile.
__device__ __forceinline__ void add_products(float (&sums)[2][4], const float (&products)[2][4], const Rows& factor) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sums[i][0] = __fmaf_rn(factor.low, products[i][0], sums[i][0]);
    sums[i][1] = __fmaf_rn(factor.low, products[i][1], sums[i][1]);
    sums[i][2] = __fmaf_rn(factor.high, products[i][2], sums[i][2]);
    sums[i][3] = __fmaf_rn(factor.high, products[i][3], sums[i][3]);
  }
}

__device__ __forceinline__ void add_and_clear(float (&total)[column_tiles / 2][2][4],
                                              float (&sums)[column_tiles / 2][2][4]) {
#pragma unroll
  for (int t = 0; t < column_tiles / 2; ++t)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) total[t][i][j] += sums[t][i][j], sums[t][i][j] = 0;
}

// The places of a block with two tiles a warp.
struct Ranked {
  static constexpr int count = 2 * tile_warps * group_chunks;
  alignas(16) uint32_t chunks[count];  // + 1, by tile and place; 0 where there is none
  uint32_t slots[count];               // likewise
  uint32_t order[count];               // indices of both, newest chunk first
};

// A block's shared memory. Warp w has tiles w and, where it has two, w + tile_warps: neighbours, which select much of
// the same, are of different warps. K and V lie in rings of their own: the place of a chunk's K is free for another one
// as soon as the logits are there.
template <int tiles_of_warp>
struct Prefill {
  static constexpr int tiles = tile_warps * tiles_of_warp;
  // Two tiles leave no registers for sums of groups.
  static constexpr int places = tiles_of_warp == 1 ? hsa_k_max : group_chunks, all_places = tiles * places;
  static constexpr int k_chunks = tiles_of_warp == 1 ? 8 : 9, v_chunks = tiles_of_warp == 1 ? 8 : 10;
  static_assert(tiles <= 1 << tile_bits);
  uint4 k[k_chunks][chunk_pieces];
  uint4 v[v_chunks][chunk_pieces];
  uint4 query[tiles][4][warp];
  union {
    PlaceKey keys[all_places];       // first, of one tile a warp
    Ranked ranked;                   // first, of two
    uint64_t loaded[2][all_places];  // then: barriers of the chunks' K and V. One for each place of a ring would not
                                     // do: a warp that skips chunks could take the phase before for its own.
  };
  uint32_t slots[all_places];                          // of the chunks of the block
  uint32_t left[all_places];                           // tiles that are not yet done with V; with K in the upper half
  uint32_t steps[tile_warps][tiles_of_warp * places];  // index of the chunk, tile, place
  float weights[tiles][places];
};
constexpr size_t ring_alignment = 1024;  // as copies of tensors turn pieces by their address
static_assert(sizeof(Prefill<1>) + ring_alignment <= 227 * 1024 && sizeof(Prefill<2>) + ring_alignment <= 227 * 1024);

// As place_of() of decode, for a copy of a tensor, which puts row 2 a + b of eight to 4 b + a and turns pieces by that.
__device__ __forceinline__ int ring_place_of(int row, int piece) {
  const int turn = (row & 1) << 2 | (row >> 1 & 3);
  return ((row & ~7) | turn) * row_pieces + (piece ^ turn);
}

__device__ __forceinline__ void start_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

// The value before. Orders what came before it alone, so that nobody waits for the value until it is looked at: who
// took the last one calls after_taking() before what the others have read is overwritten.
__device__ __forceinline__ uint32_t take(uint32_t* count, uint32_t amount) {
  uint32_t before;
  asm volatile("atom.release.cta.shared.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "r"(shared_address(count)), "r"(0 - amount)
               : "memory");
  return before;
}
__device__ __forceinline__ void after_taking() {
  asm volatile("fence.acq_rel.cta;" ::: "memory");
}

// A read of 16 bytes that is not divided, which would make banks conflict.
__device__ __forceinline__ uint4 read_piece(const uint4* from) {
  uint4 piece;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
               : "r"(shared_address(from))
               : "memory");
  return piece;
}

constexpr int rank_lanes = prefill_threads / Ranked::count;  // that rank one place together
static_assert(rank_lanes == 2);

// Orders the places of a block with two tiles a warp, by all its threads. chunk: at the place threadIdx.x / rank_lanes.
// A place's rank is the number of those with a newer chunk, or with the same one and before it.
__device__ __forceinline__ void rank(Ranked& places, uint32_t chunk, const uint32_t* page_table) {
  const int place = static_cast<int>(threadIdx.x) / rank_lanes, half = static_cast<int>(threadIdx.x) % rank_lanes;
  const uint32_t own = chunk + 1;
  if (half == 0) places.chunks[place] = own;
  __syncthreads();
  const uint32_t slot = own == 0 ? 0 : __ldg(page_table + chunk);
  const uint4* const fours = reinterpret_cast<const uint4*>(places.chunks);
  const int own_four = place / 4;
  uint32_t rank = 0;
#pragma unroll 8
  for (int four = half; four < Ranked::count / 4; four += rank_lanes) {
    const uint4 others = fours[four];
    const uint32_t least = own + (four >= own_four ? 1 : 0);
    rank += others.x >= least ? 1 : 0;
    rank += others.y >= least ? 1 : 0;
    rank += others.z >= least ? 1 : 0;
    rank += others.w >= least ? 1 : 0;
  }
  if (half == 0)
    for (int i = own_four * 4; i < place; ++i) rank += places.chunks[i] == own ? 1 : 0;
  rank += __shfl_xor_sync(everyone, rank, 1);
  if (half == 0) {
    places.order[rank] = static_cast<uint32_t>(place);
    places.slots[place] = slot;
  }
  __syncthreads();
}

enum class Part : uint8_t { k, v };

// Begins to load a chunk's K or V, by one lane.
__device__ __forceinline__ void load_part(const CUtensorMap& records, uint32_t slot, Part part, uint32_t kv_head,
                                          uint4* to, uint64_t* loaded) {
  // What others have read of the place before comes before its bytes are written.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(loaded)),
               "n"(chunk_pieces * static_cast<int>(sizeof(uint4)))
               : "memory");
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %2, %2, %3, "
      "%4}], [%5];" ::"r"(shared_address(to)),
      "l"(&records), "r"(0), "r"(slot * (2 * chunk_tokens / 8) + (part == Part::k ? 0 : chunk_tokens / 8)),
      "r"(kv_head), "r"(shared_address(loaded))
      : "memory");
}

// 32 columns of p · V, from column tile `tile` on, which is 0 or 4. As make_products().
__device__ __forceinline__ void make_half_products(float (&products)[2][2][4], const uint4 (&shares)[token_blocks],
                                                   const uint4* v, int first_place, int tile) {
#pragma unroll
  for (auto& of_pair : products)
#pragma unroll
    for (auto& of_tile : of_pair)
#pragma unroll
      for (float& product : of_tile) product = 0;
  const uint32_t from[2] = {shared_address(v + (first_place ^ tile)), shared_address(v + (first_place ^ (tile + 2)))};
#pragma unroll
  for (int block = 0; block < token_blocks; ++block) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint4 b;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w)
                   : "r"(from[pair] + block * 16 * row_pieces * static_cast<uint32_t>(sizeof(uint4)))
                   : "memory");
      multiply(products[pair][0], shares[block], b.x, b.y);
      multiply(products[pair][1], shares[block], b.z, b.w);
    }
  }
}

// Grid: tokens x row tiles by blocks, KV heads.
template <int tiles_of_warp>
__global__ void __launch_bounds__(prefill_threads, 1)
    prefill_kernel(HsaAttention all, uint32_t row_tiles, const __grid_constant__ CUtensorMap records) {
  using Memory = Prefill<tiles_of_warp>;
  constexpr int places = Memory::places;
  extern __shared__ __align__(16) unsigned char shared[];
  Memory& memory = *reinterpret_cast<Memory*>(shared + -shared_address(shared) % ring_alignment);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp, in_block = thread / warp;
  const int selected = static_cast<int>(all.k);
  const uint32_t kv_head = blockIdx.y, tiles = all.tokens * row_tiles, first_tile = blockIdx.x * Memory::tiles;
  const auto tile_at = [&](int i) {
    return Tile(all, (first_tile + i) / row_tiles, kv_head, (first_tile + i) % row_tiles);
  };
  const auto is_there = [&](int i) { return first_tile + i < tiles; };

  // Reads are under way before the first one is waited for.
  const int ranked = tiles_of_warp == 1 ? 0 : thread / rank_lanes;
  uint32_t chunk_of_place = hsa_no_chunk, chunks_of_lane[tiles_of_warp];
  float scores_of_lane[tiles_of_warp];
  if constexpr (tiles_of_warp == 2) {
    if (is_there(ranked / places) && ranked % places < selected)
      chunk_of_place = __ldg(all.chunks + tile_at(ranked / places).first_place + ranked % places);
#pragma unroll
    for (int i = 0; i < tiles_of_warp; ++i) {
      chunks_of_lane[i] = hsa_no_chunk;
      scores_of_lane[i] = 0;
      const int tile = in_block + i * tile_warps;
      if (!is_there(tile) || lane >= selected) continue;
      chunks_of_lane[i] = __ldg(all.chunks + tile_at(tile).first_place + lane);
      scores_of_lane[i] = __ldg(all.scores + tile_at(tile).first_place + lane);
    }
  }
  uint4 queries[tiles_of_warp][4];  // of tiles beyond the last: its copies
#pragma unroll
  for (int i = 0; i < tiles_of_warp; ++i) {
    const Tile tile = tile_at(min(in_block + i * tile_warps, static_cast<int>(tiles - 1 - first_tile)));
    load_query(all.q + tile.first_element, tile.heads, lane, queries[i]);
  }

  for (int i = thread; i < Memory::all_places; i += prefill_threads) memory.left[i] = 0;
  int n = Memory::all_places;  // places to go through
  if constexpr (tiles_of_warp == 1) {
    n = warp;
    while (n < Memory::tiles * selected) n *= 2;
    for (int i = thread; i < n; i += prefill_threads) {
      const int tile = i / selected, place = i % selected;
      const bool there = tile < Memory::tiles && is_there(tile);
      memory.keys[i] = there ? key_of(__ldg(all.chunks + tile_at(tile).first_place + place), tile, place) : no_place;
    }
    sort(memory.keys, n);
  } else {
    rank(memory.ranked, chunk_of_place, all.page_table);
  }

  // The chunks of the block, and this warp's part of the places.
  uint32_t* const steps = memory.steps[in_block];
  int step_count = 0, chunks = 0;
  for (int first = 0; first < n; first += warp) {
    const int at = first + lane;
    uint32_t tile_and_place, slot;  // slot: the chunk's number if there is one tile a warp
    bool there, starts;
    if constexpr (tiles_of_warp == 1) {
      const PlaceKey key = memory.keys[at];
      there = key != no_place;
      starts = at == 0 || chunk_of(memory.keys[at - 1]) != chunk_of(key);
      tile_and_place = tile_and_place_of(key);
      slot = chunk_of(key);
    } else {
      const uint32_t index = memory.ranked.order[at], chunk = memory.ranked.chunks[index];
      there = chunk != 0;
      starts = at == 0 || memory.ranked.chunks[memory.ranked.order[at - 1]] != chunk;
      tile_and_place = index / places << place_bits | index % places;
      slot = memory.ranked.slots[index];
    }
    const unsigned all_starts = __ballot_sync(everyone, there && starts);
    const int chunk = chunks + __popc(all_starts << (warp - 1 - lane)) - 1;
    const bool own = there && (tile_and_place >> place_bits) % tile_warps == static_cast<uint32_t>(in_block);
    const unsigned all_own = __ballot_sync(everyone, own);
    if (own) {
      steps[step_count + __popc(all_own & ((1u << lane) - 1))] =
          static_cast<uint32_t>(chunk) << (tile_bits + place_bits) | tile_and_place;
      atomicAdd(&memory.left[chunk], 0x10001u);
      if (starts) memory.slots[chunk] = slot;
    }
    step_count += __popc(all_own);
    chunks += __popc(all_starts);
  }
  __syncthreads();
  for (int i = thread; i < chunks; i += prefill_threads) {
    for (auto& barriers : memory.loaded) start_barrier(&barriers[i]);
    if constexpr (tiles_of_warp == 1) memory.slots[i] = __ldg(all.page_table + memory.slots[i]);
  }
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();

  const auto load = [&](int chunk, Part part) {
    uint4* const to = part == Part::k ? memory.k[chunk % Memory::k_chunks] : memory.v[chunk % Memory::v_chunks];
    uint64_t* const loaded = &memory.loaded[part == Part::k ? 0 : 1][chunk];
    if (lane == 0) load_part(records, memory.slots[chunk], part, kv_head, to, loaded);
  };
  const int first_k = min(chunks, Memory::k_chunks), first_v = min(chunks, Memory::v_chunks);
  for (int i = in_block; i < first_k + first_v; i += tile_warps) {
    if (i < first_k)
      load(i, Part::k);
    else
      load(i - first_k, Part::v);
  }

  // While the first chunks come.
#pragma unroll
  for (int i = 0; i < tiles_of_warp; ++i) {
    const int tile = in_block + i * tile_warps;
#pragma unroll
    for (int step = 0; step < 4; ++step) memory.query[tile][step][lane] = queries[i][step];
    if (!is_there(tile)) continue;
    float weights[place_registers];
    int count;
    if constexpr (tiles_of_warp == 1) {
      const Selection selection(all, tile_at(tile).first_place, lane);
      count = selection.count;
      make_weights(all.weighting, selection, lane, weights);
    } else {
      const Selection selection(all, chunks_of_lane[i], scores_of_lane[i], lane);
      count = selection.count;
      make_weights(all.weighting, selection, lane, weights);
    }
#pragma unroll
    for (int r = 0; r < (tiles_of_warp == 1 ? place_registers : 1); ++r)
      if (r * warp + lane < count) memory.weights[tile][r * warp + lane] = weights[r];
  }
  __syncwarp();

  const int key_place = ring_place_of(lane / 4, lane % 4);
  const int value_place = ring_place_of(lane % 16, lane / 16);
  // Of two tiles, or of one tile's group and of its groups before.
  float sums[2][column_tiles / 2][2][4] = {};
  int group = 0;
  for (int step = 0; step < step_count; ++step) {
    const uint32_t packed = steps[step];
    const int chunk = static_cast<int>(packed >> (tile_bits + place_bits));
    const int tile = static_cast<int>(packed >> place_bits) & ((1 << tile_bits) - 1);
    const int place = static_cast<int>(packed) & ((1 << place_bits) - 1);
    const uint4* const k = memory.k[chunk % Memory::k_chunks];
    const uint4* const v = memory.v[chunk % Memory::v_chunks];
    if (tiles_of_warp == 1 && place / group_chunks != group) {
      add_and_clear(sums[1], sums[0]);
      group = place / group_chunks;
    }
    uint4 query[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) query[i] = memory.query[tile][i][lane];
    wait_for(&memory.loaded[0][chunk]);

    float logits[chunk_tokens / 8][4];
    Rows top = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < chunk_tokens / 8; ++i) {
      const int rows_before = 8 * i * row_pieces;  // which leave the order of a row's pieces as it is
      make_logits(logits[i], query, read_piece(k + key_place + rows_before),
                  read_piece(k + (key_place ^ 4) + rows_before));
      raise(top, logits[i]);
    }
    __syncwarp();
    uint32_t k_left = 0;
    if (lane == 0) k_left = take(&memory.left[chunk], 0x10000);
    top = max_of_quad(top);
    uint4 shares[token_blocks];
    Rows block_sums[token_blocks];
#pragma unroll
    for (int block = 0; block < token_blocks; ++block)
      shares[block] = make_shares(logits[2 * block], logits[2 * block + 1], top, block_sums[block]);
    const Rows own_sum = sum_of_lane(block_sums);
    if (k_left >> 16 == 1 && chunk + Memory::k_chunks < chunks) {
      after_taking();
      load(chunk + Memory::k_chunks, Part::k);
    }
    __syncwarp();
    wait_for(&memory.loaded[1][chunk]);

    // The division comes when products are on their way, and the sums of a warp's two tiles are different code.
    const auto add = [&](float(&to)[column_tiles / 2][2][4]) {
      Rows factor;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float products[2][2][4];
        make_half_products(products, shares, v, value_place, 4 * half);
        if (half == 0) {
          const Rows sum = sum_of_quad(own_sum);
          const float weight = memory.weights[tile][place];
          factor = {__fdiv_rn(weight, sum.low), __fdiv_rn(weight, sum.high)};
        }
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) add_products(to[2 * half + pair], products[pair], factor);
      }
    };
    if (tiles_of_warp == 1 || tile < tile_warps)
      add(sums[0]);
    else
      add(sums[1]);
    __syncwarp();
    if (lane == 0 && (take(&memory.left[chunk], 1) & 0xffff) == 1 && chunk + Memory::v_chunks < chunks) {
      after_taking();
      load(chunk + Memory::v_chunks, Part::v);
    }
    __syncwarp();
  }
  if (tiles_of_warp == 1) add_and_clear(sums[1], sums[0]);

#pragma unroll
  for (int i = 0; i < tiles_of_warp; ++i) {
    const int of_block = in_block + i * tile_warps;
    if (!is_there(of_block)) break;
    const Tile tile = tile_at(of_block);
    const auto& o = sums[tiles_of_warp == 1 ? 1 : i];
    const size_t element = tile.first_element + lane / 4 * dim + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < column_tiles; ++t) {
      const auto& of_tile = o[t / 2][t % 2];
      if (lane / 4 < tile.heads) write(all, element + 8 * t, of_tile[0], of_tile[1]);
      if (lane / 4 + 8 < tile.heads) write(all, element + 8 * dim + 8 * t, of_tile[2], of_tile[3]);
    }
  }
}

// The cache, so that one copy brings K or V of a chunk as ring_place_of() has it: columns, every second of eight
// tokens, which of two, eights of tokens, KV heads.
cudaError_t describe(const HsaAttention& all, CUtensorMap& records) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result) !=
            cudaSuccess ||
        result != cudaDriverEntryPointSuccess)
      found = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint64_t eights_max = 1 << 28;  // 256 GiB of one KV head: larger than any cache
  const cuuint64_t head = dim * sizeof(Bf16), row = all.kv_heads * head;
  const cuuint64_t sizes[] = {dim, 4, 2, eights_max, all.kv_heads}, strides[] = {2 * row, row, 8 * row, head};
  const cuuint32_t box[] = {dim, 4, 2, chunk_tokens / 8, 1}, steps[] = {1, 1, 1, 1, 1};
  const CUresult status = encode(&records, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, const_cast<Bf16*>(all.cache), sizes,
                                 strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <int tiles_of_warp>
cudaError_t prefill_with(const HsaAttention& all, uint32_t row_tiles, cudaStream_t stream) {
  using Memory = Prefill<tiles_of_warp>;
  CUtensorMap records{};
  if (const cudaError_t status = describe(all, records); status != cudaSuccess) return status;
  const dim3 grid((all.tokens * row_tiles + Memory::tiles - 1) / Memory::tiles, all.kv_heads);
  return launch(prefill_kernel<tiles_of_warp>, grid, prefill_threads, sizeof(Memory) + ring_alignment, 1, false, stream,
                all, row_tiles, records);
}

}  // namespace

cudaError_t prefill(const HsaAttention& all, uint32_t row_tiles, cudaStream_t stream) {
  return all.k <= group_chunks ? prefill_with<2>(all, row_tiles, stream) : prefill_with<1>(all, row_tiles, stream);
}

}  // namespace recalld::cuda::hsa
