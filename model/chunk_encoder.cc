#include "model/chunk_encoder.h"

#include <algorithm>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"

namespace recalld {
namespace {

// Chunks that go through one projection after the other, so that its weights are read from the L2 cache.
constexpr size_t group_chunks = 4;

void unit_rms(float* x, size_t width, float eps) {
  const std::vector<float> ones(width, 1.0f);
  rmsnorm_cpu(x, ones.data(), 1, width, eps, x);
}

}  // namespace

ChunkEncoder::ChunkEncoder(const Config& config, ProductType type, EncoderAttention attention, Linear kv_proj,
                           Linear landmark_proj)
    : config_(config),
      type_(type),
      rows_(config.chunk_size + (config.enable_enc_cls ? 1 : 0)),
      attention_(std::move(attention)),
      kv_proj_(std::move(kv_proj)),
      landmark_proj_(std::move(landmark_proj)) {}

Expected<ChunkEncoder::Layer> ChunkEncoder::load_layer(const Weights& weights, const std::string& prefix,
                                                       const Config& config, ProductType type, size_t rows) {
  const size_t hidden = config.hidden_size, head_dim = hidden / config.num_attention_heads;
  const std::string attention = prefix + ".self_attn.";
  const std::vector<Stacked> qkv_parts{{attention + "q_proj.weight", hidden},
                                       {attention + "k_proj.weight", hidden},
                                       {attention + "v_proj.weight", hidden}};
  RECALLD_TRY(Linear qkv, pack(weights, qkv_parts, hidden, type, rows));
  RECALLD_TRY(Linear o_proj, pack(weights, {{attention + "o_proj.weight", hidden}}, hidden, type, rows));
  RECALLD_TRY(Mlp mlp, Mlp::load(weights, prefix + ".mlp", config, type, rows));
  RECALLD_TRY(auto input_norm, weights.floats(prefix + ".input_layernorm.weight", {hidden}));
  RECALLD_TRY(auto post_norm, weights.floats(prefix + ".post_attention_layernorm.weight", {hidden}));
  RECALLD_TRY(auto q_norm, weights.floats(attention + "q_norm.weight", {head_dim}));
  RECALLD_TRY(auto k_norm, weights.floats(attention + "k_norm.weight", {head_dim}));
  std::vector<float> bias;
  if (config.encoder_bias) {
    for (const char* name : {"q_proj.bias", "k_proj.bias", "v_proj.bias"}) {
      RECALLD_TRY(const auto part, weights.floats(attention + name, {hidden}));
      bias.insert(bias.end(), part.begin(), part.end());
    }
  }
  return Layer{std::move(input_norm), std::move(post_norm), std::move(qkv),    std::move(bias),
               std::move(q_norm),     std::move(k_norm),    std::move(o_proj), std::move(mlp)};
}

Expected<ChunkEncoder> ChunkEncoder::load(const Weights& weights, const std::string& prefix, const Config& config,
                                          ProductType type) {
  const size_t hidden = config.hidden_size, kv_width = config.num_kv_heads * config.attention_head_dim;
  const size_t rows = config.chunk_size + (config.enable_enc_cls ? 1 : 0);
  const std::vector<Stacked> kv_parts{{prefix + ".proj_k.weight", kv_width}, {prefix + ".proj_v.weight", kv_width}};
  RECALLD_TRY(Linear kv_proj, pack(weights, kv_parts, hidden, type, config.chunk_size));
  RECALLD_TRY(Linear landmark_proj,
              pack(weights, {{prefix + ".lmk_ln.weight", config.retrieval_dim}}, hidden, type, 1));
  const EncoderAttentionShape shape{
      .rows = rows, .heads = config.num_attention_heads, .head_dim = hidden / config.num_attention_heads};
  ChunkEncoder encoder(config, type, EncoderAttention::make(type, shape, config.rope_theta), std::move(kv_proj),
                       std::move(landmark_proj));
  for (size_t i = 0; i < config.encoder_layers; ++i) {
    RECALLD_TRY(Layer layer, load_layer(weights, prefix + ".encoder.layers." + std::to_string(i), config, type, rows));
    encoder.layers_.push_back(std::move(layer));
  }
  RECALLD_TRY(encoder.norm_,
              weights.floats(prefix + (config.encoder_layers > 0 ? ".encoder.norm.weight" : ".norm.weight"), {hidden}));
  if (config.enable_enc_cls) {
    RECALLD_TRY(encoder.cls_, weights.floats(prefix + ".cls_emb", {1, 1, hidden}));
  }
  if (config.enable_qk_norm) {
    RECALLD_TRY(encoder.k_norm_, weights.floats(prefix + ".k_rmsnorm.weight", {config.attention_head_dim}));
  }
  return encoder;
}

std::vector<EncodedChunk> ChunkEncoder::run(std::span<const float> hidden, WorkerPool& pool) const {
  const size_t chunk_floats = config_.chunk_size * config_.hidden_size;
  std::vector<EncodedChunk> chunks(hidden.size() / chunk_floats);
  const size_t groups = (chunks.size() + group_chunks - 1) / group_chunks;
  pool.run(groups, [&](size_t group, size_t) {
    const size_t first = group * group_chunks, count = std::min(group_chunks, chunks.size() - first);
    run(hidden.data() + first * chunk_floats, count, chunks.data() + first);
  });
  return chunks;
}

void ChunkEncoder::run(const float* hidden, size_t count, EncodedChunk* chunks) const {
  const size_t chunk_floats = config_.chunk_size * config_.hidden_size, row_floats = rows_ * config_.hidden_size;
  thread_local std::vector<float> x;  // [count, rows, hidden_size]
  x.resize(count * row_floats);
  for (size_t i = 0; i < count; ++i) {
    std::copy_n(hidden + i * chunk_floats, chunk_floats, x.data() + i * row_floats);
    std::ranges::copy(cls_, x.data() + i * row_floats + chunk_floats);
  }
  for (const Layer& layer : layers_) run_layer(layer, count, x.data());
  rmsnorm_cpu(x.data(), norm_.data(), count * rows_, config_.hidden_size, config_.rms_norm_eps, x.data());
  for (size_t i = 0; i < count; ++i) chunks[i] = project(x.data() + i * row_floats);
}

// x += o_proj(attention(RMSNorm(x))); x += MLP(RMSNorm(x))
void ChunkEncoder::run_layer(const Layer& layer, size_t count, float* x) const {
  const size_t hidden = config_.hidden_size, row_floats = rows_ * hidden;
  const float eps = config_.rms_norm_eps;
  struct Scratch {
    Operands normed, attended;
    std::vector<float> qkv, out;
  };
  thread_local Scratch scratch;
  scratch.normed.fit(type_, count * row_floats);
  scratch.attended.fit(type_, count * row_floats);
  scratch.qkv.resize(3 * row_floats);
  scratch.out.resize(row_floats);

  rmsnorm(type_, x, layer.input_norm.data(), count * rows_, hidden, eps, scratch.normed.at(0));
  const EncoderAttentionWeights weights{layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data(), layer.q_norm.data(),
                                        layer.k_norm.data(), eps};
  for (size_t i = 0; i < count; ++i) {
    layer.qkv.run(scratch.normed.at(i * row_floats), scratch.qkv.data());
    attention_.run(scratch.qkv.data(), weights, scratch.attended.at(i * row_floats));
  }
  for (size_t i = 0; i < count; ++i) {
    layer.o_proj.run(scratch.attended.at(i * row_floats), scratch.out.data());
    add_cpu(scratch.out.data(), row_floats, x + i * row_floats);
  }
  rmsnorm(type_, x, layer.post_norm.data(), count * rows_, hidden, eps, scratch.normed.at(0));
  layer.mlp.add_to(scratch.normed, count, rows_, x);
}

EncodedChunk ChunkEncoder::project(const float* encoded) const {
  const size_t tokens = config_.chunk_size, hidden = config_.hidden_size, head_dim = config_.attention_head_dim;
  const size_t kv_width = config_.num_kv_heads * head_dim;
  thread_local Operands operands;
  operands.fit(type_, tokens * hidden);

  EncodedChunk chunk;
  std::vector<float> summary(hidden);  // the CLS token's output, or the mean of all
  if (config_.enable_enc_cls) {
    std::copy_n(encoded + tokens * hidden, hidden, summary.data());
  } else {
    for (size_t token = 0; token < tokens; ++token) add_cpu(encoded + token * hidden, hidden, summary.data());
    for (float& value : summary) value /= static_cast<float>(tokens);
  }
  to_operands(type_, summary.data(), hidden, operands.at(0));
  chunk.landmark.resize(config_.retrieval_dim);
  landmark_proj_.run(operands.at(0), chunk.landmark.data());
  if (config_.enable_lmk_norm) {
    const size_t width = config_.retrieval_dim / config_.retrieval_heads();
    for (size_t head = 0; head < config_.retrieval_heads(); ++head)
      unit_rms(chunk.landmark.data() + head * width, width, config_.rms_norm_eps);
  }

  to_operands(type_, encoded, tokens * hidden, operands.at(0));
  thread_local std::vector<float> kv;  // [tokens, K then V]
  kv.resize(tokens * 2 * kv_width);
  kv_proj_.run(operands.at(0), kv.data());
  chunk.k.resize(tokens * kv_width);
  chunk.v.resize(tokens * kv_width);
  for (size_t token = 0; token < tokens; ++token) {
    std::copy_n(kv.data() + token * 2 * kv_width, kv_width, chunk.k.data() + token * kv_width);
    std::copy_n(kv.data() + token * 2 * kv_width + kv_width, kv_width, chunk.v.data() + token * kv_width);
  }
  if (config_.enable_qk_norm)
    rmsnorm_cpu(chunk.k.data(), k_norm_.data(), tokens * config_.num_kv_heads, head_dim, config_.rms_norm_eps,
                chunk.k.data());
  return chunk;
}

}  // namespace recalld
