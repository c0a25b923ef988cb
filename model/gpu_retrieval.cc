#include "model/gpu_retrieval.h"

#include <vector>

#include "kernels/elementwise_cuda.h"
#include "kernels/retrieval_cuda.h"

namespace recalld {

Expected<GpuRetrieval> GpuRetrieval::load(GpuWeights& weights, const std::string& prefix, const Config& config) {
  GpuRetrieval retrieval;
  retrieval.hidden_size_ = static_cast<uint32_t>(config.hidden_size);
  retrieval.dim_ = static_cast<uint32_t>(config.retrieval_dim);
  retrieval.heads_ = static_cast<uint32_t>(config.retrieval_heads());
  retrieval.eps_ = config.rms_norm_eps;
  RECALLD_TRY(retrieval.ln_, weights.linear({{prefix + ".ln.weight", config.retrieval_dim}}, config.hidden_size));
  RECALLD_TRY(retrieval.pre_norm_, weights.floats(prefix + ".pre_norm.weight", {config.hidden_size}));
  std::vector<float> gain(config.retrieval_dim, 1.0f);
  if (config.enable_lmk_norm) {
    const size_t width = config.retrieval_dim / config.retrieval_heads();
    RECALLD_TRY(retrieval.q_norm_, weights.floats(prefix + ".lmk_q_norm.weight", {width}));
    RECALLD_TRY(const auto of_head, weights.on_disk().floats(prefix + ".lmk_k_norm.weight", {width}));
    for (size_t i = 0; i < gain.size(); ++i) gain[i] = of_head[i % width];
  }
  RECALLD_TRY(retrieval.gain_, weights.upload(std::span<const float>(gain)));
  if (config.enable_pos_decay) {
    RECALLD_TRY(const auto decay, weights.on_disk().floats(prefix + ".pos_decay", {1}));
    retrieval.pos_decay_ = decay[0];
  }
  return retrieval;
}

GpuRetrieval::Scratch GpuRetrieval::scratch(const Config& config, uint32_t rows, Carver& carver) {
  return {.normed = carver.take<Bf16>(rows * config.hidden_size),
          .projected = carver.take<float>(rows * cuda::matmul_padded(config.retrieval_dim))};
}

cudaError_t GpuRetrieval::run(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden,
                              Bf16* queries) const {
  RECALLD_CUDA(gpu.norm(hidden, pre_norm_, rows, hidden_size_, eps_, scratch.normed));
  RECALLD_CUDA(gpu.multiply(ln_, scratch.normed, rows, scratch.projected));
  return cuda::retrieval_queries({.x = scratch.projected,
                                  .x_stride = ln_.out,
                                  .q_norm = q_norm_,
                                  .gain = gain_,
                                  .rows = rows,
                                  .heads = heads_,
                                  .dim = dim_,
                                  .eps = eps_},
                                 queries, gpu.stream);
}

}  // namespace recalld
