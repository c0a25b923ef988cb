// Attention of tokens to the chunks that they retrieved, on an NVIDIA GPU (HSA, arXiv 2504.16795, sections 3.1
// and 3.2): the twin of chunk_weights_cpu() and hsa_attention_cpu() in kernels/hsa_attention.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/hsa_attention.h"

namespace recalld::cuda {

inline constexpr uint32_t hsa_k_max = 128, hsa_kv_heads_max = 64, hsa_group_heads_max = 32, hsa_head_dim = 64;
inline constexpr uint32_t hsa_chunk_tokens = 64;
inline constexpr uint32_t hsa_decode_tiles_max = 1024;  // tokens x KV heads x tiles of up to 16 of their query heads
inline constexpr uint32_t hsa_no_chunk = 0xffffffff;

// The model asks for decode alone: it reads a prompt in blocks of 64 tokens, for which decode is the faster, and hands
// over slots of its cache instead of chunks, in an order that prefill does not take.
enum class HsaPath : uint8_t {
  automatic,  // by the number of tokens
  decode,     // for few tokens, up to hsa_decode_tiles_max: each has many blocks
  prefill,    // for many: each block has many tokens and reads a chunk once for all of them that selected it
};

// Everything is in device memory. q and cache are at multiples of 16 bytes, o at multiples of 8.
struct HsaAttention {
  const Bf16* q = nullptr;               // [tokens, heads, head_dim], normed
  const uint32_t* chunks = nullptr;      // [tokens, retrieval_heads, k] newest first, that is of descending ids, each
                                         // once, below 2^32 - 2; hsa_no_chunk, only at the end, where there are
                                         // fewer than k. The decode path takes them in any order
  const float* scores = nullptr;         // like chunks; of any value where there is none
  const uint32_t* page_table = nullptr;  // [chunks of the memory] slots in the cache
  const Bf16* cache = nullptr;           // [slots] records: K [64, kv_heads, head_dim], then V likewise
  float* o = nullptr;                    // [tokens, heads, head_dim]
  Bf16* o_bf16 = nullptr;                // the same rounded; one of both is given, the other one null
  uint32_t tokens = 0;                   // at most 2^24
  uint32_t heads = 0;                    // a multiple of kv_heads, at most hsa_group_heads_max times as many
  uint32_t kv_heads = 0;                 // at most hsa_kv_heads_max
  uint32_t retrieval_heads = 0;          // 1, or kv_heads: each KV head has its own selection
  uint32_t head_dim = 0;                 // hsa_head_dim
  uint32_t k = 0;                        // 1 to hsa_k_max
  ChunkWeighting weighting = {};         // of the chunks of a token
  HsaPath path = HsaPath::automatic;
  void* workspace = nullptr;  // of hsa_attention_workspace() bytes, zeroed before its first use; null if that is 0
};

// Bytes. Enough for fewer tokens and a smaller k, too.
size_t hsa_attention_workspace(uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t k);

// Enqueues one kernel. Calls that share a workspace must not overlap; their shapes may differ. A token without chunks
// gets zeros. The shares inside a chunk are rounded to bf16 before they meet V; all else is fp32, so o differs from the
// twin's by at most 2^-8 · Σ_i weight_i · softmax(q · K_iᵀ / √head_dim) · |V_i| where the logits are exact. A token's
// bits depend on its own query, selection and the chunks' contents alone: both paths sum in the order of the selection,
// eight chunks at a time and then those sums, whatever the slots, the other tokens and the card. Returns
// cudaErrorInvalidValue for a shape that is out of bounds, cudaErrorNotSupported where the driver knows no copies of
// tensors (prefill).
cudaError_t hsa_attention(const HsaAttention& attention, cudaStream_t stream);

}  // namespace recalld::cuda
