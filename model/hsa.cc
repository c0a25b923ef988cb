#include "model/hsa.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "model/projection.h"

namespace recalld {

HsaShape hsa_shape(const Config& config) {
  return {.heads = config.num_attention_heads / config.num_kv_heads,
          .head_dim = config.attention_head_dim,
          .tokens = config.chunk_size,
          .stride = config.num_kv_heads * config.attention_head_dim};
}

Expected<HsaQuery> HsaQuery::load(const Weights& weights, const std::string& prefix, const Config& config,
                                  ProductType type) {
  const size_t width = config.num_attention_heads * config.attention_head_dim;
  RECALLD_TRY(Linear q_proj,
              pack(weights, {{prefix + ".q_proj.weight", width}}, config.hidden_size, type, config.chunk_size));
  HsaQuery query(config, type, std::move(q_proj));
  RECALLD_TRY(query.pre_norm_, weights.floats(prefix + ".pre_norm.weight", {config.hidden_size}));
  if (config.enable_qk_norm) {
    RECALLD_TRY(query.q_norm_, weights.floats(prefix + ".q_norm.weight", {config.attention_head_dim}));
  }
  return query;
}

std::vector<float> HsaQuery::run(std::span<const float> hidden) const {
  std::vector<float> q = project_normed(type_, q_proj_, pre_norm_, config_.rms_norm_eps, hidden);
  if (config_.enable_qk_norm)
    rmsnorm_cpu(q.data(), q_norm_.data(), q.size() / q_norm_.size(), q_norm_.size(), config_.rms_norm_eps, q.data());
  return q;
}

Expected<Hsa> Hsa::load(const Weights& weights, const std::string& prefix, const Config& config, ProductType type) {
  const size_t width = config.num_attention_heads * config.attention_head_dim;
  RECALLD_TRY(HsaQuery query, HsaQuery::load(weights, prefix, config, type));
  RECALLD_TRY(Linear o_proj,
              pack(weights, {{prefix + ".o_proj.weight", config.hidden_size}}, width, type, config.chunk_size));
  Hsa hsa(config, type, std::move(query), std::move(o_proj));
  if (config.hsa_mlp) {
    RECALLD_TRY(hsa.mlp_norm_, weights.floats(prefix + "._mlp_norm.weight", {config.hidden_size}));
    RECALLD_TRY(hsa.mlp_, Mlp::load(weights, prefix + "._mlp", config, type, config.chunk_size));
  }
  return hsa;
}

void Hsa::run(std::span<float> hidden, std::span<const std::vector<AttendedChunk>> attended, WorkerPool& pool) const {
  const size_t width = config_.hidden_size, rows = rows_for(o_proj_, hidden.size() / width);
  const std::vector<float> q = query_.run(hidden);
  pool.run(hidden.size() / (rows * width), [&](size_t block, size_t) {
    run_block(rows, block * rows, q, attended, hidden.data() + block * rows * width);
  });
}

// q: of all blocks · x: [rows, hidden_size], of tokens first_token, ...
void Hsa::run_block(size_t rows, size_t first_token, std::span<const float> q,
                    std::span<const std::vector<AttendedChunk>> attended, float* x) const {
  const size_t width = config_.hidden_size, q_width = o_proj_.in();
  const std::vector<float> read = attend(rows, first_token, q, attended);
  Operands operands;
  operands.fit(type_, rows * std::max(q_width, width));
  to_operands(type_, read.data(), read.size(), operands.at(0));
  std::vector<float> sum(rows * width);  // x + o
  o_proj_.run(operands.at(0), sum.data(), rows);
  add_cpu(x, rows * width, sum.data());
  if (mlp_) rmsnorm(type_, sum.data(), mlp_norm_.data(), rows, width, config_.rms_norm_eps, operands.at(0));
  if (!mlp_ || config_.reset_hsa_residual) std::ranges::copy(sum, x);
  if (mlp_) mlp_->add_to(operands, 1, rows, x);
}

// What the tokens of one block got from their chunks: [rows, heads * head_dim].
std::vector<float> Hsa::attend(size_t rows, size_t first_token, std::span<const float> q,
                               std::span<const std::vector<AttendedChunk>> attended) const {
  const HsaShape shape = hsa_shape(config_);
  const size_t q_width = o_proj_.in(), group_width = shape.heads * shape.head_dim;
  const size_t tokens = attended.size() / config_.retrieval_heads();
  std::vector<float> read(rows * q_width);
  std::vector<HsaStoredChunk> chunks;
  for (size_t token = first_token; token < std::min(tokens, first_token + rows); ++token) {
    for (size_t kv_head = 0; kv_head < config_.num_kv_heads; ++kv_head) {
      const size_t retrieval_head = config_.singlehead_retrieval ? 0 : kv_head;
      chunks.clear();
      for (const AttendedChunk& from : attended[token * config_.retrieval_heads() + retrieval_head]) {
        const Bf16* k = from.kv + kv_head * shape.head_dim;
        chunks.push_back({k, k + shape.tokens * shape.stride, from.weight});
      }
      hsa_attention_cpu(shape, q.data() + token * q_width + kv_head * group_width, chunks,
                        read.data() + (token - first_token) * q_width + kv_head * group_width);
    }
  }
  return read;
}

}  // namespace recalld
