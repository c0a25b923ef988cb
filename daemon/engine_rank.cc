// What a hybrid search asks of the store beyond both rankings: the keys of their best chunks.
#include <algorithm>
#include <utility>

#include "daemon/engine_impl.h"

namespace recalld {

// Of all tokens of a question, leaves the heads of those that chunks are compared with: the last ones, without
// newlines. tokens: with the newline before the question and the token that asks
void Engine::Impl::keep_compared(std::span<const uint32_t> tokens, std::vector<float>& heads) const {
  if (heads.empty()) return;
  const auto question = tokens.subspan(1, tokens.size() - 2);
  const size_t width = heads.size() / question.size();
  std::vector<float> kept;
  for (size_t i = question.size() - std::min(question.size(), question_tokens_max); i < question.size(); ++i) {
    if (question[i] == model_->config().newline_token_id) continue;
    const auto of_token = std::span(heads).subspan(i * width, width);
    kept.insert(kept.end(), of_token.begin(), of_token.end());
  }
  heads = std::move(kept);
}

// On a read worker. Scores the best of each ranking by their tokens; one whose K/V is damaged stays without, and is
// told.
Expected<void> Engine::Impl::add_token_scores(Ranking& ranking) const {
  const std::vector<float>& tokens = ranking.asked.query.tokens;
  if (tokens.empty()) return {};  // the model has no HSA layer, or nothing was asked
  const Clock::time_point begun = Clock::now();
  std::vector<Candidate*> compared;
  std::vector<ByteView> records;  // of these
  std::vector<Candidate*> of_stored;
  std::vector<uint64_t> chunks;
  for (Candidate& candidate : ranking.best) {
    if (!Fusion::is_deep(candidate)) continue;
    if (const auto tail = ranking.tail_kv.find(candidate.chunk); tail != ranking.tail_kv.end()) {
      compared.push_back(&candidate);
      records.emplace_back(tail->second);
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
    compared.push_back(of_stored[i]);
    records.push_back(std::span(kv).subspan(i * model_->kv_bytes(), model_->kv_bytes()));
  }
  RECALLD_TRY(const std::vector<float> scores, late_scores(tokens, records));
  for (size_t i = 0; i < compared.size(); ++i) compared[i]->tokens = static_cast<double>(scores[i]);
  std::ranges::move(damaged, std::back_inserter(ranking.unreadable));
  ranking.took.fetch_ms = milliseconds_between(begun, fetched);
  ranking.took.tokens_ms = milliseconds_since(fetched);
  return {};
}

// On the GPU where there is one, however few the chunks are: a hybrid search mostly has tens of them.
Expected<std::vector<float>> Engine::Impl::late_scores(std::span<const float> tokens,
                                                       std::span<const ByteView> records) const {
  if (records.empty()) return std::vector<float>();
  if (gpu_) return gpu_->late_scores(tokens, records);
  std::vector<float> scores;
  for (const ByteView record : records) scores.push_back(model_->late_score(tokens, record));
  return scores;
}

}  // namespace recalld
