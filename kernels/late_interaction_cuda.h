// Token-level relevance of chunks to a question on an NVIDIA GPU (MaxSim of ColBERT, arXiv 2004.12832, section 3.3,
// over the keys that HSA, arXiv 2504.16795, section 3.2, reads by): the twin of late_score_cpu() in
// kernels/late_interaction.h, for many chunks at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t late_head_dim = 64, late_question_tokens_max = 1024, late_chunk_tokens_max = 1 << 16;

// Everything is in device memory, q and k at multiples of 16 bytes. No number is a NaN.
struct LateInteraction {
  const float* q = nullptr;  // [n, heads, head_dim]
  const Bf16* k = nullptr;   // [chunks, tokens, kv_heads, head_dim]; query head h reads KV head h / (heads / kv_heads)
  float* scores = nullptr;   // [chunks]
  uint32_t n = 0;            // question tokens, 1 to late_question_tokens_max
  uint32_t heads = 0;        // a multiple of kv_heads
  uint32_t kv_heads = 0;     // at least 1
  uint32_t head_dim = 0;     // late_head_dim
  uint32_t tokens = 0;       // of a chunk, 1 to late_chunk_tokens_max
  uint32_t chunks = 0;       // below 2^31
};

// Enqueues one kernel, or nothing without chunks. A chunk's score does not depend on the others of a call. It has the
// bits of late_score_cpu() on a CPU with fused multiply-add (all but the narrowest code path): both sum each q · k in
// f32 over head_dim in order, each product and sum rounded once, take exact maxima, and sum those over the question's
// tokens in order. Elsewhere a q · k differs by at most 2^-17 · Σ|q_i · k_i|. cudaErrorInvalidValue: a shape out of
// bounds.
cudaError_t late_interaction(const LateInteraction& late, cudaStream_t stream);

}  // namespace recalld::cuda
