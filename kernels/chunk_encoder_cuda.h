// What lies between the chunk encoder's products and its attention on an NVIDIA GPU: rows into it, records of K and V
// and landmarks out of it (arXiv 2510.17196, chunk encoder). Twin: ChunkEncoder in model/chunk_encoder.h.
//
// A chunk is 64 rows of tokens and, if `rows` is 65, the CLS token's after them. All pointers are to device memory, at
// multiples of 16 bytes. Widths are in elements, multiples of 16, at most elementwise_width_max. Each call enqueues one
// kernel, or nothing without chunks. A chunk's bits do not depend on the other chunks of the call.
// cudaErrorInvalidValue: a shape out of bounds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/encoder_attention_cuda.h"  // encoder_chunks_max, which bounds all of these

namespace recalld::cuda {

inline constexpr uint32_t encoder_chunk_tokens = 64;

// Each chunk's hidden states, and the CLS embedding after them. hidden: [chunks, 64, width] · cls: [width], or null for
// chunks without · x: [chunks, 65, width], or [chunks, 64, width] without
cudaError_t encoder_input(const float* hidden, const float* cls, uint32_t chunks, uint32_t width, float* x,
                          cudaStream_t stream);

struct KvRecords {
  const float* kv = nullptr;      // [chunks, rows, K then V, each [kv_heads, head_dim]]
  const float* k_norm = nullptr;  // [head_dim]; null: K as it is
  uint32_t chunks = 0;
  uint32_t rows = 0;         // 64 or 65; the CLS token's does not count
  uint32_t kv_heads = 0;     // at least 1; chunks * kv_heads * 128 is at most elementwise_rows_max
  uint32_t head_dim = 0;     // a width
  float eps = 0;             // of k_norm
  size_t record_stride = 0;  // in elements: a multiple of 4, at least 2 * 64 * kv_heads * head_dim
};

// RMSNorm of K head by head, in f32 and then rounded; V rounded. records: [chunks] K [64, kv_heads, head_dim], then V
// likewise, record_stride apart; what lies between them is left as it is
cudaError_t kv_records(const KvRecords& kv, Bf16* records, cudaStream_t stream);

// What the landmark's product takes: the CLS row, or without one the mean of all, summed in their order; rounded.
// x: [chunks, rows, width] · rows: 64 or 65 · out: [chunks, width]
cudaError_t landmark_rows(const float* x, uint32_t chunks, uint32_t rows, uint32_t width, Bf16* out,
                          cudaStream_t stream);

struct Landmarks {
  const float* x = nullptr;  // [chunks, heads, width], from the landmark's product
  uint32_t chunks = 0;
  uint32_t heads = 1;  // retrieval heads, at least 1; chunks * heads is at most elementwise_rows_max
  uint32_t width = 0;  // of one head
  bool norm = false;   // x / sqrt(mean(x²) + eps), head by head, or x itself
  float eps = 0;
};

// Landmarks as they are stored: before any gain, rounded. out: [chunks, heads, width]
cudaError_t landmarks_out(const Landmarks& landmarks, Bf16* out, cudaStream_t stream);

}  // namespace recalld::cuda
