// Where chunks lie, in RAM: entries of the catalog in blocks of neighbours, those used last. A fetch of chunks that
// were looked up before, or whose neighbours were, needs no row of the catalog.
//
// What is kept is a hint: a record is checked against the checksum in its entry, which is bound to memory, chunk, model
// and generation. So an entry that is out of date finds the same bytes or none.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "memstore/chunk.h"

namespace recalld {

// Any thread may call any function.
class EntryCache {
 public:
  static constexpr uint64_t block_chunks = 32;

  // The entries of chunks first, first + 1, ... of a stream, `first` being a multiple of block_chunks, as far as they
  // are there.
  struct Block {
    std::array<ChunkEntry, block_chunks> entries{};
    std::bitset<block_chunks> there;
  };

  // Keeps as many blocks as fit into bytes_max, with what is noted about them.
  explicit EntryCache(uint64_t bytes_max);

  // Another number after every forget(): what is read after it was asked for may be kept while it is the same.
  uint64_t version() const;

  std::optional<ChunkEntry> find(StreamId stream, uint64_t chunk);

  // Keeps the block that begins at `first` in the place of what is kept of it, unless something was forgotten since
  // `version`: it may have been read before that.
  void keep(StreamId stream, uint64_t first, const Block& block, uint64_t version);

  // Whoever changes or drops rows that a reader may look up calls one of these once that is written. Rows behind a
  // generation's last chunk are none: no reader asks for them.
  void forget(StreamId stream);
  void forget_all();

  uint64_t bytes() const;

 private:
  using Key = std::pair<StreamId, uint64_t>;  // and the number of the block
  using Blocks = std::list<std::pair<Key, Block>>;
  // A node of the list and one of the map, with what the heap adds to each.
  static constexpr uint64_t block_bytes = sizeof(Blocks::value_type) + sizeof(Blocks::iterator) + sizeof(Key) + 96;

  const size_t blocks_max_;

  mutable std::mutex mutex_;  // guards what follows
  uint64_t version_ = 0;
  Blocks blocks_;  // used last comes last
  std::map<Key, Blocks::iterator> by_key_;
};

}  // namespace recalld
