// What a hybrid search asks of the store beyond both rankings: the keys of their best chunks.
#include <algorithm>
#include <utility>

#include "daemon/engine_impl.h"

namespace recalld {

// On a read worker. Scores the best of each ranking by their tokens; one whose K/V is damaged stays without, and is
// told.
Expected<void> Engine::Impl::add_token_scores(Ranking& ranking) const {
  const std::vector<float>& tokens = ranking.asked.query.tokens;
  if (tokens.empty()) return {};  // the model has no HSA layer, or nothing was asked
  const Clock::time_point begun = Clock::now();
  std::vector<Candidate*> of_stored;
  std::vector<uint64_t> chunks;
  std::vector<std::pair<Candidate*, const std::vector<std::byte>*>> of_tail;
  for (Candidate& candidate : ranking.best) {
    if (!Fusion::is_deep(candidate)) continue;
    if (const auto tail = ranking.tail_kv.find(candidate.chunk); tail != ranking.tail_kv.end()) {
      of_tail.emplace_back(&candidate, &tail->second);
    } else if (candidate.chunk < ranking.memory.encoded_chunks) {
      of_stored.push_back(&candidate);
      chunks.push_back(candidate.chunk);
    }
  }
  std::vector<std::byte> kv(chunks.size() * model_->kv_bytes());
  std::vector<Unreadable> damaged;
  RECALLD_CHECK(store_->fetch(ranking.memory.id, chunks, kv, &damaged));
  const Clock::time_point fetched = Clock::now();
  const auto is_damaged = [&](uint64_t chunk) {
    return std::ranges::any_of(damaged,
                               [&](const Unreadable& each) { return each.first <= chunk && chunk <= each.last; });
  };
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (is_damaged(chunks[i])) continue;
    const auto of_chunk = std::span(kv).subspan(i * model_->kv_bytes(), model_->kv_bytes());
    of_stored[i]->tokens = static_cast<double>(model_->late_score(tokens, of_chunk));
  }
  for (const auto& [candidate, of_chunk] : of_tail)
    candidate->tokens = static_cast<double>(model_->late_score(tokens, *of_chunk));
  std::ranges::move(damaged, std::back_inserter(ranking.unreadable));
  ranking.took.fetch_ms = milliseconds_between(begun, fetched);
  ranking.took.tokens_ms = milliseconds_since(fetched);
  return {};
}

}  // namespace recalld
