// The memories whose recurrent state is in RAM, least recently used ones leaving first.
#pragma once

#include <functional>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

#include "memstore/store.h"
#include "model/backend.h"

namespace recalld {

// What a search encoded for itself: the chunks after the stored ones, the last one perhaps still open. Never stored.
struct Tail {
  uint64_t first_chunk = 0;
  uint64_t end_token = 0;       // tokens [first_chunk * 64, end_token) are in it
  uint64_t edition = 0;         // of the generation
  std::vector<Bf16> landmarks;  // [chunks, landmark_dim]
  std::vector<std::byte> kv;    // [chunks, kv_bytes]
};

// The place of a generation of a memory in its tokens. `state` has read exactly the first `chunks` chunks.
struct Stream {
  StreamInfo of;  // names the generation; what is encoded of it is told by the store
  uint64_t chunks = 0;
  uint64_t checkpointed_chunks = 0;  // the newest checkpoint on disk
  RecurrentState state;
  std::optional<Tail> tail;
};

// Used by the model thread alone.
class StreamCache {
 public:
  // At most `streams_max` streams; `evicted` is called with each one that leaves for want of room.
  StreamCache(size_t streams_max, std::function<void(const Stream&)> evicted);

  Stream* find(StreamId id);      // marks it as used; nullptr when it is not here
  Stream& insert(Stream stream);  // may evict another
  void erase(StreamId id);        // without a call to `evicted`
  void erase_memory(MemoryId id);
  void evict_all();

  size_t size() const { return streams_.size(); }

 private:
  size_t streams_max_;
  std::function<void(const Stream&)> evicted_;
  std::list<Stream> streams_;  // most recently used first
  std::unordered_map<StreamId, std::list<Stream>::iterator> by_id_;
};

}  // namespace recalld
