// Lanes of a GPU that read a memory of made-up tokens, what pages chunks for them, and the same answers on the CPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/chunk_selection_cuda.h"
#include "kernels/landmark_topk.h"
#include "tests/model/gpu_ramba_fixture.h"

namespace recalld {

// Does what a decoder does, over chunks in RAM: pages what a lane misses into slots, in the order in which it comes.
class Pager {
 public:
  Pager(Gpu& gpu, const Encoding& from, size_t landmark_dim, size_t kv_bytes)
      : gpu_(gpu), from_(from), kv_bytes_(kv_bytes), memory_(must_have(gpu.open_memory())), in_slot_(gpu.slots()) {
    const size_t chunks = from.kv.size() / kv_bytes;
    for (size_t first = 0; first < chunks; first += 700) {  // it grows
      const size_t count = std::min<size_t>(700, chunks - first);
      must_have(gpu.write_landmarks(*memory_, first,
                                    std::span(from.landmarks).subspan(first * landmark_dim, count * landmark_dim)));
    }
  }

  GpuMemory& memory() { return *memory_; }
  size_t misses() const { return misses_; }
  size_t evictions() const { return evictions_; }
  const std::map<uint64_t, uint32_t>& slot_of() const { return slot_of_; }  // the chunks that are cached

  // Pages all chunks, at a lane that is free.
  void page_all(uint32_t lane) {
    const uint64_t chunks = from_.kv.size() / kv_bytes_;
    for (uint64_t first = 0; first < chunks; first += 8) {
      Gpu::Selection some;
      for (uint64_t chunk = first; chunk < std::min(chunks, first + 8); ++chunk)
        some.chunks.push_back(static_cast<uint32_t>(chunk));
      page(some, gpu_.block_staging());
      must_have(gpu_.reset(lane));
      must_have(gpu_.erase_scratch());
    }
  }

  // Makes the chunks of a selection cached.
  void page(const Gpu::Selection& selection, ByteSpan staging) {
    auto [fills, evicted] = plan(selection, staging);
    for (size_t i = 0; i < fills.size(); ++i) copy_record(fills, i, staging);
    // Both ways, by turns.
    if (++pagings_ % 2 == 0) {
      must_have(gpu_.unmap(evicted));
      evicted.clear();
    }
    must_have(gpu_.fill(*memory_, fills, evicted));
  }

  // How the records of a lane that waits alone come, the first one last.
  enum class Reads : uint8_t {
    good,        // when the GPU knows what follows
    late,        // the first one when the lane has been gone on with
    too_late,    // the first one after longer than the GPU waits
    done_again,  // the first one not at all, and all by another read, as where the memory was changed meanwhile
  };

  // The same for a lane that waits alone.
  Gpu::LaneResult resume(const Gpu::LaneWork& lane, const Gpu::Selection& selection, Reads reads) {
    const ByteSpan staging = gpu_.staging(lane.lane);
    const auto [fills, evicted] = plan(selection, staging);
    must_have(gpu_.prepare(lane, *memory_, fills, evicted));
    for (size_t i = fills.size(); i-- > 0;) {
      if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (i == 0 && reads == Reads::too_late)
        std::this_thread::sleep_for(std::chrono::nanoseconds(cuda::arrival_wait_ns_max) +
                                    std::chrono::milliseconds(50));
      if (i == 0 && (reads == Reads::late || reads == Reads::done_again)) break;
      copy_record(fills, i, staging);
      gpu_.arrived(i);
    }
    if (reads == Reads::done_again)
      for (size_t i = 0; i < fills.size(); ++i) copy_record(fills, i, staging);
    Gpu::LaneResult result = must_have(gpu_.go_on());
    if (reads == Reads::good) return result;
    EXPECT_FALSE(result.done);
    EXPECT_EQ(result.selections.size(), 1u);
    EXPECT_FALSE(result.selections.at(0).cached);
    EXPECT_EQ(result.selections.at(0).chunks, selection.chunks);
    if (reads == Reads::done_again) {  // nobody knows which of both reads was copied
      std::vector<Gpu::Mapped> filled;
      for (const Gpu::Fill& each : fills) filled.push_back({memory_.get(), each.chunk});
      must_have(gpu_.unmap(filled));
    }
    copy_record(fills, 0, staging);
    must_have(gpu_.fill(*memory_, fills, evicted));
    return std::move(must_have(gpu_.step(std::array{lane})).front());
  }

  // No chunk is cached any more.
  void drop_all() {
    std::vector<Gpu::Mapped> all;
    for (const auto& [chunk, slot] : slot_of_) all.push_back({memory_.get(), chunk});
    must_have(gpu_.unmap(all));
    slot_of_.clear();
    std::ranges::fill(in_slot_, std::nullopt);
  }

 private:
  struct Plan {
    std::vector<Gpu::Fill> fills;
    std::vector<Gpu::Mapped> evicted;
  };

  void copy_record(std::span<const Gpu::Fill> fills, size_t i, ByteSpan staging) const {
    std::memcpy(staging.data() + i * kv_bytes_, from_.kv.data() + fills[i].chunk * kv_bytes_, kv_bytes_);
  }

