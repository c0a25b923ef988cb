// The chunk encoder: 64 lower hidden states and a CLS embedding through a small bidirectional transformer, to a
// landmark and to K and V (arXiv 2510.17196, chunk encoder; arXiv 2504.16795, section 3.1).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/encoder_attention.h"
#include "kernels/matmul.h"
#include "kernels/worker_pool.h"
#include "model/config.h"
#include "model/mlp.h"
#include "model/projection.h"
#include "model/weights.h"

namespace recalld {

// What one chunk leaves behind, before any rounding for storage.
struct EncodedChunk {
  std::vector<float> landmark;  // [retrieval_dim]: of unit RMS a retrieval head, before the gain of lmk_k_norm
  std::vector<float> k;         // [chunk_size, kv_heads, head_dim]
  std::vector<float> v;         // [chunk_size, kv_heads, head_dim]
};

class ChunkEncoder {
 public:
  // Reads "<prefix>.*"; the error names what is missing or of another shape.
  static Expected<ChunkEncoder> load(const Weights& weights, const std::string& prefix, const Config& config,
                                     ProductType type);

  // Chunks are encoded each by itself, on as many threads as the pool has; the bits do not depend on that.
  // hidden: [n * 64, hidden_size] · returns n chunks
  std::vector<EncodedChunk> run(std::span<const float> hidden, WorkerPool& pool) const;
  // Some chunks on the calling thread. hidden: [count * 64, hidden_size] · chunks out: [count]
  void run(const float* hidden, size_t count, EncodedChunk* chunks) const;

 private:
  struct Layer {
    std::vector<float> input_norm, post_norm;  // [hidden_size]
    Linear qkv;
    std::vector<float> qkv_bias;        // [3 * hidden_size], empty without encoder_bias
    std::vector<float> q_norm, k_norm;  // [head width]
    Linear o_proj;
    Mlp mlp;
  };

  ChunkEncoder(const Config& config, ProductType type, EncoderAttention attention, Linear kv_proj,
               Linear landmark_proj);
  static Expected<Layer> load_layer(const Weights& weights, const std::string& prefix, const Config& config,
                                    ProductType type, size_t rows);

  void run_layer(const Layer& layer, size_t count, float* x) const;
  EncodedChunk project(const float* encoded) const;

  Config config_;
  ProductType type_;
  size_t rows_;  // of one chunk: its tokens, and the CLS token if there is one
  EncoderAttention attention_;
  std::vector<Layer> layers_;
  std::vector<float> cls_;     // [hidden_size], empty without
  std::vector<float> norm_;    // [hidden_size]
  Linear kv_proj_;             // K then V of 64 rows
  std::vector<float> k_norm_;  // [head_dim], empty without enable_qk_norm
  Linear landmark_proj_;       // of one row
};

}  // namespace recalld
