// Five kernels. score_codes over a sample: groups of landmarks keep the best of the least scores that their codes
// allow. choose_floor: the k-th best group; at least k landmarks are no worse. score_codes over all: what may reach the
// floor is noted down, with the least and the greatest score it may have. prune: one block takes the k-th best of the
// least scores and keeps what may reach that. rescore: landmark::scan over those.
//
// Four threads share a row, as in landmark::scan. The products are made four at a time by __dp4a, of codes with the
// upper and with the lower byte of the query.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_device.cuh"
#include "kernels/landmark_topk_int8_cuda.h"

namespace recalld::cuda {
namespace {

using landmark::everyone, landmark::launch, landmark::multiprocessors, landmark::row_threads, landmark::rows,
    landmark::threads, landmark::warp, landmark::warps;

constexpr int blocks_per_sm = 2;
constexpr uint32_t sample_stride_max = 61;  // prime, lest it meet a period of what is sampled
constexpr uint64_t sample_least = 16384;    // landmarks, when there are so many
constexpr uint32_t sample_blocks = 128;
constexpr uint32_t groups_max = 4096;
constexpr uint32_t candidates_max = 1 << 17;
constexpr int query_steps = 127 * 256;  // of the query's greatest magnitude

struct Candidate {
  uint32_t least, greatest;  // order_of() the scores that it may have
  uint32_t row;
};

struct Workspace {
  landmark::ScanState scan;
  uint32_t floor;       // order_of() a score that k landmarks reach
  uint32_t candidates;  // also those that found no room
  uint32_t kept;        // of them; above candidates_max: look at all landmarks
  uint32_t unused;
  uint32_t groups[groups_max];
  Candidate found[candidates_max];
  uint32_t rows[candidates_max];  // what is kept

  // Behind this: heads [blocks, few] and lists [blocks, k] of the scan.
  __device__ uint64_t* heads() { return reinterpret_cast<uint64_t*>(this + 1); }
};

static_assert(sizeof(Workspace) % 16 == 0);

struct Search {
  LandmarkTopKInt8 topk;
  uint32_t sample_stride;
  uint64_t sampled;      // landmarks
  uint32_t warp_groups;  // of a warp that looks at the sample: 1 or 8
  uint32_t groups;       // of all its warps
  uint32_t rescore_blocks;

