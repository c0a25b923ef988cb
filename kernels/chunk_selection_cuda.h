// Between the best landmarks of a token and the attention to their chunks, on an NVIDIA GPU (HSA, arXiv 2504.16795,
// section 3): which of the chunks lie in which slots of the chunk cache, in the order of attention, and whether all of
// them do. So a token whose chunks are cached goes on without the host, and one whose chunks are not leaves its states
// as they were.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace recalld::cuda {

inline constexpr uint32_t lanes_max = 8;             // streams that generate side by side
inline constexpr uint32_t no_chunk = 0xffffffff;     // where there are fewer than k; of a page table: not cached
inline constexpr uint32_t fills_of_launch_max = 96;  // records
inline constexpr uint32_t selection_k_max = 128;

// The tokens of one stream; pointers are to device memory, a page table may be in host memory mapped into it.
struct SelectionLane {
  const float* dots = nullptr;           // [tokens, heads, k] of landmark_topk() and its kin
  const uint64_t* chunks = nullptr;      // [tokens, heads, k]
  const uint32_t* page_table = nullptr;  // [chunks of the memory] slots, or no_chunk
  uint32_t tokens = 0;                   // none: the lane is idle, its row is made empty and it is not ready
  uint32_t found = 0;                    // of each k, as many are there; more than k counts as k
  uint32_t row = 0;                      // its first one in the results
  bool enters = false;                   // it comes here from the host; otherwise when it was ready before
};

// What the host must know goes to pinned memory, so that no copy has to follow.
struct ChunkSelection {
  const SelectionLane* lanes = nullptr;  // [lane_count] in pinned or device memory, read when the kernel runs: so one
                                         // that was captured can be told others
  uint32_t lane_count = 0;
  uint32_t heads = 0;                      // of retrieval
  uint32_t k = 0;                          // 1 to selection_k_max
  float scale = 0;                         // a score is a dot product times this
  const uint32_t* ready_before = nullptr;  // [lanes_max] of the group before; null for the first one
  uint32_t* slots = nullptr;               // [rows, heads, k] for hsa_attention(); no_chunk in rows of lanes not ready
  float* scores = nullptr;                 // [rows, heads, k] newest chunk first, then zeros
  uint32_t* ready = nullptr;               // [lanes_max] 1: all chunks are cached, 0: not, or the lane is not here, as
                                           // those from lane_count on
  uint32_t* told_ids = nullptr;            // pinned: [rows, heads, k] chunks of the memory, newest first, then no_chunk
  float* told_scores = nullptr;            // pinned: the same as scores
  uint32_t* told_ready = nullptr;          // pinned: the same as ready. Where that is 0 of a lane that is not idle, its
                                           // word is the last thing told of it, with release order: a host that sees it
                                           // come, with acquire order, need not wait for the kernel
};

// A dot product that is NaN is of a chunk that cannot be read: it is left out. One kernel. cudaErrorInvalidValue: a
// shape out of bounds.
cudaError_t select_chunks(const ChunkSelection& selection, cudaStream_t stream);

// The same in a graph, whose branch is then taken if any lane is ready. arrived: one word of device memory, zero before
// the kernel and after it
cudaError_t select_chunks_for(cudaGraphConditionalHandle branch, const ChunkSelection& selection, uint32_t* arrived,
                              cudaStream_t stream);

// Where the states of lanes lie: those that are ready have theirs, others one that is thrown away, whose first float is
// made 0.
struct LaneStates {
  const uint32_t* ready = nullptr;  // [lanes_max]
  float* states = nullptr;          // [lanes_max] of `lane_floats`, each [layers] of `layer_floats`: convolution, SSM
  size_t lane_floats = 0;
  float* unwanted = nullptr;  // [lanes_max, layer_floats]
  uint32_t layers = 0;
  size_t layer_floats = 0;
  size_t conv_floats = 0;
  float** conv = nullptr;  // [layers, lanes_max] for conv1d_silu_step()
  float** ssm = nullptr;   // [layers, lanes_max] for ssd_state_update()
};
cudaError_t point_states(const LaneStates& lanes, cudaStream_t stream);

// y[i] = x[i] where ready[i]. x, y: [lanes_max, width], at multiples of 16 bytes, width a multiple of 4; y may be
// pinned memory
cudaError_t copy_rows(const float* x, const uint32_t* ready, uint32_t width, float* y, cudaStream_t stream);

// What the host tells of a record that is still being read when the kernel is enqueued. It says so once, with release
// order, and leaves the record as it is then.
inline constexpr uint32_t on_its_way = 0, has_arrived = 1, does_not_come = 2;
// A record that has not arrived so long after its launch began does not come. Launches of one call follow each other.
inline constexpr uint64_t arrival_wait_ns_max = 200'000'000;

// A record on its way from pinned memory into a slot, or (without a record) a chunk that leaves the cache. The struct
// is read on the host, when the call is made.
struct SlotFill {
  const void* record = nullptr;    // [kv_bytes] in pinned memory, at a multiple of 16 bytes
  uint32_t* page_table = nullptr;  // of the memory
  uint32_t chunk = 0;
  uint32_t slot = 0;                  // no_chunk without a record, and only then
  const uint32_t* arrival = nullptr;  // in pinned memory; the kernel waits while it is on_its_way, and leaves slot and
                                      // page table as they are where the record does not come. Null: it is there
};
// cache: [slots, kv_bytes], kv_bytes a multiple of 16. One kernel for each fills_of_launch_max; no two of a call have
// the same slot or the same chunk of a memory, and no slot is beyond the cache, which is not checked.
// cudaErrorInvalidValue, and nothing is enqueued: a shape out of bounds, a record at no multiple of 16 bytes, a record
// without a slot, a slot or an arrival without a record.
cudaError_t fill_slots(const SlotFill* fills, size_t count, uint32_t kv_bytes, void* cache, cudaStream_t stream);

}  // namespace recalld::cuda
