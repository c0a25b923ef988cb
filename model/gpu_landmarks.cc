#include "model/gpu_landmarks.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "kernels/landmark_topk_int8_cuda.h"
#include "model/gpu_weights.h"

namespace recalld {
namespace {

uint64_t rounded(uint64_t chunks) {
  constexpr uint64_t step = 256;
  return (chunks + step - 1) / step * step;
}

}  // namespace

uint64_t GpuLandmarks::device_bytes(Placement placement, uint64_t capacity, uint32_t dim) {
  switch (placement) {
    case Placement::device:
      return capacity * (dim * sizeof(Bf16) + sizeof(uint32_t));
    case Placement::device_int8:
      return capacity * (dim + sizeof(float) + sizeof(uint32_t));
    case Placement::host:
      return 0;
  }
  return 0;
}

uint64_t GpuLandmarks::host_bytes(Placement placement, uint64_t capacity, uint32_t dim) {
  switch (placement) {
    case Placement::device:
      return 0;
    case Placement::device_int8:
      return capacity * dim * sizeof(Bf16);
    case Placement::host:
      return capacity * (dim * sizeof(Bf16) + sizeof(uint32_t));
  }
  return 0;
}

bool GpuLandmarks::fits(Placement placement, uint64_t capacity) const {
  const auto has = [](const GpuShare& share, uint64_t now, uint64_t then) {
    return then <= now || share.has(then - now);
  };
  return has(device_, device_bytes(placement_, capacity_, dim_), device_bytes(placement, capacity, dim_)) &&
         has(host_, host_bytes(placement_, capacity_, dim_), host_bytes(placement, capacity, dim_));
}

bool GpuLandmarks::has_room(uint64_t chunks) const {
  return chunks_ + chunks <= capacity_ || fits(placement_, rounded(chunks_ + chunks));
}

Expected<void> GpuLandmarks::write(uint64_t first, std::span<const Bf16> landmarks) {
  const uint64_t count = landmarks.size() / dim_;
  RECALLD_CHECK(reserve(first + count));
  const auto write_rows = [&]() -> cudaError_t {
    if (placement_ == Placement::device) {
      RECALLD_CUDA(cudaMemcpyAsync(bf16_.as<Bf16>() + first * dim_, landmarks.data(), landmarks.size_bytes(),
                                   cudaMemcpyHostToDevice, stream_));
    } else {
      std::memcpy(host_bf16_ + first * dim_, landmarks.data(), landmarks.size_bytes());
      RECALLD_CUDA(encode(first, count));
    }
    return cudaStreamSynchronize(stream_);
  };
  RECALLD_CHECK(gpu_done("write landmarks to the GPU", write_rows()));
  chunks_ = std::max(chunks_, first + count);
  return {};
}

// A NaN comes after everything, and is left out then.
Expected<void> GpuLandmarks::hide(uint64_t chunk) {
  constexpr int nan_byte = 0xff;
  const auto hide_row = [&]() -> cudaError_t {
    if (placement_ == Placement::device) {
      RECALLD_CUDA(cudaMemsetAsync(bf16_.as<Bf16>() + chunk * dim_, nan_byte, dim_ * sizeof(Bf16), stream_));
    } else {
      std::ranges::fill(std::as_writable_bytes(std::span(host_bf16_ + chunk * dim_, dim_)), std::byte{nan_byte});
      RECALLD_CUDA(encode(chunk, 1));
    }
    return cudaStreamSynchronize(stream_);
  };
  return gpu_done("hide a damaged chunk from the GPU", hide_row());
}

cudaError_t GpuLandmarks::encode(uint64_t first, uint64_t count) {
  if (placement_ != Placement::device_int8) return cudaSuccess;
  return cuda::landmarks_to_int8(host_bf16_ + first * dim_, count, dim_, codes_.as<int8_t>() + first * dim_,
                                 scales_.as<float>() + first, stream_);
}

// Grows by half at a time where that fits, else by what is needed; and where not even that does, one step down.
Expected<void> GpuLandmarks::reserve(uint64_t chunks) {
  if (chunks <= capacity_) return {};
  const uint64_t needed = rounded(chunks), roomy = std::max(needed, rounded(capacity_ + capacity_ / 2));
  const Placement before = placement_;
  std::optional<cudaError_t> status;  // none: no placement has room
  for (const Placement placement : {Placement::device, Placement::device_int8, Placement::host}) {
    if (placement < before) continue;
    for (const uint64_t capacity : {roomy, needed}) {
      if (!fits(placement, capacity)) continue;
      status = cudaSuccess;
      // Where the old and the new do not fit side by side, what is there goes by way of the host, whatever its share.
      if (!device_.has(device_bytes(placement, capacity, dim_))) status = move_to({Placement::host, needed});
      if (status == cudaSuccess && (placement_ != placement || capacity_ != capacity))
        status = move_to({placement, capacity});
      if (status != cudaErrorMemoryAllocation) return gpu_done("make room for landmarks on the GPU", *status);
    }
  }
  if (status) return std::unexpected(gpu_error("make room for landmarks in host memory", *status));
  return fail(ErrorKind::full, "make room for landmarks of " + std::to_string(chunks) +
                                   " chunks: they fit neither on the GPU nor in the host's memory for them; raise "
                                   "--gpu-budget or --memory-budget, or use --device cpu");
}

cudaError_t GpuLandmarks::move_to(Room room) {
  const auto [placement, capacity] = room;
  const bool on_host = placement == Placement::host, as_bf16 = placement == Placement::device;
  const size_t row_bytes = dim_ * sizeof(Bf16), used_bytes = chunks_ * row_bytes;
  cuda::DeviceBuffer bf16, codes, scales, pages;
  cuda::PinnedScratch host_memory;
  ByteSpan host_bf16, host_pages;
  if (as_bf16)
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(capacity * row_bytes, bf16));
  else
    RECALLD_CUDA(host_memory.allocate(capacity * row_bytes, host_bf16));
  if (placement == Placement::device_int8) {
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(capacity * dim_, codes));
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(capacity * sizeof(float), scales));
  }
  if (on_host)
    RECALLD_CUDA(host_memory.allocate(capacity * sizeof(uint32_t), host_pages));
  else
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(capacity * sizeof(uint32_t), pages));

  auto* const new_bf16 = as_bf16 ? bf16.as<Bf16>() : reinterpret_cast<Bf16*>(host_bf16.data());
  auto* const new_pages = on_host ? reinterpret_cast<uint32_t*>(host_pages.data()) : pages.as<uint32_t>();
  RECALLD_CUDA(cudaMemsetAsync(new_pages, 0xff, capacity * sizeof(uint32_t), stream_));  // no chunk is cached
  if (chunks_ > 0) {
    RECALLD_CUDA(cudaMemcpyAsync(new_pages, page_table(), chunks_ * sizeof(uint32_t), cudaMemcpyDefault, stream_));
    RECALLD_CUDA(cudaMemcpyAsync(new_bf16, landmarks(), used_bytes, cudaMemcpyDefault, stream_));
    RECALLD_CUDA(cudaStreamSynchronize(stream_));
  }
  // From here on nothing but the device itself can fail.
  overwrite();
  device_.take(device_bytes(placement, capacity, dim_));
  host_.take(host_bytes(placement, capacity, dim_));
  device_.give_back(device_bytes(placement_, capacity_, dim_));
  host_.give_back(host_bytes(placement_, capacity_, dim_));
  bf16_ = std::move(bf16);
  codes_ = std::move(codes);
  scales_ = std::move(scales);
  pages_ = std::move(pages);
  host_memory_ = std::move(host_memory);
  host_bf16_ = as_bf16 ? nullptr : new_bf16;
  host_pages_ = on_host ? new_pages : nullptr;
  placement_ = placement;
  capacity_ = capacity;
  if (chunks_ == 0) return cudaSuccess;
  RECALLD_CUDA(encode(0, chunks_));
  return cudaStreamSynchronize(stream_);
}

