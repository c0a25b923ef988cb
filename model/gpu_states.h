// Room on an NVIDIA GPU for the recurrent states of streams that are being encoded.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "kernels/device_memory.h"
#include "model/backend.h"

namespace recalld {

// Any thread may give a state back; a place is used again on the one stream that all states are computed on, so after
// everything that read it.
// shared: states may outlive the GPU (gpu.h).
class GpuStatePool : public std::enable_shared_from_this<GpuStatePool> {
 public:
  static Expected<std::shared_ptr<GpuStatePool>> open(size_t count, size_t state_bytes);

  size_t count() const { return count_; }
  size_t bytes() const { return count_ * state_bytes_; }

  // A state of any contents; written only by who took it, until it is shared. `device` when none is free.
  class State final : public DeviceState {
   public:
    State(std::shared_ptr<GpuStatePool> pool, size_t place) : pool_(std::move(pool)), place_(place) {}
    ~State() override { pool_->give_back(place_); }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    float* data() const { return pool_->buffer_.as<float>(place_ * pool_->state_bytes_); }

   private:
    const std::shared_ptr<GpuStatePool> pool_;
    const size_t place_;
  };
  Expected<std::shared_ptr<State>> take();
  // Overwrites what was left in places that are free.
  cudaError_t erase_free(cudaStream_t stream);

 private:
  void give_back(size_t place);

  size_t count_ = 0;
  size_t state_bytes_ = 0;
  cuda::DeviceBuffer buffer_;
  std::mutex mutex_;
  std::vector<size_t> free_;
};

}  // namespace recalld
