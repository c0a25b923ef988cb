// What the store is made of; for store.cc and the files store_*.cc only.
#pragma once

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "memstore/attribute_index.h"
#include "memstore/catalog.h"
#include "memstore/data_directory.h"
#include "memstore/encodings.h"
#include "memstore/journal.h"
#include "memstore/lexical_index.h"
#include "memstore/memory_table.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "memstore/turn_selection.h"

namespace recalld {

// Locks, in the order in which a thread takes them: reclaiming, forgetting, encoding, journal, totals. All but the last
// are held across the disk, each by its own kind of write. Readers take none: they see what is durable, as rows.
class Store::Impl {
 public:
  Impl(DataDirectory data, const RecordShape& shape, std::unique_ptr<Catalog> rows, uint64_t landmark_bytes,
       uint64_t entry_bytes, uint64_t posting_bytes, uint64_t selection_bytes, MetadataReader read_metadata)
      : directory(std::move(data)),
        catalog(std::move(rows)),
        table(*catalog),
        journal(*catalog),
        encodings(*catalog, shape, landmark_bytes, entry_bytes),
        lexical(*catalog, encodings.page_chunks(), posting_bytes),
        attributes(*catalog, std::move(read_metadata)),
        selector(*catalog, selection_bytes) {}

  Expected<void> load(std::unique_ptr<FileIo> io, uint64_t segment_bytes);

  // Reads from a memory that may be changed or removed meanwhile: what is then missing or torn is no damage.
  template <class Read>
  auto read(MemoryId id, Read read_from) const -> decltype(read_from(std::declval<const MemoryRecord&>())) {
    RECALLD_TRY(auto record, table.recent(id));
    while (true) {
      auto result = read_from(*record);
      if (result) return result;
      RECALLD_TRY(auto now, table.recent(id));
      if (now->serving.stream() == record->serving.stream() && now->gaps() == record->gaps()) return result;
      record = std::move(now);
    }
  }

  // The same for what goes on around damage, which is added to `unreadable`; without it the first of it is the error.
  template <class Read>
  Expected<void> read_around_damage(MemoryId id, std::vector<Unreadable>* unreadable, Read read_from) const {
    std::vector<Unreadable> damaged;
    auto result = read(id, [&](const MemoryRecord& record) -> Expected<void> {
      damaged.clear();
      RECALLD_CHECK(read_from(record, damaged));
      if (!damaged.empty()) return fail(ErrorKind::corrupt, damaged.front().message);
      return {};
    });
    if (result || result.error().kind != ErrorKind::corrupt || damaged.empty() || unreadable == nullptr) return result;
    std::ranges::move(damaged, std::back_inserter(*unreadable));
    return {};
  }

  static MemoryInfo info(const MemoryRecord& record);

  // The generation that `of` is, in the record; busy when there is none such any more.
  static Expected<const Generation*> find(const MemoryRecord& record, const StreamInfo& of);

  // The changes of one group commit, before they are written.
  struct Staged {
    std::map<std::string, MemoryId, std::less<>> made;  // new memories
    struct Journal {
      JournalRecord record;
      uint64_t forgotten_tokens = 0;
      TurnStretch appended{};            // from the memory's end on
      std::vector<IndexedTurn> turns{};  // of these, to be indexed
    };
    std::map<MemoryId, Journal> journals;
    std::map<std::string, recalld::Journal::Operation> operations;  // by key
    JournalTotals totals;
    uint64_t next_id = 0;
  };
  Expected<Appended> stage(const AppendBatch& batch, Staged& staged, Catalog::Batch& rows) const;
  // Compares the rows that belong to no memory alone, and the counters; with `repair` it writes these anew.
  Expected<std::vector<Problem>> check_tables(bool repair);
  Expected<void> check_rows(bool repair, std::vector<Problem>& problems);

  Expected<void> drop_markers(const Staged& staged, Catalog::Batch& rows);

  Expected<void> check_room() const;

  // The words of chunks [first, end) of a generation. What is damaged in the journal has none.
  Expected<std::vector<ChunkWords>> words(const MemoryRecord& memory, const Generation& of, uint64_t first,
                                          uint64_t end) const;
  // Adds the words of the `count` chunks that follow those of the generation.
  Expected<void> stage_words(const MemoryRecord& memory, const Generation& of, uint64_t count,
                             Catalog::Batch& rows) const;
  Encodings::Checked check_words(const Generation& of, uint64_t chunk, uint64_t end) const;
  Expected<void> drop_words(const Generation& of, const Verification::Lost& lost);
  struct Begun;  // a ranking by words, as LexicalBegun holds it
  Expected<std::unique_ptr<Begun>> begin(std::shared_ptr<const MemoryRecord> memory, const LexicalQuery& query,
                                         std::span<const Term> terms) const;

  Expected<bool> erases_turns(MemoryId id, TurnStretch stretch) const;
  // Adds turns that are to be indexed, the first of which would get this number and position.
  void add_indexed(std::span<const NewTurn> turns, uint64_t next_turn, uint64_t position,
                   std::vector<IndexedTurn>& out) const;

  void stage_erasure(const ErasureRecord& record, Catalog::Batch& rows) {
    rows.put(Family::memories, erasure_key(next_id++), record.encode());
  }
  Expected<void> erase(const ErasureRecord& record, Encodings::Erased& erased, std::vector<Catalog::Range>& ranges);

  const DataDirectory directory;  // holds the lock: goes last
  const std::unique_ptr<Catalog> catalog;
  const MemoryTable table;
  const Journal journal;
  Encodings encodings;
  const LexicalIndex lexical;
  const AttributeIndex attributes;
  TurnSelector selector;

  mutable std::mutex reclaiming;  // one erasure, repair or backup at a time
  std::mutex forgetting;          // one change of what is forgotten at a time

  std::mutex encoding_mutex;    // one write of encodings at a time: guards the rows of generations
  uint64_t encoded_chunks = 0;  // of all serving generations; guarded by encoding_mutex and totals_mutex for writing

  std::mutex journal_mutex;  // one append or removal at a time: guards the rows of journals and what follows
  uint64_t next_id = 1;      // of memories, streams and erasures
  JournalTotals totals;      // with totals_mutex for writing

  mutable std::mutex totals_mutex;
  std::vector<Problem> found_on_opening;  // counters that were counted again; guarded by totals_mutex
  std::set<MemoryId> drained;  // memories that may have lost what waited: their markers can go; guarded by totals_mutex
};

// A problem with the rows of a memory itself; the caller says whose.
inline Problem of_memory(std::string message, bool repairable) {
  return {.part = "memory", .message = std::move(message), .repairable = repairable};
}

}  // namespace recalld
