// A block of sliding-window attention on an NVIDIA GPU, as a sequence of kernels: the twin of Swa in swa.h.
#pragma once

#include <span>
#include <string>

#include "kernels/swa_attention_cuda.h"
#include "model/gpu_layers.h"

namespace recalld {

class GpuSwa {
 public:
  static Expected<GpuSwa> load(GpuWeights& weights, const std::string& prefix, const Config& config);

  static size_t state_floats(const Config& config);

  struct Scratch {
    Bf16* normed;  // [rows, hidden_size]
    float* qkv;    // [rows, qkv.out]
    Bf16* k;       // [rows, kv_heads, head_dim]
    Bf16* v;       // likewise
    Bf16* read;    // [rows, heads, head_dim] what came of attention
    float* out;    // [rows, hidden_size]
    GpuMlp::Scratch mlp;
  };
  static Scratch scratch(const Config& config, uint32_t rows, Carver& carver);

  // hidden: [rows, hidden_size] in and out
  cudaError_t run(const GpuContext& gpu, const Scratch& scratch, std::span<const GpuStreamRows> streams, uint32_t rows,
                  float* hidden) const;
  // One token of each of lanes_max streams. states: [lanes_max] pointers, in device memory
  cudaError_t step(const GpuContext& gpu, const Scratch& scratch, float* const* states, float* hidden) const;

 private:
  cudaError_t begin(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden) const;
  cudaError_t end(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, float* hidden) const;
  cuda::SwaAttention attention(const Scratch& scratch) const;

  uint32_t hidden_size_ = 0, heads_ = 0, kv_heads_ = 0, window_ = 0;
  float eps_ = 0;
  const float *norm_ = nullptr, *post_norm_ = nullptr, *q_norm_ = nullptr, *k_norm_ = nullptr;
  const float *cos_ = nullptr, *sin_ = nullptr;  // [window + 64, head_dim / 2]
  GpuLinear qkv_, o_proj_;
  GpuMlp mlp_;
};

}  // namespace recalld
