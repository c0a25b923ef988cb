// Bidirectional attention of the chunk encoder on an NVIDIA GPU (arXiv 2510.17196, chunk encoder): the twin of
// EncoderAttention in kernels/encoder_attention.h, with products in bf16.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t encoder_chunks_max = 1u << 16;  // of a call
inline constexpr uint32_t encoder_rows_max = 80, encoder_heads_max = 1024, encoder_head_dim_max = 128;

// All pointers are to device memory, at multiples of 16 bytes.
struct EncoderAttention {
  const float* qkv = nullptr;     // [chunks, rows] rows of q, k and v, each [heads, head_dim]; qkv_stride apart
  uint32_t qkv_stride = 0;        // in elements: a multiple of 4, at least 3 * heads * head_dim
  const float* bias = nullptr;    // [3, heads, head_dim], added to q, k and v; null: none
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  const float* cos = nullptr;     // [rows, head_dim / 2], from rope_table()
  const float* sin = nullptr;     // likewise
  uint32_t chunks = 0;            // at most encoder_chunks_max
  uint32_t rows = 0;              // of a chunk, the CLS token's among them: 1 to encoder_rows_max
  uint32_t heads = 0;             // 1 to encoder_heads_max
  uint32_t head_dim = 0;          // a multiple of 16, at most encoder_head_dim_max
  float eps = 0;
};

// out: [chunks, rows, heads, head_dim]. As the twin in bf16: norms, rotation, softmax and sums in f32; q, k, v, the
// shares and the result are rounded. Enqueues one kernel, or nothing without chunks. A chunk's bits do not depend on
// the other chunks of the call. cudaErrorInvalidValue: a shape out of bounds.
cudaError_t encoder_attention(const EncoderAttention& attention, Bf16* out, cudaStream_t stream);

}  // namespace recalld::cuda
