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

  // Reads one chunk of 64 tokens, or the `rows` first of it, on the calling thread alone; several threads may run it on
  // streams of their own.
  // state: [state_floats()] in and out · hidden: [64, hidden_size] in and out; rows that are not read end up as
  // anything
  void run(float* state, float* hidden, size_t rows = ssd_block) const;

  // Reads one token of each of several streams, at most Linear::rows_few. A stream's bits do not depend on the others.
  // states: [streams] of [state_floats()] in and out · hidden: [Linear::rows_few, hidden_size] in and out, a stream a
  // row
  void step(std::span<float* const> states, float* hidden) const;

 private:
  Mamba2(ProductType type, SsdShape shape, Linear in_proj, Linear out_proj);

  template <class Operand>
  void run_as(float* state, float* hidden, size_t rows) const;
  template <class Operand>
  void step_as(std::span<float* const> states, float* hidden) const;

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
// state: the layers' states, one after the other · tokens: of which the last ones may be a part of a chunk
// hidden: [tokens up to a multiple of 64, hidden_size] in and out
void run_blocks(std::span<const Mamba2> layers, std::span<float> state, size_t tokens, float* hidden,
                size_t hidden_size, WorkerPool& pool);

// The same for one token of each of several streams. states: [streams] · hidden: as in Mamba2::step
void step_blocks(std::span<const Mamba2> layers, std::span<float* const> states, float* hidden);

}  // namespace recalld
