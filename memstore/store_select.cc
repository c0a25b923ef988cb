// Which turns a filter means, and in which chunks they lie.
#include <algorithm>
#include <utility>

#include "memstore/store_impl.h"

namespace recalld {

Expected<std::shared_ptr<const TurnSelection>> Store::select(MemoryId id, const TurnQuery& query) const {
  RECALLD_TRY(auto record, impl_->table.recent(id));
  while (true) {
    auto selection = impl_->selector.select(*record, query);
    if (selection && (*selection)->lost().empty()) return selection;
    // Rows of turns that were forgotten since the record was read are missing, and not damaged.
    RECALLD_TRY(auto now, impl_->table.recent(id));
    if (now->gaps() == record->gaps()) return selection;
    record = std::move(now);
  }
}

Expected<std::vector<TurnRange>> Store::meant_turns(MemoryId id, const TurnQuery& query) const {
  return impl_->read(id, [&](const MemoryRecord& record) { return impl_->selector.turns(record, query); });
}

Expected<SelectedChunks> Store::selected_chunks(MemoryId id, const TurnSelection& selection) const {
  RECALLD_TRY(const auto record, impl_->table.recent(id));
  const Gaps& gaps = record->serving.layout.gaps;
  const uint64_t tokens = record->serving.tokens(record->journal);
  SelectedChunks out;
  out.chunks = selection.chunks(gaps, record->gaps(), tokens);
  out.end_token = std::min(gaps.token_of(selection.end_position()), tokens);
  for (const auto& [at, cause] : selection.lost()) {
    const uint64_t first = gaps.token_of(at.position), end = std::min(gaps.token_of(at.end()), tokens);
    if (first < end) out.unreadable.push_back({first / chunk_tokens, (end - 1) / chunk_tokens, cause});
  }
  return out;
}

}  // namespace recalld