  __device__ Workspace& workspace() const { return *static_cast<Workspace*>(topk.workspace); }
};

// The query as the codes meet it, in shared memory.
struct Query {
  int8_t *high, *low;  // [dim] each: element = scale * (256 * high + low)
  float scale;
  float error;  // of a score, over the landmark's scale
};

// bytes: [2, dim] · For a whole block.
__device__ Query load_query(const Bf16* elements, uint32_t dim, int8_t* bytes) {
  __shared__ float sums[warps], maxima[warps];
  float sum = 0, most = 0;
  for (uint32_t i = threadIdx.x; i < dim; i += threads) {
    const float magnitude = fabsf(__uint_as_float(static_cast<uint32_t>(elements[i].bits) << 16));
    sum = __fadd_ru(sum, magnitude);
    most = fmaxf(most, magnitude);  // of a NaN the sum tells
  }
#pragma unroll
  for (int width = warp / 2; width > 0; width /= 2) {
    sum = __fadd_ru(sum, __shfl_xor_sync(everyone, sum, width));
    most = fmaxf(most, __shfl_xor_sync(everyone, most, width));
  }
  if (threadIdx.x % warp == 0) {
    sums[threadIdx.x / warp] = sum;
    maxima[threadIdx.x / warp] = most;
  }
  __syncthreads();
  sum = most = 0;
#pragma unroll
  for (int i = 0; i < warps; ++i) {
    sum = __fadd_ru(sum, sums[i]);
    most = fmaxf(most, maxima[i]);
  }
  Query query{.high = bytes, .low = bytes + dim, .scale = most / query_steps, .error = INFINITY};
  const auto elements_of_sum = static_cast<float>(dim);
  // Far from where products overflow or vanish.
  if (most == 0 || (most > 0x1p-60f && sum < 0x1p60f))
    query.error =
        (0.50002f * sum + 64 * elements_of_sum * query.scale + 128 * sum * (elements_of_sum / 32 + 21) * 0x1p-24f) *
        (1 + 0x1p-18f);
  for (uint32_t i = threadIdx.x; i < dim; i += threads) {
    const float element = __uint_as_float(static_cast<uint32_t>(elements[i].bits) << 16);
    const int rounded = most == 0 || isinf(query.error) ? 0 : __float2int_rn(element / query.scale);
    const int high = (rounded + 128) >> 8;  // of -127 to 127, and what is left of -128 to 127
    query.high[i] = static_cast<int8_t>(high);
    query.low[i] = static_cast<int8_t>(rounded - 256 * high);
  }
  __syncthreads();
  return query;
}

struct Sums {
  int high = 0, low = 0;
};

__device__ __forceinline__ void add(Sums& sums, const uint4& codes, const int8_t* high, const int8_t* low) {
  const int4 h = *reinterpret_cast<const int4*>(high), l = *reinterpret_cast<const int4*>(low);
  sums.high = __dp4a(static_cast<int>(codes.x), h.x, sums.high);
  sums.low = __dp4a(static_cast<int>(codes.x), l.x, sums.low);
  sums.high = __dp4a(static_cast<int>(codes.y), h.y, sums.high);
  sums.low = __dp4a(static_cast<int>(codes.y), l.y, sums.low);
  sums.high = __dp4a(static_cast<int>(codes.z), h.z, sums.high);
  sums.low = __dp4a(static_cast<int>(codes.z), l.z, sums.low);
  sums.high = __dp4a(static_cast<int>(codes.w), h.w, sums.high);
  sums.low = __dp4a(static_cast<int>(codes.w), l.w, sums.low);
}

template <int count>
__device__ __forceinline__ void add_steps(Sums& sums, const uint4* codes, const int8_t* high, const int8_t* low) {
  constexpr int bytes = row_threads * sizeof(uint4);
  uint4 loaded[count];
#pragma unroll
  for (int i = 0; i < count; ++i) loaded[i] = landmark::load_once(codes + i * row_threads);
#pragma unroll
  for (int i = 0; i < count; ++i) add(sums, loaded[i], high + i * bytes, low + i * bytes);
}

// The least and the greatest score of a row, to all of its four threads.
__device__ __forceinline__ float2 bounds(const int8_t* codes, float scale, const Query& query, uint32_t dim, int lane) {
  const uint32_t part = lane % row_threads;
  // Two of the threads have a step less where dim is no multiple of 64.
  const uint32_t steps = (dim / 16 + row_threads - 1 - part) / row_threads;
  const uint4* const from = reinterpret_cast<const uint4*>(codes) + part;
  const int8_t *const high = query.high + 16 * part, *const low = query.low + 16 * part;
  Sums sums;
  uint32_t step = 0;
  for (; step + 16 <= steps; step += 16)
    add_steps<16>(sums, from + step * row_threads, high + step * 64, low + step * 64);
  if (step + 4 <= steps) {
    add_steps<4>(sums, from + step * row_threads, high + step * 64, low + step * 64);
    step += 4;
  }
  for (; step < steps; ++step) add_steps<1>(sums, from + step * row_threads, high + step * 64, low + step * 64);
  __syncwarp();
#pragma unroll
  for (int width = 1; width < row_threads; width *= 2) {
    sums.high += __shfl_xor_sync(everyone, sums.high, width);
    sums.low += __shfl_xor_sync(everyone, sums.low, width);
  }
  const float score = fmaf(256, static_cast<float>(sums.high), static_cast<float>(sums.low)) * (scale * query.scale);
  const float error = __fmaf_ru(scale, query.error, 0x1p-100f);
  if (!(error < 0x1p100f)) return {-INFINITY, INFINITY};
  return {__fsub_rd(score, error), __fadd_ru(score, error)};
}

template <bool sample>
__global__ void __launch_bounds__(threads, blocks_per_sm) score_codes(Search search) {
  extern __shared__ __align__(16) int8_t bytes[];  // [2, dim]
  const LandmarkTopKInt8& topk = search.topk;
  Workspace& workspace = search.workspace();
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  let_next_kernel_start();
  const Query query = load_query(topk.query, topk.dim, bytes);
  await_kernel_before();
  if constexpr (sample) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      workspace.scan = {};
      workspace.candidates = workspace.kept = 0;
    }
    for (uint32_t i = blockIdx.x * threads + threadIdx.x; i < search.rescore_blocks * landmark::few;
         i += gridDim.x * threads)
      workspace.heads()[i] = 0;
  }
  const uint32_t floor = sample ? 0 : workspace.floor;
  const uint64_t n = sample ? search.sampled : topk.n;
  const uint32_t in_grid = in_block * gridDim.x + blockIdx.x;
  float best = -INFINITY;
  for (uint64_t first = uint64_t{in_grid} * rows; first < n; first += uint64_t{gridDim.x} * warps * rows) {
    const uint64_t at = first + lane / row_threads;
    const bool there = at < n;
    const uint64_t row = (there ? at : n - 1) * (sample ? search.sample_stride : 1);
    const float2 bound = bounds(topk.codes + row * topk.dim, topk.scales[row], query, topk.dim, lane);
    if constexpr (sample) {
      if (there) best = fmaxf(best, bound.x);
    } else {
      const uint32_t greatest = landmark::order_of(bound.y);
      const bool wanted = there && lane % row_threads == 0 && greatest >= floor;
      const unsigned all_wanted = __ballot_sync(everyone, wanted);
      if (all_wanted == 0) continue;
      uint32_t place = 0;
      if (lane == 0) place = atomicAdd(&workspace.candidates, __popc(all_wanted));
      place = __shfl_sync(everyone, place, 0) + __popc(all_wanted & ((1u << lane) - 1));
      if (wanted && place < candidates_max)
        workspace.found[place] = {landmark::order_of(bound.x), greatest, static_cast<uint32_t>(row)};
    }
  }
  if constexpr (sample) {
    if (search.warp_groups == 1)
#pragma unroll
      for (int width = row_threads; width < warp; width *= 2)
        best = fmaxf(best, __shfl_xor_sync(everyone, best, width));
    const uint32_t in_warp = lane / row_threads, group = in_grid * search.warp_groups + in_warp;
    if (lane % row_threads == 0 && in_warp < search.warp_groups && group < search.groups)
      workspace.groups[group] = landmark::order_of(best);
  }
}

