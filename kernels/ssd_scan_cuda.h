// The Mamba-2 scan on an NVIDIA GPU, over many tokens and by one (SSD, arXiv 2405.21060, section 6). Twins:
// ssd_scan_reference() and ssd_state_update_cpu() in kernels/ssd_scan.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t ssd_streams_max = 64;   // memories in one call
inline constexpr uint32_t ssd_block_tokens = 64;  // see SsdScan
inline constexpr uint32_t ssd_head_dim = 64;

// The tokens of one memory in a call. The struct is read on the host, when the call is made.
struct SsdStream {
  float* state = nullptr;  // device, [state_size, heads, 64] in and out
  uint32_t first = 0;      // its first row in xbc, dt and y
  uint32_t tokens = 0;     // at least 1
};

// All pointers but `streams` are to device memory.
struct SsdScan {
  const Bf16* xbc = nullptr;  // [rows, heads * 64 + 2 * state_size] x, B, C after convolution and SiLU; 16-byte aligned
  const float* dt = nullptr;  // [rows] rows of `heads`, dt_stride apart; before bias and softplus
  uint32_t dt_stride = 0;
  const float* dt_bias = nullptr;  // [heads]
  const float* a = nullptr;        // [heads] -exp(A_log)
  const float* d = nullptr;        // [heads]
  Bf16* y = nullptr;               // [rows, heads * 64]; 16-byte aligned
  uint32_t heads = 0;              // at least 1
  uint32_t state_size = 0;         // 64 or 128
  const SsdStream* streams = nullptr;
  uint32_t stream_count = 0;  // 1 to ssd_streams_max; no two share a state or a row
  void* workspace = nullptr;  // of ssd_scan_workspace() bytes, 256-byte aligned; need not be cleared
};

// Bytes for calls with up to `tokens` tokens in all and up to `streams` streams: for each block of 64 tokens 8 KB, and
// for each of its heads 128 bytes a state row and 0.8 KB. It stops growing at 256 blocks (143 MB for 32 heads and state
// 128).
size_t ssd_scan_workspace(uint32_t heads, uint32_t state_size, uint64_t tokens, uint32_t streams);

// The formula of SsdScan::run in kernels/ssd_scan.h over blocks of 64 tokens, counted from each stream's first row; the
// last may be shorter. Products are of bf16 with f32 sums; states are f32, but y sees them rounded to bf16. A token's y
// and a stream's state have the same bits however the stream is cut into calls at multiples of 64 tokens, and whatever
// else is in a call. Rows that belong to no stream are neither read nor written. Enqueues three kernels for each 16 Ki
// tokens. Calls that share a workspace must not overlap. cudaErrorInvalidValue: a shape out of bounds.
cudaError_t ssd_scan(const SsdScan& scan, cudaStream_t stream);

// One token of each of several memories. All pointers are to device memory, the table of states too, so that a
// captured graph can serve other memories.
struct SsdStateUpdate {
  const float* xbc = nullptr;  // [count, heads * 64 + 2 * state_size]; 16-byte aligned
  const float* dt = nullptr;   // [count] rows of `heads`, dt_stride apart; before bias and softplus
  uint32_t dt_stride = 0;
  const float* dt_bias = nullptr;  // [heads]
  const float* a = nullptr;        // [heads] -exp(A_log)
  const float* d = nullptr;        // [heads]
  float* const* states = nullptr;  // [count] of [state_size, heads, 64], in and out, 16-byte aligned, all different
  float* y = nullptr;              // [count, heads * 64]; 16-byte aligned
  uint32_t heads = 0;              // at least 1
  uint32_t state_size = 0;         // 64 or 128
  uint32_t count = 0;              // 0 to ssd_streams_max
};

// state = exp(dt a) state + dt B ⊗ x, y = C state + D x, in f32. One kernel; a memory's bits do not depend on the
// others. cudaErrorInvalidValue: a shape out of bounds.
cudaError_t ssd_state_update(const SsdStateUpdate& update, cudaStream_t stream);

}  // namespace recalld::cuda
