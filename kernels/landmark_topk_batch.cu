// Four kernels. score_sample: tensor cores score every 61st landmark, or so, for all queries; groups of them keep their
// best score. choose_floors: a block a query takes the k-th best group, less the margin of error: at least k landmarks
// are no worse. find_candidates: tensor cores score all landmarks, and what may reach the floor is noted down, about
// 2048 a query at most. finish: a block a query scores those again that may be among the k best, in the one order.
//
// The first and the third are one function. A warp has 32 landmarks at a time against all queries, whose matrix
// fragments lie in shared memory. It brings its landmarks there itself, steps of 64 bytes a row ahead; each thread
// reads only what it has brought, so nobody waits for anybody. The order of the elements within a step is the threads'
// own, for the queries as for the landmarks: a sum of products has none that matters to tensor cores.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "kernels/landmark_topk_batch_cuda.h"
#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_device.cuh"
#include "kernels/tensor_core_device.cuh"

namespace recalld::cuda {
namespace {

using landmark::everyone, landmark::launch, landmark::multiprocessors, landmark::threads, landmark::warp,
    landmark::warps;
using tensor_core::multiply;

constexpr uint32_t tile = 32;           // landmarks of a warp at a time
constexpr uint32_t step_elements = 32;  // of a row
constexpr int row_sets = tile / 8;      // a thread has a part of one row in each
// With 8 warps 64 queries took 3% longer (k 8) to 8% (k 128), with 16, which lack registers, 10%.
constexpr int score_warps = 12, score_threads = score_warps * warp;
constexpr int stages = 4;                   // steps that a warp has in shared memory
constexpr uint32_t sample_stride_max = 61;  // prime, lest it meet a period of what is sampled
constexpr uint64_t sample_least = 16384;    // landmarks, when there are so many
constexpr uint32_t sample_blocks_max = 128;
constexpr uint32_t groups_max = 2048;
constexpr uint32_t queries_bytes_max = 128 << 10;  // in shared memory
constexpr uint32_t dim_max = 8192;                 // eight queries must fit there
constexpr uint32_t held_max = 16;  // candidates that a warp collects before it tells; less than a warp's lanes

struct Candidate {
  float score;
  uint32_t row;
};

// Of a query. About 2048 are expected of independent landmarks, so many are more than ten standard deviations away.
constexpr uint32_t candidates_max = 6144;

struct QueryState {
  float floor;  // at least k landmarks have a score no less
  float norm;   // an upper bound of the sum of the query's magnitudes
};

// All of the workspace but what finish() needs for scans, which follows: heads [scan_parts, few] and lists
// [scan_parts, k].
struct Workspace {
  QueryState queries[landmark_topk_batch_max];
  landmark::ScanState scans[landmark_topk_batch_max];
  uint32_t counts[landmark_topk_batch_max];                     // candidates, also those that found no room
  uint32_t magnitude;                                           // bits of the greatest of all landmarks' elements
  uint32_t sample_magnitudes[sample_blocks_max * score_warps];  // of warps
  float sample_best[landmark_topk_batch_max][groups_max];
};

__host__ __device__ constexpr size_t candidates_at() {
  return (sizeof(Workspace) + 15) / 16 * 16;
}
__host__ __device__ constexpr size_t heads_at() {
  return candidates_at() + size_t{landmark_topk_batch_max} * candidates_max * sizeof(Candidate);
}

// What all four kernels get.
struct Batch {
  LandmarkTopKBatch topk;
  uint32_t sample_stride;
  uint32_t scan_parts;     // room for them: the finishing blocks and as many more as there are queries
  uint64_t sampled;        // landmarks
  uint32_t warp_groups;    // of a warp that scores the sample: 1, 4 or 8
  uint32_t sample_groups;  // of all its warps

