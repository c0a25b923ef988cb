// Attention to a sliding window on an NVIDIA GPU, over many tokens and by one (arXiv 2510.17196). Twin: SwaAttention in
// kernels/swa_attention.h, with products in bf16; states have its layout.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t swa_streams_max = 64;  // memories in one call
inline constexpr uint32_t swa_head_dim = 64, swa_window_max = 4096;

// The tokens of one memory. The struct is read on the host, when the call is made.
struct SwaStream {
  float* state = nullptr;  // device, as SwaShape says; in and out, 16-byte aligned
  uint32_t first = 0;      // its first row in qkv and out
  uint32_t tokens = 0;     // at least 1
};

// All pointers are to device memory, at multiples of 16 bytes.
struct SwaAttention {
  const float* qkv = nullptr;     // [rows] rows of q [heads, 64], k and v [kv_heads, 64]; qkv_stride apart
  uint32_t qkv_stride = 0;        // in elements: a multiple of 4
  const float* q_norm = nullptr;  // [64]
  const float* k_norm = nullptr;  // [64]
  const float* cos = nullptr;     // [window + 64, 32], from rope_table()
  const float* sin = nullptr;     // likewise
  uint32_t heads = 0;             // a multiple of kv_heads
  uint32_t kv_heads = 0;
  uint32_t window = 0;  // a multiple of 64, at most swa_window_max
  float eps = 0;
  Bf16* k = nullptr;  // [rows, kv_heads, 64] scratch of swa_attention()
  Bf16* v = nullptr;  // likewise
};

// out: [rows, heads, 64]. Norms, rotation, softmax and sums in f32; q, k, v and the shares are rounded. A stream's
// bits, and those of its state, depend neither on the other streams nor on how it is cut into calls. No two streams
// share a state or a row. Four kernels. cudaErrorInvalidValue: a shape out of bounds.
cudaError_t swa_attention(const SwaAttention& attention, const SwaStream* streams, uint32_t count, Bf16* out,
                          cudaStream_t stream);

// One token of each of `count` memories: row i of qkv and out with states[i]. The table is in device memory, so that a
// captured graph can serve other memories. Near what swa_attention() gives. Three kernels.
cudaError_t swa_attention_step(const SwaAttention& attention, float* const* states, uint32_t count, Bf16* out,
                               cudaStream_t stream);

}  // namespace recalld::cuda