constexpr int prune_threads = 1024;

__global__ void __launch_bounds__(prune_threads, 1) choose_floor(Search search) {
  __shared__ uint32_t counts[32];
  let_next_kernel_start();
  await_kernel_before();
  Workspace& workspace = search.workspace();
  const uint32_t kth = landmark::kth_greatest(workspace.groups, search.groups, search.topk.k, counts);
  if (threadIdx.x == 0) workspace.floor = kth;
}

__global__ void __launch_bounds__(prune_threads, 1) prune(Search search) {
  __shared__ uint32_t counts[32], kept;
  let_next_kernel_start();
  if (threadIdx.x == 0) kept = 0;
  await_kernel_before();
  Workspace& workspace = search.workspace();
  const uint32_t count = workspace.candidates;
  if (count > candidates_max) {
    if (threadIdx.x == 0) workspace.kept = count;
    return;
  }
  // The orders of least scores, in the place of the rows that will be kept.
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < count; i += prune_threads) workspace.rows[i] = workspace.found[i].least;
  __syncthreads();
  const uint32_t least = landmark::kth_greatest(workspace.rows, count, search.topk.k, counts);
  __syncthreads();
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < count; i += prune_threads)
    if (workspace.found[i].greatest >= least) workspace.rows[atomicAdd(&kept, 1)] = workspace.found[i].row;
  __syncthreads();
  if (threadIdx.x == 0) workspace.kept = kept;
}

template <int registers>
__global__ void __launch_bounds__(threads, blocks_per_sm) rescore(Search search) {
  extern __shared__ __align__(16) float query[];  // [dim]
  __shared__ uint64_t lists[warps / 2 * landmark::Best<registers>::slots];
  const LandmarkTopKInt8& topk = search.topk;
  Workspace& workspace = search.workspace();
  await_kernel_before();
  const bool all = workspace.kept > candidates_max;
  const uint64_t n = all ? topk.n : workspace.kept;
  const uint32_t parts = landmark::parts_of(n, gridDim.x);
  if (blockIdx.x >= parts) return;
  landmark::scan<registers>({.query = topk.query,
                             .landmarks = topk.landmarks,
                             .rows = all ? nullptr : workspace.rows,
                             .n = n,
                             .dim = topk.dim,
                             .k = topk.k,
                             .dots = topk.dots,
                             .chunks = topk.chunks,
                             .state = &workspace.scan,
                             .heads = workspace.heads(),
                             .lists = workspace.heads() + gridDim.x * landmark::few,
                             .part = blockIdx.x,
                             .parts = parts},
                            query, lists);
}