  __device__ Workspace& workspace() const { return *static_cast<Workspace*>(topk.workspace); }
  __device__ Candidate* candidates(uint32_t query) const {
    auto* const all = reinterpret_cast<Candidate*>(static_cast<std::byte*>(topk.workspace) + candidates_at());
    return all + static_cast<size_t>(query) * candidates_max;
  }
  __device__ uint64_t* heads() const {
    return reinterpret_cast<uint64_t*>(static_cast<std::byte*>(topk.workspace) + heads_at());
  }
};

// How far a tensor core's score may lie from the one that counts: see the header.
// norm: of the query's magnitudes, the sum · magnitude: the landmark's greatest
__device__ __forceinline__ float margin(float norm, float magnitude, uint32_t dim) {
  const float most = __fmul_ru(norm, magnitude);
  const auto elements = static_cast<float>(dim);
  return most < 0x1p126f ? __fmaf_ru(most, elements * 0x1.8p-23f, elements * 0x1p-126f) : INFINITY;
}

__device__ __forceinline__ float magnitude_of(uint32_t bf16_bits) {
  return __uint_as_float(bf16_bits << 16);
}

__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the last `stages - 2` closed groups of copies have arrived.
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2) : "memory");
}

// Of two pairs of bf16 the greater magnitudes, a NaN if there is one.
__device__ __forceinline__ uint32_t greater(uint32_t magnitudes, uint32_t pair) {
  return __vmaxu2(magnitudes, pair & 0x7fff7fffu);
}

// The landmarks that a warp works through, tile by tile and in each step by step, and the ring in shared memory that it
// brings them to.
class Landmarks {
 public:
  // ring: [stages, row_sets, warp] of this warp
  __device__ Landmarks(const Bf16* landmarks, uint64_t n, uint64_t row_bytes, uint32_t steps, uint64_t first,
                       uint64_t stride, uint4* ring, int lane)
      : from_(reinterpret_cast<const std::byte*>(landmarks) + lane % 4 * 16),
        n_(n),
        row_bytes_(row_bytes),
        steps_(steps),
        tile_(first),
        stride_(stride),
        row_(lane / 4),
        ring_(ring + lane) {
    find_rows();
#pragma unroll 1
    for (int stage = 0; stage < stages - 1; ++stage) bring(stage);
  }

  // The next step's parts of this thread's rows.
  __device__ __forceinline__ void next(uint4 (&parts)[row_sets]) {
    await_copies();
    // Into the stage that was read one step ago.
    bring(stage_ == 0 ? stages - 1 : stage_ - 1);
#pragma unroll
    for (int set = 0; set < row_sets; ++set) parts[set] = ring_[(stage_ * row_sets + set) * warp];
    stage_ = stage_ + 1 == stages ? 0 : stage_ + 1;
  }

 private:
  __device__ __forceinline__ void find_rows() {
    const uint64_t row = tile_ * tile + row_;
    rows_ = row < n_ ? static_cast<uint32_t>(min((n_ - row + 7) / 8, uint64_t{row_sets})) : 0;
    at_ = from_ + (row < n_ ? row : 0) * row_bytes_;
    step_ = 0;
  }

  __device__ __forceinline__ void bring(int stage) {
    if (tile_ * tile < n_) {
#pragma unroll
      for (uint32_t set = 0; set < row_sets; ++set) {
        const bool there = set < rows_;
        copy_async(ring_ + (stage * row_sets + set) * warp, at_ + (there ? set * 8 * row_bytes_ : 0), there);
      }
      at_ += step_elements * sizeof(Bf16);
      if (++step_ == steps_) {
        tile_ += stride_;
        find_rows();
      }
    }
    close_copies();
  }

  const std::byte* from_;
  const uint64_t n_, row_bytes_;
  const uint32_t steps_;
  uint64_t tile_;
  const uint64_t stride_;
  const uint32_t row_;
  uint4* const ring_;
  const std::byte* at_ = nullptr;  // the next part of this thread's first row of the tile
  uint32_t rows_ = 0;              // of its rows, those that there are
  uint32_t step_ = 0;
  int stage_ = 0;
};

// Candidates that a warp has found and not yet told.
struct Held {
  Candidate candidates[held_max];
  uint8_t queries[held_max];
};