cudaError_t GpuLeftovers::erase(cudaStream_t stream) const {
  for (const cuda::DeviceBuffer& buffer : buffers_)
    RECALLD_CUDA(cudaMemsetAsync(buffer.data(), 0, buffer.bytes(), stream));
  return cudaSuccess;
}

void GpuLandmarks::overwrite() {
  const std::array buffers{&bf16_, &codes_, &scales_, &pages_};
  const auto overwrite_device = [&]() -> cudaError_t {
    for (const cuda::DeviceBuffer* buffer : buffers)
      if (buffer->data()) RECALLD_CUDA(cudaMemsetAsync(buffer->data(), 0, buffer->bytes(), stream_));
    return cudaSuccess;
  };
  const cudaError_t status = cuda::told(overwrite_device());
  const cudaError_t done = cuda::told(cudaStreamSynchronize(stream_));  // also after an error: it may use pinned memory
  host_memory_.overwrite();
  if (status == cudaSuccess && done == cudaSuccess) return;
  for (cuda::DeviceBuffer* buffer : buffers)
    if (buffer->data()) leftovers_.add(std::move(*buffer));
}

GpuLandmarks::~GpuLandmarks() {
  overwrite();
  device_.give_back(device_bytes(placement_, capacity_, dim_));
  host_.give_back(host_bytes(placement_, capacity_, dim_));
}

}  // namespace recalld
