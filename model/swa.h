// One block of the SWA + HSA family (arXiv 2510.17196): x + o_proj(attention(RMSNorm(x))), attention being to the token
// itself and to a window before it (kernels/swa_attention.h), and then x + MLP(RMSNorm(x)).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/swa_attention.h"
#include "model/block.h"
#include "model/mlp.h"

namespace recalld {

class Swa final : public Block {
 public:
  // Reads "<prefix>.norm.weight", "self_attn.*", "post_attention_layernorm.weight" and "mlp.*"; the error names what is
  // missing or of another shape.
  static Expected<Swa> load(const Weights& weights, const std::string& prefix, const Config& config, ProductType type);

  // The last keys and values: a ring, as SwaShape says.
  size_t state_floats() const override { return shape_.state_floats(); }
  void run(float* state, float* hidden, size_t rows) const override;
  void step(std::span<float* const> states, float* hidden) const override;

 private:
  Swa(ProductType type, SwaShape shape, SwaAttention attention, Linear qkv, Linear o_proj, Mlp mlp)
      : type_(type),
        shape_(shape),
        attention_(std::move(attention)),
        qkv_(std::move(qkv)),
        o_proj_(std::move(o_proj)),
        mlp_(std::move(mlp)) {}

  // The block around `attend`, which turns q, k and v [rows, qkv_width] into operands [rows, q_width].
  template <class Attend>
  void run_rows(size_t rows, float* hidden, Attend attend) const;
  SwaWeights attention_weights() const { return {q_norm_.data(), k_norm_.data(), eps_}; }

  ProductType type_;
  SwaShape shape_;
  SwaAttention attention_;
  float eps_ = 0;
  std::vector<float> norm_, post_norm_;  // [hidden_size]
  std::vector<float> q_norm_, k_norm_;   // [head_dim]
  Linear qkv_;                           // q, k, v
  Linear o_proj_;
  Mlp mlp_;
};

// The kernel's view of a config's blocks.
SwaShape swa_shape(const Config& config);

}  // namespace recalld
