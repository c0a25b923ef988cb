#include "model/mamba2.h"

#include <cmath>
#include <utility>

#include "kernels/conv1d_silu.h"
#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"

namespace recalld {
namespace {

// What one thread needs while a chunk, or a row of each of several streams, goes through a block.
template <class Operand>
struct Scratch {
  std::vector<Operand> normed;   // [rows, hidden_size]
  std::vector<float> projected;  // [rows, z + channels + heads]
  std::vector<Operand> xbc;      // [rows, channels]
  std::vector<float> token;      // [channels], instead of xbc
  std::vector<float> y;          // [heads, rows, head_dim]
  std::vector<Operand> gated;    // [rows, heads * head_dim]
  std::vector<float> out;        // [rows, hidden_size]

  void fit(const SsdShape& shape, size_t rows, size_t hidden_size, size_t projected_width) {
    const size_t inner = shape.heads * shape.head_dim;
    normed.resize(rows * hidden_size);
    projected.resize(rows * projected_width);
    xbc.resize(rows * shape.channels());
    token.resize(shape.channels());
    y.resize(rows * inner);
    gated.resize(rows * inner);
    out.resize(rows * hidden_size);
  }
};

}  // namespace

Mamba2::Mamba2(ProductType type, SsdShape shape, Linear in_proj, Linear out_proj)
    : type_(type),
      ssd_shape_(shape),
      in_proj_(std::move(in_proj)),
      out_proj_(std::move(out_proj)),
      scan_(SsdScan::make(type, shape)) {}

Expected<Mamba2> Mamba2::load(const Weights& weights, const std::string& prefix, const Config& config,
                              ProductType type) {
  const SsdShape shape{.heads = config.num_heads, .head_dim = config.head_dim, .state_size = config.state_size};
  const size_t inner = shape.heads * shape.head_dim, hidden = config.hidden_size;
  const size_t projected = inner + shape.channels() + shape.heads;
  const std::string mixer = prefix + ".mixer.";
  RECALLD_TRY(const auto in_proj, weights.bf16(mixer + "in_proj.weight", {projected, hidden}));
  RECALLD_TRY(const auto out_proj, weights.bf16(mixer + "out_proj.weight", {hidden, inner}));

  Mamba2 block(type, shape, Linear::pack(type, ssd_block, projected, hidden, in_proj.data()),
               Linear::pack(type, ssd_block, hidden, inner, out_proj.data()));
  block.hidden_size_ = hidden;
  block.taps_ = config.conv_kernel;
  block.eps_ = config.layer_norm_epsilon;
  RECALLD_TRY(block.norm_weight_, weights.floats(prefix + ".norm.weight", {hidden}));
  RECALLD_TRY(block.conv_bias_, weights.floats(mixer + "conv1d.bias", {shape.channels()}));
  RECALLD_TRY(block.dt_bias_, weights.floats(mixer + "dt_bias", {shape.heads}));
  RECALLD_TRY(block.d_, weights.floats(mixer + "D", {shape.heads}));
  RECALLD_TRY(block.gated_norm_weight_, weights.floats(mixer + "norm.weight", {inner}));
  RECALLD_TRY(block.a_, weights.floats(mixer + "A_log", {shape.heads}));
  for (float& a : block.a_) a = -std::exp(a);
  RECALLD_TRY(const auto conv, weights.floats(mixer + "conv1d.weight", {shape.channels(), 1, block.taps_}));
  block.conv_weight_.resize(conv.size());
  for (size_t channel = 0; channel < shape.channels(); ++channel)
    for (size_t tap = 0; tap < block.taps_; ++tap)
      block.conv_weight_[tap * shape.channels() + channel] = conv[channel * block.taps_ + tap];
  return block;
}

void Mamba2::run(float* state, float* hidden, size_t rows) const {
  type_ == ProductType::bf16 ? run_as<Bf16>(state, hidden, rows) : run_as<float>(state, hidden, rows);
}

void Mamba2::step(std::span<float* const> states, float* hidden) const {
  type_ == ProductType::bf16 ? step_as<Bf16>(states, hidden) : step_as<float>(states, hidden);
}

template <class Operand>
void Mamba2::run_as(float* state, float* hidden, size_t rows) const {
  const size_t inner = ssd_shape_.heads * ssd_shape_.head_dim, channels = ssd_shape_.channels();
  const size_t stride = in_proj_.out(), chunk_floats = ssd_block * hidden_size_;
  thread_local Scratch<Operand> scratch;
  scratch.fit(ssd_shape_, ssd_block, hidden_size_, stride);
  const float* z = scratch.projected.data();
  const float* dt = z + inner + channels;

  rmsnorm_cpu(hidden, norm_weight_.data(), ssd_block, hidden_size_, eps_, scratch.normed.data());
  in_proj_.run(scratch.normed.data(), scratch.projected.data());
  conv1d_silu_cpu(z + inner, stride, rows, channels, taps_, conv_weight_.data(), conv_bias_.data(), state,
                  scratch.xbc.data());
  scan_.run(scratch.xbc.data(), dt, stride, {dt_bias_.data(), a_.data(), d_.data()}, state + conv_floats(),
            scratch.y.data(), rows);
  gated_rmsnorm_cpu(scratch.y.data(), z, stride, gated_norm_weight_.data(), ssd_block, ssd_shape_.heads,
                    ssd_shape_.head_dim, eps_, scratch.gated.data());
  out_proj_.run(scratch.gated.data(), scratch.out.data());
  add_cpu(scratch.out.data(), chunk_floats, hidden);
}

template <class Operand>
void Mamba2::step_as(std::span<float* const> states, float* hidden) const {
  constexpr size_t rows = Linear::rows_few;
  const size_t inner = ssd_shape_.heads * ssd_shape_.head_dim, channels = ssd_shape_.channels();
  const size_t stride = in_proj_.out();
  thread_local Scratch<Operand> scratch;
  scratch.fit(ssd_shape_, rows, hidden_size_, stride);

  rmsnorm_cpu(hidden, norm_weight_.data(), rows, hidden_size_, eps_, scratch.normed.data());
  in_proj_.run(scratch.normed.data(), scratch.projected.data(), rows);
  for (size_t row = 0; row < states.size(); ++row) {
    const float* z = scratch.projected.data() + row * stride;
    conv1d_silu_cpu(z + inner, stride, 1, channels, taps_, conv_weight_.data(), conv_bias_.data(), states[row],
                    scratch.token.data());
    ssd_state_update_cpu(ssd_shape_, scratch.token.data(), z + inner + channels,
                         {dt_bias_.data(), a_.data(), d_.data()}, states[row] + conv_floats(), scratch.y.data());
    gated_rmsnorm_cpu(scratch.y.data(), z, stride, gated_norm_weight_.data(), 1, ssd_shape_.heads, ssd_shape_.head_dim,
                      eps_, scratch.gated.data() + row * inner);
  }
  out_proj_.run(scratch.gated.data(), scratch.out.data(), rows);
  add_cpu(scratch.out.data(), rows * hidden_size_, hidden);
}

}  // namespace recalld
