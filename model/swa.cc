#include "model/swa.h"

#include "kernels/elementwise.h"
#include "model/projection.h"

namespace recalld {

SwaShape swa_shape(const Config& config) {
  return {.heads = config.num_attention_heads,
          .kv_heads = config.swa_kv_heads,
          .head_dim = config.attention_head_dim,
          .window = config.sliding_window};
}

Expected<Swa> Swa::load(const Weights& weights, const std::string& prefix, const Config& config, ProductType type) {
  const SwaShape shape = swa_shape(config);
  const size_t hidden = config.hidden_size;
  const std::string attention = prefix + ".self_attn.";
  const std::vector<Stacked> parts{{attention + "q_proj.weight", shape.q_width()},
                                   {attention + "k_proj.weight", shape.kv_width()},
                                   {attention + "v_proj.weight", shape.kv_width()}};
  RECALLD_TRY(Linear qkv, pack(weights, parts, hidden, type, swa_block));
  RECALLD_TRY(Linear o_proj, pack(weights, {{attention + "o_proj.weight", hidden}}, shape.q_width(), type, swa_block));
  RECALLD_TRY(Mlp mlp, Mlp::load(weights, prefix + ".mlp", config, type, swa_block));
  Swa block(type, shape, SwaAttention::make(type, shape, config.rope_theta), std::move(qkv), std::move(o_proj),
            std::move(mlp));
  block.eps_ = config.rms_norm_eps;
  RECALLD_TRY(block.norm_, weights.floats(prefix + ".norm.weight", {hidden}));
  RECALLD_TRY(block.post_norm_, weights.floats(prefix + ".post_attention_layernorm.weight", {hidden}));
  RECALLD_TRY(block.q_norm_, weights.floats(attention + "q_norm.weight", {shape.head_dim}));
  RECALLD_TRY(block.k_norm_, weights.floats(attention + "k_norm.weight", {shape.head_dim}));
  return block;
}

template <class Attend>
void Swa::run_rows(size_t rows, float* hidden, Attend attend) const {
  const size_t width = qkv_.in();
  struct Scratch {
    Operands normed, attended;
    std::vector<float> qkv, out;
  };
  thread_local Scratch scratch;
  scratch.normed.fit(type_, rows * width);
  scratch.attended.fit(type_, rows * shape_.q_width());
  scratch.qkv.resize(rows * shape_.qkv_width());
  scratch.out.resize(rows * width);

  rmsnorm(type_, hidden, norm_.data(), rows, width, eps_, scratch.normed.at(0));
  qkv_.run(scratch.normed.at(0), scratch.qkv.data(), rows);
  attend(scratch.qkv.data(), scratch.attended);
  o_proj_.run(scratch.attended.at(0), scratch.out.data(), rows);
  add_cpu(scratch.out.data(), rows * width, hidden);
  rmsnorm(type_, hidden, post_norm_.data(), rows, width, eps_, scratch.normed.at(0));
  mlp_.add_to(scratch.normed, 1, rows, hidden);
}

void Swa::run(float* state, float* hidden, size_t rows) const {
  run_rows(swa_block, hidden, [&](const float* qkv, Operands& attended) {
    attention_.run(qkv, attention_weights(), state, attended.at(0), rows);
  });
}

void Swa::step(std::span<float* const> states, float* hidden) const {
  run_rows(Linear::rows_few, hidden, [&](const float* qkv, Operands& attended) {
    for (size_t row = 0; row < states.size(); ++row)
      attention_.step(qkv + row * shape_.qkv_width(), attention_weights(), states[row],
                      attended.at(row * shape_.q_width()));
  });
}

}  // namespace recalld
