// What the landmark kernels share on the device: keys that order as better() does, the best of them that a warp keeps,
// a landmark's score in its one order of summation, and a pass over all landmarks for one query.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/dependent_launch.cuh"

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

// Of kernels that follow each other, all but the first start while the one before them ends. shared_bytes_most: of any
// call of this kernel, where with its static shared memory it may have more than 48 KB. It is the kernel's for all
// threads, so it must not be what this call needs.
template <int shared_bytes_most = 0, class Arguments>
cudaError_t launch(void (*kernel)(Arguments), uint32_t blocks, uint32_t block_threads, size_t shared_bytes,
                   bool starts_early, const Arguments& arguments, cudaStream_t stream) {
  if constexpr (shared_bytes_most > 0)
    if (const cudaError_t status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_most);
        status != cudaSuccess)
      return status;
  cudaLaunchAttribute overlap = early_start(starts_early);
  const cudaLaunchConfig_t config{.gridDim = blocks,
                                  .blockDim = block_threads,
                                  .dynamicSmemBytes = shared_bytes,
                                  .stream = stream,
                                  .attrs = &overlap,
                                  .numAttrs = 1};
  return cudaLaunchKernelEx(&config, kernel, arguments);
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

  // This lane's of the first 32.
  __device__ __forceinline__ uint64_t first() const {
    return slots_[0];
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

// What is read once: as much of a row at a time as the L2 cache can be told to fetch, since the four threads of a row
// ask for 64 bytes of it. With plain loads the card reads at 0.85 of its rate, with these at 0.98 (1 Mi rows of 1024,
// H100). With L1::no_allocate the L2 cache would not keep it for the next query either.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 data;
  asm volatile("ld.global.nc.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
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

// Four threads share a row: each adds up eight of the 32 partial sums that define a score, from loads of 16 bytes. This
// adds up a thread's part of the row from `step` on.
// from: [steps, row_threads] · query: [steps, 32] fp32, in shared memory; both start at the thread's part
__device__ __forceinline__ void add_row(float (&sums)[8], const uint4* from, const float* query, uint32_t step,
                                        uint32_t steps) {
  for (; step + 16 <= steps; step += 16) add_steps<16>(sums, from + step * row_threads, query + step * 32);
  if (step + 8 <= steps) {
    add_steps<8>(sums, from + step * row_threads, query + step * 32);
    step += 8;
  }
  for (; step < steps; ++step) add_steps<1>(sums, from + step * row_threads, query + step * 32);
}

// The score, to all four threads.
__device__ __forceinline__ float sum_up(float (&sums)[8]) {
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

__device__ __forceinline__ const uint4* part_of(const Bf16* landmark, int lane) {
  return reinterpret_cast<const uint4*>(landmark) + lane % row_threads;
}

// landmark: [dim] bf16 · query: [dim] fp32, in shared memory
__device__ __forceinline__ float score(const Bf16* landmark, const float* query, uint32_t dim, int lane) {
  float sums[8] = {};
  add_row(sums, part_of(landmark, lane), query + lane % row_threads * 8, 0, dim / 32);
  return sum_up(sums);
}

// The first row that a thread has a part of: its start is loaded before the query is there.
class FirstRow {
 public:
  __device__ __forceinline__ void load(const Bf16* landmark, uint32_t dim, int lane) {
    from_ = part_of(landmark, lane);
#pragma unroll
    for (uint32_t i = 0; i < ahead; ++i)
      if (i < dim / 32) ahead_[i] = load_once(from_ + i * row_threads);
  }
  // As score(), once.
  __device__ __forceinline__ float score(const float* query, uint32_t dim, int lane) const {
    const float* const query_part = query + lane % row_threads * 8;
    float sums[8] = {};
    if (dim >= ahead * 32) {
#pragma unroll
      for (uint32_t i = 0; i < ahead; ++i) add(sums, ahead_[i], query_part + i * 32);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < ahead; ++i)
        if (i < dim / 32) add(sums, ahead_[i], query_part + i * 32);
    }
    add_row(sums, from_, query_part, ahead, dim / 32);
    return sum_up(sums);
  }

 private:
  static constexpr uint32_t ahead = 8;

  const uint4* from_ = nullptr;
  uint4 ahead_[ahead];
};

// A thread's part of a query, on its way to shared memory.
class QueryPart {
 public:
  __device__ __forceinline__ void load(const Bf16* query, uint32_t dim) {
    query_ = query;
    dim_ = dim;
#pragma unroll
    for (uint32_t i = 0; i < ahead; ++i)
      if (threadIdx.x + i * threads < dim_) ahead_[i] = query[threadIdx.x + i * threads];
  }
  // to: [dim] fp32; the block has to wait for all of it.
  __device__ __forceinline__ void store(float* to) const {
#pragma unroll
    for (uint32_t i = 0; i < ahead; ++i)
      if (threadIdx.x + i * threads < dim_) to[threadIdx.x + i * threads] = as_float(ahead_[i]);
    for (uint32_t i = threadIdx.x + ahead * threads; i < dim_; i += threads) to[i] = as_float(query_[i]);
  }

 private:
  static constexpr uint32_t ahead = 4;

  __device__ static float as_float(Bf16 value) {
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
  }

  const Bf16* query_;
  uint32_t dim_;
  Bf16 ahead_[ahead];
};

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

// How many of the 64 keys are better than number threadIdx.x / 4; they differ, but for zeros. For a whole block of
// `threads`. keys: [64], in shared memory
__device__ __forceinline__ uint32_t rank_among(const uint64_t* keys, uint64_t own) {
  uint32_t better = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const ulonglong2 pair = *reinterpret_cast<const ulonglong2*>(keys + 8 * i + threadIdx.x % 4 * 2);
    better += (pair.x > own) + (pair.y > own);
  }
  better += __shfl_xor_sync(everyone, better, 1);
  return better + __shfl_xor_sync(everyone, better, 2);
}

// What the blocks of a scan tell each other; zero before it and after it.
struct ScanState {
  unsigned long long floor;  // at least k keys are no worse
  uint32_t started;          // blocks
  uint32_t unused;
};

inline constexpr uint32_t few = 8;          // the most that are found on the short way
inline constexpr uint64_t no_landmark = 1;  // a key below every landmark's
inline constexpr uint32_t parts_max = threads;
static_assert(rows == few);

// Of a scan of n landmarks by at most so many blocks.
__host__ __device__ inline uint32_t parts_of(uint64_t n, uint32_t most) {
  const uint64_t tiles = (n + rows - 1) / rows;
  return static_cast<uint32_t>(tiles < 1 ? 1 : tiles < most ? tiles : most);
}

struct Scan {
  const Bf16* query;
  const Bf16* landmarks;
  const uint32_t* rows;  // [n] the landmarks to look at, or null for the first n
  uint64_t n;
  uint32_t dim, k;
  float* dots;
  uint64_t* chunks;
  ScanState* state;
  uint64_t* heads;       // [parts, few], at a multiple of 16 bytes: zero before the scan and after it
  uint64_t* lists;       // [parts, k]; not used on the short way
  uint32_t part, parts;  // this block's, and how many blocks take part, parts_max at most

  __device__ uint64_t* head(uint32_t of_part) const { return heads + of_part * few; }
  __device__ uint64_t* list(uint32_t of_part) const { return lists + static_cast<uint64_t>(of_part) * k; }
  __device__ uint32_t found() const { return static_cast<uint32_t>(min(n, static_cast<uint64_t>(k))); }
};

// Takes this thread's block's list, best first, as soon as it is there, and leaves zeros; zeros where there is no such
// block.
__device__ __forceinline__ void take_list(const Scan& scan, uint64_t (&keys)[few]) {
#pragma unroll
  for (uint64_t& key : keys) key = 0;
  if (threadIdx.x >= scan.parts) return;
  uint64_t* const list = scan.head(threadIdx.x);
  bool there = false;
  while (!there) {
    there = true;
#pragma unroll
    for (uint32_t i = 0; i < few; i += 2)
      asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                   : "=l"(keys[i]), "=l"(keys[i + 1])
                   : "l"(list + i)
                   : "memory");
#pragma unroll
    for (const uint64_t key : keys) there = there && key != 0;
  }
#pragma unroll
  for (uint32_t i = 0; i < few; i += 2) *reinterpret_cast<ulonglong2*>(list + i) = {0, 0};
}

