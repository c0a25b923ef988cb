// The memories that there are, as rows of the catalog. Their number costs no RAM: a few are kept that were read last,
// as long as nothing is written, and what else is used often lies in the catalog's cache of blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "memstore/catalog.h"
#include "memstore/layout.h"
#include "memstore/rows.h"

namespace recalld {

// One generation of a memory's encodings.
struct Generation {
  EncodingRecord encoding;
  Layout layout;

  StreamId stream() const { return layout.stream(); }
  uint64_t tokens(const JournalRecord& journal) const { return journal.next_position - layout.gaps.tokens(); }
  // One past the journal's position of the last encoded token.
  uint64_t end_position() const;
};

// Everything that the catalog says of one memory.
struct MemoryRecord {
  MemoryId id = 0;
  JournalRecord journal;
  Generation serving;              // what searches read
  std::optional<Generation> next;  // while some turns of `serving` are forgotten: what is made to take its place

  // What is left out of the journal.
  const Gaps& gaps() const { return next ? next->layout.gaps : serving.layout.gaps; }
  uint64_t tokens() const { return journal.next_position - gaps().tokens(); }
};

// Any thread may call any function. `catalog` outlives it.
class MemoryTable {
 public:
  explicit MemoryTable(const Catalog& catalog) : catalog_(catalog) {}

  Expected<std::optional<MemoryId>> find(std::string_view name) const;
  Expected<MemoryRecord> record(MemoryId id) const;            // not_found
  Expected<MemoryRecord> record(std::string_view name) const;  // not_found

  // The same as record(id); what was read last is given again while the catalog has not changed.
  Expected<std::shared_ptr<const MemoryRecord>> recent(MemoryId id) const;

  struct Page {
    std::vector<MemoryId> memories;  // by name
    std::string next;                // the name to go on after; empty: the end
  };
  // Memories whose name begins with `prefix` and comes after `after`, at most `limit`. Reads the rows of all memories:
  // names are no keys, and so are in no order on disk.
  Expected<Page> list(std::string_view prefix, std::string_view after, size_t limit) const;

  // Memories of which something may wait to be encoded, by id, from `after` (exclusive) on, at most `limit`.
  Expected<std::vector<MemoryId>> waiting(MemoryId after, size_t limit) const;

  // All memories, damaged ones too, by id, from `after` (exclusive) on, at most `limit`.
  Expected<std::vector<MemoryId>> all(MemoryId after, size_t limit) const;

  // Add the rows of a part of a memory to a batch.
  static void stage_serving(MemoryId id, const Generation& serving, Catalog::Batch& rows);
  static void stage_next(MemoryId id, const std::optional<Generation>& next, Catalog::Batch& rows);

 private:
  struct Recent {
    uint64_t version = 0;                        // of the catalog, before it was read
    std::shared_ptr<const MemoryRecord> record;  // shared with those who read by it
  };

  const Catalog& catalog_;
  mutable std::mutex mutex_;            // guards what follows
  mutable std::vector<Recent> recent_;  // what was read first comes first
};

}  // namespace recalld
