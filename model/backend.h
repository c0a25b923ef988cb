// The model as appending and searching use it, on the CPU or on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/bf16.h"

namespace recalld {

// A state in the memory of a GPU. Never changed, so that copies of a RecurrentState may share it.
class DeviceState {
 public:
  virtual ~DeviceState() = default;
};

// The recurrent state of the lower (or of the upper) half of one stream: that of each block, one after the other, in
// f32 (mamba2.h, swa.h). It lies where the backend that made it computes.
struct RecurrentState {
  std::vector<float> values;                  // on the CPU; empty on a GPU
  std::shared_ptr<const DeviceState> device;  // on a GPU; null on the CPU
};

// What a search asks with.
struct SearchQuery {
  // [landmark_dim] The retrieval embedding with the landmarks' gain folded in, rounded to bf16.
  std::vector<Bf16> landmark;
  // [heads, head_dim] Queries of the first HSA layer; empty without upper layers, or where it was not asked for.
  std::vector<float> heads;
  // [n, heads, head_dim] The same of each token between the first and the last: those of the question itself. Empty
  // likewise.
  std::vector<float> tokens;
};
enum class QueryParts : uint8_t {
  landmark,  // alone: that is all that ranking by landmarks takes
  all,
};
// Of a question that chunks are compared with, the last ones.
inline constexpr size_t question_tokens_max = 128;

// One thread at a time calls these functions. `device`: the GPU failed or is full (of its share); states are as before
// then, and outputs hold anything. A CPU does not fail.
class Backend {
 public:
  virtual ~Backend() = default;

  // "NVIDIA H100, bf16 products" or "bf16 products (AMX), 2 threads": for logs and stats.
  virtual std::string describe() const = 0;

  // States as bytes: little-endian f32, of the same layout on every backend. state_from() wants exactly state_bytes().
  virtual size_t state_bytes() const = 0;
  virtual Expected<RecurrentState> zero_state() = 0;
  virtual Expected<RecurrentState> state_from(ByteView bytes) = 0;
  virtual Expected<std::string> bytes_of(const RecurrentState& state) = 0;

  // Some chunks of one memory. Borrows.
  struct Segment {
    RecurrentState* state = nullptr;   // in and out; on failure as before
    std::span<const uint32_t> tokens;  // whole chunks, at most segment_chunks() of them
    std::span<Bf16> landmarks;         // [chunks, landmark_dim] what is stored; empty: the state alone is wanted
    ByteSpan kv;                       // [chunks, kv_bytes] likewise: K then V, each [64, kv_heads, head_dim] bf16
  };
  virtual uint64_t segment_chunks() const = 0;  // of one segment, that are worth encoding at once
  virtual size_t segments_max() const = 0;      // that are worth encoding at once; 1 on the CPU
  // Lower half and chunk encoder over up to segments_max() segments of different streams. A segment's bits do not
  // depend on how the stream was cut, nor on the other segments.
  virtual Expected<void> encode(std::span<const Segment> segments) = 0;
  // The same of one segment, whose outputs are wanted, up to where `end_early` ends it: it is asked on any thread,
  // after every few chunks of a backend for which these take long, and by others never. Returns how many tokens were
  // encoded, of whole chunks and at least of one; behind them the outputs hold anything.
  virtual Expected<uint64_t> encode_until(const Segment& segment, const std::function<bool()>& /*end_early*/) {
    RECALLD_CHECK(encode(std::span(&segment, 1)));
    return segment.tokens.size();
  }

  // The last of `tokens` (newline, question, <|recall|>; not empty) as a query, read from a zero state.
  virtual Expected<SearchQuery> query(std::span<const uint32_t> tokens, QueryParts parts = QueryParts::all) = 0;
};

}  // namespace recalld