// A warp a row.
__global__ void __launch_bounds__(threads)
    to_int8(const Bf16* landmarks, uint64_t n, uint32_t dim, int8_t* codes, float* scales) {
  const uint32_t lane = threadIdx.x % warp;
  const uint64_t stride = uint64_t{gridDim.x} * warps;
  for (uint64_t row = uint64_t{blockIdx.x} * warps + threadIdx.x / warp; row < n; row += stride) {
    const Bf16* const from = landmarks + row * dim;
    uint32_t bits = 0;
    for (uint32_t i = lane; i < dim; i += warp) bits = max(bits, from[i].bits & 0x7fffu);
    const float most = __uint_as_float(__reduce_max_sync(everyone, bits) << 16);
    const bool fits = most == 0 || (most >= 0x1p-100f && most < INFINITY);
    const float scale = fits ? most / 127 : INFINITY;
    for (uint32_t i = lane; i < dim; i += warp) {
      const float element = __uint_as_float(static_cast<uint32_t>(from[i].bits) << 16);
      codes[row * dim + i] = static_cast<int8_t>(fits && most != 0 ? __float2int_rn(element / scale) : 0);
    }
    if (lane == 0) scales[row] = scale;
  }
}

uint32_t rescore_blocks() {
  return std::min<uint32_t>(multiprocessors() * blocks_per_sm, landmark::parts_max);
}

}  // namespace

size_t landmark_topk_int8_workspace(uint32_t k) {
  return sizeof(Workspace) + size_t{rescore_blocks()} * (landmark::few + k) * sizeof(uint64_t);
}

cudaError_t landmark_topk_int8(const LandmarkTopKInt8& topk, cudaStream_t stream) {
  constexpr uint32_t dim_max = 8192;  // the query must fit into shared memory
  if (topk.k == 0 || topk.k > landmark_topk_max || topk.dim == 0 || topk.dim % 32 != 0 || topk.dim > dim_max ||
      topk.n >= 0xffffffffu)
    return cudaErrorInvalidValue;
  if (topk.n == 0) return cudaSuccess;
  Search search{.topk = topk};
  // The more are wanted, the more are sampled, lest there be too many candidates.
  const uint64_t stride_max = std::clamp<uint64_t>(2048 / topk.k, 17, sample_stride_max);
  search.sample_stride = static_cast<uint32_t>(std::clamp<uint64_t>(topk.n / sample_least, 1, stride_max));
  search.sampled = (topk.n + search.sample_stride - 1) / search.sample_stride;
  const auto sample_warps =
      static_cast<uint32_t>(std::min<uint64_t>(uint64_t{sample_blocks} * warps, (search.sampled + rows - 1) / rows));
  // Several times as many groups as are wanted, but few: they have to be sorted, in a way.
  search.warp_groups = sample_warps >= 512 ? 1 : rows;
  search.groups = search.warp_groups * sample_warps;
  const auto blocks_of = [](uint64_t of_rows, uint64_t most) {
    return static_cast<uint32_t>(std::clamp<uint64_t>((of_rows + warps * rows - 1) / (warps * rows), 1, most));
  };
  const uint32_t most = multiprocessors() * blocks_per_sm;
  search.rescore_blocks = rescore_blocks();
  const size_t query_bytes = 2 * size_t{topk.dim};
  // All sample blocks, also when they have no row, so that a group is where it is sought.
  cudaError_t status = launch(score_codes<true>, sample_blocks, threads, query_bytes, false, search, stream);
  if (status != cudaSuccess) return status;
  status = launch(choose_floor, 1, prune_threads, 0, true, search, stream);
  if (status != cudaSuccess) return status;
  status = launch(score_codes<false>, blocks_of(topk.n, most), threads, query_bytes, true, search, stream);
  if (status != cudaSuccess) return status;
  status = launch(prune, 1, prune_threads, 0, true, search, stream);
  if (status != cudaSuccess) return status;
  const auto kernel = topk.k <= 32 ? rescore<1> : topk.k <= 64 ? rescore<2> : rescore<4>;
  return launch(kernel, search.rescore_blocks, threads, topk.dim * sizeof(float), true, search, stream);
}

cudaError_t landmarks_to_int8(const Bf16* landmarks, uint64_t n, uint32_t dim, int8_t* codes, float* scales,
                              cudaStream_t stream) {
  if (dim == 0 || dim % 32 != 0) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  const auto blocks = static_cast<uint32_t>(std::min<uint64_t>((n + warps - 1) / warps, multiprocessors() * 8));
  to_int8<<<blocks, threads, 0, stream>>>(landmarks, n, dim, codes, scales);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
