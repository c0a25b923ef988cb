// Search: query, top-k over the stored landmarks and the tail, text.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/quote.h"
#include "daemon/engine_impl.h"

namespace recalld {

void Engine::Impl::search(SearchRequest request, Done<SearchReply> done) {
  if (request.together()) return search_together(std::move(request), std::move(done));
  search(Query{std::move(request), {}, Clock::now(), std::move(done)});
}

void Engine::Impl::search(Query query) {
  if (query.request.filter && !query.selection) {
    boost::asio::post(readers_, [this, query = std::move(query)]() mutable {
      if (auto selected = select_turns(query); !selected)
        return query.done(std::unexpected(std::move(selected).error()));
      search(std::move(query));
    });
    return;
  }
  if (query.request.mode == SearchMode::lexical) return rank_and_collect(std::move(query));
  boost::asio::post(tokenisers_, [this, query = std::move(query)]() mutable {
    query.tokens = tokenizer_->encode_query(query.request.query);
    rank_and_collect(std::move(query));
  });
}

// Words need no model, so that searching for them goes on while encoding stands still.
void Engine::Impl::rank_and_collect(Query query) {
  if (query.request.mode == SearchMode::lexical) {
    boost::asio::post(readers_, [this, query = std::move(query)]() mutable {
      Expected<Ranking> ranking = cover_by_words(query);
      collect(std::move(query), std::move(ranking), {});
    });
    return;
  }
  if (query.request.mode == SearchMode::hybrid) return rank_both(std::move(query));
  model_thread_->search([this, query = std::move(query)]() mutable {
    Expected<Ranking> ranking = rank(query);
    boost::asio::post(readers_, [this, query = std::move(query), ranking = std::move(ranking)]() mutable {
      collect(std::move(query), std::move(ranking), {});
    });
  });
}

struct Engine::Impl::Both {
  Query query;  // not changed meanwhile
  Expected<Ranking> ranking;
  BegunWords words;
  Clock::time_point ranked, words_ended;
  std::atomic<int> missing = 2;  // whoever ends last goes on
};

// The words are begun when the model is, not before: so few rankings hold rows however many searches wait in line.
void Engine::Impl::rank_both(Query query) {
  // Shared by the model thread and a read worker.
  auto both = std::make_shared<Both>();
  both->query = std::move(query);
  model_thread_->search([this, both] {
    boost::asio::post(readers_, [this, both] {
      begin_words(*both);
      both->words_ended = Clock::now();
      if (--both->missing == 0) collect(*both);
    });
    both->ranking = rank(both->query);
    both->ranked = Clock::now();
    if (--both->missing == 0) boost::asio::post(readers_, [this, both] { collect(*both); });
  });
}

// On a read worker. Ranks what the model will cover, unless the memory changes meanwhile.
void Engine::Impl::begin_words(Both& both) const {
  const Clock::time_point begun = Clock::now();
  const Expected<Ranking> covered = cover_by_words(both.query);
  if (!covered) return;
  const auto begin = [&](const LexicalQuery& query, std::unique_ptr<LexicalBegun>& into) {
    auto ranking = store_->begin_lexical(covered->memory.id, query);
    if (ranking) into = *std::move(ranking);
  };
  begin(words_asked(both.query.request, *covered), both.words.ranking);
  if (covered->selected) begin(words_of_all(both.query.request, *covered), both.words.of_all);
  both.words.beside_ms = milliseconds_since(begun);
}

// On a read worker.
void Engine::Impl::collect(Both& both) {
  both.words.waited_ms = std::max(0.0, milliseconds_between(both.ranked, both.words_ended));
  both.words.beside_ms = std::max(0.0, both.words.beside_ms - both.words.waited_ms);
  collect(std::move(both.query), std::move(both.ranking), std::move(both.words));
}

// On a read worker.
void Engine::Impl::collect(Query query, Expected<Ranking> ranking, BegunWords words) {
  if (!ranking) return query.done(std::unexpected(std::move(ranking).error()));
  Expected<void> added;
  if (query.request.mode != SearchMode::landmark) added = add_words(query.request, *ranking, std::move(words));
  Expected<SearchReply> reply;
  if (added) {
    order(query.request, ranking->best);
    reply = collect(query.request, std::span(&*ranking, 1), ranking->best);
  } else {
    reply = std::unexpected(std::move(added).error());
  }
  // Where turns were forgotten meanwhile, the numbers of chunks may stand for others now, or for none.
  if (!still_holds(*ranking)) {
    constexpr int attempts_max = 8;
    if (++query.attempts < attempts_max && !model_thread_ended_) return rank_and_collect(std::move(query));
    reply = fail(ErrorKind::busy, "search memory " + in_quotes(query.request.memory) +
                                      ": turns of it are being forgotten all the time; ask again");
  }
  if (reply && spare_more(query, *reply, ranking->unreadable.size(), ranking->best.size() >= ranking->limit))
    return rank_and_collect(std::move(query));
  if (reply) tell_damage(ranking->memory.id, reply->unreadable);
  if (reply) reply->took_ms = milliseconds_since(query.start);
  ++searches_;
  query.done(std::move(reply));
}

// Damaged chunks must not take the places of others: whether these are to be ranked, too, now that `query` spares more.
// lost: what the ranking could not read; is_cut: there may be chunks that it left out.
bool Engine::Impl::spare_more(Query& query, const SearchReply& reply, size_t lost, bool is_cut) const {
  constexpr size_t spare_max = 4'096;
  size_t unreadable = reply.unreadable.size();
  if (reply.memories)
    for (const SearchReply::OfMemory& memory : *reply.memories) unreadable += memory.unreadable.size();
  const bool is_short = reply.results.size() < query.request.limit && unreadable > lost;
  if (!is_short || !is_cut || query.request.max_tokens || query.spare >= spare_max || model_thread_ended_) return false;
  query.spare = std::max<size_t>(16, query.spare * 4);
  return true;
}

bool Engine::Impl::still_holds(const Ranking& ranking) const {
  const auto now = store_->memory(ranking.memory.id);
  return !now || (now->serving.stream == ranking.memory.serving.stream &&
                  now->serving.edition == ranking.memory.serving.edition);
}

// How many chunks each ranking gives.
size_t Engine::Impl::ranked(const Query& query) {
  // Two rankings that are to be joined are read further than what is shown of them.
  constexpr size_t joined_least = Fusion::depth;
  const size_t shown = query.request.limit + query.spare;
  // So is one whose chunks are to be joined to fewer results.
  const bool joined = query.request.mode == SearchMode::hybrid || query.request.expand != Expand::none;
  return joined ? std::max(shown, joined_least) : shown;
}

// On the model thread.
Expected<Engine::Impl::Asked> Engine::Impl::ask(const Query& query) {
  const Clock::time_point begun = Clock::now();
  Asked asked;
  const bool compares = query.request.mode == SearchMode::hybrid || query.request.explain;
  RECALLD_TRY(asked.query, backend_->query(query.tokens, compares ? QueryParts::all : QueryParts::landmark));
  if (query.request.explain) explain_query(query.tokens, asked);
  keep_compared(query.tokens, asked.query.tokens);
  asked.took_ms = milliseconds_since(begun);
  return asked;
}

Expected<Engine::Impl::Ranking> Engine::Impl::rank(const Query& query) {
  RECALLD_TRY(const Asked asked, ask(query));
  return rank(query, asked);
}

// On the model thread.
Expected<Engine::Impl::Ranking> Engine::Impl::rank(const Query& query, const Asked& asked) {
  const Clock::time_point begun = Clock::now();
  const std::span<const Bf16> embedding = asked.query.landmark;
  RECALLD_TRY(Encoder::Covered covered, encoder_->cover(query.request.memory));
  auto& [memory, tail, unreadable] = covered;
  state_bytes_ = encoder_->state_bytes();
  const Clock::time_point covered_at = Clock::now();

  Ranking ranking;
  ranking.memory = std::move(memory);
  ranking.unreadable = std::move(unreadable);
  RECALLD_CHECK(restrict(query, ranking));
  ranking.limit = ranked(query);
  ranking.end_token = tail ? tail->end_token : ranking.memory.encoded_chunks * chunk_tokens;
  std::vector<float> dots;
  if (tail) {
    dots.resize(tail->landmarks.size() / embedding.size());
    landmark_dots_cpu(embedding, tail->landmarks.data(), dots.size(), dots.data());
  }
  const auto first_of = [&](size_t limit, const ChunkSet* only,
                            std::vector<Unreadable>& lost) -> Expected<std::vector<ScoredChunk>> {
    TopK top(limit);
    RECALLD_TRY(const auto stored, store_->top_k(ranking.memory.id, embedding, limit, *pool_, &lost, only));
    for (const ScoredChunk& chunk : stored) top.offer(chunk);
    for (size_t i = 0; i < dots.size(); ++i) {
      const uint64_t chunk = tail->first_chunk + i;
      if (only == nullptr || only->contains(chunk)) top.offer({chunk, dots[i]});
    }
    return top.take();
  };
  const auto add = [&](const ScoredChunk& chunk, size_t place) -> Candidate& {
    Candidate& candidate = ranking.best.emplace_back();
    candidate.chunk = chunk.chunk;
    candidate.landmark = candidate.score = static_cast<double>(chunk.dot * model_->score_scale());
    candidate.landmark_rank = place + 1;
    return candidate;
  };
  std::vector<Unreadable> pages;
  RECALLD_TRY(const auto best, first_of(ranking.limit, ranking.only(), pages));
  ranking.unreadable.insert(ranking.unreadable.begin(), pages.begin(), pages.end());
  for (size_t i = 0; i < best.size(); ++i) add(best[i], i).further = ranking.selected.has_value();
  // What the filter leaves out is compared all the same: scores tell how a chunk stands among those.
  if (ranking.selected && query.request.mode == SearchMode::hybrid) {
    std::vector<Unreadable> of_others;
    RECALLD_TRY(const auto of_all, first_of(Fusion::depth, nullptr, of_others));
    for (size_t i = 0; i < of_all.size(); ++i) {
      const auto known = std::ranges::find(ranking.best, of_all[i].chunk, &Candidate::chunk);
      if (known != ranking.best.end())
        known->further = false;
      else
        add(of_all[i], i).meant = false;
    }
  }
  if (query.request.mode == SearchMode::hybrid || query.request.explain) {
    ranking.asked = asked;
    ranking.query_tokens = query.tokens;
    for (size_t i = 0; i < dots.size(); ++i) {
      const auto kv = std::span(tail->kv).subspan(i * model_->kv_bytes(), model_->kv_bytes());
      ranking.tail_kv.emplace(tail->first_chunk + i, std::vector(kv.begin(), kv.end()));
    }
  }
  ranking.query = asked.query.landmark;
  ranking.tail_dots = std::move(dots);
  ranking.took = {.query_ms = asked.took_ms,
                  .encode_ms = milliseconds_between(begun, covered_at),
                  .landmarks_ms = milliseconds_since(covered_at)};
  return ranking;
}

// What a search for words covers: as much as one by landmarks.
Expected<Engine::Impl::Ranking> Engine::Impl::cover_by_words(const Query& query) const {
  Ranking ranking;
  RECALLD_TRY(ranking.memory, store_->memory(query.request.memory));
  ranking.end_token = Encoder::covered_tokens(ranking.memory);
  ranking.limit = ranked(query);
  RECALLD_CHECK(restrict(query, ranking));
  return ranking;
}

// With a filter: as it is asked without, for those that set the standing.
LexicalQuery Engine::Impl::words_of_all(const SearchRequest& request, const Ranking& ranking) {
  LexicalQuery query = words_asked(request, ranking);
  query.k = Fusion::depth;
  query.only = nullptr;
  return query;
}

LexicalQuery Engine::Impl::words_asked(const SearchRequest& request, const Ranking& ranking) {
  return {.text = request.query,
          .chunks_max = ranking.memory.encoded_chunks,
          .end_token = ranking.end_token,
          .k = ranking.limit,
          .only = ranking.only()};
}

// Ranks by words, and in a hybrid search joins both rankings: what order() needs to know of each chunk.
Expected<void> Engine::Impl::add_words(const SearchRequest& request, Ranking& ranking, BegunWords begun_words) const {
  const Clock::time_point begun = Clock::now();
  std::vector<uint64_t> known;
  for (const Candidate& candidate : ranking.best) known.push_back(candidate.chunk);
  LexicalQuery asked = words_asked(request, ranking);
  asked.also = known;
  RECALLD_TRY(LexicalRanking words, store_->lexical_top_k(ranking.memory.id, asked, std::move(begun_words.ranking)));
  ranking.unindexed_chunks = words.unindexed_chunks;
  std::ranges::move(words.unreadable, std::back_inserter(ranking.unreadable));
  const auto take = [](Candidate& into, const LexicalScore& score) {
    into.bm25 = static_cast<double>(score.bm25);
    into.context = static_cast<double>(score.context);
  };
  std::unordered_map<uint64_t, size_t> place;
  for (size_t i = 0; i < ranking.best.size(); ++i) {
    place.emplace(ranking.best[i].chunk, i);
    take(ranking.best[i], words.also[i]);
  }
  double lowest = 0;  // for a chunk whose landmark cannot be read
  if (!ranking.best.empty()) lowest = std::ranges::min(ranking.best, {}, &Candidate::landmark).landmark;
  const auto join = [&](std::span<const LexicalScore> best, bool of_all) -> Expected<void> {
    for (size_t i = 0; i < best.size(); ++i) {
      const LexicalScore& score = best[i];
      const auto [found, added] = place.emplace(score.chunk, ranking.best.size());
      if (added) {
        Candidate& candidate = ranking.best.emplace_back();
        candidate.chunk = score.chunk;
        candidate.meant = !of_all;  // else it were here already
        candidate.further = ranking.selected.has_value();
        take(candidate, score);
        candidate.score = candidate.bm25 + candidate.context;
        if (request.mode == SearchMode::hybrid) {
          auto landmark = landmark_score(ranking, score.chunk);
          if (!landmark && landmark.error().kind != ErrorKind::corrupt) return std::unexpected(landmark.error());
          candidate.landmark = landmark.value_or(lowest);
        }
      }
      Candidate& candidate = ranking.best[found->second];
      if (of_all) candidate.further = false;
      if (!of_all || !candidate.meant) candidate.lexical_rank = i + 1;
    }
    return {};
  };
  RECALLD_CHECK(join(words.best, false));
  if (ranking.selected && request.mode == SearchMode::hybrid) {
    RECALLD_TRY(const LexicalRanking of_all, store_->lexical_top_k(ranking.memory.id, words_of_all(request, ranking),
                                                                   std::move(begun_words.of_all)));
    RECALLD_CHECK(join(of_all.best, true));
  }
  ranking.took.words_ms = begun_words.waited_ms + milliseconds_since(begun);
  ranking.took.words_beside_ms = begun_words.beside_ms;
  if (request.mode != SearchMode::hybrid) return {};
  RECALLD_CHECK(add_meaning(ranking));
  return add_token_scores(ranking);
}

// Puts the candidates of a search, of one memory or of several, into one order. Those of other modes than hybrid are in
// the order of their scores before.
void Engine::Impl::order(const SearchRequest& request, std::vector<Candidate>& best) const {
  if (request.mode == SearchMode::hybrid) fusion_.rank(best);
  if (request.explain) rank_parts(best);  // while all that were compared are there
  if (request.mode != SearchMode::hybrid) return;
  std::erase_if(best, [](const Candidate& each) { return !each.meant; });
  if (request.min_score) std::erase_if(best, [&](const Candidate& each) { return each.score < *request.min_score; });
}

Expected<double> Engine::Impl::landmark_score(const Ranking& ranking, uint64_t chunk) const {
  float dot = 0;
  if (const uint64_t stored = ranking.memory.encoded_chunks; chunk >= stored) {
    if (chunk - stored < ranking.tail_dots.size()) dot = ranking.tail_dots[chunk - stored];
  } else {
    RECALLD_TRY(const std::vector<Bf16> landmark, store_->landmark(ranking.memory.id, chunk));
    landmark_dots_cpu(ranking.query, landmark.data(), 1, &dot);
  }
  return static_cast<double>(dot * model_->score_scale());
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

}  // namespace recalld
