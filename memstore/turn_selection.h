// The turns of a memory that a filter means, and the chunks in which tokens of them lie.
//
// A selection holds the journal's positions of the turns' tokens, not the turns' numbers: positions never move, and
// what is forgotten later becomes a gap that is left out when chunks are asked for. So a selection stays right as long
// as there is the memory, whatever is forgotten or encoded anew, and an append only makes it longer.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "memstore/catalog.h"
#include "memstore/chunk_set.h"
#include "memstore/layout.h"
#include "memstore/memory_table.h"
#include "memstore/store.h"

namespace recalld {

class TurnSelection {
 public:
  uint64_t end_turn() const { return end_turn_; }          // turns before this one were looked at
  uint64_t end_position() const { return end_position_; }  // whose tokens lie before this position
  uint64_t bytes() const { return sizeof *this + runs_.size(); }

  // Turns that damage keeps from being judged: where their tokens lie, and what is wrong.
  struct Lost {
    Gaps::Gap at;
    std::string cause;
  };
  const std::vector<Lost>& lost() const { return lost_; }

  // Positions rise.
  void add(uint64_t position, uint64_t tokens);
  void lose(Gaps::Gap at, const std::string& cause);
  void looked_at(uint64_t end_turn, uint64_t end_position);

  // The chunks of a generation, of `tokens` tokens, in which a token of a selected turn lies that is left out by
  // neither of the two; `journal_gaps` has all of the generation's gaps, and more while turns of it are being
  // forgotten.
  ChunkSet chunks(const Gaps& gaps, const Gaps& journal_gaps, uint64_t tokens) const;

 private:
  void close();

  uint64_t end_turn_ = 0;
  uint64_t end_position_ = 0;
  std::string runs_;       // each varint positions since the end of the one before, varint tokens
  uint64_t runs_end_ = 0;  // of the last one there
  Gaps::Gap open_;         // that comes next, and may grow
  std::vector<Lost> lost_;
};

// Selects turns by the index of attributes, or by their rows where they are not indexed, and keeps the latest
// selections: a filter that is used again looks at what has been appended since. Any thread may call any function;
// `catalog` outlives it.
class TurnSelector {
 public:
  // Keeps at most bytes_max of selections, those that were used last.
  TurnSelector(const Catalog& catalog, uint64_t bytes_max) : catalog_(catalog), bytes_max_(bytes_max) {}

  // As Store::select().
  Expected<std::shared_ptr<const TurnSelection>> select(const MemoryRecord& memory, const TurnQuery& query);

  // As Store::meant_turns().
  Expected<std::vector<TurnRange>> turns(const MemoryRecord& memory, const TurnQuery& query) const;

  void forget(MemoryId id);  // drops what is kept of a memory
  uint64_t kept_bytes() const;

 private:
  struct Kept {
    MemoryId memory = 0;
    Hash128 filter{};
    std::shared_ptr<const TurnSelection> selection;  // shared with the searches that use it
  };

  std::shared_ptr<const TurnSelection> find(MemoryId id, const Hash128& filter);
  void keep(MemoryId id, const Hash128& filter, std::shared_ptr<const TurnSelection> selection);
  Expected<void> read(const MemoryRecord& memory, const TurnQuery& query, TurnSelection& selection) const;

  const Catalog& catalog_;
  const uint64_t bytes_max_;
  mutable std::mutex mutex_;  // guards what follows
  std::list<Kept> kept_;      // used last first
  uint64_t kept_bytes_ = 0;
};

}  // namespace recalld
