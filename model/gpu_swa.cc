#include "model/gpu_swa.h"

#include <vector>

#include "kernels/encoder_attention.h"
#include "model/swa.h"

namespace recalld {
namespace {

uint32_t narrow(size_t value) {
  return static_cast<uint32_t>(value);
}

size_t projected(const SwaShape& shape) {
  return cuda::matmul_padded(shape.qkv_width());
}

}  // namespace

size_t GpuSwa::state_floats(const Config& config) {
  return swa_shape(config).state_floats();
}

Expected<GpuSwa> GpuSwa::load(GpuWeights& weights, const std::string& prefix, const Config& config) {
  const SwaShape shape = swa_shape(config);
  const size_t hidden = config.hidden_size;
  const std::string attention = prefix + ".self_attn.";
  GpuSwa block;
  block.hidden_size_ = narrow(hidden);
  block.heads_ = narrow(shape.heads);
  block.kv_heads_ = narrow(shape.kv_heads);
  block.window_ = narrow(shape.window);
  block.eps_ = config.rms_norm_eps;
  RECALLD_TRY(block.qkv_, weights.linear({{attention + "q_proj.weight", shape.q_width()},
                                          {attention + "k_proj.weight", shape.kv_width()},
                                          {attention + "v_proj.weight", shape.kv_width()}},
                                         hidden));
  RECALLD_TRY(block.o_proj_, weights.linear({{attention + "o_proj.weight", hidden}}, shape.q_width()));
  RECALLD_TRY(block.mlp_, GpuMlp::load(weights, prefix + ".mlp", config));
  RECALLD_TRY(block.norm_, weights.floats(prefix + ".norm.weight", {hidden}));
  RECALLD_TRY(block.post_norm_, weights.floats(prefix + ".post_attention_layernorm.weight", {hidden}));
  RECALLD_TRY(block.q_norm_, weights.floats(attention + "q_norm.weight", {shape.head_dim}));
  RECALLD_TRY(block.k_norm_, weights.floats(attention + "k_norm.weight", {shape.head_dim}));
  std::vector<float> cos, sin;
  rope_table(shape.window + swa_block, shape.head_dim, config.rope_theta, cos, sin);
  RECALLD_TRY(block.cos_, weights.upload(std::span<const float>(cos)));
  RECALLD_TRY(block.sin_, weights.upload(std::span<const float>(sin)));
  return block;
}

GpuSwa::Scratch GpuSwa::scratch(const Config& config, uint32_t rows, Carver& carver) {
  const SwaShape shape = swa_shape(config);
  return {.normed = carver.take<Bf16>(rows * config.hidden_size),
          .qkv = carver.take<float>(rows * projected(shape)),
          .k = carver.take<Bf16>(rows * shape.kv_width()),
          .v = carver.take<Bf16>(rows * shape.kv_width()),
          .read = carver.take<Bf16>(rows * shape.q_width()),
          .out = carver.take<float>(rows * config.hidden_size),
          .mlp = GpuMlp::scratch(config, rows, carver)};
}

cuda::SwaAttention GpuSwa::attention(const Scratch& scratch) const {
  return {.qkv = scratch.qkv,
          .qkv_stride = qkv_.out,
          .q_norm = q_norm_,
          .k_norm = k_norm_,
          .cos = cos_,
          .sin = sin_,
          .heads = heads_,
          .kv_heads = kv_heads_,
          .window = window_,
          .eps = eps_,
          .k = scratch.k,
          .v = scratch.v};
}

cudaError_t GpuSwa::begin(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden) const {
  RECALLD_CUDA(gpu.norm(hidden, norm_, rows, hidden_size_, eps_, scratch.normed));
  return gpu.multiply(qkv_, scratch.normed, rows, scratch.qkv);
}

cudaError_t GpuSwa::end(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, float* hidden) const {
  RECALLD_CUDA(gpu.multiply(o_proj_, scratch.read, rows, scratch.out));
  RECALLD_CUDA(cuda::add(scratch.out, rows, hidden_size_, hidden, gpu.stream));
  RECALLD_CUDA(gpu.norm(hidden, post_norm_, rows, hidden_size_, eps_, scratch.normed));
  return mlp_.add_to(gpu, scratch.mlp, scratch.normed, rows, hidden);
}

cudaError_t GpuSwa::run(const GpuContext& gpu, const Scratch& scratch, std::span<const GpuStreamRows> streams,
                        uint32_t rows, float* hidden) const {
  RECALLD_CUDA(begin(gpu, scratch, rows, hidden));
  std::vector<cuda::SwaStream> of_attention;
  for (const GpuStreamRows& each : streams)
    of_attention.push_back({.state = each.state, .first = each.first, .tokens = each.tokens});
  RECALLD_CUDA(cuda::swa_attention(attention(scratch), of_attention.data(), narrow(of_attention.size()), scratch.read,
                                   gpu.stream));
  return end(gpu, scratch, rows, hidden);
}

cudaError_t GpuSwa::step(const GpuContext& gpu, const Scratch& scratch, float* const* states, float* hidden) const {
  constexpr uint32_t rows = cuda::lanes_max;
  RECALLD_CUDA(begin(gpu, scratch, rows, hidden));
  RECALLD_CUDA(cuda::swa_attention_step(attention(scratch), states, rows, scratch.read, gpu.stream));
  return end(gpu, scratch, rows, hidden);
}

}  // namespace recalld
