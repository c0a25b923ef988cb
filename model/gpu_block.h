// A block of the lower or of the upper half on an NVIDIA GPU, of the config's family: the twin of Block in block.h.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <variant>

#include "model/gpu_layers.h"
#include "model/gpu_swa.h"

namespace recalld {

class GpuBlock {
 public:
  static Expected<GpuBlock> load(GpuWeights& weights, const std::string& prefix, const Config& config);

  // Of a state as Block's, the part that the first of step()'s tables points to; the second one points behind it.
  static size_t conv_floats(const Config& config);
  static size_t state_floats(const Config& config);

  // Of the model's family; the other one's is empty.
  struct Scratch {
    GpuMamba2::Scratch mamba2;
    GpuSwa::Scratch swa;
  };
  static Scratch scratch(const Config& config, uint32_t rows, uint32_t streams, Carver& carver);

  // As GpuMamba2's.
  cudaError_t run(const GpuContext& gpu, const Scratch& scratch, std::span<const GpuStreamRows> streams, uint32_t rows,
                  float* hidden) const;
  cudaError_t step(const GpuContext& gpu, const Scratch& scratch, float* const* conv, float* const* ssm,
                   float* hidden) const;

 private:
  template <class Kind>
  explicit GpuBlock(Kind block) : block_(std::move(block)) {}

  std::variant<GpuMamba2, GpuSwa> block_;
};

}  // namespace recalld
