// Generating on a GPU, with the chunks of a memory paged from the store into the GPU's cache (HSA, arXiv 2504.16795,
// section 3). The landmarks of the memories that generate stay on the GPU; a token whose chunks are all cached does not
// come back to the host before it is computed, and what a token misses is read in one batch, while others compute.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <boost/asio/thread_pool.hpp>

#include "daemon/decoder.h"
#include "memstore/chunk_cache.h"
#include "memstore/store.h"
#include "model/gpu.h"
#include "model/ramba.h"

namespace recalld {

class GpuDecoder final : public Decoder {
 public:
  // Everything is borrowed. `model` is the same one on the CPU, for its shapes.
  GpuDecoder(const Store& store, const Ramba& model, Gpu& gpu);
  ~GpuDecoder() override;

  size_t streams_max() const override { return Gpu::lanes_max; }
  Expected<std::unique_ptr<Stream>> open(Source source) override;
  Expected<Read> read(Stream& stream, std::span<const uint32_t> tokens, bool last) override;
  std::vector<std::optional<Expected<Read>>> write(std::span<const Written> tokens) override;
  Expected<void> forget(MemoryId memory) override;

  // Since the start; any thread may ask.
  struct Counts {
    uint64_t hits = 0;    // chunks that a token (or a block of tokens) chose and found in the cache
    uint64_t misses = 0;  // and those that it did not
    uint64_t read_bytes = 0;
  };
  Counts counts() const { return {hits_, misses_, read_bytes_}; }

  // What the clock was on the way of the last token that was written alone, for tools/bench/generate.cc. Where it
  // waited more than once, of the last time.
  struct Times {
    using Time = std::chrono::steady_clock::time_point;
    Time begun;              // it was given to the GPU
    Time chosen;             // what it attends to was known here
    Time reading, prepared;  // its missing chunks were on their way, and the GPU knew what follows; of a token that
    Time arrived, resumed;   // waited alone only, as the last of them was here, and the GPU had gone on with them
    Time done;
  };
  const Times& times() const { return times_; }

 private:
  struct Memory;
  struct MemoryChunk;
  struct GpuStream;

  std::shared_ptr<Memory> memory_of(const MemoryInfo& info);
  Expected<void> load(Memory& memory, const Source& source);
  void make_room(const Memory& memory, uint64_t chunks);
  void close(GpuStream& stream);
  Expected<void> drop(std::shared_ptr<Memory> memory);
  Expected<void> erase(std::span<const uint32_t> slots);

  Gpu::LaneWork work_of(const GpuStream& stream, std::span<const uint32_t> tokens) const;
  Expected<Read> write_alone(GpuStream& stream, uint32_t token);
  Expected<std::optional<Gpu::LaneResult>> resume(GpuStream& stream);
  Expected<bool> take(GpuStream& stream, Gpu::LaneResult& result, ByteSpan staging, bool alone);
  void note_attention(GpuStream& stream, const Gpu::Selection& selection) const;
  Expected<void> plan(GpuStream& stream, ByteSpan staging, bool alone);
  Expected<void> make_way(GpuStream& stream);
  Expected<void> unmap(std::span<const MemoryChunk> chunks);
  void start_reading(GpuStream& stream, bool alone);
  Expected<std::vector<Unreadable>> fetch(MemoryId memory, std::span<const uint64_t> chunks, ByteSpan into,
                                          const FetchWait& wait) const;
  static bool is_being_read(const GpuStream& stream);
  Expected<void> finish_reading(GpuStream& stream);
  Expected<void> put(GpuStream& stream, const Expected<std::vector<Unreadable>>& damaged);
  void plan_fill(const GpuStream& stream);
  Expected<void> fill(GpuStream& stream);
  void lose(GpuStream& stream);
  void landed(GpuStream& stream, size_t reads);
  Expected<void> leave_out(GpuStream& stream, std::span<const Unreadable> damaged);
  void drop_unread(GpuStream& stream);
  void settle_all();
  bool waits_for_others(const GpuStream& stream) const;
  void let_go(GpuStream& stream);
  Read outcome(GpuStream& stream, Gpu::LaneResult& result);

  const Store& store_;
  const Ramba& model_;
  Gpu& gpu_;
  ChunkCache cache_;
  std::vector<char> loading_;                    // [slots] a read into it is under way
  std::vector<uint32_t> unerased_;               // slots with chunks that were dropped, which could not be overwritten
  std::list<std::shared_ptr<Memory>> memories_;  // used most recently first; shared with the streams that read them
  std::vector<GpuStream*> lanes_;                // [lanes_max] null: free
  uint64_t owners_ = 0;
  // Of one selection: room that is used again and again, since a token waits meanwhile.
  std::vector<uint64_t> chosen_, missing_;  // chunks, each once
  std::vector<Gpu::Fill> fills_;
  std::vector<Gpu::Mapped> mapped_;
  Times times_;
  std::atomic<uint64_t> hits_ = 0, misses_ = 0, read_bytes_ = 0;
  std::atomic<uint64_t> reads_done_ = 0;  // by the readers
  boost::asio::thread_pool readers_{2};
};

}  // namespace recalld
