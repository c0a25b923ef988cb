// The model's layers on an NVIDIA GPU, as sequences of kernels: Mamba-2 (arXiv 2405.21060, section 7), HSA and the
// chunk encoder (arXiv 2504.16795, section 3; arXiv 2510.17196). Twins: mamba2.h, hsa.h, chunk_encoder.h.
//
// Functions enqueue work on the stream and do not wait. All pointers are to device memory; hidden states are f32,
// inputs of products bf16.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/chunk_selection_cuda.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/matmul_cuda.h"
#include "model/config.h"
#include "model/gpu_weights.h"

namespace recalld {

// What all layers compute with. The stream is one for all: calls share their scratch.
struct GpuContext {
  const cuda::Matmul* matmul = nullptr;
  void* matmul_workspace = nullptr;
  cudaStream_t stream = nullptr;

  cudaError_t multiply(const GpuLinear& linear, const Bf16* x, uint32_t rows, float* y) const {
    return matmul->run(linear.plan, x, linear.w, rows, y, matmul_workspace, stream);
  }
  // y = RMSNorm(x), of whole rows. x, y: [rows, width] · y: float or Bf16
  template <class T>
  cudaError_t norm(const float* x, const float* weight, uint32_t rows, uint32_t width, float eps, T* y) const {
    return cuda::rmsnorm(
        {.x = x, .x_stride = width, .weight = weight, .rows = rows, .heads = 1, .width = width, .eps = eps}, y, stream);
  }
};

// Hands out parts of one allocation, at multiples of 256 bytes; from a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(size_t count) {
    T* const part = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ = (used_ + count * sizeof(T) + 255) / 256 * 256;
    return part;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// ---- Mamba-2

// Consecutive tokens of one stream, and its state at one layer.
struct GpuStreamRows {
  float* state = nullptr;  // [state_floats] as the block's
  uint32_t first = 0;      // row
  uint32_t tokens = 0;
};

class GpuMamba2 {
 public:
  static Expected<GpuMamba2> load(GpuWeights& weights, const std::string& prefix, const Config& config);

  static size_t conv_floats(const Config& config);
  static size_t state_floats(const Config& config);

  struct Scratch {
    Bf16* normed;      // [rows, hidden_size]
    float* projected;  // [rows, in_proj.out]
    Bf16* xbc;         // [rows, channels]
    float* xbc_few;    // [lanes_max, channels]
    Bf16* y;           // [rows, inner]
    float* y_few;      // [lanes_max, inner]
    Bf16* gated;       // [rows, inner]
    float* out;        // [rows, hidden_size]
    void* scan;        // of ssd_scan_workspace()
  };
  static Scratch scratch(const Config& config, uint32_t rows, uint32_t streams, Carver& carver);

  // Blocks of 64 tokens, counted from each stream's first row. hidden: [rows, hidden_size] in and out
  cudaError_t run(const GpuContext& gpu, const Scratch& scratch, std::span<const GpuStreamRows> streams, uint32_t rows,
                  float* hidden) const;
  // One token of each of lanes_max streams. conv, ssm: [lanes_max] pointers to their states, in device memory
  cudaError_t step(const GpuContext& gpu, const Scratch& scratch, float* const* conv, float* const* ssm,
                   float* hidden) const;

 private:
  cudaError_t begin(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden) const;
  cudaError_t end(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, float* hidden) const;

  uint32_t hidden_size_ = 0, inner_ = 0, channels_ = 0, heads_ = 0, state_size_ = 0, taps_ = 0;
  size_t conv_floats_ = 0;
  float eps_ = 0;
  const float *norm_ = nullptr, *conv_weight_ = nullptr, *conv_bias_ = nullptr, *dt_bias_ = nullptr, *a_ = nullptr,
              *d_ = nullptr, *gated_norm_ = nullptr;
  GpuLinear in_proj_, out_proj_;
};

// ---- SwiGLU

class GpuMlp {
 public:
  static Expected<GpuMlp> load(GpuWeights& weights, const std::string& prefix, const Config& config);

  struct Scratch {
    float* gate_up;  // [rows, 2 * mlp_size]
    Bf16* gated;     // [rows, mlp_size]
    float* out;      // [rows, hidden_size]
  };
  static Scratch scratch(const Config& config, uint32_t rows, Carver& carver);

  // hidden += MLP(x). x: [rows, hidden_size], normed · hidden: [rows, hidden_size]
  cudaError_t add_to(const GpuContext& gpu, const Scratch& scratch, const Bf16* x, uint32_t rows, float* hidden) const;

 private:
  uint32_t hidden_size_ = 0, inner_ = 0;
  GpuLinear gate_up_, down_;
};

// ---- HSA

// What tokens attend to, as hsa_attention() reads it.
struct GpuAttended {
  const uint32_t* slots = nullptr;     // [rows, retrieval_heads, k] in the order of attention
  const float* scores = nullptr;       // likewise
  const uint32_t* identity = nullptr;  // [slots of the cache] 0, 1, ...: the selection has gone through page tables
  const Bf16* cache = nullptr;
};

class GpuHsa {
 public:
  // pos_decay: of the group's retrieval
  static Expected<GpuHsa> load(GpuWeights& weights, const std::string& prefix, const Config& config, float pos_decay);

  struct Scratch {
    Bf16* normed;     // [rows, hidden_size]
    float* q;         // [rows, heads, head_dim]
    Bf16* q_rounded;  // likewise
    Bf16* read;       // likewise: what came of attention
    float* sum;       // [rows, hidden_size]
    void* attention;  // of hsa_attention_workspace(), zeroed before its first use
    size_t attention_bytes;
    GpuMlp::Scratch mlp;
  };
  static Scratch scratch(const Config& config, uint32_t rows, Carver& carver);

  // hidden: [rows, hidden_size] in and out
  cudaError_t run(const GpuContext& gpu, const Scratch& scratch, const GpuAttended& attended, uint32_t rows,
                  float* hidden) const;
  // scratch.q = q_proj(RMSNorm(hidden)), normed a head when enable_qk_norm
  cudaError_t query(const GpuContext& gpu, const Scratch& scratch, uint32_t rows, const float* hidden) const;

 private:
  uint32_t hidden_size_ = 0, heads_ = 0, kv_heads_ = 0, retrieval_heads_ = 0, head_dim_ = 0, k_ = 0;
  bool reset_residual_ = false;
  float eps_ = 0;
  ChunkWeighting weighting_;
  const float *pre_norm_ = nullptr, *q_norm_ = nullptr, *mlp_norm_ = nullptr;  // q_norm_ null without enable_qk_norm
  GpuLinear q_proj_, o_proj_;
  std::optional<GpuMlp> mlp_;
};

}  // namespace recalld
