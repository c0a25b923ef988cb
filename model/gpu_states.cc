#include "model/gpu_states.h"

#include <string>

#include "model/gpu_weights.h"

namespace recalld {

Expected<std::shared_ptr<GpuStatePool>> GpuStatePool::open(size_t count, size_t state_bytes) {
  auto pool = std::make_shared<GpuStatePool>();
  pool->count_ = count;
  pool->state_bytes_ = state_bytes;
  RECALLD_CHECK(gpu_done("make room for recurrent states on the GPU",
                         cuda::DeviceBuffer::allocate(count * state_bytes, pool->buffer_)));
  for (size_t place = count; place > 0; --place) pool->free_.push_back(place - 1);
  return pool;
}

Expected<std::shared_ptr<GpuStatePool::State>> GpuStatePool::take() {
  const std::lock_guard lock(mutex_);
  if (free_.empty())
    return fail(ErrorKind::device,
                "take a recurrent state on the GPU: all " + std::to_string(count_) + " are in use; raise --gpu-budget");
  const size_t place = free_.back();
  free_.pop_back();
  return std::make_shared<State>(shared_from_this(), place);
}

cudaError_t GpuStatePool::erase_free(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  for (const size_t place : free_)
    RECALLD_CUDA(cudaMemsetAsync(buffer_.as<char>(place * state_bytes_), 0, state_bytes_, stream));
  return cudaSuccess;
}

void GpuStatePool::give_back(size_t place) {
  const std::lock_guard lock(mutex_);
  free_.push_back(place);
}

}  // namespace recalld
