#include "model/gpu_layers.h"

#include <cmath>

#include "kernels/conv1d_silu_cuda.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/hsa_attention_cuda.h"
#include "kernels/ssd_scan_cuda.h"

namespace recalld {
namespace {

uint32_t narrow(size_t value) {
  return static_cast<uint32_t>(value);
}

size_t inner(const Config& config) {
  return config.num_heads * config.head_dim;
}
size_t channels(const Config& config) {
  return inner(config) + 2 * config.state_size;
}
size_t projected(const Config& config) {
  return cuda::matmul_padded(inner(config) + channels(config) + config.num_heads);
}

}  // namespace

// ---- Mamba-2

size_t GpuMamba2::conv_floats(const Config& config) {
  return (config.conv_kernel - 1) * channels(config);
}
size_t GpuMamba2::state_floats(const Config& config) {
  return conv_floats(config) + inner(config) * config.state_size;
}

Expected<GpuMamba2> GpuMamba2::load(GpuWeights& weights, const std::string& prefix, const Config& config) {
  const std::string mixer = prefix + ".mixer.";
  GpuMamba2 block;
  block.hidden_size_ = narrow(config.hidden_size);
  block.inner_ = narrow(inner(config));
  block.channels_ = narrow(channels(config));
  block.heads_ = narrow(config.num_heads);
  block.state_size_ = narrow(config.state_size);
  block.taps_ = narrow(config.conv_kernel);
  block.conv_floats_ = conv_floats(config);
  block.eps_ = config.layer_norm_epsilon;
  const size_t in_rows = block.inner_ + block.channels_ + block.heads_;
  RECALLD_TRY(block.in_proj_, weights.linear({{mixer + "in_proj.weight", in_rows}}, block.hidden_size_));
  RECALLD_TRY(block.out_proj_, weights.linear({{mixer + "out_proj.weight", block.hidden_size_}}, block.inner_));
  RECALLD_TRY(block.norm_, weights.floats(prefix + ".norm.weight", {block.hidden_size_}));
  RECALLD_TRY(block.conv_bias_, weights.floats(mixer + "conv1d.bias", {block.channels_}));
  RECALLD_TRY(block.dt_bias_, weights.floats(mixer + "dt_bias", {block.heads_}));
  RECALLD_TRY(block.d_, weights.floats(mixer + "D", {block.heads_}));
  RECALLD_TRY(block.gated_norm_, weights.floats(mixer + "norm.weight", {block.inner_}));
  RECALLD_TRY(auto a, weights.on_disk().floats(mixer + "A_log", {block.heads_}));
  for (float& value : a) value = -std::exp(value);
  RECALLD_TRY(block.a_, weights.upload(std::span<const float>(a)));
  RECALLD_TRY(const auto conv,
              weights.on_disk().floats(mixer + "conv1d.weight", {block.channels_, 1, config.conv_kernel}));
  std::vector<float> by_tap(conv.size());
  for (size_t channel = 0; channel < block.channels_; ++channel)
    for (size_t tap = 0; tap < block.taps_; ++tap)
      by_tap[tap * block.channels_ + channel] = conv[channel * block.taps_ + tap];
  RECALLD_TRY(block.conv_weight_, weights.upload(std::span<const float>(by_tap)));
  return block;
}

GpuMamba2::Scratch GpuMamba2::scratch(const Config& config, uint32_t rows, uint32_t streams, Carver& carver) {
  const size_t scan =
      cuda::ssd_scan_workspace(narrow(config.num_heads), narrow(config.state_size), rows, std::max(1u, streams));
  return {.normed = carver.take<Bf16>(rows * config.hidden_size),
          .projected = carver.take<float>(rows * projected(config)),
          .xbc = carver.take<Bf16>(rows * channels(config)),
          .xbc_few = carver.take<float>(cuda::lanes_max * channels(config)),
          .y = carver.take<Bf16>(rows * inner(config)),
          .y_few = carver.take<float>(cuda::lanes_max * inner(config)),
          .gated = carver.take<Bf16>(rows * inner(config)),
          .out = carver.take<float>(rows * config.hidden_size),
          .scan = carver.take<char>(scan)};
}

cudaError_t GpuMamba2::begin(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden) const {
  RECALLD_CUDA(gpu.norm(hidden, norm_, rows, hidden_size_, eps_, scratch.normed));
  return gpu.multiply(in_proj_, scratch.normed, rows, scratch.projected);
}

cudaError_t GpuMamba2::end(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, float* hidden) const {
  RECALLD_CUDA(gpu.multiply(out_proj_, scratch.gated, rows, scratch.out));
  return cuda::add(scratch.out, rows, hidden_size_, hidden, gpu.stream);
}

cudaError_t GpuMamba2::run(const GpuContext& gpu, const Scratch& scratch, std::span<const GpuStreamRows> streams,
                           uint32_t rows, float* hidden) const {
  RECALLD_CUDA(begin(gpu, scratch, rows, hidden));
  std::vector<cuda::ConvStream> conv_streams;
  std::vector<cuda::SsdStream> scan_streams;
  for (const GpuStreamRows& each : streams) {
    conv_streams.push_back({.history = each.state, .first = each.first, .tokens = each.tokens});
    scan_streams.push_back({.state = each.state + conv_floats_, .first = each.first, .tokens = each.tokens});
  }
  const float* const z = scratch.projected;
  RECALLD_CUDA(cuda::conv1d_silu({.input = z + inner_,
                                  .input_stride = in_proj_.out,
                                  .weight = conv_weight_,
                                  .bias = conv_bias_,
                                  .channels = channels_,
                                  .taps = taps_},
                                 conv_streams.data(), narrow(conv_streams.size()), scratch.xbc, gpu.stream));
  RECALLD_CUDA(cuda::ssd_scan({.xbc = scratch.xbc,
                               .dt = z + inner_ + channels_,
                               .dt_stride = in_proj_.out,
                               .dt_bias = dt_bias_,
                               .a = a_,
                               .d = d_,
                               .y = scratch.y,
                               .heads = heads_,
                               .state_size = state_size_,
                               .streams = scan_streams.data(),
                               .stream_count = narrow(scan_streams.size()),
                               .workspace = scratch.scan},
                              gpu.stream));
  RECALLD_CUDA(cuda::gated_rmsnorm(
      {.z = z, .z_stride = in_proj_.out, .weight = gated_norm_, .rows = rows, .width = inner_, .eps = eps_}, scratch.y,
      scratch.gated, gpu.stream));
  return end(gpu, scratch, rows, hidden);
}

cudaError_t GpuMamba2::step(const GpuContext& gpu, const Scratch& scratch, float* const* conv, float* const* ssm,
                            float* hidden) const {
  constexpr uint32_t rows = cuda::lanes_max;
  RECALLD_CUDA(begin(gpu, scratch, rows, hidden));
  const float* const z = scratch.projected;
  RECALLD_CUDA(cuda::conv1d_silu_step({.input = z + inner_,
                                       .input_stride = in_proj_.out,
                                       .weight = conv_weight_,
                                       .bias = conv_bias_,
                                       .channels = channels_,
                                       .taps = taps_},
                                      conv, rows, scratch.xbc_few, gpu.stream));
  RECALLD_CUDA(cuda::ssd_state_update({.xbc = scratch.xbc_few,
                                       .dt = z + inner_ + channels_,
                                       .dt_stride = in_proj_.out,
                                       .dt_bias = dt_bias_,
                                       .a = a_,
                                       .d = d_,
                                       .states = ssm,
                                       .y = scratch.y_few,
                                       .heads = heads_,
                                       .state_size = state_size_,
                                       .count = rows},
                                      gpu.stream));
  RECALLD_CUDA(cuda::gated_rmsnorm(
      {.z = z, .z_stride = in_proj_.out, .weight = gated_norm_, .rows = rows, .width = inner_, .eps = eps_},
      scratch.y_few, scratch.gated, gpu.stream));
  return end(gpu, scratch, rows, hidden);
}

// ---- SwiGLU

Expected<GpuMlp> GpuMlp::load(GpuWeights& weights, const std::string& prefix, const Config& config) {
  GpuMlp mlp;
  mlp.hidden_size_ = narrow(config.hidden_size);
  mlp.inner_ = narrow(config.mlp_size());
  RECALLD_TRY(mlp.gate_up_,
              weights.linear({{prefix + ".gate_proj.weight", mlp.inner_}, {prefix + ".up_proj.weight", mlp.inner_}},
                             mlp.hidden_size_));
  RECALLD_TRY(mlp.down_, weights.linear({{prefix + ".down_proj.weight", mlp.hidden_size_}}, mlp.inner_));
  return mlp;
}

GpuMlp::Scratch GpuMlp::scratch(const Config& config, uint32_t rows, Carver& carver) {
  return {.gate_up = carver.take<float>(rows * 2 * config.mlp_size()),
          .gated = carver.take<Bf16>(rows * config.mlp_size()),
          .out = carver.take<float>(rows * config.hidden_size)};
}

cudaError_t GpuMlp::add_to(const GpuContext& gpu, const Scratch& scratch, const Bf16* x, uint32_t rows,
                           float* hidden) const {
  RECALLD_CUDA(gpu.multiply(gate_up_, x, rows, scratch.gate_up));
  RECALLD_CUDA(cuda::swiglu(scratch.gate_up, rows, inner_, scratch.gated, gpu.stream));
  RECALLD_CUDA(gpu.multiply(down_, scratch.gated, rows, scratch.out));
  return cuda::add(scratch.out, rows, hidden_size_, hidden, gpu.stream);
}

// ---- HSA

Expected<GpuHsa> GpuHsa::load(GpuWeights& weights, const std::string& prefix, const Config& config, float pos_decay) {
  GpuHsa hsa;
  hsa.hidden_size_ = narrow(config.hidden_size);
  hsa.heads_ = narrow(config.num_attention_heads);
  hsa.kv_heads_ = narrow(config.num_kv_heads);
  hsa.retrieval_heads_ = narrow(config.retrieval_heads());
  hsa.head_dim_ = narrow(config.attention_head_dim);
  hsa.k_ = narrow(config.chunk_topk);
  hsa.reset_residual_ = config.reset_hsa_residual;
  hsa.eps_ = config.rms_norm_eps;
  hsa.weighting_ = config.weighting(pos_decay);
  const size_t width = config.num_attention_heads * config.attention_head_dim;
  RECALLD_TRY(hsa.q_proj_, weights.linear({{prefix + ".q_proj.weight", width}}, config.hidden_size));
  RECALLD_TRY(hsa.o_proj_, weights.linear({{prefix + ".o_proj.weight", config.hidden_size}}, width));
  RECALLD_TRY(hsa.pre_norm_, weights.floats(prefix + ".pre_norm.weight", {config.hidden_size}));
  if (config.enable_qk_norm) {
    RECALLD_TRY(hsa.q_norm_, weights.floats(prefix + ".q_norm.weight", {config.attention_head_dim}));
  }
  if (config.hsa_mlp) {
    RECALLD_TRY(hsa.mlp_norm_, weights.floats(prefix + "._mlp_norm.weight", {config.hidden_size}));
    RECALLD_TRY(hsa.mlp_, GpuMlp::load(weights, prefix + "._mlp", config));
  }
  return hsa;
}

GpuHsa::Scratch GpuHsa::scratch(const Config& config, uint32_t rows, Carver& carver) {
  const size_t q_width = config.num_attention_heads * config.attention_head_dim;
  const size_t attention = cuda::hsa_attention_workspace(rows, narrow(config.num_attention_heads),
                                                         narrow(config.num_kv_heads), narrow(config.chunk_topk));
  return {.normed = carver.take<Bf16>(rows * config.hidden_size),
          .q = carver.take<float>(rows * q_width),
          .q_rounded = carver.take<Bf16>(rows * q_width),
          .read = carver.take<Bf16>(rows * q_width),
          .sum = carver.take<float>(rows * config.hidden_size),
          .attention = carver.take<char>(attention),
          .attention_bytes = attention,
          .mlp = GpuMlp::scratch(config, rows, carver)};
}

cudaError_t GpuHsa::query(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden) const {
  RECALLD_CUDA(gpu.norm(hidden, pre_norm_, rows, hidden_size_, eps_, scratch.normed));
  RECALLD_CUDA(gpu.multiply(q_proj_, scratch.normed, rows, scratch.q));
  if (!q_norm_) return cudaSuccess;
  return cuda::rmsnorm({.x = scratch.q,
                        .x_stride = heads_ * head_dim_,
                        .weight = q_norm_,
                        .rows = rows,
                        .heads = heads_,
                        .width = head_dim_,
                        .eps = eps_},
                       scratch.q, gpu.stream);
}

cudaError_t GpuHsa::run(const GpuContext& gpu, const Scratch& scratch, const GpuAttended& attended, uint32_t rows,
                        float* hidden) const {
  RECALLD_CUDA(query(gpu, scratch, rows, hidden));
  RECALLD_CUDA(cuda::to_bf16(scratch.q, rows, heads_ * head_dim_, scratch.q_rounded, gpu.stream));
  RECALLD_CUDA(cuda::hsa_attention({.q = scratch.q_rounded,
                                    .chunks = attended.slots,
                                    .scores = attended.scores,
                                    .page_table = attended.identity,
                                    .cache = attended.cache,
                                    .o_bf16 = scratch.read,
                                    .tokens = rows,
                                    .heads = heads_,
                                    .kv_heads = kv_heads_,
                                    .retrieval_heads = retrieval_heads_,
                                    .head_dim = head_dim_,
                                    .k = k_,
                                    .weighting = weighting_,
                                    .path = cuda::HsaPath::decode,
                                    .workspace = scratch.attention_bytes > 0 ? scratch.attention : nullptr},
                                   gpu.stream));
  RECALLD_CUDA(gpu.multiply(o_proj_, scratch.read, rows, scratch.sum));
  RECALLD_CUDA(cuda::add(hidden, rows, hidden_size_, scratch.sum, gpu.stream));  // x + o
  if (mlp_) RECALLD_CUDA(gpu.norm(scratch.sum, mlp_norm_, rows, hidden_size_, eps_, scratch.normed));
  if (!mlp_ || reset_residual_)
    RECALLD_CUDA(cudaMemcpyAsync(hidden, scratch.sum, size_t{rows} * hidden_size_ * sizeof(float),
                                 cudaMemcpyDeviceToDevice, gpu.stream));
  return mlp_ ? mlp_->add_to(gpu, scratch.mlp, scratch.normed, rows, hidden) : cudaSuccess;
}

}  // namespace recalld
