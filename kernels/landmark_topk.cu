// One pass over the landmarks. Four threads share a row: each adds up eight of the 32 partial sums that define a score,
// from loads of 16 bytes. A warp has eight rows at a time and keeps its k best in registers; blocks merge those of
// their warps, and the last block to end merges those of the blocks. Whoever has found k tells all others the least of
// them: what is worse than that they need not look at.
#include <cuda_runtime.h>

#include <algorithm>
#include <cfloat>

#include "kernels/landmark_topk_cuda.h"

namespace recalld::cuda {
namespace {

constexpr int threads = 256, warp = 32, warps = threads / warp;
constexpr int row_threads = 4, rows = warp / row_threads;  // of a warp at a time
constexpr int blocks_per_sm = 2;
constexpr int steps_ahead = 16;  // loads of 16 bytes that a thread has in flight
constexpr unsigned everyone = 0xffffffff;

// Orders as better() does: a greater key is better. No landmark has the key 0.
__device__ uint64_t key_of(float dot, uint32_t row) {
  uint32_t bits = 0;  // of a NaN, below all numbers
  if (!isnan(dot)) {
    bits = __float_as_uint(dot == 0 ? 0.0f : dot);
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }
  return static_cast<uint64_t>(bits) << 32 | ~row;
}

__device__ float dot_of(uint64_t key) {
  const auto bits = static_cast<uint32_t>(key >> 32);
  if (bits == 0) return __uint_as_float(0x7fffffffu);
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

// The best keys that a warp was offered, at least k of them, best first: slot i is register i / 32 of lane i % 32.
template <int registers>
class Best {
 public:
  static constexpr int slots = registers * warp;

  __device__ explicit Best(uint32_t k) : k_(k) {}

  // At least k keys somewhere are no worse than `floor`: those below it do not count any more.
  __device__ __forceinline__ void raise(uint64_t floor) { least_ = max(least_, floor); }
  // Of the k best, when there are so many.
  __device__ __forceinline__ uint64_t least() const { return least_; }

  // Each lane offers a key, 0 for none.
  __device__ __forceinline__ void offer(uint64_t key, int lane) {
    for (;;) {
      const unsigned wanted = __ballot_sync(everyone, key > least_);
      if (wanted == 0) return;
      const int from = __ffs(static_cast<int>(wanted)) - 1;
      insert(__shfl_sync(everyone, key, from), lane);
      if (lane == from) key = 0;
    }
  }

  // Offers all slots of another one, as store() wrote them.
  __device__ __forceinline__ void merge(const uint64_t* keys, int lane) {
    if constexpr (registers == 1) {
      // The better ones of a list and of the other in reverse are the best of both, first up and then down.
      uint64_t own = max(slots_[0], keys[warp - 1 - lane]);
#pragma unroll
      for (int width = warp / 2; width > 0; width /= 2) {
        const uint64_t other = __shfl_xor_sync(everyone, own, width);
        own = (lane & width) == 0 ? max(own, other) : min(own, other);
      }
      slots_[0] = own;
      note_least();
    } else {
#pragma unroll
      for (int r = 0; r < registers; ++r) offer(keys[r * warp + lane], lane);
    }
  }

  __device__ __forceinline__ void store(uint64_t* keys, int lane) const {
#pragma unroll
    for (int r = 0; r < registers; ++r) keys[r * warp + lane] = slots_[r];
  }

 private:
  __device__ __forceinline__ void insert(uint64_t key, int lane) {
    uint64_t carried = ~uint64_t{0};  // the slot before the first: better than every key
#pragma unroll
    for (int r = 0; r < registers; ++r) {
      const uint64_t own = slots_[r];
      uint64_t before = __shfl_up_sync(everyone, own, 1);
      if (lane == 0) before = carried;
      carried = __shfl_sync(everyone, own, warp - 1);
      if (own < key) slots_[r] = before > key ? key : before;
    }
    note_least();
  }

  __device__ __forceinline__ void note_least() {
    const int last = static_cast<int>(k_) - 1;
    uint64_t own = slots_[0];
#pragma unroll
    for (int r = 1; r < registers; ++r)
      if (last / warp == r) own = slots_[r];
    raise(__shfl_sync(everyone, own, last % warp));
  }

  const uint32_t k_;
  uint64_t least_ = 0;  // in every lane
  uint64_t slots_[registers] = {};
};

// What is read once: past the L1 cache, and with as much of a row at a time as the L2 cache can be told to fetch, since
// the four threads of a row ask for 64 bytes of it. With plain loads the card reads at 0.85 of its rate, with these at
// 0.98 (1 Mi rows of 1024, H100).
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 data;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(data.x), "=r"(data.y), "=r"(data.z), "=r"(data.w)
               : "l"(from));
  return data;
}

// Adds the products of eight elements to their partial sums.
__device__ __forceinline__ void add(float (&sums)[8], const uint4& landmark, const float* query) {
  const float4 low = *reinterpret_cast<const float4*>(query), high = *reinterpret_cast<const float4*>(query + 4);
  const float q[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  const uint32_t pairs[4] = {landmark.x, landmark.y, landmark.z, landmark.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // A product of two bf16 is exact, so this rounds as a product and a sum do.
    sums[2 * i] = __fmaf_rn(__uint_as_float(pairs[i] << 16), q[2 * i], sums[2 * i]);
    sums[2 * i + 1] = __fmaf_rn(__uint_as_float(pairs[i] & 0xffff0000u), q[2 * i + 1], sums[2 * i + 1]);
  }
}

// What blocks tell each other.
struct Workspace {
  unsigned long long floor;  // at least k keys are no worse
  uint32_t ended;            // blocks, until all have
  uint32_t unused;

  __device__ uint64_t* of_block(uint32_t block, uint32_t k) {
    return reinterpret_cast<uint64_t*>(this + 1) + static_cast<uint64_t>(block) * k;
  }
};

// Warp 0 gets the best of all warps. lists: [warps / 2, slots]
template <int registers>
__device__ __forceinline__ void merge_warps(Best<registers>& best, uint64_t* lists, int in_block, int lane) {
#pragma unroll
  for (int half = warps / 2; half > 0; half /= 2) {
    if (in_block >= half && in_block < 2 * half) best.store(lists + (in_block - half) * Best<registers>::slots, lane);
    __syncthreads();
    if (in_block < half) best.merge(lists + in_block * Best<registers>::slots, lane);
    __syncthreads();
  }
}

template <int registers>
__global__ void __launch_bounds__(threads, blocks_per_sm) landmark_topk_kernel(LandmarkTopK topk) {
  extern __shared__ __align__(16) float query[];  // [dim]
  __shared__ uint64_t lists[warps / 2 * Best<registers>::slots];
  __shared__ bool is_last;
  Workspace& workspace = *static_cast<Workspace*>(topk.workspace);
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  const uint32_t k = topk.k;
  for (uint32_t i = threadIdx.x; i < topk.dim; i += threads)
    query[i] = __uint_as_float(static_cast<uint32_t>(topk.query[i].bits) << 16);
  __syncthreads();

  Best<registers> best(k);
  const int part = lane % row_threads;
  const float* const query_part = query + 8 * part;
  const uint32_t steps = topk.dim / 32;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * warps * rows;
  for (uint64_t first = (static_cast<uint64_t>(blockIdx.x) * warps + in_block) * rows; first < topk.n;
       first += stride) {
    const uint64_t floor = __ldcg(&workspace.floor);
    const uint64_t row = first + lane / row_threads;
    const bool there = row < topk.n;
    const uint4* const from =
        reinterpret_cast<const uint4*>(topk.landmarks + (there ? row : topk.n - 1) * topk.dim) + part;
    float sums[8] = {};
    uint32_t step = 0;
    for (; step + steps_ahead <= steps; step += steps_ahead) {
      uint4 loaded[steps_ahead];
#pragma unroll
      for (int i = 0; i < steps_ahead; ++i) loaded[i] = load_once(from + (step + i) * row_threads);
#pragma unroll
      for (int i = 0; i < steps_ahead; ++i) add(sums, loaded[i], query_part + (step + i) * 32);
    }
    for (; step < steps; ++step) add(sums, load_once(from + step * row_threads), query_part + step * 32);
      // Neighbours first: within a thread, then with the next thread, then with the one after that.
#pragma unroll
    for (int width = 1; width < 8; width *= 2)
#pragma unroll
      for (int i = 0; i < 8; i += 2 * width) sums[i] += sums[i + width];
    float dot = sums[0];
    dot += __shfl_xor_sync(everyone, dot, 1);
    dot += __shfl_xor_sync(everyone, dot, 2);
    best.raise(floor);
    best.offer(there && part == 0 ? key_of(dot, static_cast<uint32_t>(row)) : 0, lane);
    if (lane == 0 && best.least() > floor) atomicMax(&workspace.floor, static_cast<unsigned long long>(best.least()));
  }

  merge_warps(best, lists, in_block, lane);
  if (in_block == 0) {
    best.store(lists, lane);
    __syncwarp();
    uint64_t* const mine = workspace.of_block(blockIdx.x, k);
    for (uint32_t i = lane; i < k; i += warp) mine[i] = lists[i];
    __threadfence();
    if (lane == 0) is_last = atomicAdd(&workspace.ended, 1) + 1 == gridDim.x;
  }
  __syncthreads();
  if (!is_last) return;

  __threadfence();
  Best<registers> all(k);
  // What equals the floor counts.
  const uint64_t floor = __ldcg(&workspace.floor);
  all.raise(floor == 0 ? 0 : floor - 1);
  const uint64_t* const of_blocks = workspace.of_block(0, k);
  const uint32_t count = gridDim.x * k;
#pragma unroll 4
  for (uint32_t i = in_block * warp; i < count; i += threads)
    all.offer(i + lane < count ? __ldcg(of_blocks + i + lane) : 0, lane);
  merge_warps(all, lists, in_block, lane);
  if (in_block != 0) return;
  all.store(lists, lane);
  __syncwarp();
  const auto found = static_cast<uint32_t>(min(topk.n, static_cast<uint64_t>(k)));
  for (uint32_t i = lane; i < found; i += warp) {
    topk.dots[i] = dot_of(lists[i]);
    topk.chunks[i] = ~static_cast<uint32_t>(lists[i]);
  }
  if (lane == 0) workspace = {};  // for the next call
}

int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

template <int registers>
cudaError_t launch(const LandmarkTopK& topk, cudaStream_t stream) {
  constexpr uint64_t rows_of_block = uint64_t{warps} * rows;
  const uint64_t most = static_cast<uint64_t>(multiprocessors()) * blocks_per_sm;
  const uint64_t blocks = std::clamp<uint64_t>((topk.n + rows_of_block - 1) / rows_of_block, 1, most);
  landmark_topk_kernel<registers><<<static_cast<unsigned>(blocks), threads, topk.dim * sizeof(float), stream>>>(topk);
  return cudaGetLastError();
}

}  // namespace

size_t landmark_topk_workspace(uint32_t k) {
  return sizeof(Workspace) + static_cast<size_t>(multiprocessors()) * blocks_per_sm * k * sizeof(uint64_t);
}

cudaError_t landmark_topk(const LandmarkTopK& topk, cudaStream_t stream) {
  constexpr uint32_t dim_max = 8192;  // the query must fit into shared memory
  if (topk.k == 0 || topk.k > landmark_topk_max || topk.dim == 0 || topk.dim % 32 != 0 || topk.dim > dim_max ||
      topk.n >= 0xffffffffu)
    return cudaErrorInvalidValue;
  if (topk.n == 0) return cudaSuccess;
  if (topk.k <= 32) return launch<1>(topk, stream);
  return topk.k <= 64 ? launch<2>(topk, stream) : launch<4>(topk, stream);
}

}  // namespace recalld::cuda
