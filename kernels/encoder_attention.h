// Bidirectional attention of the chunk encoder over one chunk and its CLS token: RMSNorm of q and k a head, rotary
// position embedding (Su et al. 2021, rotate-half) over positions 0, 1, ..., softmax(q · Kᵀ / √d) · V
// (arXiv 2510.17196, chunk encoder).
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/matmul.h"

namespace recalld {

struct EncoderAttentionShape {
  size_t rows = 0;  // tokens, the CLS token among them
  size_t heads = 0;
  size_t head_dim = 0;  // a multiple of 32

  size_t width() const { return heads * head_dim; }
};

// What a layer needs beside the inputs. Pointers borrow.
struct EncoderAttentionWeights {
  const float* bias = nullptr;    // [3 * width] of q, k, v; nullptr: none
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  float eps = 0;
};

// What q and k are rotated by at the positions 0, 1, ..., rows - 1: the cos and sin of position / theta^(2 pair /
// head_dim), each [rows, head_dim / 2].
void rope_table(size_t rows, size_t head_dim, float theta, std::vector<float>& cos, std::vector<float>& sin);

// Const functions may run on several threads at once; each call runs on its thread alone.
class EncoderAttention {
 public:
  static EncoderAttention make(ProductType type, EncoderAttentionShape shape, float rope_theta);

  // qkv: [rows, 3 * width] q then k then v, before bias · out: [rows, width], bf16 or f32 by type
  void run(const float* qkv, const EncoderAttentionWeights& weights, void* out) const;

 private:
  EncoderAttention(ProductType type, EncoderAttentionShape shape, float rope_theta);

  ProductType type_;
  EncoderAttentionShape shape_;
  size_t keys_;                   // rows up to a multiple of 16; the surplus has no weight
  std::vector<float> cos_, sin_;  // [rows, head_dim / 2]
  Product scores_;                // [heads] of [rows, head_dim] · [keys, head_dim]ᵀ
  Product values_;                // [heads] of [rows, keys] · [keys, head_dim]
};

// The same as plain loops in f32: the definition that the products are tested against.
void encoder_attention_reference(const EncoderAttentionShape& shape, float rope_theta, const float* qkv,
                                 const EncoderAttentionWeights& weights, float* out);

}  // namespace recalld
