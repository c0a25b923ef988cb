#include "model/gpu_chunk_encoder.h"

#include "kernels/chunk_encoder_cuda.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/encoder_attention.h"
#include "kernels/encoder_attention_cuda.h"

namespace recalld {
namespace {

constexpr size_t chunk_tokens = 64;  // what the kernels take

uint32_t rows_of(const Config& config) {
  return static_cast<uint32_t>(config.chunk_size + (config.enable_enc_cls ? 1 : 0));
}

}  // namespace

Expected<GpuChunkEncoder::Layer> GpuChunkEncoder::load_layer(GpuWeights& weights, const std::string& prefix,
                                                             const Config& config) {
  const size_t hidden = config.hidden_size, head_dim = hidden / config.num_attention_heads;
  const std::string attention = prefix + ".self_attn.";
  Layer layer;
  RECALLD_TRY(layer.qkv, weights.linear({{attention + "q_proj.weight", hidden},
                                         {attention + "k_proj.weight", hidden},
                                         {attention + "v_proj.weight", hidden}},
                                        hidden));
  RECALLD_TRY(layer.o_proj, weights.linear({{attention + "o_proj.weight", hidden}}, hidden));
  RECALLD_TRY(layer.mlp, GpuMlp::load(weights, prefix + ".mlp", config));
  RECALLD_TRY(layer.input_norm, weights.floats(prefix + ".input_layernorm.weight", {hidden}));
  RECALLD_TRY(layer.post_norm, weights.floats(prefix + ".post_attention_layernorm.weight", {hidden}));
  RECALLD_TRY(layer.q_norm, weights.floats(attention + "q_norm.weight", {head_dim}));
  RECALLD_TRY(layer.k_norm, weights.floats(attention + "k_norm.weight", {head_dim}));
  if (config.encoder_bias) {
    std::vector<float> bias;
    for (const char* name : {"q_proj.bias", "k_proj.bias", "v_proj.bias"}) {
      RECALLD_TRY(const auto part, weights.on_disk().floats(attention + name, {hidden}));
      bias.insert(bias.end(), part.begin(), part.end());
    }
    RECALLD_TRY(layer.bias, weights.upload(std::span<const float>(bias)));
  }
  return layer;
}

Expected<GpuChunkEncoder> GpuChunkEncoder::load(GpuWeights& weights, const std::string& prefix, const Config& config) {
  const size_t hidden = config.hidden_size, kv_width = config.num_kv_heads * config.attention_head_dim;
  GpuChunkEncoder encoder;
  encoder.hidden_size_ = static_cast<uint32_t>(hidden);
  encoder.rows_ = rows_of(config);
  encoder.heads_ = static_cast<uint32_t>(config.num_attention_heads);
  encoder.kv_heads_ = static_cast<uint32_t>(config.num_kv_heads);
  encoder.head_dim_ = static_cast<uint32_t>(config.attention_head_dim);
  encoder.dim_ = static_cast<uint32_t>(config.retrieval_dim);
  encoder.retrieval_heads_ = static_cast<uint32_t>(config.retrieval_heads());
  encoder.norm_landmarks_ = config.enable_lmk_norm;
  encoder.eps_ = config.rms_norm_eps;
  RECALLD_TRY(encoder.kv_proj_,
              weights.linear({{prefix + ".proj_k.weight", kv_width}, {prefix + ".proj_v.weight", kv_width}}, hidden));
  RECALLD_TRY(encoder.landmark_proj_, weights.linear({{prefix + ".lmk_ln.weight", config.retrieval_dim}}, hidden));
  for (size_t i = 0; i < config.encoder_layers; ++i) {
    RECALLD_TRY(Layer layer, load_layer(weights, prefix + ".encoder.layers." + std::to_string(i), config));
    encoder.layers_.push_back(std::move(layer));
  }
  const std::string norm = config.encoder_layers > 0 ? ".encoder.norm.weight" : ".norm.weight";
  RECALLD_TRY(encoder.norm_, weights.floats(prefix + norm, {hidden}));
  if (config.enable_enc_cls) {
    RECALLD_TRY(encoder.cls_, weights.floats(prefix + ".cls_emb", {1, 1, hidden}));
  }
  if (config.enable_qk_norm) {
    RECALLD_TRY(encoder.k_norm_, weights.floats(prefix + ".k_rmsnorm.weight", {config.attention_head_dim}));
  }
  std::vector<float> cos, sin;
  rope_table(encoder.rows_, hidden / config.num_attention_heads, config.rope_theta, cos, sin);
  RECALLD_TRY(encoder.cos_, weights.upload(std::span<const float>(cos)));
  RECALLD_TRY(encoder.sin_, weights.upload(std::span<const float>(sin)));
  return encoder;
}

GpuChunkEncoder::Scratch GpuChunkEncoder::scratch(const Config& config, uint32_t chunks, Carver& carver) {
  const uint32_t rows = chunks * rows_of(config);
  const size_t hidden = config.hidden_size;
  return {.x = carver.take<float>(rows * hidden),
          .normed = carver.take<Bf16>(rows * hidden),
          .qkv = carver.take<float>(rows * 3 * hidden),
          .attended = carver.take<Bf16>(rows * hidden),
          .out = carver.take<float>(rows * hidden),
          .mlp = GpuMlp::scratch(config, rows, carver),
          .kv = carver.take<float>(rows * 2 * config.num_kv_heads * config.attention_head_dim),
          .summaries = carver.take<Bf16>(chunks * hidden),
          .landmarks = carver.take<float>(chunks * config.retrieval_dim)};
}

// x += o_proj(attention(RMSNorm(x))); x += MLP(RMSNorm(x))
cudaError_t GpuChunkEncoder::run_layer(const GpuContext& gpu, const Scratch& scratch, const Layer& layer,
                                       uint32_t chunks) const {
  const uint32_t rows = chunks * rows_;
  RECALLD_CUDA(gpu.norm(scratch.x, layer.input_norm, rows, hidden_size_, eps_, scratch.normed));
  RECALLD_CUDA(gpu.multiply(layer.qkv, scratch.normed, rows, scratch.qkv));
  RECALLD_CUDA(cuda::encoder_attention({.qkv = scratch.qkv,
                                        .qkv_stride = layer.qkv.out,
                                        .bias = layer.bias,
                                        .q_norm = layer.q_norm,
                                        .k_norm = layer.k_norm,
                                        .cos = cos_,
                                        .sin = sin_,
                                        .chunks = chunks,
                                        .rows = rows_,
                                        .heads = heads_,
                                        .head_dim = hidden_size_ / heads_,
                                        .eps = eps_},
                                       scratch.attended, gpu.stream));
  RECALLD_CUDA(gpu.multiply(layer.o_proj, scratch.attended, rows, scratch.out));
  RECALLD_CUDA(cuda::add(scratch.out, rows, hidden_size_, scratch.x, gpu.stream));
  RECALLD_CUDA(gpu.norm(scratch.x, layer.post_norm, rows, hidden_size_, eps_, scratch.normed));
  return layer.mlp.add_to(gpu, scratch.mlp, scratch.normed, rows, scratch.x);
}

cudaError_t GpuChunkEncoder::run(const GpuContext& gpu, const Scratch& scratch, const float* hidden, uint32_t chunks,
                                 Bf16* records, Bf16* landmarks) const {
  const uint32_t rows = chunks * rows_;
  RECALLD_CUDA(cuda::encoder_input(hidden, cls_, chunks, hidden_size_, scratch.x, gpu.stream));
  for (const Layer& layer : layers_) RECALLD_CUDA(run_layer(gpu, scratch, layer, chunks));
  RECALLD_CUDA(gpu.norm(scratch.x, norm_, rows, hidden_size_, eps_, scratch.x));

  RECALLD_CUDA(cuda::to_bf16(scratch.x, rows, hidden_size_, scratch.normed, gpu.stream));
  RECALLD_CUDA(gpu.multiply(kv_proj_, scratch.normed, rows, scratch.kv));
  RECALLD_CUDA(cuda::kv_records({.kv = scratch.kv,
                                 .k_norm = k_norm_,
                                 .chunks = chunks,
                                 .rows = rows_,
                                 .kv_heads = kv_heads_,
                                 .head_dim = head_dim_,
                                 .eps = eps_,
                                 .record_stride = 2 * chunk_tokens * kv_heads_ * head_dim_},
                                records, gpu.stream));
  RECALLD_CUDA(cuda::landmark_rows(scratch.x, chunks, rows_, hidden_size_, scratch.summaries, gpu.stream));
  RECALLD_CUDA(gpu.multiply(landmark_proj_, scratch.summaries, chunks, scratch.landmarks));
  return cuda::landmarks_out({.x = scratch.landmarks,
                              .chunks = chunks,
                              .heads = retrieval_heads_,
                              .width = dim_ / retrieval_heads_,
                              .norm = norm_landmarks_,
                              .eps = eps_},
                             landmarks, gpu.stream);
}

}  // namespace recalld
