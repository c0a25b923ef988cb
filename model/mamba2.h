// One Mamba-2 block (arXiv 2405.21060, section 7): x + out_proj(RMSNorm_gated(SSD(conv1d_silu(in_proj(RMSNorm(x)))))).
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/matmul.h"
#include "kernels/ssd_scan.h"
#include "model/block.h"
#include "model/config.h"
#include "model/weights.h"

namespace recalld {

class Mamba2 final : public Block {
 public:
  // Reads "<prefix>.norm.weight" and "<prefix>.mixer.*"; the error names what is missing or of another shape.
  static Expected<Mamba2> load(const Weights& weights, const std::string& prefix, const Config& config,
                               ProductType type);

  // The convolution's last inputs [conv_kernel - 1, channels], oldest first, then the SSM state [state_size, num_heads,
  // head_dim].
  size_t state_floats() const override { return conv_floats() + ssd_shape_.state_floats(); }
  void run(float* state, float* hidden, size_t rows) const override;
  void step(std::span<float* const> states, float* hidden) const override;

 private:
  Mamba2(ProductType type, SsdShape shape, Linear in_proj, Linear out_proj);

  size_t conv_floats() const { return (taps_ - 1) * ssd_shape_.channels(); }
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

}  // namespace recalld
