// Encoding behind the replies: a memory's waiting chunks through the lower half and the chunk encoder into the store,
// and the tail that a search encodes for itself. Used by the model thread alone.
#pragma once

#include <optional>
#include <vector>

#include "base/error.h"
#include "daemon/stream_cache.h"
#include "memstore/store.h"
#include "model/ramba.h"
#include "model/tokenizer.h"

namespace recalld {

class Encoder {
 public:
  // Chunks that go through the model at once: long enough for its loops, short enough for a search to wait behind.
  static constexpr uint64_t segment_chunks = 16;
  // Chunks between two checkpoints of the recurrent state.
  static constexpr uint64_t checkpoint_chunks = 64;

  // Everything is borrowed. `state_bytes_max` bounds the recurrent states (and tails) in RAM, but one always fits.
  Encoder(Store& store, Ramba& model, const Tokenizer& tokenizer, uint64_t state_bytes_max);

  // Encodes and stores the memory's next waiting chunks, at most segment_chunks. Returns how many; 0: none wait.
  // not_found: the memory was deleted meanwhile.
  Expected<uint64_t> encode_segment(MemoryId id);

  // The waiting chunks (at most segment_chunks) and, when no more than those wait, the open chunk padded with newline
  // pieces: encoded on a copy of the state, kept until the memory changes. nullptr when there are none.
  Expected<const Tail*> tail(const MemoryInfo& memory);

  void forget(MemoryId id);  // drops what RAM holds of a deleted memory
  void checkpoint_all();     // every state in RAM becomes a checkpoint; RAM holds none afterwards

  uint64_t state_bytes() const;

 private:
  Expected<Stream*> stream(const MemoryInfo& memory);
  Expected<void> advance(Stream& stream, uint64_t to_chunk);
  std::vector<EncodedChunk> encode(RecurrentState& state, std::span<const uint32_t> tokens);
  void checkpoint(const Stream& stream);
  size_t stream_bytes() const;

  Store& store_;
  Ramba& model_;
  const Tokenizer& tokenizer_;
  StreamCache streams_;
  std::vector<float> hidden_;  // [segment_chunks * 64, hidden_size]
};

}  // namespace recalld
