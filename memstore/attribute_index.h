// What the turns of a memory say of themselves, by attribute: the rows of `attributes`, so that a filter reads columns
// and not turns. Everything here can be made again from the journal.
//
// A block speaks of all turns between two numbers. Blocks lie apart from each other and may leave turns out that are
// not indexed: those of stores that were written before there was an index, and those of blocks that were removed since
// turns of them were forgotten. Such turns are judged by their own rows.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "memstore/attribute.h"
#include "memstore/attribute_rows.h"
#include "memstore/catalog.h"
#include "memstore/chunk.h"
#include "memstore/memory_table.h"

namespace recalld {

// Numbers of turns, without the last.
struct TurnStretch {
  uint64_t first = 0;
  uint64_t end = 0;
};

// The blocks of a memory as they were when this was made. It belongs to one thread; the catalog outlives it.
class AttributeBlocks {
 public:
  AttributeBlocks(const Catalog& catalog, MemoryId id)
      : id_(id), rows_(catalog.cursor(Family::attributes, prefix(id))) {}

  struct Block {
    uint64_t number = 0;  // of the first turn that it speaks of
    std::string row;
    BlockHead head;  // borrows the row
  };
  // The block that speaks of this turn, or else the first one behind it. One that is damaged is passed over, and where
  // rows cannot even be listed there is none.
  Expected<const Block*> find(uint64_t turn);

  // Where the rows stand that speak of a turn, or may do so: behind the last block before it that is whole, those of
  // blocks that are damaged.
  struct Place {
    uint64_t first_row = 0;  // the number of their block
    uint64_t whole_end = 0;  // of a block that is whole and speaks of the turn, turns it ends before; else 0
  };
  Expected<Place> place_of(uint64_t turn);

  // The turns of the block; null: its row is damaged.
  const TurnsView* turns(const Block& block);

  // Which turns of the block meet the condition; nothing where rows of it are damaged or missing.
  Expected<std::optional<Places>> match(const Block& block, const TurnCondition& condition);

 private:
  struct Loaded {
    std::string summary_row;
    std::string column_row;
    std::optional<ColumnSummary> summary;  // borrows its row; nothing: no turn of the block has the attribute
    std::optional<Column> column;          // likewise; read when it is needed
  };
  static std::string prefix(MemoryId id);
  Expected<bool> go_to(uint64_t block);
  Expected<std::optional<std::string>> row(const std::string& key);
  Expected<Loaded*> load(const Block& block, const std::string& attribute);
  Expected<const Column*> column(const Block& block, const std::string& attribute, Loaded& loaded);
  Expected<Places> evaluate(const Block& block, const TurnCondition& condition);
  Expected<Places> evaluate_attribute(const Block& block, const TurnCondition& condition);

  const MemoryId id_;
  Catalog::Cursor rows_;
  Block block_;
  // Of the block that is being judged:
  std::map<std::string, Loaded, std::less<>> loaded_;
  std::optional<TurnsView> turns_;
};

// Any thread may call any function; those that write, or add to a batch, are called by one thread at a time.
class AttributeIndex {
 public:
  // `catalog` outlives it. Without a reader of metadata nothing is added.
  AttributeIndex(const Catalog& catalog, MetadataReader read_metadata)
      : catalog_(catalog), read_metadata_(std::move(read_metadata)) {}

  bool adds() const { return static_cast<bool>(read_metadata_); }

  // ---- Adding
  IndexedTurn indexed(uint64_t number, uint64_t position, uint64_t tokens, const Turn& turn) const;

  // Adds the turns of a stretch that begins where the memory ended, of which there are `turns`.
  Expected<void> stage(MemoryId id, TurnStretch of, std::vector<IndexedTurn> turns, Catalog::Batch& batch) const;

  // The first stretch of turns, from `from` on and before `end`, of which no block speaks.
  Expected<std::optional<TurnStretch>> first_missing(MemoryId id, uint64_t from, uint64_t end) const;

  // Reads turns of such a stretch from the journal, as many as make one block, up to where one is damaged.
  struct Made {
    std::optional<TurnStretch> of;  // that the block speaks of; nothing: none can be made
    std::vector<IndexedTurn> turns;
    uint64_t next = 0;  // where to go on
  };
  Expected<Made> make(const MemoryRecord& memory, TurnStretch stretch) const;
  // Adds that block. `last`: the memory ends there, and more turns will follow.
  void stage_block(MemoryId id, const Made& made, bool last, Catalog::Batch& batch) const;

  // ---- Removing
  // Removes the blocks that speak of any of these turns (ranges by number, apart from each other; at least one), and
  // those that may do so, since they are damaged.
  // Returns the turn from which on there may be rows, these or earlier ones, that spoke of any of them.
  Expected<uint64_t> stage_removal(MemoryId id, std::span<const TurnRange> turns, Catalog::Batch& batch) const;
  // All rows of the blocks of a stretch.
  static void stage_removal(MemoryId id, TurnStretch blocks, Catalog::Batch& batch);
  // Where they stood.
  static Catalog::Range range(MemoryId id, TurnStretch blocks);

  // ---- Verifying
  struct Checked {
    TurnStretch block;   // whose rows were read
    uint64_t turns = 0;  // that it speaks of, from `from` on
    uint64_t bytes = 0;  // read
    std::string cause;   // what is wrong; empty: nothing
  };
  // The first block that speaks of turn `from` or of one behind it, compared with the turns; nothing when there is
  // none.
  Expected<std::optional<Checked>> check(const MemoryRecord& memory, uint64_t from) const;

 private:
  const Catalog& catalog_;
  const MetadataReader read_metadata_;
};

}  // namespace recalld
