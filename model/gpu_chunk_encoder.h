// The chunk encoder on an NVIDIA GPU: the twin of ChunkEncoder in chunk_encoder.h.
#pragma once

#include <string>
#include <vector>

#include "model/gpu_layers.h"

namespace recalld {

class GpuChunkEncoder {
 public:
  static Expected<GpuChunkEncoder> load(GpuWeights& weights, const std::string& prefix, const Config& config);

  struct Scratch {
    float* x;        // [chunks, rows, hidden_size]
    Bf16* normed;    // likewise
    float* qkv;      // [chunks, rows, 3 * hidden_size]
    Bf16* attended;  // [chunks, rows, hidden_size]
    float* out;      // likewise
    GpuMlp::Scratch mlp;
    float* kv;         // [chunks, rows, K then V]
    Bf16* summaries;   // [chunks, hidden_size]
    float* landmarks;  // [chunks, landmark_dim]
  };
  static Scratch scratch(const Config& config, uint32_t chunks, Carver& carver);

  // hidden: [chunks * 64, hidden_size] · records: [chunks, K then V], as stored · landmarks: [chunks, landmark_dim]
  cudaError_t run(const GpuContext& gpu, const Scratch& scratch, const float* hidden, uint32_t chunks, Bf16* records,
                  Bf16* landmarks) const;

 private:
  struct Layer {
    const float *input_norm = nullptr, *post_norm = nullptr, *bias = nullptr, *q_norm = nullptr, *k_norm = nullptr;
    GpuLinear qkv, o_proj;
    GpuMlp mlp;
  };
  static Expected<Layer> load_layer(GpuWeights& weights, const std::string& prefix, const Config& config);

  cudaError_t run_layer(const GpuContext& gpu, const Scratch& scratch, const Layer& layer, uint32_t chunks) const;

  uint32_t hidden_size_ = 0, rows_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, dim_ = 0, retrieval_heads_ = 0;
  bool norm_landmarks_ = false;
  float eps_ = 0;
  const float *cls_ = nullptr, *norm_ = nullptr, *k_norm_ = nullptr, *cos_ = nullptr, *sin_ = nullptr;
  std::vector<Layer> layers_;
  GpuLinear kv_proj_, landmark_proj_;
};

}  // namespace recalld
