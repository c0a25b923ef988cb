#include "memstore/store_shares.h"

#include <algorithm>

namespace recalld {

StoreShares StoreShares::of(uint64_t budget_bytes, const RecordShape& shape) {
  constexpr uint64_t working_bytes_least = uint64_t{8} << 20, memtable_bytes_max = uint64_t{64} << 20;
  constexpr uint64_t posting_bytes_least = uint64_t{64} << 10, posting_bytes_max = uint64_t{8} << 20;
  // Large states leave as much as the smallest store has.
  const uint64_t of_states = std::min(states_bytes(shape), budget_bytes - std::min(budget_bytes, budget_bytes_min));
  StoreShares shares;
  shares.working_bytes = std::max(std::min(working_bytes_least, budget_bytes / 3), of_states);
  const uint64_t shared = budget_bytes - shares.working_bytes;
  shares.entry_bytes = shared / 32;
  shares.landmark_bytes = shared / 2 - shares.entry_bytes;
  shares.block_bytes = shared / 3;
  shares.memtable_bytes = std::min(shared / 6, memtable_bytes_max);
  shares.posting_bytes = std::clamp(shared / 24, posting_bytes_least, posting_bytes_max);
  shares.selection_bytes = shares.posting_bytes;
  return shares;
}

}  // namespace recalld
