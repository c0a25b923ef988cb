// Small kernels, of one block a lane or a record: what counts is that they are few and that none needs the host.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "kernels/chunk_selection_cuda.h"

namespace recalld::cuda {
namespace {

constexpr int warp = 32;
constexpr int selection_threads = 1024;
constexpr uint32_t copy_threads = 128, fill_threads = 256, piece_bytes = sizeof(uint4);

// Of one lane, for a whole block: whether it is ready. A warp has the k chunks of one token and head: each goes to the
// place that the number of newer ones says.
__device__ __forceinline__ bool select_of(const ChunkSelection& all, const SelectionLane& lane) {
  const uint32_t lists = max(lane.tokens, 1u) * all.heads;
  const size_t first = static_cast<size_t>(lane.row) * all.heads * all.k;
  bool missing = false;
  for (uint32_t list = threadIdx.x / warp; list < lists; list += selection_threads / warp) {
    const size_t from = static_cast<size_t>(list) * all.k, to = first + from;
    const uint32_t found = lane.tokens > 0 ? min(lane.found, all.k) : 0;
    uint32_t readable = 0;
    for (uint32_t i = threadIdx.x % warp; i < all.k; i += warp) {
      const bool there = i < found && !isnan(lane.dots[from + i]);
      if (there) {
        const uint64_t chunk = lane.chunks[from + i];
        uint32_t place = 0;
        for (uint32_t j = 0; j < found; ++j)
          place += lane.chunks[from + j] > chunk && !isnan(lane.dots[from + j]) ? 1 : 0;
        const uint32_t slot = lane.page_table[chunk];
        missing |= slot == no_chunk;
        all.slots[to + place] = slot;
        all.told_ids[to + place] = static_cast<uint32_t>(chunk);
        all.scores[to + place] = all.told_scores[to + place] = lane.dots[from + i] * all.scale;
      }
    }
    for (uint32_t j = 0; j < found; ++j) readable += isnan(lane.dots[from + j]) ? 0 : 1;
    for (uint32_t i = readable + threadIdx.x % warp; i < all.k; i += warp) {
      all.slots[to + i] = all.told_ids[to + i] = no_chunk;
      all.scores[to + i] = all.told_scores[to + i] = 0;
    }
  }
  const bool here = lane.tokens > 0 && (lane.enters || (all.ready_before && all.ready_before[blockIdx.x] != 0));
  const bool ready = !__syncthreads_or(missing || !here);
  if (ready) return true;
  for (size_t i = threadIdx.x; i < static_cast<size_t>(lists) * all.k; i += selection_threads)
    all.slots[first + i] = no_chunk;
  return false;
}

// To a host that looks at the word while the kernel runs. Where it is the last one, a load with acquire order that sees
// it sees also what the whole block wrote before its last barrier.
__device__ __forceinline__ void tell(uint32_t* word, uint32_t value, bool is_last) {
  if (is_last)
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
  else
    asm volatile("st.relaxed.sys.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// A block a lane. Where the lanes lie in pinned memory, theirs comes over the bus once. Of a lane that waits the host
// hears before the kernel ends: its word is behind all that the block has told.
__device__ __forceinline__ bool select(const ChunkSelection& all) {
  constexpr uint32_t words = sizeof(SelectionLane) / sizeof(uint32_t);
  static_assert(sizeof(SelectionLane) % sizeof(uint32_t) == 0 && words <= selection_threads);
  __shared__ __align__(alignof(SelectionLane)) uint32_t lane[words];
  bool ready = false, waits = false;
  if (blockIdx.x < all.lane_count) {
    if (threadIdx.x < words) lane[threadIdx.x] = reinterpret_cast<const uint32_t*>(all.lanes + blockIdx.x)[threadIdx.x];
    __syncthreads();
    ready = select_of(all, *reinterpret_cast<const SelectionLane*>(lane));
    waits = !ready && reinterpret_cast<const SelectionLane*>(lane)->tokens > 0;
  }
  if (threadIdx.x == 0) {
    all.ready[blockIdx.x] = ready;
    tell(all.told_ready + blockIdx.x, ready ? 1 : 0, waits);
  }
  return ready;
}

__global__ void __launch_bounds__(selection_threads) select_kernel(ChunkSelection all) {
  select(all);
}

// No two threads may speak for a branch: the block that comes last does.
__global__ void __launch_bounds__(selection_threads)
    select_for_kernel(ChunkSelection all, cudaGraphConditionalHandle branch, uint32_t* arrived) {
  constexpr uint32_t one_ready = 1u << 16;  // those that are ready are counted in the upper half
  const bool ready = select(all);
  if (threadIdx.x != 0) return;
  const uint32_t with_this = 1 + (ready ? one_ready : 0);
  const uint32_t now = atomicAdd(arrived, with_this) + with_this;
  if (now % one_ready != gridDim.x) return;
  *arrived = 0;
  cudaGraphSetConditional(branch, now / one_ready);
}

__global__ void point_kernel(LaneStates lanes) {
  const uint32_t lane = threadIdx.x, layer = blockIdx.x;
  float* const state = lanes.ready[lane] != 0 ? lanes.states + lane * lanes.lane_floats + layer * lanes.layer_floats
                                              : lanes.unwanted + lane * lanes.layer_floats;
  // Of a sliding window it is how many tokens were read: an idle lane has none to attend to.
  if (lanes.ready[lane] == 0 && layer == 0) *state = 0;
  lanes.conv[layer * lanes_max + lane] = state;
  lanes.ssm[layer * lanes_max + lane] = state + lanes.conv_floats;
}

__global__ void copy_rows_kernel(const float4* x, const uint32_t* ready, uint32_t pieces, float4* y) {
  if (ready[blockIdx.x] == 0) return;
  const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i < pieces) y[blockIdx.x * pieces + i] = x[blockIdx.x * pieces + i];
}

bool is_wrong(const ChunkSelection& selection) {
  return selection.lane_count > lanes_max || selection.k == 0 || selection.k > selection_k_max || selection.heads == 0;
}

struct Fills {
  SlotFill items[fills_of_launch_max];
};
static_assert(sizeof(Fills) + 64 <= 4096, "a kernel's arguments");

__device__ __forceinline__ unsigned long long now_ns() {
  unsigned long long ns = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

// For a whole block: whether the record has arrived. One thread looks, and all see what the host had written before.
__device__ __forceinline__ bool arrives(const uint32_t* arrival) {
  __shared__ uint32_t told;
  if (threadIdx.x == 0) {
    const unsigned long long begin = now_ns();
    uint32_t word = on_its_way;
    do asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(word) : "l"(arrival) : "memory");
    while (word == on_its_way && now_ns() - begin < arrival_wait_ns_max);
    told = word;
  }
  __syncthreads();
  return told == has_arrived;
}

// A thread's loads are under way together: each is a journey over the bus.
__global__ void __launch_bounds__(fill_threads) fill_kernel(Fills fills, uint32_t pieces, uint4* cache) {
  constexpr uint32_t loads = 4;
  const SlotFill& fill = fills.items[blockIdx.x];
  if (fill.arrival && !arrives(fill.arrival)) return;
  if (fill.record) {
    const auto* const from = static_cast<const uint4*>(fill.record);
    uint4* const to = cache + static_cast<size_t>(fill.slot) * pieces;
    for (uint32_t first = threadIdx.x; first < pieces; first += loads * fill_threads) {
      uint4 parts[loads];
#pragma unroll
      for (uint32_t i = 0; i < loads; ++i)
        if (first + i * fill_threads < pieces) parts[i] = from[first + i * fill_threads];
#pragma unroll
      for (uint32_t i = 0; i < loads; ++i)
        if (first + i * fill_threads < pieces) to[first + i * fill_threads] = parts[i];
    }
  }
  if (threadIdx.x == 0) fill.page_table[fill.chunk] = fill.slot;
}

}  // namespace

cudaError_t select_chunks(const ChunkSelection& selection, cudaStream_t stream) {
  if (is_wrong(selection)) return cudaErrorInvalidValue;
  select_kernel<<<lanes_max, selection_threads, 0, stream>>>(selection);
  return cudaGetLastError();
}

cudaError_t select_chunks_for(cudaGraphConditionalHandle branch, const ChunkSelection& selection, uint32_t* arrived,
                              cudaStream_t stream) {
  if (is_wrong(selection)) return cudaErrorInvalidValue;
  select_for_kernel<<<lanes_max, selection_threads, 0, stream>>>(selection, branch, arrived);
  return cudaGetLastError();
}

cudaError_t point_states(const LaneStates& lanes, cudaStream_t stream) {
  if (lanes.layers == 0) return cudaSuccess;
  point_kernel<<<lanes.layers, lanes_max, 0, stream>>>(lanes);
  return cudaGetLastError();
}

cudaError_t copy_rows(const float* x, const uint32_t* ready, uint32_t width, float* y, cudaStream_t stream) {
  if (width == 0 || width % 4 != 0) return cudaErrorInvalidValue;
  const uint32_t pieces = width / 4;
  copy_rows_kernel<<<dim3(lanes_max, (pieces + copy_threads - 1) / copy_threads), copy_threads, 0, stream>>>(
      reinterpret_cast<const float4*>(x), ready, pieces, reinterpret_cast<float4*>(y));
  return cudaGetLastError();
}

cudaError_t fill_slots(const SlotFill* fills, size_t count, uint32_t kv_bytes, void* cache, cudaStream_t stream) {
  const auto is_wrong = [](const SlotFill& fill) {
    return (fill.record == nullptr) != (fill.slot == no_chunk) || (fill.arrival && !fill.record) ||
           reinterpret_cast<uintptr_t>(fill.record) % piece_bytes != 0;
  };
  if (kv_bytes == 0 || kv_bytes % piece_bytes != 0 || std::any_of(fills, fills + count, is_wrong))
    return cudaErrorInvalidValue;
  for (size_t done = 0; done < count; done += fills_of_launch_max) {
    const size_t part = std::min<size_t>(fills_of_launch_max, count - done);
    Fills of_launch{};
    std::copy_n(fills + done, part, of_launch.items);
    fill_kernel<<<static_cast<unsigned>(part), fill_threads, 0, stream>>>(of_launch, kv_bytes / piece_bytes,
                                                                          static_cast<uint4*>(cache));
    if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace recalld::cuda
