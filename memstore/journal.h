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
#include "memstore/rows.h"
#include "memstore/store.h"

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
  static void stage(MemoryId id, const Operation& operation, Catalog::Batch& batch);

  // Adds the rows of turns that follow the memory's last one to the batch, and counts them in `memory`.
  static void stage(MemoryId id, std::span<const NewTurn> turns, JournalRecord& memory, Catalog::Batch& batch);

  // Turns [first, end), at most `limit`, and no further one once their content passes `bytes_max`.
  Expected<std::vector<StoredTurn>> turns(MemoryId id, uint64_t first, uint64_t end, size_t limit,
                                          size_t bytes_max) const;

  Expected<std::vector<uint32_t>> tokens(MemoryId id, uint64_t first, uint64_t end) const;
  Expected<Passage> passage(MemoryId id, uint64_t first, uint64_t end) const;

  // The last turn that ends at token `end` or before; nothing when there is none. 1 <= end.
  Expected<std::optional<uint64_t>> last_turn_within(MemoryId id, uint64_t end) const;

 private:
  const Catalog& catalog_;
};

}  // namespace recalld
