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

// How the selected chunks share the weight, from their scores s_i, newest first.
struct ChunkWeighting {
  bool softmax = false;   // otherwise stick-breaking: w_i = exp(s_i - Σ_{j<=i} softplus(s_j)) (HSA, arXiv 2504.16795,
                          // section 3.1)
  float pos_decay = 0;    // before that, i · pos_decay is added to s_i
  float stick_slope = 0;  // above 0: stick-breaking of stick_slope · (s_i - max s + stick_margin), and the weights are
  float stick_margin = 0;  // divided by their sum. The newest of those that lie within the margin of the best has most
};

// scores, weights out: [chunks]
void chunk_weights_cpu(const ChunkWeighting& how, std::span<const float> scores, std::span<float> weights);

}  // namespace recalld