// Of the lists of a warp's threads, best first, tells the `few` best. What is number j of the list whose head is number
// r of the heads, from 0, has r + j better ones at least: no others need be compared.
// heads: [warp], chosen: [chosen_max] scratch of the warp, at multiples of 16 bytes · best: [few] zeros, all in shared
// memory
inline constexpr uint32_t chosen_max = few * (few + 1) / 2;
__device__ __forceinline__ void merge_lanes(const uint64_t (&list)[few], uint64_t* heads, uint64_t* chosen,
                                            uint64_t* best, int lane) {
  static_assert(chosen_max <= 2 * warp);
  heads[lane] = list[0];
  chosen[lane] = 0;
  if (lane + warp < static_cast<int>(chosen_max)) chosen[lane + warp] = 0;
  __syncwarp();
  uint32_t rank = 0;
#pragma unroll
  for (int i = 0; i < warp; i += 2) {
    const ulonglong2 pair = *reinterpret_cast<const ulonglong2*>(heads + i);
    rank += (pair.x > list[0]) + (pair.y > list[0]);
  }
  if (rank < few && list[0] > no_landmark) {
    uint64_t* const to = chosen + rank * (2 * few + 1 - rank) / 2;
#pragma unroll
    for (uint32_t j = 0; j < few; ++j)
      if (rank + j < few) to[j] = list[j];
  }
  __syncwarp();
  const uint64_t own[2] = {chosen[lane], lane + warp < static_cast<int>(chosen_max) ? chosen[lane + warp] : 0};
  uint32_t ranks[2] = {};
#pragma unroll
  for (uint32_t i = 0; i < chosen_max; i += 2) {
    const ulonglong2 pair = *reinterpret_cast<const ulonglong2*>(chosen + i);
#pragma unroll
    for (int which = 0; which < 2; ++which) ranks[which] += (pair.x > own[which]) + (pair.y > own[which]);
  }
#pragma unroll
  for (int which = 0; which < 2; ++which)
    if (ranks[which] < few && own[which] > no_landmark) best[ranks[which]] = own[which];
}

