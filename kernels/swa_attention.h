// Attention of a token to itself and to a window of tokens before it (sliding window: Beltagy et al. 2020): RMSNorm of
// q and k a head, rotary position embedding (Su et al. 2021, rotate-half), softmax(q · Kᵀ / √d) · V.
//
// A score depends on how far apart two tokens are, and angles are only made of that: a key is rotated by its place in
// its block of 64 tokens, a query by how far behind that block's begin it stands, at most window + 63. So a stream may
// be of any length.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/matmul.h"

namespace recalld {

inline constexpr size_t swa_block = 64;        // tokens
inline constexpr size_t swa_head_floats = 16;  // of a state, before its keys

struct SwaShape {
  size_t heads = 0;
  size_t kv_heads = 0;  // each is shared by heads / kv_heads heads, one after the other
  size_t head_dim = 0;  // a multiple of 32
  size_t window = 0;    // tokens before the token itself: a multiple of 64, at least one

  size_t q_width() const { return heads * head_dim; }
  size_t kv_width() const { return kv_heads * head_dim; }
  size_t qkv_width() const { return q_width() + 2 * kv_width(); }

  // The recurrent state is a ring of blocks of tokens: as many as the window has, and the one that is being filled.
  // f32: how many tokens were read, less the rounds of the ring before the last one, and zeros up to swa_head_floats;
  // then the keys [ring_blocks, kv_heads, 64, head_dim], normed and rotated by their place in the block, and the values
  // likewise. All zeros at the start of a stream.
  size_t ring_blocks() const { return window / swa_block + 1; }
  size_t ring_floats() const { return ring_blocks() * swa_block * kv_width(); }
  size_t state_floats() const { return swa_head_floats + 2 * ring_floats(); }
};

// Where a stream stands in its ring.
struct SwaPlace {
  size_t block = 0;   // of the ring, that the next token goes to
  size_t offset = 0;  // in this block
  size_t before = 0;  // blocks that are behind it, whole, at most window / 64

  SwaPlace(const SwaShape& shape, const float* state);
  // `count` tokens later.
  static void advance(const SwaShape& shape, size_t count, float* state);
  // The place in the ring of the block so many blocks before.
  size_t block_before(const SwaShape& shape, size_t distance) const {
    return (block + shape.ring_blocks() - distance) % shape.ring_blocks();
  }
};

// Pointers borrow.
struct SwaWeights {
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
  float eps = 0;
};

// Const functions may run on several threads at once; each call runs on its thread alone.
class SwaAttention {
 public:
  static SwaAttention make(ProductType type, SwaShape shape, float rope_theta);

  // The next tokens of a stream, at most 64. However they are cut into calls at multiples of 64 tokens, the bits are
  // the same. qkv: [rows] q, k, v of each token, as [heads, head_dim] and twice [kv_heads, head_dim] · state: in and
  // out out: [rows, q_width], bf16 or f32 by type
  void run(const float* qkv, const SwaWeights& weights, float* state, void* out, size_t rows = swa_block) const;

  // One token, near what run() gives. qkv: [qkv_width] · out: [q_width], bf16 or f32 by type
  void step(const float* qkv, const SwaWeights& weights, float* state, void* out) const;

 private:
  SwaAttention(ProductType type, SwaShape shape, float rope_theta);

  void keep(const float* qkv, const SwaWeights& weights, const SwaPlace& place, size_t count, float* state) const;
  void attend(const float* qkv, const SwaWeights& weights, const SwaPlace& place, size_t count, const float* state,
              void* out) const;

  ProductType type_;
  SwaShape shape_;
  std::vector<float> cos_, sin_;  // [window + 64, head_dim / 2]
  Product scores_;                // [kv_heads] of [heads of a KV head * 64, head_dim] · [64, head_dim]ᵀ
  Product values_;                // [kv_heads] of [heads of a KV head * 64, 64] · [64, head_dim]
};

// A whole stream as plain loops in f32, without a state: the definition that the others are tested against.
// qkv: [tokens] as above · out: [tokens, q_width]
void swa_attention_reference(const SwaShape& shape, float rope_theta, const float* qkv, const SwaWeights& weights,
                             size_t tokens, float* out);

}  // namespace recalld
