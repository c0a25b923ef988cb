// A GPU that can be opened and asked for its figures, and computes nothing: all else fails.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "model/gpu.h"

namespace recalld {

class FakeGpu : public Gpu {
 public:
  // Counts in `open` how many there are.
  explicit FakeGpu(std::string name, std::atomic<int>* open = nullptr) : name_(std::move(name)), open_(open) {
    if (open_) ++*open_;
  }
  ~FakeGpu() override {
    if (open_) --*open_;
  }
  FakeGpu(const FakeGpu&) = delete;
  FakeGpu& operator=(const FakeGpu&) = delete;

  std::string describe() const override { return name_ + ", no products"; }
  size_t state_bytes() const override { return 0; }
  Expected<RecurrentState> zero_state() override { return none(); }
  Expected<RecurrentState> state_from(ByteView) override { return none(); }
  Expected<std::string> bytes_of(const RecurrentState&) override { return none(); }
  uint64_t segment_chunks() const override { return 1; }
  size_t segments_max() const override { return 1; }
  Expected<void> encode(std::span<const Segment>) override { return none(); }
  Expected<SearchQuery> query(std::span<const uint32_t>, QueryParts) override { return none(); }

  Expected<std::vector<float>> late_scores(std::span<const float>, std::span<const ByteView>) override {
    return none();
  }

  std::string name() const override { return name_; }
  GpuUsage usage() const override {
    return {.budget_bytes = 1000,
            .weights_bytes = 200,
            .states_bytes = 30,
            .landmarks_bytes = 40,
            .cache_bytes = 500,
            .workspace_bytes = 60,
            .host_landmarks_bytes = 7};
  }
  size_t states_max() const override { return 8; }
  Expected<std::unique_ptr<GpuMemory>> open_memory() override { return none(); }
  bool has_room(const GpuMemory&, uint64_t) const override { return false; }
  Expected<void> reserve(GpuMemory&, uint64_t) override { return none(); }
  Expected<void> write_landmarks(GpuMemory&, uint64_t, std::span<const Bf16>) override { return none(); }
  Expected<void> hide(GpuMemory&, uint64_t) override { return none(); }
  uint32_t slots() const override { return 8; }
  ByteSpan staging(uint32_t) override { return {}; }
  ByteSpan block_staging() override { return {}; }
  Expected<void> fill(GpuMemory&, std::span<const Fill>, std::span<const Mapped>) override { return none(); }
  Expected<void> unmap(std::span<const Mapped>) override { return none(); }
  Expected<void> erase(std::span<const uint32_t>) override { return none(); }
  Expected<void> erase_scratch() override { return none(); }
  Expected<void> reset(uint32_t) override { return none(); }
  Expected<std::vector<LaneResult>> step(std::span<const LaneWork>) override { return none(); }
  Expected<void> prepare(const LaneWork&, GpuMemory&, std::span<const Fill>, std::span<const Mapped>) override {
    return none();
  }
  void arrived(size_t) override {}
  Expected<LaneResult> go_on() override { return none(); }

 private:
  static std::unexpected<Error> none() { return fail(ErrorKind::device, "this GPU is a fake"); }

  std::string name_;
  std::atomic<int>* open_;
};

}  // namespace recalld
