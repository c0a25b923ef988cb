// Search: query, top-k over the stored landmarks and the tail, text.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "base/quote.h"
#include "daemon/engine_impl.h"

namespace recalld {

void Engine::Impl::search(SearchRequest request, Done<SearchReply> done) {
  Query query{std::move(request), {}, Clock::now(), std::move(done)};
  boost::asio::post(tokenisers_, [this, query = std::move(query)]() mutable {
    query.tokens = tokenizer_->encode_query(query.request.query);
    rank_and_collect(std::move(query));
  });
}

void Engine::Impl::rank_and_collect(Query query) {
  model_thread_->search([this, query = std::move(query)]() mutable {
    Expected<Ranking> ranking = rank(query);
    boost::asio::post(readers_, [this, query = std::move(query), ranking = std::move(ranking)]() mutable {
      if (!ranking) return query.done(std::unexpected(std::move(ranking).error()));
      Expected<SearchReply> reply = collect(query.request, *ranking);
      // Where turns were forgotten meanwhile, the numbers of chunks may stand for others now.
      if (!still_holds(*ranking)) {
        constexpr int attempts_max = 8;
        if (++query.attempts < attempts_max) return rank_and_collect(std::move(query));
        reply = fail(ErrorKind::busy, "search memory " + in_quotes(query.request.memory) +
                                          ": turns of it are being forgotten all the time; ask again");
      }
      // Damaged chunks must not take the places of others.
      constexpr size_t spare_max = 4'096;
      if (reply && reply->results.size() < query.request.limit &&
          reply->unreadable.size() > ranking->unreadable.size() && ranking->best.size() == ranking->limit &&
          query.spare < spare_max && !query.request.max_tokens) {
        query.spare = std::max<size_t>(16, query.spare * 4);
        return rank_and_collect(std::move(query));
      }
      if (reply) tell_damage(ranking->memory.id, reply->unreadable);
      if (reply) reply->took_ms = milliseconds_since(query.start);
      ++searches_;
      query.done(std::move(reply));
    });
  });
}

bool Engine::Impl::still_holds(const Ranking& ranking) const {
  const auto now = store_->memory(ranking.memory.id);
  return !now || (now->serving.stream == ranking.memory.serving.stream &&
                  now->serving.edition == ranking.memory.serving.edition);
}

Expected<Engine::Impl::Ranking> Engine::Impl::rank(const Query& query) {
  RECALLD_TRY(SearchQuery asked, backend_->query(query.tokens));
  const std::span<const Bf16> embedding = asked.landmark;
  RECALLD_TRY(Encoder::Covered covered, encoder_->cover(query.request.memory));
  auto& [memory, tail, unreadable] = covered;
  state_bytes_ = encoder_->state_bytes();

  const size_t limit = query.request.limit + query.spare;
  TopK top(limit);
  uint64_t end_token = memory.encoded_chunks * chunk_tokens;
  std::vector<Unreadable> pages;
  RECALLD_TRY(const auto stored, store_->top_k(memory.id, embedding, limit, *pool_, &pages));
  unreadable.insert(unreadable.begin(), pages.begin(), pages.end());
  for (const ScoredChunk& chunk : stored) top.offer(chunk);
  if (tail) {
    end_token = tail->end_token;
    std::vector<float> dots(tail->landmarks.size() / embedding.size());
    landmark_dots_cpu(embedding, tail->landmarks.data(), dots.size(), dots.data());
    for (size_t i = 0; i < dots.size(); ++i) top.offer({tail->first_chunk + i, dots[i]});
  }
  Ranking ranking{std::move(memory), top.take(), end_token, limit, std::move(unreadable), {}, {}};
  if (query.request.explain) {
    ranking.heads = std::move(asked.heads);
    for (const ScoredChunk& chunk : ranking.best) {
      if (!tail || chunk.chunk < tail->first_chunk) continue;
      const auto kv =
          std::span(tail->kv).subspan((chunk.chunk - tail->first_chunk) * model_->kv_bytes(), model_->kv_bytes());
      ranking.tail_kv.emplace(chunk.chunk, std::vector(kv.begin(), kv.end()));
    }
  }
  return ranking;
}

// What is damaged is left out and told: the rest is served.
Expected<SearchReply> Engine::Impl::collect(const SearchRequest& request, const Ranking& ranking) {
  SearchReply reply;
  reply.unreadable = ranking.unreadable;
  const auto leave_out = [&](uint64_t chunk, const Error& error) {
    reply.unreadable.push_back({chunk, chunk, error.message});
  };
  RECALLD_TRY(reply.searchable_through, through(ranking.memory.id, ranking.end_token));
  uint64_t tokens_left = request.max_tokens.value_or(UINT64_MAX);
  for (const ScoredChunk& candidate : ranking.best) {
    if (reply.results.size() == request.limit) break;
    const uint64_t first = candidate.chunk * chunk_tokens;
    const uint64_t end = std::min(first + chunk_tokens, ranking.end_token);
    if (end - first > tokens_left) break;
    tokens_left -= end - first;

    SearchReply::Result result;
    result.chunk = candidate.chunk;
    result.score = static_cast<double>(candidate.dot * model_->score_scale());
    auto passage = store_->passage(ranking.memory.id, first, end);
    if (!passage && passage.error().kind == ErrorKind::corrupt) {
      leave_out(candidate.chunk, passage.error());
      tokens_left += end - first;
      continue;
    }
    RECALLD_TRY(result.passage, std::move(passage));
    if (result.passage.turns.empty()) {  // all that was in it is being forgotten
      tokens_left += end - first;
      continue;
    }
    if (request.explain) {
      auto why = explain(ranking, candidate, reply.results.size() + 1);
      if (why)
        result.why = *std::move(why);
      else if (why.error().kind != ErrorKind::corrupt)
        return std::unexpected(std::move(why).error());
      else
        leave_out(candidate.chunk, why.error());  // its landmark and its text are whole: it stays in the reply
    }
    reply.results.push_back(std::move(result));
  }
  return reply;
}

// Once a piece of damage, not once a search.
void Engine::Impl::tell_damage(MemoryId id, const std::vector<Unreadable>& unreadable) {
  constexpr size_t told_max = 1'000;
  const std::lock_guard lock(problem_mutex_);
  for (const Unreadable& lost : unreadable) {
    const std::string what = "memory " + std::to_string(id) + ", chunk " + std::to_string(lost.first) + " to " +
                             std::to_string(lost.last) + ": " + lost.message;
    if (damage_.empty()) damage_ = what;
    if (damage_told_.size() < told_max && damage_told_.insert(what).second) spdlog::error("read {}", what);
  }
}

// Why a chunk was chosen, and the token that each head of the first HSA layer looks at most inside it.
Expected<SearchReply::Why> Engine::Impl::explain(const Ranking& ranking, const ScoredChunk& candidate,
                                                 size_t rank) const {
  SearchReply::Why why{.landmark_score = static_cast<double>(candidate.dot * model_->score_scale()),
                       .rank = rank,
                       .stored = true,
                       .matches = {}};
  std::vector<std::byte> kv(model_->kv_bytes());
  if (const auto tail = ranking.tail_kv.find(candidate.chunk); tail != ranking.tail_kv.end()) {
    why.stored = false;
    kv = tail->second;
  } else {
    RECALLD_CHECK(store_->fetch(ranking.memory.id, std::array{candidate.chunk}, kv));
  }
  if (ranking.heads.empty()) return why;  // the model has no HSA layer

  const std::vector<float> shares = model_->head_shares(ranking.heads, kv);
  const uint64_t first = candidate.chunk * chunk_tokens;
  const size_t tokens = std::min<uint64_t>(chunk_tokens, ranking.end_token - first);  // the open chunk is padded
  for (size_t head = 0; head * chunk_tokens < shares.size(); ++head) {
    const auto of_head = std::span(shares).subspan(head * chunk_tokens, tokens);
    const auto most = std::ranges::max_element(of_head);
    const uint64_t token = first + static_cast<uint64_t>(most - of_head.begin());
    RECALLD_TRY(Passage passage, store_->passage(ranking.memory.id, token, token + 1));
    why.matches.push_back(
        {.text = std::move(passage.text), .token = token, .head = head, .weight = static_cast<double>(*most)});
  }
  std::ranges::sort(why.matches, std::ranges::greater{}, &SearchReply::Why::Match::weight);
  return why;
}

}  // namespace recalld
