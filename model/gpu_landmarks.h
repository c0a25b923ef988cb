// The landmarks of one memory on an NVIDIA GPU and its page table, within a share of the budget (gpu.h, Placement).
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/device_memory.h"
#include "model/gpu.h"

namespace recalld {

// Bytes that may be taken, and are. Taken by one thread, read by any.
class GpuShare {
 public:
  void allow(uint64_t bytes_max) { bytes_max_ = bytes_max; }
  bool has(uint64_t bytes) const { return bytes_ <= bytes_max_ && bytes <= bytes_max_ - bytes_; }
  void take(uint64_t bytes) { bytes_ += bytes; }
  void give_back(uint64_t bytes) { bytes_ -= bytes; }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_max_ = 0;
  std::atomic<uint64_t> bytes_ = 0;
};

// Buffers of the device that are no longer used and could not be overwritten: they are kept until they have been.
class GpuLeftovers {
 public:
  void add(cuda::DeviceBuffer buffer) { buffers_.push_back(std::move(buffer)); }
  // Enqueued; once the stream has ended well they may be freed.
  cudaError_t erase(cudaStream_t stream) const;
  void free() { buffers_.clear(); }

 private:
  std::vector<cuda::DeviceBuffer> buffers_;
};

class GpuLandmarks final : public GpuMemory {
 public:
  // Everything is borrowed. `device`: bytes on the GPU, `host`: in pinned host memory; while a memory moves from one
  // room to another it has both. `leftovers` gets what could not be overwritten.
  GpuLandmarks(uint32_t dim, GpuShare& device, GpuShare& host, GpuLeftovers& leftovers, cudaStream_t stream)
      : dim_(dim), device_(device), host_(host), leftovers_(leftovers), stream_(stream) {}
  ~GpuLandmarks() override;

  uint64_t chunks() const override { return chunks_; }
  Placement placement() const override { return placement_; }

  bool has_room(uint64_t chunks) const;
  Expected<void> reserve(uint64_t chunks);
  Expected<void> write(uint64_t first, std::span<const Bf16> landmarks);
  Expected<void> hide(uint64_t chunk);

  const Bf16* landmarks() const { return placement_ == Placement::device ? bf16_.as<Bf16>() : host_bf16_; }
  const int8_t* codes() const { return codes_.as<int8_t>(); }
  const float* scales() const { return scales_.as<float>(); }
  uint32_t* page_table() const { return placement_ == Placement::host ? host_pages_ : pages_.as<uint32_t>(); }

 private:
  struct Room {
    Placement placement;
    uint64_t capacity;
  };
  static uint64_t device_bytes(Placement placement, uint64_t capacity, uint32_t dim);
  static uint64_t host_bytes(Placement placement, uint64_t capacity, uint32_t dim);
  bool fits(Placement placement, uint64_t capacity) const;
  cudaError_t move_to(Room room);
  cudaError_t encode(uint64_t first, uint64_t count);
  void overwrite();

  const uint32_t dim_;
  GpuShare& device_;
  GpuShare& host_;
  GpuLeftovers& leftovers_;
  const cudaStream_t stream_;
  uint64_t chunks_ = 0;
  uint64_t capacity_ = 0;
  Placement placement_ = Placement::device;
  cuda::DeviceBuffer bf16_, codes_, scales_, pages_;  // those of the placement
  cuda::PinnedScratch host_memory_;
  Bf16* host_bf16_ = nullptr;  // in it, where the placement has them
  uint32_t* host_pages_ = nullptr;
};

}  // namespace recalld
