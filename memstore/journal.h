// The journal of turns: their rows in the catalog, the token stream, and text cut from both.
// Which memories there are, and how far each goes, is the store's business: callers ask for what exists.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "memstore/catalog.h"
#include "memstore/layout.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "memstore/words.h"

namespace recalld {

inline constexpr size_t token_run_max = 4096;            // tokens of a row
inline constexpr size_t content_piece_bytes = 64 << 10;  // of a turn's content in one row

// Any thread may call any function. `catalog` outlives it. A row that is missing or damaged is Error::corrupt.
class Journal {
 public:
  explicit Journal(const Catalog& catalog) : catalog_(catalog) {}

  // What an operation_id stood for.
  struct Operation {
    std::string id;
    Hash128 digest{};
    Appended reply;
  };
  Expected<std::optional<Operation>> operation(MemoryId id, std::string_view operation_id) const;
  // Those after this one, by the hashes of their ids, at most `limit`.
  Expected<std::vector<StoredOperation>> operations(MemoryId id, const std::optional<Hash128>& after,
                                                    size_t limit) const;
  static void stage(MemoryId id, const Operation& operation, Catalog::Batch& batch);

  // Adds the rows of turns that follow the memory's last one to the batch, and counts them in `memory`.
  static void stage(MemoryId id, std::span<const NewTurn> turns, JournalRecord& memory, Catalog::Batch& batch);

  // In what follows `gaps` says which tokens are counted: those of one generation of the encodings. `journal_gaps` says
  // what is left out of the journal by now: the same, or more while turns of that generation are being forgotten.

  // Turns [first, end), at most `limit`, and no further one once their content passes `bytes_max`.
  // `end_position` is where the tokens of turn `end` would begin.
  Expected<std::vector<StoredTurn>> turns(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps, uint64_t first,
                                          uint64_t end, uint64_t end_position, size_t limit, size_t bytes_max) const;

  // Tokens [first, end). Fails with busy when some of them are being forgotten.
  Expected<std::vector<uint32_t>> tokens(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps, uint64_t first,
                                         uint64_t end) const;

  // The text of tokens [first, end), without those that are being forgotten. `token_ends` is filled as
  // Store::passage() says.
  Expected<Passage> passage(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps, uint64_t first, uint64_t end,
                            std::vector<size_t>* token_ends = nullptr) const;

  // The words of the chunks from `chunk` on up to token `end`. A word belongs to the chunk in which it begins; those of
  // turns that are being forgotten are left out.
  Expected<std::vector<ChunkWords>> words(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps, uint64_t chunk,
                                          uint64_t end, WordReader& reader) const;

  // The last turn that ends at token `end` or before; nothing when there is none. 1 <= end.
  Expected<std::optional<uint64_t>> last_turn_within(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps,
                                                     uint64_t end) const;

  // What removing turns takes away.
  struct Removal {
    std::vector<TurnRange> turns;  // that there were, by number
    std::vector<Gaps::Gap> gaps;   // their tokens, one gap a range
    uint64_t turn_count = 0;
    uint64_t content_bytes = 0;
  };
  // Finds those of `ranges` (by number, apart from each other) that there are.
  Expected<Removal> find(MemoryId id, std::span<const TurnRange> ranges) const;
  static void stage(MemoryId id, const Removal& removal, Catalog::Batch& batch);

  // ---- Verifying (journal_check.cc). Damage is an outcome here, never an error.

  // Where a stretch of turns begins.
  struct Place {
    uint64_t turn = 0;
    uint64_t position = 0;  // of the first token
  };
  struct Checked {
    std::optional<Place> next;  // where to go on; nothing: this was the end
    uint64_t turns = 0;         // rows of turns that there are, damaged ones included
    uint64_t content_bytes = 0;
    bool counted = true;  // the two are known: no row of a turn is damaged
    uint64_t bytes = 0;   // read
    std::vector<Problem> problems;
    std::vector<uint64_t> untokenised;  // turns that are whole, while the tokens of them are not
    struct Hole {
      Gaps::Gap at;                    // positions that no turn has
      std::optional<TurnRange> turns;  // the numbers between its neighbours
    };
    std::vector<Hole> holes;  // in which no row tells what there was
  };
  // Reads the turns from `from` on with their tokens, until it has seen `turns_max` of them. `gaps` numbers the tokens
  // that it names.
  Checked check(MemoryId id, const JournalRecord& memory, const Gaps& gaps, const Gaps& journal_gaps, Place from,
                size_t turns_max) const;

  struct CheckedOperations {
    uint64_t operations = 0;  // rows that there are
    bool counted = true;      // that is known
    std::vector<Problem> problems;
  };
  CheckedOperations check_operations(MemoryId id, const JournalRecord& memory) const;

  // The turn as it is stored, with how many tokens it has.
  Expected<StoredTurn> turn(MemoryId id, const Gaps& gaps, uint64_t number) const;
  // Writes the tokens of a turn anew: adds their rows, and the removal of all others in their place, to the batch.
  static void stage_tokens(MemoryId id, uint64_t turn, uint64_t first_position, std::span<const uint32_t> ids,
                           std::span<const uint32_t> ends, Catalog::Batch& batch);

 private:
  const Catalog& catalog_;
};

}  // namespace recalld
