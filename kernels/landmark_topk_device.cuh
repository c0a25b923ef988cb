// What the landmark kernels share on the device: keys that order as better() does, the best of them that a warp keeps,
// a landmark's score in its one order of summation, and a pass over all landmarks for one query.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda::landmark {

inline constexpr int threads = 256, warp = 32, warps = threads / warp;
inline constexpr int row_threads = 4, rows = warp / row_threads;  // of a warp at a time
inline constexpr unsigned everyone = 0xffffffff;

inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

// Of kernels that follow each other, all but the first start while the one before them ends: what depends on that one
// comes after await_kernel_before(). The one before has then ended, and all before it.
template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), uint32_t blocks, uint32_t block_threads, size_t shared_bytes,
                   bool starts_early, const Arguments& arguments, cudaStream_t stream) {
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = starts_early ? 1 : 0;
  const cudaLaunchConfig_t config{.gridDim = blocks,
                                  .blockDim = block_threads,
                                  .dynamicSmemBytes = shared_bytes,
                                  .stream = stream,
                                  .attrs = &overlap,
                                  .numAttrs = 1};
  return cudaLaunchKernelEx(&config, kernel, arguments);
}
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void await_kernel_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Orders numbers as they are; a NaN comes below all numbers, and 0 is no number's.
__device__ __forceinline__ uint32_t order_of(float value) {
  if (isnan(value)) return 0;
  const uint32_t bits = __float_as_uint(value == 0 ? 0.0f : value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float ordered(uint32_t order) {
  if (order == 0) return __uint_as_float(0x7fffffffu);
  return __uint_as_float((order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order);
}

// Orders as better() does: a greater key is better. No landmark has the key 0.
__device__ __forceinline__ uint64_t key_of(float dot, uint32_t row) {
  return static_cast<uint64_t>(order_of(dot)) << 32 | ~row;
}
__device__ __forceinline__ float dot_of(uint64_t key) {
  return ordered(static_cast<uint32_t>(key >> 32));
}
__device__ __forceinline__ uint32_t row_of(uint64_t key) {
  return ~static_cast<uint32_t>(key);
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
    // The better ones of a list and of the other in reverse are the best of both, first up and then down.
#pragma unroll
    for (int r = 0; r < registers; ++r) slots_[r] = max(slots_[r], keys[(registers - r) * warp - 1 - lane]);
#pragma unroll
    for (int apart = registers / 2; apart > 0; apart /= 2) {
#pragma unroll
      for (int r = 0; r < registers; ++r) {
        if ((r & apart) != 0) continue;
        const uint64_t low = min(slots_[r], slots_[r + apart]);
        slots_[r] = max(slots_[r], slots_[r + apart]);
        slots_[r + apart] = low;
      }
    }
#pragma unroll
    for (int width = warp / 2; width > 0; width /= 2) {
#pragma unroll
      for (int r = 0; r < registers; ++r) {
        const uint64_t other = __shfl_xor_sync(everyone, slots_[r], width);
        slots_[r] = (lane & width) == 0 ? max(slots_[r], other) : min(slots_[r], other);
      }
    }
    note_least();
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

// Of one warp. list: [slots], scratch
template <int registers>
__device__ __forceinline__ void write_best(const Best<registers>& best, uint64_t* list, uint32_t found, float* dots,
                                           uint64_t* chunks, int lane) {
  best.store(list, lane);
  __syncwarp();
  for (uint32_t i = lane; i < found; i += warp) {
    dots[i] = dot_of(list[i]);
    chunks[i] = row_of(list[i]);
  }
}

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

// Loads `count` parts of 16 bytes of a row, and then adds their products.
template <int count>
__device__ __forceinline__ void add_steps(float (&sums)[8], const uint4* landmark, const float* query) {
  uint4 loaded[count];
#pragma unroll
  for (int i = 0; i < count; ++i) loaded[i] = load_once(landmark + i * row_threads);
#pragma unroll
  for (int i = 0; i < count; ++i) add(sums, loaded[i], query + i * 32);
}

// Four threads share a row: each adds up eight of the 32 partial sums that define a score, from loads of 16 bytes.
// Returns the score to all four.
// landmark: [dim] bf16 · query: [dim] fp32, in shared memory
__device__ __forceinline__ float score(const Bf16* landmark, const float* query, uint32_t dim, int lane) {
  const int part = lane % row_threads;
  const uint4* const from = reinterpret_cast<const uint4*>(landmark) + part;
  const float* const query_part = query + 8 * part;
  const uint32_t steps = dim / 32;
  float sums[8] = {};
  uint32_t step = 0;
  for (; step + 16 <= steps; step += 16) add_steps<16>(sums, from + step * row_threads, query_part + step * 32);
  if (step + 8 <= steps) {
    add_steps<8>(sums, from + step * row_threads, query_part + step * 32);
    step += 8;
  }
  for (; step < steps; ++step) add_steps<1>(sums, from + step * row_threads, query_part + step * 32);
    // Neighbours first: within a thread, then with the next thread, then with the one after that.
#pragma unroll
  for (int width = 1; width < 8; width *= 2)
#pragma unroll
    for (int i = 0; i < 8; i += 2 * width) sums[i] += sums[i + width];
  float dot = sums[0];
  dot += __shfl_xor_sync(everyone, dot, 1);
  dot += __shfl_xor_sync(everyone, dot, 2);
  return dot;
}

// to: [dim], in shared memory; the block has to wait for all of it.
__device__ __forceinline__ void load_query(const Bf16* query, uint32_t dim, float* to) {
  for (uint32_t i = threadIdx.x; i < dim; i += threads)
    to[i] = __uint_as_float(static_cast<uint32_t>(query[i].bits) << 16);
}

// A number that at least k of the values have or exceed, and the greatest such one but for its last 12 bits, which are
// 0; 0 for fewer values than k. For a whole block, all threads of which get it. values: [count] and counts: [32], in
// shared memory; counts is scratch
__device__ __forceinline__ uint32_t kth_greatest(const uint32_t* values, uint32_t count, uint32_t k, uint32_t* counts) {
  for (uint32_t i = threadIdx.x; i < 32; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  uint32_t found = 0;
  for (int shift = 30; shift >= 12; shift -= 2, counts += 3) {
    uint32_t own[3] = {};  // of the next two bits, how many have 1, 2, 3 or exceed it
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
#pragma unroll
      for (uint32_t bits = 1; bits <= 3; ++bits) own[bits - 1] += values[i] >= (found | bits << shift);
    }
#pragma unroll
    for (uint32_t& sum : own) sum = __reduce_add_sync(everyone, sum);
    if (threadIdx.x % warp == 0) {
#pragma unroll
      for (int bits = 0; bits < 3; ++bits)
        if (own[bits] > 0) atomicAdd(&counts[bits], own[bits]);
    }
    __syncthreads();
    const uint32_t bits = counts[2] >= k ? 3 : counts[1] >= k ? 2 : counts[0] >= k ? 1 : 0;
    found |= bits << shift;
  }
  return found;
}

// What the blocks of a scan tell each other; zero before it and after it.
struct ScanState {
  unsigned long long floor;  // at least k keys are no worse
  uint32_t ended;            // blocks, until all have
  uint32_t unused;
};

struct Scan {
  const Bf16* query;
  const Bf16* landmarks;
  const uint32_t* rows;  // [n] the landmarks to look at, or null for the first n
  uint64_t n;
  uint32_t dim, k;
  float* dots;
  uint64_t* chunks;
  ScanState* state;
  uint64_t* lists;       // [parts, k]
  uint32_t part, parts;  // this block's, and how many blocks take part
};

// One pass over landmarks by all blocks of the scan. A warp has eight rows at a time and keeps its k best in
// registers; blocks merge those of their warps, and the last block to end merges those of the blocks. Whoever has found
// k tells all others the least of them: what is worse than that they need not look at. Nor need the last block look at
// what is worse than the k-th best of the blocks' best.
// query: [dim] fp32 · lists: [warps / 2, slots], both in shared memory
template <int registers>
__device__ __forceinline__ void scan(const Scan& scan, float* query, uint64_t* lists) {
  __shared__ bool is_last;
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  const uint32_t k = scan.k;
  const uint64_t stride = static_cast<uint64_t>(scan.parts) * warps * rows;
  const uint64_t begin = (static_cast<uint64_t>(scan.part) * warps + in_block) * rows;
  // The first rows are on their way while the query is.
  if (const uint64_t row = begin + lane / row_threads; row < scan.n && scan.rows == nullptr) {
    constexpr uint32_t line = 128 / sizeof(Bf16), lines_ahead = 16;
    for (uint32_t i = lane % row_threads * line; i < min(scan.dim, lines_ahead * line); i += row_threads * line)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(scan.landmarks + row * scan.dim + i));
  }
  load_query(scan.query, scan.dim, query);
  __syncthreads();

  Best<registers> best(k);
  for (uint64_t first = begin; first < scan.n; first += stride) {
    const uint64_t floor = __ldcg(&scan.state->floor);
    const uint64_t at = first + lane / row_threads;
    const bool there = at < scan.n;
    const auto place = static_cast<uint32_t>(there ? at : scan.n - 1);
    const uint32_t row = scan.rows == nullptr ? place : scan.rows[place];
    const float dot = score(scan.landmarks + static_cast<uint64_t>(row) * scan.dim, query, scan.dim, lane);
    best.raise(floor);
    best.offer(there && lane % row_threads == 0 ? key_of(dot, row) : 0, lane);
    if (lane == 0 && best.least() > floor) atomicMax(&scan.state->floor, static_cast<unsigned long long>(best.least()));
  }

  merge_warps(best, lists, in_block, lane);
  if (in_block == 0) {
    best.store(lists, lane);
    __syncwarp();
    uint64_t* const mine = scan.lists + static_cast<uint64_t>(scan.part) * k;
    for (uint32_t i = lane; i < k; i += warp) mine[i] = lists[i];
    __threadfence();
    if (lane == 0) is_last = atomicAdd(&scan.state->ended, 1) + 1 == scan.parts;
  }
  __syncthreads();
  if (!is_last) return;

  __threadfence();
  Best<registers> all(k);
  // This thread's greatest head of a list; then a number that k threads' heads have or exceed, close to the k-th.
  uint32_t head = 0, kth_head = 0;
  for (uint32_t part = threadIdx.x; part < scan.parts; part += threads)
    head = max(head, static_cast<uint32_t>(__ldcg(scan.lists + static_cast<uint64_t>(part) * k) >> 32));
  for (int bit = 31; bit >= 12; --bit) {
    const uint32_t tried = kth_head | 1u << bit;
    if (static_cast<uint32_t>(__syncthreads_count(head >= tried)) >= k) kth_head = tried;
  }
  const uint64_t floor = max(static_cast<uint64_t>(__ldcg(&scan.state->floor)), static_cast<uint64_t>(kth_head) << 32);
  // What equals the floor counts.
  all.raise(floor == 0 ? 0 : floor - 1);
  for (uint32_t first = in_block * warp; first < scan.parts; first += threads) {
    const bool there = first + lane < scan.parts;
    const uint64_t* const list = scan.lists + static_cast<uint64_t>(there ? first + lane : 0) * k;
    // Every list goes from the best down.
    constexpr uint32_t ahead = 8;
    bool more = there;
    for (uint32_t i = 0; __any_sync(everyone, more); i += ahead) {
      uint64_t keys[ahead];
#pragma unroll
      for (uint32_t j = 0; j < ahead; ++j) keys[j] = more && i + j < k ? __ldcg(list + i + j) : 0;
#pragma unroll
      for (uint32_t j = 0; j < ahead; ++j) all.offer(keys[j], lane);
      more = keys[ahead - 1] != 0 && keys[ahead - 1] >= floor;
    }
  }
  merge_warps(all, lists, in_block, lane);
  if (in_block != 0) return;
  write_best(all, lists, static_cast<uint32_t>(min(scan.n, static_cast<uint64_t>(k))), scan.dots, scan.chunks, lane);
  if (lane == 0) *scan.state = {};
}

}  // namespace recalld::cuda::landmark
