// What a hybrid search asks of the store beyond both rankings: the tokens and the keys of their best chunks.
#include <algorithm>
#include <map>
#include <set>
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
  const auto record = [&](size_t i) { return ByteView(kv).subspan(i * model_->kv_bytes(), model_->kv_bytes()); };
  // The CPU compares what has arrived while the rest is on its way.
  size_t arrived = 0;
  double compared_ms = 0;
  FetchWait wait;
  if (!gpu_)
    wait.whole = [&](size_t i) {
      const Clock::time_point whole = Clock::now();
      of_stored[i]->tokens = static_cast<double>(model_->late_score(tokens, record(i)));
      ++arrived;
      compared_ms += milliseconds_since(whole);
    };
  std::vector<Unreadable> damaged;
  RECALLD_CHECK(store_->fetch(ranking.memory.id, chunks, kv, &damaged, wait));
  const Clock::time_point fetched = Clock::now();
  const auto is_damaged = [&](uint64_t chunk) {
    return std::ranges::any_of(damaged,
                               [&](const Unreadable& each) { return each.first <= chunk && chunk <= each.last; });
  };
  // Of what was told while it arrived, some may have been read anew, unless that was everything.
  for (size_t i = 0; arrived < chunks.size() && i < chunks.size(); ++i) {
    of_stored[i]->tokens.reset();
    if (is_damaged(chunks[i])) continue;
    compared.push_back(of_stored[i]);
    records.push_back(record(i));
  }
  RECALLD_TRY(const std::vector<float> scores, late_scores(tokens, records));
  for (size_t i = 0; i < compared.size(); ++i) compared[i]->tokens = static_cast<double>(scores[i]);
  for (Unreadable& each : damaged)
    if (ranking.means(each.first)) ranking.unreadable.push_back(std::move(each));
  ranking.took.fetch_ms = milliseconds_between(begun, fetched) - compared_ms;
  ranking.took.tokens_ms = milliseconds_since(fetched) + compared_ms;
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

// On a read worker. Scores the best of each ranking by the meaning of their tokens; one whose tokens cannot be read, or
// are being forgotten, stays without: its text cannot be shown either.
Expected<void> Engine::Impl::add_meaning(Ranking& ranking) const {
  if (!meaning_) return {};
  const Clock::time_point begun = Clock::now();
  Meaning::Question question(*meaning_, ranking.query_tokens);
  if (question.empty()) return {};
  std::set<uint64_t> wanted;  // and those beside them
  for (const Candidate& candidate : ranking.best) {
    if (!Fusion::is_deep(candidate)) continue;
    for (const uint64_t chunk : {candidate.chunk - 1, candidate.chunk, candidate.chunk + 1})
      if (chunk < UINT64_MAX / chunk_tokens && chunk * chunk_tokens < ranking.end_token) wanted.insert(chunk);
  }
  std::map<uint64_t, Meaning::Chunk> chunks;
  const auto look = [&](uint64_t first, uint64_t end) -> Expected<void> {
    const uint64_t from = first * chunk_tokens, to = std::min(end * chunk_tokens, ranking.end_token);
    RECALLD_TRY(const auto read, store_->tokens(ranking.memory.id, from, static_cast<size_t>(to - from)));
    for (size_t at = 0; at < read.size(); at += chunk_tokens)
      chunks.emplace(first + at / chunk_tokens,
                     question.look(std::span(read).subspan(at, std::min<size_t>(chunk_tokens, read.size() - at))));
    return {};
  };
  const auto is_unreadable = [](const Expected<void>& looked) {
    return !looked && (looked.error().kind == ErrorKind::busy || looked.error().kind == ErrorKind::corrupt);
  };
  for (auto next = wanted.begin(); next != wanted.end();) {
    const uint64_t first = *next;  // of a run of chunks that are read at once
    uint64_t end = first;
    for (; next != wanted.end() && *next == end; ++next) ++end;
    auto looked = look(first, end);
    // Those beside one that cannot be read have their meaning all the same.
    for (uint64_t chunk = first; is_unreadable(looked) && end - first > 1 && chunk < end; ++chunk)
      if (auto one = look(chunk, chunk + 1); !one && !is_unreadable(one)) looked = std::move(one);
    if (!looked && !is_unreadable(looked)) return looked;
  }
  const auto found = [&](uint64_t chunk) {
    const auto place = chunks.find(chunk);
    return place == chunks.end() ? nullptr : &place->second;
  };
  for (Candidate& candidate : ranking.best) {
    const Meaning::Chunk* own = Fusion::is_deep(candidate) ? found(candidate.chunk) : nullptr;
    if (own == nullptr) continue;
    candidate.meaning = question.share(*own, found(candidate.chunk - 1), found(candidate.chunk + 1));
    candidate.topic = own->topic;
  }
  ranking.took.meaning_ms = milliseconds_since(begun);
  return {};
}

}  // namespace recalld