__device__ __forceinline__ void tell(const Batch& batch, const Held& held, uint32_t count, uint32_t lane) {
  __syncwarp();
  if (lane < count) {
    const uint32_t query = held.queries[lane];
    const uint32_t place = atomicAdd(&batch.workspace().counts[query], 1);
    if (place < candidates_max) batch.candidates(query)[place] = held.candidates[lane];
  }
  __syncwarp();
}

// A thread has the scores of rows 8 * set + lane / 4 of its warp's tile with queries 8 * j + lane % 4 * 2 and the one
// after: scores[set / 2][j][set % 2 * 2] and the one after.
template <int blocks_of_queries>
using Scores = float[2][blocks_of_queries][4];

template <int blocks_of_queries, bool sample>
__global__ void __launch_bounds__(score_threads, 1) score_all(Batch batch) {
  constexpr int columns = blocks_of_queries * 2;  // of a thread
  extern __shared__ __align__(16) uint4 shared[];
  __shared__ Held held_of_warps[score_warps];
  __shared__ QueryState states[blocks_of_queries * 8];
  const LandmarkTopKBatch& topk = batch.topk;
  Workspace& workspace = batch.workspace();
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  const uint32_t steps = topk.dim / step_elements;
  uint4* const queries = shared;  // [steps, blocks_of_queries, warp]
  uint4* const ring = shared + steps * blocks_of_queries * warp + in_block * stages * row_sets * warp;
  const uint32_t every = sample ? batch.sample_stride : 1;
  const uint64_t n = sample ? batch.sampled : topk.n;
  let_next_kernel_start();
  // Neighbours in different blocks, so that the last tiles are spread over all.
  const uint64_t first = static_cast<uint64_t>(in_block) * gridDim.x + blockIdx.x,
                 stride = gridDim.x * uint64_t{score_warps};

  Landmarks landmarks(topk.landmarks, n, uint64_t{every} * topk.dim * sizeof(Bf16), steps, first, stride, ring, lane);
  for (uint32_t i = threadIdx.x; i < steps * blocks_of_queries * warp; i += score_threads) {
    const uint32_t query = i / warp % blocks_of_queries * 8 + i % warp / 4;
    const uint32_t element = i / warp / blocks_of_queries * step_elements + i % 4 * 8;
    queries[i] = query < topk.count
                     ? *reinterpret_cast<const uint4*>(topk.queries + static_cast<size_t>(query) * topk.dim + element)
                     : uint4{};
  }
  await_kernel_before();
  if constexpr (sample) {
    if (blockIdx.x == 0 && threadIdx.x < landmark_topk_batch_max) {
      workspace.counts[threadIdx.x] = 0;
      workspace.scans[threadIdx.x] = {};
      if (threadIdx.x == 0) workspace.magnitude = 0;
    }
    for (uint32_t i = blockIdx.x * score_threads + threadIdx.x; i < batch.scan_parts * landmark::few;
         i += gridDim.x * score_threads)
      batch.heads()[i] = 0;
  } else if (threadIdx.x < blocks_of_queries * 8) {
    // What is no query has a floor that nothing reaches but where the margin is infinite; nobody looks at that.
    states[threadIdx.x] = threadIdx.x < topk.count ? workspace.queries[threadIdx.x] : QueryState{INFINITY, 0};
  }
  __syncthreads();

  Held& held = held_of_warps[in_block];
  uint32_t held_count = 0;
  uint32_t greatest = 0;  // pairs of bf16 magnitudes
  float best[columns];    // of the sample
#pragma unroll
  for (float& value : best) value = -INFINITY;

#pragma unroll 1
  for (uint64_t at = first; at * tile < n; at += stride) {
    Scores<blocks_of_queries> scores = {};
    uint32_t magnitudes = 0;
#pragma unroll 1
    for (uint32_t step = 0; step < steps; ++step) {
      uint4 rows[row_sets];
      landmarks.next(rows);
      const uint4* const fragments = queries + step * blocks_of_queries * warp + lane;
      // Some blocks of queries at a time, so that no product waits for the one before it.
      constexpr int together = blocks_of_queries < 4 ? blocks_of_queries : 4;
#pragma unroll
      for (int j = 0; j < blocks_of_queries; j += together) {
        uint4 query[together];
#pragma unroll
        for (int i = 0; i < together; ++i) query[i] = fragments[(j + i) * warp];
#pragma unroll
        for (int i = 0; i < together; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            multiply(scores[half][j + i],
                     {rows[2 * half].x, rows[2 * half + 1].x, rows[2 * half].y, rows[2 * half + 1].y}, query[i].x,
                     query[i].y);
#pragma unroll
        for (int i = 0; i < together; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            multiply(scores[half][j + i],
                     {rows[2 * half].z, rows[2 * half + 1].z, rows[2 * half].w, rows[2 * half + 1].w}, query[i].z,
                     query[i].w);
      }
#pragma unroll
      for (const uint4& part : rows) {
        magnitudes = greater(magnitudes, part.x);
        magnitudes = greater(magnitudes, part.y);
        magnitudes = greater(magnitudes, part.z);
        magnitudes = greater(magnitudes, part.w);
      }
    }
    const uint64_t row = at * tile + lane / 4;
    greatest = __vmaxu2(greatest, magnitudes);

    if constexpr (sample) {
#pragma unroll
      for (int column = 0; column < columns; ++column)
#pragma unroll
        for (int set = 0; set < row_sets; ++set)
          if (row + 8 * set < n)
            best[column] = fmaxf(best[column], scores[set / 2][column / 2][set % 2 * 2 + column % 2]);
    } else {
      const float magnitude = magnitude_of(__reduce_max_sync(everyone, max(magnitudes & 0xffffu, magnitudes >> 16)));
      float floors[columns];
      bool any = false;
#pragma unroll
      for (int column = 0; column < columns; ++column) {
        const QueryState state = states[column / 2 * 8 + lane % 4 * 2 + column % 2];
        floors[column] = __fsub_rd(state.floor, margin(state.norm, magnitude, topk.dim));
#pragma unroll
        for (int set = 0; set < row_sets; ++set)
          any |= !(scores[set / 2][column / 2][set % 2 * 2 + column % 2] < floors[column]);  // also a NaN
      }
      if (!__any_sync(everyone, any)) continue;
      const auto passes = [&](int column, int set) {
        return row + 8 * set < n && !(scores[set / 2][column / 2][set % 2 * 2 + column % 2] < floors[column]);
      };
      uint32_t own = 0;
#pragma unroll
      for (int column = 0; column < columns; ++column)
#pragma unroll
        for (int set = 0; set < row_sets; ++set) own += passes(column, set);
      uint32_t until = own;  // of this lane and those before
#pragma unroll
      for (int width = 1; width < warp; width *= 2) {
        const uint32_t before = __shfl_up_sync(everyone, until, width);
        if (lane >= width) until += before;
      }
      const uint32_t total = __shfl_sync(everyone, until, warp - 1);
      for (uint32_t begin = 0; begin < total;) {
        const uint32_t taken = min(held_max - held_count, total - begin);
        uint32_t place = until - own - begin;  // beyond `taken` also when it is negative
#pragma unroll
        for (int column = 0; column < columns; ++column) {
#pragma unroll
          for (int set = 0; set < row_sets; ++set) {
            if (!passes(column, set)) continue;
            if (place < taken) {
              held.candidates[held_count + place] = {scores[set / 2][column / 2][set % 2 * 2 + column % 2],
                                                     static_cast<uint32_t>(row + 8 * set)};
              held.queries[held_count + place] = static_cast<uint8_t>(column / 2 * 8 + lane % 4 * 2 + column % 2);
            }
            ++place;
          }
        }
        begin += taken;
        held_count += taken;
        if (held_count == held_max) {
          tell(batch, held, held_count, lane);
          held_count = 0;
        }
      }
    }
  }

  const uint32_t magnitude = __reduce_max_sync(everyone, max(greatest & 0xffffu, greatest >> 16));
  if constexpr (sample) {
    const auto in_grid = static_cast<uint32_t>(first);
#pragma unroll
    for (int column = 0; column < columns; ++column) {
      const uint32_t query = column / 2 * 8 + lane % 4 * 2 + column % 2;
      // Lanes of the same queries that are one group.
      for (int width = warp / 2; width >= 4 * static_cast<int>(batch.warp_groups); width /= 2)
        best[column] = fmaxf(best[column], __shfl_xor_sync(everyone, best[column], width));
      const uint32_t group = in_grid * batch.warp_groups + lane / 4;
      if (query < topk.count && lane / 4 < batch.warp_groups && group < batch.sample_groups)
        workspace.sample_best[query][group] = best[column];
    }
    if (lane == 0) workspace.sample_magnitudes[in_grid] = magnitude;
  } else {
    tell(batch, held, held_count, lane);
    if (lane == 0) atomicMax(&workspace.magnitude, magnitude);
  }
}

constexpr int choose_threads = 512;

__global__ void __launch_bounds__(choose_threads, 1) choose_floors(Batch batch) {
  extern __shared__ uint32_t orders[];  // [sample_groups]
  __shared__ uint32_t counts[32];
  __shared__ float norm;
  const LandmarkTopKBatch& topk = batch.topk;
  Workspace& workspace = batch.workspace();
  const uint32_t query = blockIdx.x;
  let_next_kernel_start();
  if (threadIdx.x == 0) norm = 0;
  __syncthreads();
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < topk.dim; i += choose_threads) {
    const uint32_t bits = topk.queries[static_cast<size_t>(query) * topk.dim + i].bits;
    sum = __fadd_ru(sum, magnitude_of(bits & 0x7fffu));
  }
#pragma unroll
  for (int width = warp / 2; width > 0; width /= 2) sum = __fadd_ru(sum, __shfl_xor_sync(everyone, sum, width));
  // atomicAdd() rounds to the nearest, 16 times: one part in 2^18 is more than that.
  if (threadIdx.x % warp == 0) atomicAdd(&norm, __fmul_ru(sum, 1 + 0x1p-18f));
  __syncthreads();
  await_kernel_before();
  for (uint32_t i = threadIdx.x; i < batch.sample_groups; i += choose_threads) {
    const float error = margin(norm, magnitude_of(workspace.sample_magnitudes[i / batch.warp_groups]), topk.dim);
    orders[i] = isinf(error) ? 0 : landmark::order_of(__fsub_rd(workspace.sample_best[query][i], error));
  }
  __syncthreads();
  const uint32_t kth = landmark::kth_greatest(orders, batch.sample_groups, topk.k, counts);
  if (threadIdx.x == 0)
    workspace.queries[query] = {kth > landmark::order_of(-INFINITY) ? landmark::ordered(kth) : -INFINITY, norm};
}

// The candidates of one query that may be among the k best.
template <int registers>
__device__ void finish_query(const Batch& batch, uint32_t query, uint32_t count, float* query_elements,
                             uint32_t* orders, uint64_t* lists) {
  __shared__ uint32_t counts[32];
  __shared__ uint32_t kept;
  const LandmarkTopKBatch& topk = batch.topk;
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  const Candidate* const candidates = batch.candidates(query);
  uint32_t* const rows = orders + candidates_max;
  if (threadIdx.x == 0) kept = 0;
  for (uint32_t i = threadIdx.x; i < count; i += threads) orders[i] = landmark::order_of(candidates[i].score);
  __syncthreads();
  const float error =
      margin(batch.workspace().queries[query].norm, magnitude_of(batch.workspace().magnitude), topk.dim);
  // Without an error bound all are kept: the least number a NaN's order, 0, is not below.
  uint32_t least = 0;
  if (!isinf(error)) {
    const uint32_t kth = landmark::kth_greatest(orders, count, topk.k, counts);
    if (kth != 0) least = landmark::order_of(__fsub_rd(__fsub_rd(landmark::ordered(kth), error), error));
  }
  for (uint32_t i = threadIdx.x; i < count; i += threads)
    if (orders[i] >= least) rows[atomicAdd(&kept, 1)] = candidates[i].row;
  __syncthreads();

  landmark::Best<registers> best(topk.k);
  for (uint32_t i = in_block * landmark::rows; i < kept; i += warps * landmark::rows) {
    const uint32_t at = i + lane / landmark::row_threads;
    const uint32_t row = rows[at < kept ? at : kept - 1];
    const float dot =
        landmark::score(topk.landmarks + static_cast<uint64_t>(row) * topk.dim, query_elements, topk.dim, lane);
    best.offer(at < kept && lane % landmark::row_threads == 0 ? landmark::key_of(dot, row) : 0, lane);
  }
  landmark::merge_warps(best, lists, in_block, lane);
  if (in_block == 0) {
    landmark::write_best(best, lists, static_cast<uint32_t>(min(topk.n, static_cast<uint64_t>(topk.k))),
                         topk.dots + static_cast<size_t>(query) * topk.k,
                         topk.chunks + static_cast<size_t>(query) * topk.k, lane);
  }
  __syncthreads();
}

// Block q finishes query q; all blocks together scan all landmarks for the queries with too many candidates.
template <int registers>
__global__ void __launch_bounds__(threads, 1) finish(Batch batch) {
  extern __shared__ __align__(16) float query_elements[];  // [dim]; then orders and rows of candidates
  __shared__ uint64_t lists[warps / 2 * landmark::Best<registers>::slots];
  const LandmarkTopKBatch& topk = batch.topk;
  Workspace& workspace = batch.workspace();
  auto* const orders = reinterpret_cast<uint32_t*>(query_elements + topk.dim);
  if (blockIdx.x < topk.count) {
    landmark::QueryPart part;
    part.load(topk.queries + static_cast<size_t>(blockIdx.x) * topk.dim, topk.dim);
    part.store(query_elements);
  }
  await_kernel_before();
  if (blockIdx.x < topk.count) {
    const uint32_t count = workspace.counts[blockIdx.x];
    if (count <= candidates_max) finish_query<registers>(batch, blockIdx.x, count, query_elements, orders, lists);
  }
  const bool is_full = threadIdx.x < topk.count && workspace.counts[threadIdx.x] > candidates_max;
  const auto full = static_cast<uint32_t>(__syncthreads_count(is_full));
  if (full == 0) return;
  // The blocks share the full queries out: this one's is the turn-th of them.
  const uint32_t turn = blockIdx.x % full, part = blockIdx.x / full;
  uint32_t query = 0;
  for (uint32_t before = 0;; ++query) {
    if (workspace.counts[query] <= candidates_max) continue;
    if (before++ == turn) break;
  }
  const uint32_t parts_each = (gridDim.x + full - 1) / full;
  landmark::scan<registers>(
      {.query = topk.queries + static_cast<size_t>(query) * topk.dim,
       .landmarks = topk.landmarks,
       .rows = nullptr,
       .n = topk.n,
       .dim = topk.dim,
       .k = topk.k,
       .dots = topk.dots + static_cast<size_t>(query) * topk.k,
       .chunks = topk.chunks + static_cast<size_t>(query) * topk.k,
       .state = &workspace.scans[query],
       .heads = batch.heads() + turn * parts_each * landmark::few,
       .lists = batch.heads() + batch.scan_parts * landmark::few + static_cast<size_t>(turn) * parts_each * topk.k,
       .part = part,
       .parts = (gridDim.x - turn + full - 1) / full},
      query_elements, lists);
}

// At least one a query.
uint32_t finish_blocks() {
  static_assert(landmark_topk_batch_max <= landmark::parts_max);
  return std::clamp(static_cast<uint32_t>(multiprocessors()), landmark_topk_batch_max, landmark::parts_max);
}
uint32_t scan_parts() {
  return finish_blocks() + landmark_topk_batch_max;
}

template <int blocks_of_queries>
cudaError_t enqueue(Batch batch, cudaStream_t stream) {
  const LandmarkTopKBatch& topk = batch.topk;
  const auto sms = static_cast<uint64_t>(multiprocessors());
  const auto tiles_of = [](uint64_t rows) { return (rows + tile - 1) / tile; };
  // The more are wanted, the more are sampled, lest there be too many candidates.
  const uint64_t stride_max = std::clamp<uint64_t>(2048 / topk.k, 17, sample_stride_max);
  batch.scan_parts = scan_parts();
  batch.sample_stride = static_cast<uint32_t>(std::clamp<uint64_t>(topk.n / sample_least, 1, stride_max));
  batch.sampled = (topk.n + batch.sample_stride - 1) / batch.sample_stride;
  const uint64_t sample_tiles = tiles_of(batch.sampled);
  const auto sample_blocks = static_cast<uint32_t>(std::min<uint64_t>({sample_blocks_max, sms, sample_tiles}));
  const auto sample_warps =
      static_cast<uint32_t>(std::min<uint64_t>(sample_tiles, uint64_t{sample_blocks} * score_warps));
  // Several times as many groups as are wanted, but few: they have to be sorted, in a way.
  batch.warp_groups = sample_warps >= 512 ? 1 : sample_warps >= 128 ? 4 : 8;
  batch.sample_groups = batch.warp_groups * sample_warps;
  const auto blocks = static_cast<uint32_t>(std::min(sms, tiles_of(topk.n)));
  // One block a multiprocessor, also where two would fit: else some had two while others had none.
  constexpr size_t bytes_least = 116 << 10;
  constexpr int ring_bytes = score_warps * stages * row_sets * warp * sizeof(uint4),
                score_bytes_most = queries_bytes_max + ring_bytes;
  const size_t bytes = std::max(bytes_least, size_t{topk.dim} * blocks_of_queries * 8 * sizeof(Bf16) + ring_bytes);
  cudaError_t status = launch<score_bytes_most>(score_all<blocks_of_queries, true>, sample_blocks, score_threads, bytes,
                                                false, batch, stream);
  if (status != cudaSuccess) return status;
  status =
      launch(choose_floors, topk.count, choose_threads, batch.sample_groups * sizeof(uint32_t), true, batch, stream);
  if (status != cudaSuccess) return status;
  status =
      launch<score_bytes_most>(score_all<blocks_of_queries, false>, blocks, score_threads, bytes, true, batch, stream);
  if (status != cudaSuccess) return status;
  constexpr int candidates_bytes = 2 * candidates_max * sizeof(uint32_t),
                finish_bytes_most = dim_max * sizeof(float) + candidates_bytes;
  const auto kernel = topk.k <= 32 ? finish<1> : topk.k <= 64 ? finish<2> : finish<4>;
  return launch<finish_bytes_most>(kernel, finish_blocks(), threads, topk.dim * sizeof(float) + candidates_bytes, true,
                                   batch, stream);
}

}  // namespace

