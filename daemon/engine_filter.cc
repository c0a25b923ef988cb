// Filters of a search: turns first, on a read worker, since their rows may have to be read; then, whenever chunks are
// ranked, the chunks of these turns.
#include <utility>

#include "base/quote.h"
#include "daemon/engine_impl.h"

namespace recalld {

// On a read worker.
Expected<void> Engine::Impl::select_turns(Query& query) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(query.request.memory));
  query.selected_memory = memory.id;
  RECALLD_TRY(query.selection, store_->select(memory.id, *query.request.filter));
  return {};
}

// Which chunks of what `ranking` covers may be ranked: all, when there is no filter.
Expected<void> Engine::Impl::restrict(const Query& query, Ranking& ranking) const {
  if (!query.selection) return {};
  if (ranking.memory.id != query.selected_memory)
    return fail(ErrorKind::busy, "search memory " + in_quotes(query.request.memory) +
                                     ": it was removed and made again meanwhile; ask again");
  RECALLD_TRY(ranking.selected, store_->selected_chunks(ranking.memory.id, *query.selection));
  auto& lost = ranking.selected->unreadable;
  ranking.unreadable.insert(ranking.unreadable.end(), lost.begin(), lost.end());
  return {};
}

}  // namespace recalld
