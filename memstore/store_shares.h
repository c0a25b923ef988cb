// How a store divides its memory budget.
#pragma once

#include <cstdint>

#include "memstore/chunk.h"

namespace recalld {

// What one write, one flush and one compaction take at a time does not grow with the store and comes off first, as does
// what the heap keeps of it. Of the rest, half is for pages of landmarks, but for the 32nd part that keeps where chunks
// lie, and a third for the catalog's blocks, tables and memtables; a sixth stays free for what each of these takes
// beyond its bound until it is noticed.
struct StoreShares {
  static constexpr uint64_t budget_bytes_min = uint64_t{8} << 20;

  uint64_t working_bytes = 0;    // that come off first
  uint64_t entry_bytes = 0;      // where chunks lie
  uint64_t landmark_bytes = 0;   // pages of landmarks
  uint64_t block_bytes = 0;      // the catalog's blocks, tables and memtables
  uint64_t memtable_bytes = 0;   // of which memtables
  uint64_t posting_bytes = 0;    // that a search for words keeps at a time, of what stays free
  uint64_t selection_bytes = 0;  // of turns that filters selected, likewise

  static StoreShares of(uint64_t budget_bytes, const RecordShape& shape);

  // Of the states that are written, flushed, compacted and read at a time: a state is a row, which RocksDB holds whole
  // in each of the tables that it merges.
  static uint64_t states_bytes(const RecordShape& shape) { return states_at_once * shape.state_bytes; }

 private:
  static constexpr uint64_t states_at_once = 10;  // about what was measured with states of 1 to 14 MB
};

}  // namespace recalld
