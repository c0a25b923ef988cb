// Attention of one token to the chunks that it retrieved (HSA, arXiv 2504.16795, section 3.2).
#pragma once

#include <cstddef>
#include <span>

namespace recalld {

// One KV head of one chunk; rows are `stride` floats apart. Pointers borrow.
struct HsaChunk {
  const float* k = nullptr;  // [tokens] rows of head_dim
  const float* v = nullptr;  // [tokens] rows of head_dim
  float weight = 0;          // the chunk's share
};

struct HsaShape {
  size_t heads = 0;     // query heads that share the KV head
  size_t head_dim = 0;  // a multiple of 16
  size_t tokens = 0;    // of a chunk
  size_t stride = 0;    // of k and v
};

// shares = softmax(q · Kᵀ / √head_dim) a head, over the tokens of one chunk.
// q: [heads, head_dim], normed · k: as in HsaChunk · shares: [heads, tokens]
void hsa_shares_cpu(const HsaShape& shape, const float* q, const float* k, float* shares);

// o = Σ_i weight_i · softmax(q · K_iᵀ / √head_dim) · V_i a head, in the order of `chunks`.
// q: [heads, head_dim], normed · o: [heads, head_dim]
void hsa_attention_cpu(const HsaShape& shape, const float* q, std::span<const HsaChunk> chunks, float* o);

// Weights of the selected chunks from their scores, newest first: softmax, or stick-breaking
// w_i = exp(s_i - Σ_{j<=i} softplus(s_j)) (HSA, arXiv 2504.16795, section 3.1).
void chunk_weights_cpu(bool softmax, std::span<const float> scores, std::span<float> weights);

}  // namespace recalld
