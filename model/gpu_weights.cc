#include "model/gpu_weights.h"

#include <algorithm>

namespace recalld {

Error gpu_error(std::string_view action, cudaError_t status) {
  const bool full = status == cudaErrorMemoryAllocation;
  return {ErrorKind::device, std::string(action) + ": " + cudaGetErrorString(status) +
                                 (full ? "; give the GPU less to do with --gpu-budget, or use --device cpu"
                                       : "; restart the daemon, with --device cpu if the GPU stays lost")};
}

Expected<void> gpu_done(std::string_view action, cudaError_t status) {
  if (status != cudaSuccess) return std::unexpected(gpu_error(action, status));
  return {};
}

Expected<const float*> GpuWeights::floats(const std::string& name, const std::vector<size_t>& shape) {
  RECALLD_TRY(const auto values, weights_.floats(name, shape));
  return upload(std::span<const float>(values));
}

Expected<const float*> GpuWeights::upload(std::span<const float> values) {
  RECALLD_TRY(const void* data, upload(values.data(), values.size_bytes()));
  return static_cast<const float*>(data);
}

Expected<const Bf16*> GpuWeights::upload(std::span<const Bf16> values) {
  RECALLD_TRY(const void* data, upload(values.data(), values.size_bytes()));
  return static_cast<const Bf16*>(data);
}

Expected<const void*> GpuWeights::upload(const void* data, size_t bytes) {
  cuda::DeviceBuffer buffer;
  cudaError_t status = cuda::DeviceBuffer::allocate(bytes, buffer);
  if (status == cudaSuccess) status = cudaMemcpy(buffer.data(), data, bytes, cudaMemcpyHostToDevice);
  RECALLD_CHECK(gpu_done("copy weights to the GPU", status));
  bytes_ += bytes;
  buffers_.push_back(std::move(buffer));
  return static_cast<const void*>(buffers_.back().data());
}

Expected<GpuLinear> GpuWeights::linear(const std::vector<Stacked>& parts, size_t in) {
  std::vector<Bf16> stacked;
  for (const auto& [name, rows] : parts) {
    RECALLD_TRY(const auto part, weights_.bf16(name, {rows, in}));
    stacked.insert(stacked.end(), part.begin(), part.end());
  }
  GpuLinear linear;
  linear.in = static_cast<uint32_t>(in);
  linear.out = static_cast<uint32_t>(cuda::matmul_padded(stacked.size() / in));
  stacked.resize(size_t{linear.out} * in);
  const auto known = std::ranges::find_if(
      plans_, [&](const cuda::MatmulPlan& plan) { return plan.out == linear.out && plan.in == linear.in; });
  if (known != plans_.end()) {
    linear.plan = *known;
  } else {
    RECALLD_CHECK(gpu_done("choose how the GPU multiplies by " + parts.front().name,
                           matmul_.choose(linear.out, linear.in, linear.plan)));
    plans_.push_back(linear.plan);
  }
  RECALLD_TRY(linear.w, upload(std::span<const Bf16>(stacked)));
  return linear;
}

}  // namespace recalld
