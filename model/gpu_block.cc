#include "model/gpu_block.h"

namespace recalld {

Expected<GpuBlock> GpuBlock::load(GpuWeights& weights, const std::string& prefix, const Config& config) {
  if (config.family == BlockFamily::swa_hsa) {
    RECALLD_TRY(GpuSwa block, GpuSwa::load(weights, prefix, config));
    return GpuBlock(std::move(block));
  }
  RECALLD_TRY(GpuMamba2 block, GpuMamba2::load(weights, prefix, config));
  return GpuBlock(std::move(block));
}

size_t GpuBlock::conv_floats(const Config& config) {
  return config.family == BlockFamily::swa_hsa ? 0 : GpuMamba2::conv_floats(config);
}
size_t GpuBlock::state_floats(const Config& config) {
  return config.family == BlockFamily::swa_hsa ? GpuSwa::state_floats(config) : GpuMamba2::state_floats(config);
}

GpuBlock::Scratch GpuBlock::scratch(const Config& config, uint32_t rows, uint32_t streams, Carver& carver) {
  Scratch scratch{};
  if (config.family == BlockFamily::swa_hsa)
    scratch.swa = GpuSwa::scratch(config, rows, carver);
  else
    scratch.mamba2 = GpuMamba2::scratch(config, rows, streams, carver);
  return scratch;
}

cudaError_t GpuBlock::run(const GpuContext& gpu, const Scratch& scratch, std::span<const GpuStreamRows> streams,
                          uint32_t rows, float* hidden) const {
  if (const auto* swa = std::get_if<GpuSwa>(&block_)) return swa->run(gpu, scratch.swa, streams, rows, hidden);
  return std::get<GpuMamba2>(block_).run(gpu, scratch.mamba2, streams, rows, hidden);
}

cudaError_t GpuBlock::step(const GpuContext& gpu, const Scratch& scratch, float* const* conv, float* const* ssm,
                           float* hidden) const {
  if (const auto* swa = std::get_if<GpuSwa>(&block_)) return swa->step(gpu, scratch.swa, conv, hidden);
  return std::get<GpuMamba2>(block_).step(gpu, scratch.mamba2, conv, ssm, hidden);
}

}  // namespace recalld
