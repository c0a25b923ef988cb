#include "model/mamba2.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/conv1d_silu.h"
#include "kernels/rmsnorm.h"

namespace recalld {
namespace {

// Chunks that go through one projection after the other, so that its weights are read from the L2 cache. The rows of a
// product stay 64 whatever this is.
constexpr size_t group_chunks = 2;

// What one thread needs while a group goes through a block.
struct Scratch {
  std::vector<float> normed;     // [64, hidden_size], f32 or bf16
  std::vector<float> projected;  // [group, 64, z + channels + heads]
  std::vector<float> xbc;        // [64, channels], f32 or bf16
  std::vector<float> y;          // [heads, 64, head_dim]
  std::vector<float> gated;      // [group, 64, heads * head_dim], f32 or bf16
  std::vector<float> out;        // [64, hidden_size]
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

void Mamba2::run(float* state, size_t chunks, float* hidden) const {
  type_ == ProductType::bf16 ? run_as<Bf16>(state, chunks, hidden) : run_as<float>(state, chunks, hidden);
}

template <class Operand>
void Mamba2::run_as(float* state, size_t chunks, float* hidden) const {
  const size_t inner = ssd_shape_.heads * ssd_shape_.head_dim, channels = ssd_shape_.channels();
  const size_t stride = in_proj_.out(), chunk_floats = ssd_block * hidden_size_;
  thread_local Scratch scratch;
  scratch.normed.resize(chunk_floats);
  scratch.projected.resize(group_chunks * ssd_block * stride);
  scratch.xbc.resize(ssd_block * channels);
  scratch.y.resize(ssd_block * inner);
  scratch.gated.resize(group_chunks * ssd_block * inner);
  scratch.out.resize(chunk_floats);
  auto* normed = reinterpret_cast<Operand*>(scratch.normed.data());
  auto* xbc = reinterpret_cast<Operand*>(scratch.xbc.data());
  auto* gated = reinterpret_cast<Operand*>(scratch.gated.data());
  float* conv_state = state;
  float* ssm_state = state + conv_floats();

  for (size_t first = 0; first < chunks; first += group_chunks) {
    const size_t group = std::min(group_chunks, chunks - first);
    float* group_hidden = hidden + first * chunk_floats;
    for (size_t i = 0; i < group; ++i) {
      rmsnorm_cpu(group_hidden + i * chunk_floats, norm_weight_.data(), ssd_block, hidden_size_, eps_, normed);
      in_proj_.run(normed, scratch.projected.data() + i * ssd_block * stride);
    }
    for (size_t i = 0; i < group; ++i) {
      const float* z = scratch.projected.data() + i * ssd_block * stride;
      const float* dt = z + inner + channels;
      conv1d_silu_cpu(z + inner, stride, ssd_block, channels, taps_, conv_weight_.data(), conv_bias_.data(), conv_state,
                      xbc);
      scan_.run(xbc, dt, stride, {dt_bias_.data(), a_.data(), d_.data()}, ssm_state, scratch.y.data());
      gated_rmsnorm_cpu(scratch.y.data(), z, stride, gated_norm_weight_.data(), ssd_block, ssd_shape_.heads,
                        ssd_shape_.head_dim, eps_, gated + i * ssd_block * inner);
    }
    for (size_t i = 0; i < group; ++i) {
      out_proj_.run(gated + i * ssd_block * inner, scratch.out.data());
      add_cpu(scratch.out.data(), chunk_floats, group_hidden + i * chunk_floats);
    }
  }
}

void run_blocks(std::span<const Mamba2> layers, std::span<float> state, size_t chunks, float* hidden,
                size_t hidden_size, WorkerPool& pool) {
  std::vector<float*> states;
  float* next = state.data();
  for (const Mamba2& layer : layers) {
    states.push_back(next);
    next += layer.state_floats();
  }
  // Step s runs layer L on group s - L: its inputs, and the state that it goes on from, were made in step s - 1.
  const size_t groups = (chunks + group_chunks - 1) / group_chunks;
  for (size_t step = 0; step + 1 < groups + layers.size(); ++step) {
    const size_t first_layer = step < groups ? 0 : step - groups + 1;
    const size_t last_layer = std::min(step, layers.size() - 1);
    pool.run(last_layer - first_layer + 1, [&](size_t index, size_t) {
      const size_t layer = first_layer + index, group = step - layer;
      const size_t first = group * group_chunks;
      layers[layer].run(states[layer], std::min(group_chunks, chunks - first),
                        hidden + first * ssd_block * hidden_size);
    });
  }
}

}  // namespace recalld
