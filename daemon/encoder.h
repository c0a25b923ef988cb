// Encoding behind the replies: a memory's waiting chunks through the lower half and the chunk encoder into the store,
// and the tail that a search encodes for itself. Used by the model thread alone.
#pragma once

#include <future>
#include <map>
#include <optional>
#include <set>
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
  // One call in so many goes to what serves while a generation is made to take its place.
  static constexpr uint64_t serving_share = 4;
  static constexpr size_t at_once_max = 64;  // generations that are remembered so
  // Chunks between two checkpoints of the recurrent state.
  static constexpr uint64_t checkpoint_chunks = 64;

  // Everything is borrowed. `state_bytes_max` bounds the recurrent states (and tails) in RAM, but one always fits.
  Encoder(Store& store, Ramba& model, const Tokenizer& tokenizer, uint64_t state_bytes_max);

  // Encodes the memory's next waiting chunks, at most segment_chunks, and leaves it to another thread to store them
  // while the next segment is encoded. Returns how many; 0: none wait and all are stored. The error of a store that
  // failed comes from a later call, and the chunks wait again. not_found: the memory was deleted meanwhile; busy: turns
  // of it were forgotten meanwhile, and the next call goes on from there.
  // While turns of encoded chunks are forgotten, the generation without them gets most of the calls, and serves as soon
  // as it has caught up, or at once when there is no room for both or damage keeps it from that.
  Expected<uint64_t> encode_segment(MemoryId id);

  // Waits until what was encoded of this memory is stored; false when nothing was being stored.
  bool settle(MemoryId id);

  // The waiting chunks (at most segment_chunks) and, when no more than those wait, the open chunk padded with newline
  // pieces: encoded on a copy of the state, kept until the memory changes. nullptr when there are none, or when the
  // state cannot be had because tokens before them are being forgotten.
  Expected<const Tail*> tail(const MemoryInfo& memory);

  // A memory as a search or a generation sees it: what is being stored has arrived, and the newest chunks are in the
  // tail. What damage keeps from being covered is told in `unreadable`.
  struct Covered {
    MemoryInfo memory;
    const Tail* tail = nullptr;  // until the next call of any function; nullptr: none
    std::vector<Unreadable> unreadable;
  };
  Expected<Covered> cover(std::string_view memory);

  // ---- Mending
  // What verification found damaged in one generation, being made again from the journal.
  struct Mending {
    StreamInfo of;
    std::set<uint64_t> kv;  // chunks still to be made, by what is damaged of them
    std::set<uint64_t> landmarks;
    std::set<uint64_t> states;
    // Made and not yet stored: chunks of one page.
    struct Made {
      uint64_t chunk = 0;
      std::vector<Bf16> landmark;
      std::vector<std::byte> record;
      bool kv = false;
      bool has_landmark = false;
    };
    std::vector<Made> made;
    std::vector<StateCheckpoint> made_states;
    // Where the model stands.
    std::optional<RecurrentState> state;
    uint64_t at = 0;
    uint64_t blocked_from = 0;  // tokens of this chunk cannot be read: a state before it leads no further
    bool blocked = false;

    bool done() const { return kv.empty() && landmarks.empty() && states.empty(); }
  };
  // Advances by at most segment_chunks from the nearest state before what is damaged. Returns whether what has been
  // made is to be stored before the next call: the end of a page of `page_chunks` has been reached. What depends on
  // tokens that cannot be read is given up.
  Expected<bool> make_again(Mending& mending, uint64_t page_chunks);
  // Stores what has been made; any thread may call it.
  Expected<void> store_again(Mending& mending) const;

  void forget(MemoryId id);  // drops what RAM holds of a deleted memory
  void checkpoint_all();     // every state in RAM becomes a checkpoint; RAM holds none afterwards

  uint64_t state_bytes() const;

 private:
  // A segment on its way to the store, and the stream as it stands when it has arrived.
  struct Write {
    Stream after;
    std::future<Expected<void>> stored;
  };

  Expected<bool> swap(const MemoryInfo& memory);
  Expected<uint64_t> encode_next(const StreamInfo& of);
  Expected<void> finish_write();
  Expected<void> store(const StreamInfo& to, const std::vector<EncodedChunk>& chunks,
                       const std::optional<std::string>& state) const;
  Expected<Stream*> stream(const StreamInfo& of);
  Expected<void> advance(Stream& stream, uint64_t to_chunk);
  std::vector<EncodedChunk> encode(RecurrentState& state, std::span<const uint32_t> tokens);
  void checkpoint(const Stream& stream);
  void tell_damage(MemoryId id, const std::string& damage);
  size_t stream_bytes() const;
  size_t streams_kept(uint64_t bytes_max) const;

  Store& store_;
  Ramba& model_;
  const Tokenizer& tokenizer_;
  StreamCache streams_;
  std::vector<float> hidden_;  // [segment_chunks * 64, hidden_size]
  std::optional<Write> write_;
  std::map<MemoryId, Error> failed_;   // of segments, not yet told
  std::set<std::string> damage_told_;  // in the log
  uint64_t turns_ = 0;                 // calls that had two generations to choose from
  std::set<StreamId> at_once_;         // next generations that do not wait until they have caught up
};

}  // namespace recalld
