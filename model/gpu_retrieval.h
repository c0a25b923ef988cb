// What tokens ask of landmarks, on an NVIDIA GPU: the twin of Retrieval in retrieval.h.
#pragma once

#include <string>

#include "model/gpu_layers.h"

namespace recalld {

class GpuRetrieval {
 public:
  static Expected<GpuRetrieval> load(GpuWeights& weights, const std::string& prefix, const Config& config);

  struct Scratch {
    Bf16* normed;      // [rows, hidden_size]
    float* projected;  // [rows, ln.out]
  };
  static Scratch scratch(const Config& config, uint32_t rows, Carver& carver);

  // hidden: [rows, hidden_size] · queries: [rows, retrieval_heads, retrieval_dim], as Ramba::landmark_queries()
  cudaError_t run(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden,
                  Bf16* queries) const;

  // What is added to the i-th newest of the selected scores, times i: 0 without enable_pos_decay.
  float pos_decay() const { return pos_decay_; }

 private:
  uint32_t hidden_size_ = 0, dim_ = 0, heads_ = 0;
  float eps_ = 0, pos_decay_ = 0;
  const float *pre_norm_ = nullptr, *q_norm_ = nullptr, *gain_ = nullptr;  // q_norm_ null without enable_lmk_norm
  GpuLinear ln_;
};

}  // namespace recalld