size_t landmark_topk_batch_workspace(uint32_t k) {
  return heads_at() + size_t{scan_parts()} * (landmark::few + k) * sizeof(uint64_t);
}

cudaError_t landmark_topk_batch(const LandmarkTopKBatch& topk, cudaStream_t stream) {
  if (topk.count > landmark_topk_batch_max || topk.k == 0 || topk.k > landmark_topk_max || topk.dim == 0 ||
      topk.dim % 32 != 0 || topk.dim > dim_max || topk.n >= 0xffffffffu)
    return cudaErrorInvalidValue;
  if (topk.n == 0) return cudaSuccess;
  const auto bytes_of_eight = static_cast<uint32_t>(8 * topk.dim * sizeof(Bf16));
  const uint32_t most = std::min(landmark_topk_batch_max, 8 * std::bit_floor(queries_bytes_max / bytes_of_eight));
  for (uint32_t begin = 0; begin < topk.count; begin += most) {
    Batch batch{.topk = topk};
    batch.topk.queries += static_cast<size_t>(begin) * topk.dim;
    batch.topk.count = std::min(most, topk.count - begin);
    batch.topk.dots += static_cast<size_t>(begin) * topk.k;
    batch.topk.chunks += static_cast<size_t>(begin) * topk.k;
    const cudaError_t status = batch.topk.count <= 8    ? enqueue<1>(batch, stream)
                               : batch.topk.count <= 16 ? enqueue<2>(batch, stream)
                               : batch.topk.count <= 32 ? enqueue<4>(batch, stream)
                                                        : enqueue<8>(batch, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace recalld::cuda
