// What a generation computes with: the states of one answer, and the way from its tokens to the chunks that they attend
// to (HSA, arXiv 2504.16795, section 3). One on the CPU, one on a GPU; generator.h decides what is read and written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "memstore/store.h"

namespace recalld {

// Used by the model thread alone.
class Decoder {
 public:
  virtual ~Decoder() = default;

  // What an answer may read from, as it was when it began.
  struct Source {
    MemoryInfo memory;
    uint64_t stored_chunks = 0;        // the first ones of the memory, which are read from the store
    std::vector<Bf16> tail_landmarks;  // [n, landmark_dim] of the complete chunks after them
    std::vector<std::byte> tail_kv;    // [n, kv_bytes] likewise
  };

  // One answer: its recurrent states, which begin at zero, and what it needs to attend. Freed before the decoder.
  class Stream {
   public:
    virtual ~Stream() = default;
  };
  virtual size_t streams_max() const = 0;  // that are open at a time
  virtual Expected<std::unique_ptr<Stream>> open(Source source) = 0;

  // What came of the tokens that a stream read.
  struct Read {
    std::vector<float> logits;            // [vocab_size] after the last token
    std::map<uint64_t, double> attended;  // by chunk, its share of the last token's attention, over heads and groups
    std::vector<Unreadable> unreadable;   // damage that was found; it is left out, and told once a stream
  };

  // Up to 64 tokens of a prompt, all of them a multiple of 64 but the last call's. `last`: logits and shares are
  // wanted.
  virtual Expected<Read> read(Stream& stream, std::span<const uint32_t> tokens, bool last) = 0;

  // One token of each of up to streams_max() streams. Nothing for a stream that still waits for chunks: it goes on with
  // the next call, which names the same token. A call in which all wait takes as long as the disk does. What a stream
  // gets does not depend on the others. After an error a stream is only good for being closed.
  struct Written {
    Stream* stream = nullptr;
    uint32_t token = 0;
  };
  virtual std::vector<std::optional<Expected<Read>>> write(std::span<const Written> tokens) = 0;

  // Overwrites all that is kept of a memory, for later answers and by streams that are open on it, which are not to be
  // used again. On success it has happened.
  virtual Expected<void> forget(MemoryId memory) = 0;
};

}  // namespace recalld
