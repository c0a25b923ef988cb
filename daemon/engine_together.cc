// A search of several memories: each is ranked by itself, and then all candidates are ranked as if they were of one.
#include <algorithm>
#include <utility>

#include "base/quote.h"
#include "daemon/engine_impl.h"

namespace recalld {

struct Engine::Impl::Together {
  Query query;                              // its request names the memories
  std::vector<Query> parts;                 // one a memory, without `done`
  std::optional<Expected<Asked>> asked;     // on the model thread
  std::vector<Expected<Ranking>> rankings;  // on the model thread, then on a read worker
};

void Engine::Impl::search_together(SearchRequest request, Done<SearchReply> done) {
  // Shared by the jobs that rank its memories, one after the other.
  auto together = std::make_shared<Together>();
  together->query = {std::move(request), {}, Clock::now(), std::move(done)};
  boost::asio::post(tokenisers_, [this, together]() mutable {
    Query& query = together->query;
    if (query.request.mode != SearchMode::lexical) query.tokens = tokenizer_->encode_query(query.request.query);
    if (!query.request.filter) return rank_together(std::move(together));
    boost::asio::post(readers_, [this, together]() mutable { rank_together(std::move(together)); });
  });
}

Expected<std::vector<std::string>> Engine::Impl::memories_of(const SearchRequest& request) const {
  if (!request.prefix) return request.memories;
  RECALLD_TRY(const auto page, store_->memories(*request.prefix, "", search_memories_max + 1));
  if (page.memories.size() > search_memories_max)
    return fail(ErrorKind::invalid_request, "memory: more than " + std::to_string(search_memories_max) +
                                                " memories begin with " + in_quotes(*request.prefix) +
                                                "; search fewer at a time by a longer beginning or by their names");
  std::vector<std::string> names;
  for (const MemoryInfo& memory : page.memories) names.push_back(memory.name);
  return names;
}

// Ranks each memory: by words on a read worker alone, else as one job a memory of the model thread, so that others get
// their turn between them. With a filter this is called on a read worker, since rows of turns may have to be read.
void Engine::Impl::rank_together(std::shared_ptr<Together> together) {
  Query& query = together->query;
  auto names = memories_of(query.request);
  if (!names) return query.done(std::unexpected(std::move(names).error()));
  together->parts.clear();
  together->rankings.clear();
  together->asked.reset();
  for (std::string& name : *names) {
    Query& part = together->parts.emplace_back();
    part.request = query.request;
    part.request.memory = std::move(name);
    part.tokens = query.tokens;
    part.spare = query.spare;
    if (!part.request.filter) continue;
    const auto selected = select_turns(part);
    if (selected) continue;
    // Of a prefix, a memory that was deleted since its name was read is none that begins so.
    if (selected.error().kind != ErrorKind::not_found || !query.request.prefix)
      return query.done(std::unexpected(selected.error()));
    together->parts.pop_back();
  }
  const auto last = [this, together] { boost::asio::post(readers_, [this, together] { collect_together(together); }); };
  if (query.request.mode == SearchMode::lexical || together->parts.empty()) {
    for (const Query& part : together->parts) together->rankings.push_back(cover_by_words(part));
    return last();
  }
  for (size_t i = 0; i < together->parts.size(); ++i)
    model_thread_->search([this, together, i, last] {
      const Query& part = together->parts[i];
      if (!together->asked) together->asked = ask(part);
      if (*together->asked)
        together->rankings.push_back(rank(part, **together->asked));
      else
        together->rankings.push_back(std::unexpected(together->asked->error()));
      if (i + 1 == together->parts.size()) last();
    });
}

// On a read worker.
void Engine::Impl::collect_together(std::shared_ptr<Together> together) {
  Query& query = together->query;
  Expected<SearchReply> reply = merge(*together);
  // Of a prefix, a memory that was deleted since its name was read is none that begins so.
  const bool misses_one = query.request.prefix && !reply && reply.error().kind == ErrorKind::not_found;
  const auto changed = [&](const Expected<Ranking>& ranking) {
    return ranking && (!still_holds(*ranking) || (misses_one && !store_->memory(ranking->memory.id)));
  };
  if (std::ranges::any_of(together->rankings, changed)) {
    constexpr int attempts_max = 8;
    if (++query.attempts < attempts_max && !model_thread_ended_) return rank_together(std::move(together));
    reply = fail(ErrorKind::busy, "search several memories: turns of them are being forgotten all the time; ask again");
  }
  size_t lost = 0;
  bool is_cut = false;
  for (const auto& ranking : together->rankings) {
    if (!ranking) continue;
    lost += ranking->unreadable.size();
    is_cut = is_cut || ranking->best.size() >= ranking->limit;
  }
  if (reply && spare_more(query, *reply, lost, is_cut)) return rank_together(std::move(together));
  if (reply) {
    for (const auto& ranking : together->rankings) {
      if (!ranking) continue;
      const auto of = std::ranges::find(*reply->memories, ranking->memory.name, &SearchReply::OfMemory::memory);
      if (of != reply->memories->end()) tell_damage(ranking->memory.id, of->unreadable);
    }
    reply->took_ms = milliseconds_since(query.start);
    ++searches_;
  }
  query.done(std::move(reply));
}

// Scores compare across memories because all candidates are scored anew among all of them.
Expected<SearchReply> Engine::Impl::merge(Together& together) const {
  const SearchRequest& request = together.query.request;
  std::vector<Ranking> rankings;
  std::vector<Candidate> best;
  for (size_t i = 0; i < together.rankings.size(); ++i) {
    Expected<Ranking>& each = together.rankings[i];
    Expected<void> ranked;
    if (!each)
      ranked = std::unexpected(each.error());
    else if (request.mode != SearchMode::landmark)
      ranked = add_words(together.parts[i].request, *each, {});
    // Of a prefix, a memory that was deleted since its name was read is none that begins so.
    if (!ranked && ranked.error().kind == ErrorKind::not_found && request.prefix) continue;
    if (!ranked) return std::unexpected(std::move(ranked).error());
    for (Candidate& candidate : each->best) {
      candidate.memory = rankings.size();
      best.push_back(candidate);
    }
    rankings.push_back(*each);
  }
  if (request.mode != SearchMode::hybrid) std::ranges::stable_sort(best, std::ranges::greater{}, &Candidate::score);
  order(request, best);
  return collect(request, rankings, best);
}

}  // namespace recalld