// The short way for no more than `few`: keys by their ranks instead of lists kept in order. A slot of a block's list is
// its own sign that it has been written, so nobody waits for a fence.
// keys: [64] in shared memory · count: of them that are not zero
__device__ __forceinline__ void tell_few(const Scan& scan, const uint64_t* keys, uint32_t count, bool has_told_floor) {
  const uint64_t own = keys[threadIdx.x / 4];
  const uint32_t rank = rank_among(keys, own);
  // The next call's floor must not be what this one's blocks tell.
  if (has_told_floor) __threadfence();
  uint64_t* const list = scan.head(scan.part);
  const auto tell = [&](uint32_t slot, uint64_t key) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(list + slot), "l"(key) : "memory");
  };
  if (threadIdx.x % 4 == 0 && own != 0 && rank < scan.k) tell(rank, own);
  if (threadIdx.x < few && threadIdx.x >= min(count, scan.k)) tell(threadIdx.x, no_landmark);
}
// scratch: [warps, warp + chosen_max] · keys: [64] zeros, both in shared memory
__device__ __forceinline__ void merge_few(const Scan& scan, uint64_t* scratch, uint64_t* keys, int in_block, int lane,
                                          bool has_told_floor) {
  uint64_t list[few];
  take_list(scan, list);
  if (has_told_floor) __threadfence();
  uint64_t* const heads = scratch + in_block * (warp + chosen_max);
  merge_lanes(list, heads, heads + warp, keys + in_block * few, lane);
  __syncthreads();
  if (threadIdx.x == 0) *scan.state = {};
  const uint64_t own = keys[threadIdx.x / 4];
  const uint32_t rank = rank_among(keys, own);
  if (threadIdx.x % 4 != 0 || own == 0 || rank >= scan.k) return;
  scan.dots[rank] = dot_of(own);
  scan.chunks[rank] = row_of(own);
}

// For more than `few`.
template <int registers>
__device__ __forceinline__ void tell_many(const Scan& scan, Best<registers>& best, uint64_t* lists, int in_block,
                                          int lane) {
  merge_warps(best, lists, in_block, lane);
  if (in_block != 0) return;
  best.store(lists, lane);
  __syncwarp();
  uint64_t* const list = scan.list(scan.part);
  for (uint32_t i = lane; i < scan.k; i += warp) list[i] = lists[i];
  __syncwarp();
  // The head tells that the list is there.
  if (lane == 0)
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(scan.head(scan.part)), "l"(max(lists[0], no_landmark))
                 : "memory");
}
template <int registers>
__device__ __forceinline__ void merge_many(const Scan& scan, uint64_t* lists, int in_block, int lane) {
  const uint32_t k = scan.k;
  Best<registers> all(k);
  // The head of this thread's block's list; then a number that k threads' heads have or exceed, close to the k-th. What
  // is worse than the k-th best of the blocks' best need not be looked at.
  uint32_t head = 0, kth_head = 0;
  if (threadIdx.x < scan.parts) {
    uint64_t* const from = scan.head(threadIdx.x);
    uint64_t key = 0;
    while (key == 0) asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(key) : "l"(from) : "memory");
    *from = 0;
    head = static_cast<uint32_t>(key >> 32);
  }
  for (int bit = 31; bit >= 12; --bit) {
    const uint32_t tried = kth_head | 1u << bit;
    if (static_cast<uint32_t>(__syncthreads_count(head >= tried)) >= k) kth_head = tried;
  }
  const uint64_t floor = max(static_cast<uint64_t>(__ldcg(&scan.state->floor)), static_cast<uint64_t>(kth_head) << 32);
  // What equals the floor counts.
  all.raise(floor == 0 ? no_landmark : floor - 1);
  bool more = threadIdx.x < scan.parts;
  const uint64_t* const list = scan.list(more ? threadIdx.x : 0);
  // Every list goes from the best down.
  constexpr uint32_t ahead = 8;
  for (uint32_t i = 0; __any_sync(everyone, more); i += ahead) {
    uint64_t keys[ahead];
#pragma unroll
    for (uint32_t j = 0; j < ahead; ++j) keys[j] = more && i + j < k ? __ldcg(list + i + j) : 0;
#pragma unroll
    for (uint32_t j = 0; j < ahead; ++j) all.offer(keys[j], lane);
    more = keys[ahead - 1] != 0 && keys[ahead - 1] >= floor;
  }
  merge_warps(all, lists, in_block, lane);
  if (threadIdx.x == 0) *scan.state = {};
  if (in_block == 0) write_best(all, lists, scan.found(), scan.dots, scan.chunks, lane);
}

