// Attention of one token to the chunks that it retrieved (HSA, arXiv 2504.16795, section 3.2).
#pragma once

#include <cstddef>
#include <span>

#include "kernels/bf16.h"

namespace recalld {

// One KV head of one chunk; rows are `stride` numbers apart. Pointers borrow.
template <class T>
struct HsaChunkOf {
  const T* k = nullptr;  // [tokens] rows of head_dim
  const T* v = nullptr;  // [tokens] rows of head_dim
  float weight = 0;      // the chunk's share
};
using HsaChunk = HsaChunkOf<float>;
using HsaStoredChunk = HsaChunkOf<Bf16>;

struct HsaShape {
  size_t heads = 0;     // query heads that share the KV head
  size_t head_dim = 0;  // a multiple of 16
  size_t tokens = 0;    // of a chunk, a multiple of 16
  size_t stride = 0;    // of k and v
};

// shares = softmax(q · Kᵀ / √head_dim) a head, over the tokens of one chunk.
// q: [heads, head_dim], normed · k: as in HsaChunk · shares: [heads, tokens]
void hsa_shares_cpu(const HsaShape& shape, const float* q, const float* k, float* shares);

// o = Σ_i weight_i · softmax(q · K_iᵀ / √head_dim) · V_i a head, in the order of `chunks`. Sums in f32.
// q: [heads, head_dim], normed · o: [heads, head_dim]
void hsa_attention_cpu(const HsaShape& shape, const float* q, std::span<const HsaStoredChunk> chunks, float* o);

// The same as plain loops in f32: the definition that the fast path is tested against.
void hsa_attention_cpu(const HsaShape& shape, const float* q, std::span<const HsaChunk> chunks, float* o);

// Weights of the selected chunks from their scores, newest first: softmax, or stick-breaking
// w_i = exp(s_i - Σ_{j<=i} softplus(s_j)) (HSA, arXiv 2504.16795, section 3.1). Before that, i · pos_decay is added to
// s_i.
void chunk_weights_cpu(bool softmax, std::span<const float> scores, std::span<float> weights, float pos_decay = 0);

}  // namespace recalld
