// Which of the two kernels attends: decode, which gives a token many blocks, or prefill, which gives a block many
// tokens. Their launch shapes are in hsa_attention_decode.cu and hsa_attention_prefill.cu.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/hsa_attention_cuda.h"
#include "kernels/hsa_attention_device.cuh"

namespace recalld::cuda {
namespace {

// The most tiles for which decode takes less time than prefill (16 query heads, H100), for few chunks and for more.
constexpr uint32_t decode_tiles_best_few = 768, decode_tiles_best_many = 320;
static_assert(std::max(decode_tiles_best_few, decode_tiles_best_many) <= hsa_decode_tiles_max);

// Tiles of a token.
uint32_t tiles_of(uint32_t heads, uint32_t kv_heads) {
  return kv_heads * ((heads / kv_heads + hsa::rows - 1) / hsa::rows);
}

}  // namespace

size_t hsa_attention_workspace(uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t k) {
  const size_t tiles = std::min<size_t>(static_cast<size_t>(tokens) * tiles_of(heads, kv_heads), hsa_decode_tiles_max);
  return hsa::decode_workspace(tiles, k);
}

cudaError_t hsa_attention(const HsaAttention& all, cudaStream_t stream) {
  constexpr uint32_t tokens_max = 1 << 24;
  if (all.head_dim != hsa_head_dim || all.k == 0 || all.k > hsa_k_max || all.tokens > tokens_max || all.kv_heads == 0 ||
      all.kv_heads > hsa_kv_heads_max || all.heads == 0 || all.heads % all.kv_heads != 0 ||
      all.heads / all.kv_heads > hsa_group_heads_max ||
      (all.retrieval_heads != 1 && all.retrieval_heads != all.kv_heads) ||
      (all.o == nullptr) == (all.o_bf16 == nullptr) || (all.k > hsa::group_chunks && all.workspace == nullptr))
    return cudaErrorInvalidValue;
  if (all.tokens == 0) return cudaSuccess;
  const uint32_t tiles_of_token = tiles_of(all.heads, all.kv_heads), row_tiles = tiles_of_token / all.kv_heads;
  const uint64_t tiles = static_cast<uint64_t>(all.tokens) * tiles_of_token;
  if (all.path == HsaPath::decode && tiles > hsa_decode_tiles_max) return cudaErrorInvalidValue;
  const uint32_t decode_tiles_best = all.k <= hsa::group_chunks ? decode_tiles_best_few : decode_tiles_best_many;
  if (all.path == HsaPath::decode || (all.path == HsaPath::automatic && tiles <= decode_tiles_best))
    return hsa::decode(all, row_tiles, stream);
  return hsa::prefill(all, row_tiles, stream);
}

}  // namespace recalld::cuda