// One pass over landmarks by all blocks of the scan. A warp has eight rows at a time and keeps its k best in
// registers; blocks merge those of their warps, and the block that was the last to start merges those of the blocks, as
// soon as they tell: it waits for none that does not run yet. Whoever has found k tells all others the least of them:
// what is worse than that they need not look at.
// query: [dim] fp32 · lists: [warps / 2, slots], both in shared memory
template <int registers>
__device__ __forceinline__ void scan(const Scan& scan, float* query, uint64_t* lists) {
  __shared__ __align__(16) uint64_t keys[2][warps * few], scratch[warps * (warp + chosen_max)];
  __shared__ bool is_merger;
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  const uint32_t k = scan.k;
  const uint64_t stride = static_cast<uint64_t>(scan.parts) * warps * rows;
  const bool is_few = registers == 1 && k <= few, once = stride >= scan.n;
  // So few landmarks are spread over all blocks.
  const uint64_t begin = (once ? static_cast<uint64_t>(in_block) * scan.parts + scan.part
                               : static_cast<uint64_t>(scan.part) * warps + in_block) *
                         rows;
  await_kernel_before();
  // Loads come back in order: what is needed first is asked for first.
  QueryPart query_part;
  query_part.load(scan.query, scan.dim);
  const auto row_at = [&](uint64_t first) {
    const auto place = static_cast<uint32_t>(min(first + lane / row_threads, scan.n - 1));
    return scan.rows == nullptr ? place : scan.rows[place];
  };
  const auto landmark = [&](uint32_t row) { return scan.landmarks + static_cast<uint64_t>(row) * scan.dim; };
  uint32_t row = 0;
  FirstRow first_row;
  if (begin < scan.n) {
    row = row_at(begin);
    first_row.load(landmark(row), scan.dim, lane);
  }
  uint32_t started_before = 0;
  if (threadIdx.x == 0) started_before = atomicAdd(&scan.state->started, 1);
  query_part.store(query);
  if (threadIdx.x < warps * few) keys[0][threadIdx.x] = keys[1][threadIdx.x] = 0;
  __syncthreads();

  Best<registers> best(k);
  bool has_key = false;
  const auto key = [&](float dot, uint64_t first) {
    const bool offers = first + lane / row_threads < scan.n && lane % row_threads == 0;
    return offers ? key_of(dot, row) : 0;
  };
  const auto offer = [&](float dot, uint64_t first, uint64_t floor) {
    best.raise(floor);
    best.offer(key(dot, first), lane);
    if (!once && lane == 0 && best.least() > floor)
      atomicMax(&scan.state->floor, static_cast<unsigned long long>(best.least()));
  };
  if (begin < scan.n) {
    const float dot = first_row.score(query, scan.dim, lane);
    if (is_few && once) {
      const uint64_t own = key(dot, begin);
      has_key = own != 0;
      if (has_key) keys[0][in_block * rows + lane / row_threads] = own;
    } else {
      offer(dot, begin, 0);
    }
  }
  for (uint64_t first = begin + stride; first < scan.n; first += stride) {
    const uint64_t floor = __ldcg(&scan.state->floor);
    row = row_at(first);
    offer(score(landmark(row), query, scan.dim, lane), first, floor);
  }

  let_next_kernel_start();  // beside the merge: its blocks would not fit before
  if (threadIdx.x == 0) is_merger = started_before + 1 == scan.parts;
  if (is_few) {
    if (!once && lane < static_cast<int>(few)) {
      has_key = best.first() != 0;
      keys[0][in_block * few + lane] = best.first();
    }
    tell_few(scan, keys[0], static_cast<uint32_t>(__syncthreads_count(has_key)), !once);
    if (is_merger) merge_few(scan, scratch, keys[1], in_block, lane, !once);
  } else {
    tell_many(scan, best, lists, in_block, lane);
    if (is_merger) merge_many<registers>(scan, lists, in_block, lane);
  }
}

}  // namespace recalld::cuda::landmark
