// Token-level relevance of a chunk to a question: late interaction on the attention logits of an HSA layer (MaxSim of
// ColBERT, arXiv 2004.12832, section 3.3, over the keys that HSA, arXiv 2504.16795, section 3.2, reads by).
#pragma once

#include <cstddef>

#include "kernels/bf16.h"

namespace recalld {

// A chunk's keys of all KV heads, as stored. Query head h reads KV head h / (heads / kv_heads).
struct LateShape {
  size_t heads = 0;  // of a question token, a multiple of kv_heads
  size_t kv_heads = 0;
  size_t head_dim = 0;  // a multiple of 16
  size_t tokens = 0;    // of a chunk, a multiple of 16
};

// For each question token the largest q · k / √head_dim over all heads and all keys that the head reads, averaged over
// the question's tokens. Sums in f32, over head_dim in order. Any thread may call.
// q: [n, heads, head_dim], n > 0 · k: [tokens, kv_heads, head_dim]
float late_score_cpu(const LateShape& shape, const float* q, size_t n, const Bf16* k);

// The same as plain loops: the definition that the fast path is tested against.
float late_score_reference(const LateShape& shape, const float* q, size_t n, const Bf16* k);

}  // namespace recalld
