// One Mamba-2 block (arXiv 2405.21060, section 7): x + out_proj(RMSNorm_gated(SSD(conv1d_silu(in_proj(RMSNorm(x)))))).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/matmul.h"
#include "kernels/ssd_scan.h"
#include "kernels/worker_pool.h"
#include "model/config.h"
#include "model/weights.h"

namespace recalld {

class Mamba2 {
 public:
  // Reads "<prefix>.norm.weight" and "<prefix>.mixer.*"; the error names what is missing or of another shape.
  static Expected<Mamba2> load(const Weights& weights, const std::string& prefix, const Config& config,
                               ProductType type);

  // f32 values of one stream's state: the convolution's last inputs [conv_kernel - 1, channels], oldest first, then the
  // SSM state [state_size, num_heads, head_dim].
  size_t state_floats() const { return conv_floats() + ssd_shape_.state_floats(); }
  size_t conv_floats() const { return (taps_ - 1) * ssd_shape_.channels(); }

  // Reads one chunk of 64 tokens on the calling thread alone; several threads may run it on streams of their own.
  // state: [state_floats()] in and out · hidden: [64, hidden_size] in and out
  void run(float* state, float* hidden) const;

 private:
  Mamba2(ProductType type, SsdShape shape, Linear in_proj, Linear out_proj);

  template <class Operand>
  void run_as(float* state, float* hidden) const;

  ProductType type_;
  SsdShape ssd_shape_;
  size_t hidden_size_ = 0;
  size_t taps_ = 0;
  float eps_ = 0;
  std::vector<float> norm_weight_;        // [hidden_size]
  std::vector<float> conv_weight_;        // [taps, channels]
  std::vector<float> conv_bias_;          // [channels]
  std::vector<float> dt_bias_, a_, d_;    // [num_heads]
  std::vector<float> gated_norm_weight_;  // [num_heads * head_dim]
  Linear in_proj_;                        // z, x B C, dt
  Linear out_proj_;
  SsdScan scan_;
};

// Runs consecutive blocks over chunks of one stream, layer L on one chunk beside layer L - 1 on the next.
// The bits do not depend on the number of threads: a chunk's work is the same wherever it runs.
// state: the layers' states, one after the other · hidden: [chunks * 64, hidden_size] in and out
void run_blocks(std::span<const Mamba2> layers, std::span<float> state, size_t chunks, float* hidden,
                size_t hidden_size, WorkerPool& pool);

}  // namespace recalld