  Plan plan(const Gpu::Selection& selection, ByteSpan staging) {
    const std::set<uint64_t> wanted = [&] {
      std::set<uint64_t> chunks(selection.chunks.begin(), selection.chunks.end());
      chunks.erase(Gpu::no_chunk);
      return chunks;
    }();
    std::vector<Gpu::Fill> fills;
    std::vector<Gpu::Mapped> evicted;
    for (const uint64_t chunk : wanted) {
      if (slot_of_.contains(chunk)) continue;
      while (in_slot_[next_] && wanted.contains(*in_slot_[next_])) next_ = (next_ + 1) % gpu_.slots();
      if (in_slot_[next_]) {
        evicted.push_back({memory_.get(), *in_slot_[next_]});
        slot_of_.erase(*in_slot_[next_]);
      }
      in_slot_[next_] = chunk;
      slot_of_[chunk] = next_;
      fills.push_back({chunk, next_, staging.subspan(fills.size() * kv_bytes_, kv_bytes_)});
      next_ = (next_ + 1) % gpu_.slots();
    }
    misses_ += fills.size();
    evictions_ += evicted.size();
    return {std::move(fills), std::move(evicted)};
  }

  Gpu& gpu_;
  const Encoding& from_;
  const size_t kv_bytes_;
  std::unique_ptr<GpuMemory> memory_;
  std::vector<std::optional<uint64_t>> in_slot_;
  std::map<uint64_t, uint32_t> slot_of_;
  uint32_t next_ = 0;
  size_t misses_ = 0, evictions_ = 0, pagings_ = 0;
};

class GpuGenerateTest : public GpuRambaTest {
 protected:
  void SetUp() override {
    GpuRambaTest::SetUp();
    if (IsSkipped()) return;
    const auto gpu = open(roomy);
    memory_ = encode(*gpu, random_tokens(chunks * chunk_size, 5), {64});
  }

  // Reads tokens in blocks of 64 and then some one by one; all logits.
  std::vector<std::vector<float>> run(Gpu& gpu, Pager& pager, uint32_t lane, std::span<const uint32_t> tokens,
                                      size_t singles, uint64_t visible = chunks) const {
    std::vector<std::vector<float>> logits;
    must_have(gpu.reset(lane));
    for (size_t done = 0; done < tokens.size();) {
      const size_t left = tokens.size() - done;
      const size_t count = left > singles ? std::min(left - singles, chunk_size) : 1;
      logits.push_back(run_one(gpu, pager, lane, tokens.subspan(done, count), visible));
      done += count;
    }
    return logits;
  }

  static std::vector<float> run_one(Gpu& gpu, Pager& pager, uint32_t lane, std::span<const uint32_t> tokens,
                                    uint64_t visible) {
    Gpu::LaneWork work{.lane = lane, .memory = &pager.memory(), .chunks = visible, .tokens = tokens};
    while (true) {
      auto result = std::move(must_have(gpu.step(std::array{work})).front());
      if (result.done) return std::move(result.logits);
      pager.page(result.selections.back(), tokens.size() > 1 ? gpu.block_staging() : gpu.staging(lane));
      work.tokens = {};
    }
  }

  // The same on the CPU, from the same chunks.
  static std::vector<std::vector<float>> run_on_cpu(Ramba& cpu, const Encoding& memory,
                                                    std::span<const uint32_t> tokens, size_t singles) {
    const size_t dim = cpu.landmark_dim(), width = cpu.config().hidden_size, chunks = memory.landmarks.size() / dim;
    RecurrentState lower = cpu.lower_zero_state(), upper = cpu.upper_zero_state();
    std::vector<std::vector<float>> logits;
    for (size_t done = 0; done < tokens.size();) {
      const size_t left = tokens.size() - done;
      const size_t count = left > singles ? std::min(left - singles, chunk_size) : 1;
      std::vector<float> hidden(chunk_size * width);
      cpu.lower(lower, tokens.subspan(done, count), hidden);
      const auto queries = cpu.landmark_queries(std::span(hidden).first(count * width), 0);
      std::vector<std::vector<AttendedChunk>> attended(count);
      for (size_t i = 0; i < count; ++i) {
        std::vector<float> dots(chunks);
        landmark_dots_cpu(std::span(queries).subspan(i * dim, dim), memory.landmarks.data(), chunks, dots.data());
        TopK top(cpu.config().chunk_topk);
        for (size_t c = 0; c < chunks; ++c) top.offer({c, dots[c]});
        auto best = top.take();
        std::ranges::sort(best, std::ranges::greater{}, &ScoredChunk::chunk);
        std::vector<float> scores;
        for (const ScoredChunk& each : best) scores.push_back(each.dot * cpu.score_scale());
        const auto weights = cpu.chunk_weights(scores, 0);
        for (size_t c = 0; c < best.size(); ++c)
          attended[i].push_back(
              {reinterpret_cast<const Bf16*>(memory.kv.data() + best[c].chunk * cpu.kv_bytes()), weights[c]});
      }
      cpu.upper(0, upper, hidden, attended);
      logits.push_back(cpu.logits(cpu.final_norm(std::span(hidden).subspan((count - 1) * width, width))));
      done += count;
    }
    return logits;
  }

  static constexpr size_t chunks = 1500;
  Encoding memory_;
};

}  // namespace recalld
