// A GPU whose chips are the CPU's, for tests where there is no other: it keeps all that gpu.h says in memory of its own
// and computes with Ramba, so that an answer has the bits of the CPU's as long as every chunk lies where the page
// tables say. Records move as late as gpu.h allows, and what its callers promise there is checked.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/worker_pool.h"
#include "memstore/file_io.h"
#include "model/gpu.h"
#include "model/ramba.h"

namespace recalld {

class CpuGpu final : public Gpu {
 public:
  struct Options {
    std::filesystem::path model;
    uint32_t slots = 0;                              // 0: as many as a block and a token of each lane can hold
    uint64_t landmarks_bytes_max = UINT64_MAX;       // of landmarks that do not lie in host memory
    uint64_t host_landmarks_bytes_max = UINT64_MAX;  // of those that do
    size_t states_max = 64;
    size_t threads = 2;
  };
  static Expected<std::unique_ptr<CpuGpu>> open(const Options& options);
  ~CpuGpu() override;

  // ---- For tests; any thread may count and let calls fail, the rest is for the thread that calls
  enum class Call : uint8_t {
    encode,
    query,
    late_scores,
    open_memory,
    reserve,
    write_landmarks,
    hide,
    fill,
    unmap,
    erase,
    erase_scratch,
    reset,
    prepare,
    go_on,
    step,
  };
  static constexpr size_t calls_count = static_cast<size_t>(Call::step) + 1;
  // The next n calls fail with ErrorKind::device. They change nothing, but that fill() and prepare() move the first
  // half before, prepare() of what makes way.
  void fail_next(Call call, int n = 1) { failing_[static_cast<size_t>(call)] = n; }
  uint64_t calls(Call call) const { return calls_[static_cast<size_t>(call)]; }
  // The next n times that go_on() is called it had no patience: only so many records have arrived in time.
  void lose_patience_next(int n = 1, size_t arrivals = 0) {
    impatient_ = n;
    patient_arrivals_ = arrivals;
  }
  bool is_prepared() const { return is_prepared_; }  // between prepare() and go_on()

  ByteView cache();                                    // all slots, as they are when what is on its way has arrived
  ByteView staging();                                  // of all lanes and of a block
  bool is_clear(uint32_t lane) const;                  // its states are zero
  bool holds(ByteView bytes);                          // in a slot, in staging memory, or among what was encoded last
  uint32_t chosen_max() const { return chosen_max_; }  // different chunks of one selection, at most

  // ---- Gpu
  std::string describe() const override { return name() + ", " + model_->describe(); }
  size_t state_bytes() const override { return model_->lower_state_bytes(); }
  Expected<RecurrentState> zero_state() override;
  Expected<RecurrentState> state_from(ByteView bytes) override;
  Expected<std::string> bytes_of(const RecurrentState& state) override;
  uint64_t segment_chunks() const override { return 16; }
  size_t segments_max() const override { return 4; }
  Expected<void> encode(std::span<const Segment> segments) override;
  Expected<SearchQuery> query(std::span<const uint32_t> tokens, QueryParts parts) override;
  Expected<std::vector<float>> late_scores(std::span<const float> tokens, std::span<const ByteView> records) override;

  std::string name() const override { return "CPU in place of a GPU"; }
  GpuUsage usage() const override;
  size_t states_max() const override { return options_.states_max; }

  Expected<std::unique_ptr<GpuMemory>> open_memory() override;
  bool has_room(const GpuMemory& memory, uint64_t chunks) const override;
  Expected<void> reserve(GpuMemory& memory, uint64_t chunks) override;
  Expected<void> write_landmarks(GpuMemory& memory, uint64_t first, std::span<const Bf16> landmarks) override;
  Expected<void> hide(GpuMemory& memory, uint64_t chunk) override;

  uint32_t slots() const override { return options_.slots; }
  ByteSpan staging(uint32_t lane) override;
  ByteSpan block_staging() override;
  Expected<void> fill(GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) override;
  Expected<void> unmap(std::span<const Mapped> chunks) override;
  Expected<void> erase(std::span<const uint32_t> slots) override;
  Expected<void> erase_scratch() override;

  Expected<void> reset(uint32_t lane) override;
  Expected<std::vector<LaneResult>> step(std::span<const LaneWork> work) override;
  Expected<void> prepare(const LaneWork& lane, GpuMemory& memory, std::span<const Fill> fills,
                         std::span<const Mapped> make_way) override;
  void arrived(size_t i) override;
  Expected<LaneResult> go_on() override;

 private:
  class State;
  class Memory;

  // A record on its way to a slot, or a chunk that loses its slot.
  struct Move {
    Memory* memory;
    uint64_t chunk;
    uint32_t slot;            // no_slot: it has none any more
    const std::byte* record;  // null likewise
  };
  struct Lane {
    RecurrentState lower, upper;
    size_t group = 0;           // that it waits in
    size_t tokens = 0;          // that are on their way; 0: none
    std::vector<float> hidden;  // of them: rows of hidden_size, of which the first ones count
  };

  CpuGpu(Options options, std::unique_ptr<WorkerPool> pool, std::unique_ptr<Ramba> model);

  Expected<void> called(Call call);
  void check(const GpuMemory& memory, std::span<const Fill> fills, std::span<const Mapped> make_way) const;
  void plan_unmapping(std::span<const Mapped> chunks);
  void move_all();
  Expected<std::shared_ptr<State>> new_state(RecurrentState state);
  size_t list_places() const;  // of one token
  std::byte* slot_data(uint32_t slot) const { return cache_.bytes().data() + slot * model_->kv_bytes(); }
  void check(std::span<const LaneWork> work, bool of_block) const;
  Selection select(const LaneWork& work, std::span<const float> hidden,
                   std::vector<std::vector<AttendedChunk>>& attended);
  void step_token(const LaneWork& work, LaneResult& result);
  void step_block(const LaneWork& work, LaneResult& result);

  Options options_;
  const std::unique_ptr<WorkerPool> pool_;
  const std::unique_ptr<Ramba> model_;
  AlignedBuffer cache_, staging_;
  std::vector<std::byte> encoded_;  // K/V of the last call of encode()
  std::array<Lane, lanes_max> lanes_;
  std::vector<Move> moves_;        // in their order
  LaneWork prepared_;              // of prepare()
  std::vector<Move> awaited_;      // its fills
  std::vector<bool> has_arrived_;  // of them
  std::atomic<bool> is_prepared_ = false;
  int impatient_ = 0;
  size_t patient_arrivals_ = 0;
  std::vector<const Memory*> mapped_;                  // [slots] whose page table has it; null: none
  const std::shared_ptr<std::atomic<size_t>> states_;  // that there are; shared with them, who outlive this
  std::atomic<uint64_t> landmarks_bytes_ = 0, host_landmarks_bytes_ = 0;
  uint32_t chosen_max_ = 0;
  std::array<std::atomic<int>, calls_count> failing_{};
  std::array<std::atomic<uint64_t>, calls_count> calls_{};
};

}  // namespace recalld
