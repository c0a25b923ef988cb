#include "model/retrieval.h"

#include "kernels/rmsnorm.h"
#include "model/projection.h"

namespace recalld {

Expected<Retrieval> Retrieval::load(const Weights& weights, const std::string& prefix, const Config& config,
                                    ProductType type) {
  RECALLD_TRY(Linear ln, pack(weights, {{prefix + ".ln.weight", config.retrieval_dim}}, config.hidden_size, type,
                              config.chunk_size));
  Retrieval retrieval(config, type, std::move(ln));
  RECALLD_TRY(retrieval.pre_norm_, weights.floats(prefix + ".pre_norm.weight", {config.hidden_size}));
  retrieval.landmark_gain_.assign(config.retrieval_dim, 1.0f);
  if (config.enable_lmk_norm) {
    const size_t width = config.retrieval_dim / config.retrieval_heads();
    RECALLD_TRY(retrieval.q_norm_, weights.floats(prefix + ".lmk_q_norm.weight", {width}));
    RECALLD_TRY(const auto gain, weights.floats(prefix + ".lmk_k_norm.weight", {width}));
    for (size_t i = 0; i < config.retrieval_dim; ++i) retrieval.landmark_gain_[i] = gain[i % width];
  }
  return retrieval;
}

std::vector<float> Retrieval::embed(std::span<const float> hidden) const {
  std::vector<float> q = project_normed(type_, ln_, pre_norm_, config_.rms_norm_eps, hidden);
  if (config_.enable_lmk_norm)
    rmsnorm_cpu(q.data(), q_norm_.data(), q.size() / q_norm_.size(), q_norm_.size(), config_.rms_norm_eps, q.data());
  return q;
}

}  // namespace recalld
