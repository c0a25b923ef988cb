// Generating on the CPU: landmarks are scanned in the store, and the K/V of the chunks attended last stays with its
// stream.
#pragma once

#include "daemon/decoder.h"
#include "model/ramba.h"

namespace recalld {

class CpuDecoder : public Decoder {
 public:
  // Everything is borrowed; the pool belongs to the thread that calls.
  CpuDecoder(Store& store, Ramba& model, WorkerPool& pool) : store_(store), model_(model), pool_(pool) {}

  size_t streams_max() const override { return Ramba::streams_max; }
  Expected<std::unique_ptr<Stream>> open(Source source) override;
  Expected<Read> read(Stream& stream, std::span<const uint32_t> tokens, bool last) override;
  std::vector<std::optional<Expected<Read>>> write(std::span<const Written> tokens) override;  // none has to wait
  Expected<void> forget(MemoryId) override { return {}; }  // nothing is kept outside of streams

 private:
  struct CpuStream;

  Expected<std::vector<std::vector<AttendedChunk>>> retrieve(CpuStream& stream, std::span<const float> hidden,
                                                             size_t tokens, size_t group, bool shares, Read& read);
  Expected<std::vector<std::vector<ScoredChunk>>> best_chunks(CpuStream& stream, std::span<const Bf16> queries,
                                                              Read& read);
  Expected<bool> fetch(CpuStream& stream, const std::vector<std::vector<ScoredChunk>>& best, Read& read);

  Store& store_;
  Ramba& model_;
  WorkerPool& pool_;
};

}  // namespace recalld
