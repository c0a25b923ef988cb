// The weights of a checkpoint in the memory of an NVIDIA GPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/bf16.h"
#include "kernels/device_memory.h"
#include "kernels/matmul_cuda.h"
#include "model/projection.h"
#include "model/weights.h"

// Hands a CUDA call's failure on.
#define RECALLD_CUDA(call)                                                                          \
  do {                                                                                              \
    const cudaError_t RECALLD_CONCAT(status_, __LINE__) = (call);                                   \
    if (RECALLD_CONCAT(status_, __LINE__) != cudaSuccess) return RECALLD_CONCAT(status_, __LINE__); \
  } while (false)

namespace recalld {

// What a failed call is told as: Error::device, "ACTION: cause; what to do".
Error gpu_error(std::string_view action, cudaError_t status);
Expected<void> gpu_done(std::string_view action, cudaError_t status);

// A product's weights and how they are multiplied.
struct GpuLinear {
  const Bf16* w = nullptr;  // [out, in]
  cuda::MatmulPlan plan;
  uint32_t out = 0;  // up to a multiple of 16: the surplus rows are zeros
  uint32_t in = 0;
};

class GpuWeights {
 public:
  // Everything is borrowed. Uploads wait for the device.
  GpuWeights(const Weights& weights, const cuda::Matmul& matmul) : weights_(weights), matmul_(matmul) {}

  // Fail with invalid_request, which names the tensor, as Weights does, or with device.
  Expected<const float*> floats(const std::string& name, const std::vector<size_t>& shape);
  Expected<const float*> upload(std::span<const float> values);
  Expected<const Bf16*> upload(std::span<const Bf16> values);
  // Matrices [rows, in] one above the other.
  Expected<GpuLinear> linear(const std::vector<Stacked>& parts, size_t in);

  const Weights& on_disk() const { return weights_; }
  uint64_t bytes() const { return bytes_; }
  std::vector<cuda::DeviceBuffer> take() { return std::move(buffers_); }  // what the pointers point into

 private:
  Expected<const void*> upload(const void* data, size_t bytes);

  const Weights& weights_;
  const cuda::Matmul& matmul_;
  std::vector<cuda::DeviceBuffer> buffers_;
  std::vector<cuda::MatmulPlan> plans_;  // one a shape: choosing takes the device some time
  uint64_t bytes_ = 0;
};

}  // namespace recalld
