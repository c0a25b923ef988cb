// Encoding behind the replies: the waiting chunks of memories through the lower half and the chunk encoder into the
// store, and the tail that a search encodes for itself. Used by the model thread alone.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "base/error.h"
#include "daemon/stream_cache.h"
#include "memstore/file_io.h"
#include "memstore/store.h"
#include "model/backend.h"
#include "model/tokenizer.h"

namespace recalld {

class Encoder {
 public:
  // Chunks that a search encodes for itself, at most: those that wait, and the open one.
  static constexpr uint64_t segment_chunks = 16;
  // So many tokens of a memory a search covers now: what is stored and what it encodes for itself. Never fewer than
  // before, unless turns are forgotten.
  static uint64_t covered_tokens(const MemoryInfo& memory);
  // One call in so many goes to what serves while a generation is made to take its place.
  static constexpr uint64_t serving_share = 4;
  static constexpr size_t at_once_max = 64;  // generations that are remembered so
  // Chunks between two checkpoints of the recurrent state.
  static constexpr uint64_t checkpoint_chunks = 64;

  // Everything is borrowed but the shape, which is the store's. `state_bytes_max` bounds the recurrent states (and
  // tails) in RAM, but one always fits; `streams_max` the number of all recurrent states at a time, at least
  // 2 * backend.segments_max() + 3 (0: no bound).
  Encoder(Store& store, Backend& backend, const RecordShape& shape, const Tokenizer& tokenizer,
          uint64_t state_bytes_max, size_t streams_max = 0);

  // Encodes the next waiting chunks of these memories, of each at most backend.segment_chunks(), all at once, and
  // leaves it to another thread to store them while the next ones are encoded. ids: different ones, at most
  // backend.segments_max(). Where there is only one, `end_early` may end it (Backend::encode_until); no bit
  // depends on where. Returns how many of each; 0: none wait and all are stored. The error of a store that failed
  // comes from a later call, and the chunks wait again. not_found: the memory was deleted meanwhile; busy: turns of it
  // were forgotten meanwhile, and the next call goes on from there; device: as the backend says.
  // While turns of encoded chunks are forgotten, the generation without them gets most of the calls, and serves as soon
  // as it has caught up, or at once when there is no room for both or damage keeps it from that.
  std::vector<Expected<uint64_t>> encode_segments(std::span<const MemoryId> ids,
                                                  const std::function<bool()>& end_early = {});

  // Waits until what was encoded of this memory is stored; false when nothing was being stored.
  bool settle(MemoryId id);

  // The chunks that are not stored, up to covered_tokens(), the open one padded with newline pieces: encoded on a copy
  // of the state, kept until the memory changes. nullptr when there are none, or when the state cannot be had because
  // tokens before them are being forgotten.
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
    // Where the model stands; its state is the encoder's.
    uint64_t number = 0;  // 0: not begun
    uint64_t at = 0;
    uint64_t blocked_from = 0;  // tokens of this chunk cannot be read: a state before it leads no further
    bool blocked = false;

    bool done() const { return kv.empty() && landmarks.empty() && states.empty(); }
  };
  // Advances by at most backend.segment_chunks() from the nearest state before what is damaged. One Mending at a time:
  // another one, as forget(), makes it read tokens again. Returns whether what
  // has been made is to be stored before the next call: the end of a page of `page_chunks` has been reached. What
  // depends on tokens that cannot be read is given up.
  Expected<bool> make_again(Mending& mending, uint64_t page_chunks);
  // Stores what has been made; any thread may call it.
  Expected<void> store_again(Mending& mending) const;

  void forget(MemoryId id);  // drops what is held of a memory, a state that is being mended with too
  void checkpoint_all();     // every state in RAM becomes a checkpoint; RAM holds none afterwards

  uint64_t state_bytes() const;

 private:
  // The next chunks of a memory, on their way through the model and to the store; none when none wait.
  struct Segment {
    StreamInfo to;            // what they follow there
    bool catches_up = false;  // it is the next generation's
    std::vector<uint32_t> tokens;
    Stream after;                      // the stream as it stands when they have arrived
    std::vector<Bf16> landmarks;       // [chunks, landmark_dim]
    AlignedBuffer kv;                  // [chunks, kv_bytes]
    std::optional<std::string> state;  // after them, where a checkpoint is due

    uint64_t chunks() const { return after.chunks - to.chunks; }
  };
  // Segments on their way to the store.
  struct Write {
    std::vector<Segment> segments;                    // of different memories
    std::future<std::vector<Expected<void>>> stored;  // one each; ends before they go
  };

  Expected<Segment> next_segment(MemoryId id);
  Expected<Segment> next_segment(const StreamInfo& of);
  Expected<bool> swap(const MemoryInfo& memory);
  void do_not_wait(StreamId next, const Error& because);
  void encode(std::span<Expected<Segment>> segments, const std::function<bool()>& end_early);
  Expected<void> encode_one(const Backend::Segment& segment);
  const Segment* on_its_way(MemoryId id) const;
  void start_write(std::vector<Segment> segments);
  void finish_write();
  std::optional<Error> take_failure(MemoryId id);
  void drop_failures();
  Expected<void> store(const Segment& segment) const;
  Expected<Stream*> stream(const StreamInfo& of);
  Expected<void> advance(Stream& stream, uint64_t to_chunk);
  Expected<bool> make_more(Mending& mending, std::optional<RecurrentState>& state, uint64_t page_chunks);
  void checkpoint(const Stream& stream);
  void tell_damage(MemoryId id, const std::string& damage);
  size_t stream_bytes() const;
  size_t streams_kept(uint64_t bytes_max, size_t streams_max) const;

  Store& store_;
  Backend& backend_;
  const RecordShape shape_;
  const Tokenizer& tokenizer_;
  StreamCache streams_;
  // The state of what was mended last, between two calls. It is here and not there for forget() to find it.
  struct MendingState {
    uint64_t mending = 0;  // its number
    MemoryId memory = 0;
    std::optional<RecurrentState> state;
  };
  MendingState mending_state_;
  uint64_t mendings_ = 0;
  std::optional<Write> write_;
  std::map<MemoryId, Error> failed_;   // of writes, not yet told
  std::set<std::string> damage_told_;  // in the log
  uint64_t turns_ = 0;                 // calls that had two generations to choose from
  std::set<StreamId> at_once_;         // next generations that do not wait until they have caught up
};

}  // namespace recalld
