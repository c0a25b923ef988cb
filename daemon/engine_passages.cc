// What a search shows of the chunks that it ranked: their text, or that of the passages that they are part of.
#include <algorithm>
#include <utility>

#include "daemon/engine_impl.h"

namespace recalld {
namespace {

TokenSpan chunk_span(uint64_t chunk, uint64_t end_token) {
  return {chunk * chunk_tokens, std::min((chunk + 1) * chunk_tokens, end_token)};
}

// Tokens that were considered: turns that were appended after a filter had looked were not.
uint64_t covered(const auto& ranking) {
  return ranking.selected ? std::min(ranking.end_token, ranking.selected->end_token) : ranking.end_token;
}

// Whether damage is why something could not be read: then it is left out, and told.
template <class T>
bool is_damaged(const Expected<T>& read) {
  return !read && read.error().kind == ErrorKind::corrupt;
}

void leave_out(SearchReply& reply, size_t memory, uint64_t chunk, const Error& error) {
  auto& unreadable = reply.memories ? (*reply.memories)[memory].unreadable : reply.unreadable;
  unreadable.push_back({chunk, chunk, error.message});
}

}  // namespace

// What is damaged is left out and told: the rest is served.
Expected<SearchReply> Engine::Impl::collect(const SearchRequest& request, std::span<const Ranking> rankings,
                                            std::span<const Candidate> best) const {
  SearchReply reply;
  if (request.together()) {
    reply.memories.emplace();
  } else {
    reply.unreadable = rankings.front().unreadable;
    RECALLD_TRY(reply.searchable_through, through(rankings.front().memory.id, covered(rankings.front())));
  }
  for (const Ranking& ranking : rankings) {
    reply.unindexed_chunks += ranking.unindexed_chunks;
    if (!reply.memories) continue;
    RECALLD_TRY(const auto searchable, through(ranking.memory.id, covered(ranking)));
    reply.memories->push_back({ranking.memory.name, searchable, ranking.unreadable});
  }
  if (request.expand == Expand::none)
    RECALLD_CHECK(show_chunks(request, rankings, best, reply));
  else
    RECALLD_CHECK(show_passages(request, rankings, best, reply));
  return reply;
}

Expected<void> Engine::Impl::show_chunks(const SearchRequest& request, std::span<const Ranking> rankings,
                                         std::span<const Candidate> best, SearchReply& reply) const {
  uint64_t tokens_left = request.max_tokens.value_or(UINT64_MAX);
  for (size_t i = 0; i < best.size() && reply.results.size() < request.limit; ++i) {
    const Ranking& ranking = rankings[best[i].memory];
    const TokenSpan span = chunk_span(best[i].chunk, ranking.end_token);
    if (span.size() > tokens_left) break;
    SearchReply::Result result;
    auto passage = store_->passage(ranking.memory.id, span.first, span.end);
    if (is_damaged(passage)) {
      leave_out(reply, best[i].memory, best[i].chunk, passage.error());
      continue;
    }
    RECALLD_TRY(result.passage, std::move(passage));
    if (result.passage.turns.empty()) continue;  // all that was in it is being forgotten
    tokens_left -= span.size();
    RECALLD_CHECK(add_result(request, rankings, best, i, std::move(result), reply));
  }
  return {};
}

// Adds a result for a candidate, with why it was chosen where that is asked for.
Expected<void> Engine::Impl::add_result(const SearchRequest& request, std::span<const Ranking> rankings,
                                        std::span<const Candidate> best, size_t candidate, SearchReply::Result result,
                                        SearchReply& reply) const {
  const Candidate& found = best[candidate];
  const Ranking& ranking = rankings[found.memory];
  result.chunk = found.chunk;
  result.score = found.score;
  if (request.together()) result.memory = ranking.memory.name;
  if (request.explain) {
    SearchReply::Why why = explain(ranking, found, request.mode);
    auto attention = explain_attention(ranking, found.chunk, result.passage.first_token, why);
    if (!attention && !is_damaged(attention)) return std::unexpected(std::move(attention).error());
    why.rank = reply.results.size() + 1;
    if (attention)
      result.why = std::move(why);
    else if (request.mode != SearchMode::hybrid || found.tokens || !Fusion::is_deep(found))  // else told before
      leave_out(reply, found.memory, found.chunk, attention.error());  // it stays in the reply: its text is whole
  }
  reply.results.push_back(std::move(result));
  return {};
}

// The turns that lie in a span of tokens, from the beginning of the first to the end of the last, as far as that widens
// the span by at most search_widen_max tokens on each side.
Expected<TokenSpan> Engine::Impl::whole_turns(const Ranking& ranking, TokenSpan of) const {
  RECALLD_TRY(const Passage passage, store_->passage(ranking.memory.id, of.first, of.end));
  TokenSpan wide = of;
  if (passage.turns.empty()) return wide;  // all of it is being forgotten
  const auto look_up = [&](uint64_t turn) -> Expected<TokenSpan> {
    RECALLD_TRY(const auto found, store_->turns(ranking.memory.id, turn, 1, 0));
    if (found.empty() || found.front().turn != turn) return of;  // forgotten meanwhile: the search begins anew
    return TokenSpan{found.front().first_token, found.front().first_token + found.front().tokens};
  };
  RECALLD_TRY(const TokenSpan first, look_up(passage.turns.front().turn));
  RECALLD_TRY(const TokenSpan last, look_up(passage.turns.back().turn));
  wide.first = std::min(of.first, std::max(first.first, of.first - std::min<uint64_t>(of.first, search_widen_max)));
  wide.end = std::max(of.end, std::min({last.end, of.end + search_widen_max, ranking.memory.tokens}));
  return wide;
}

// Takes candidates, best first, until there are enough passages or no further chunk fits. A passage that is joined with
// others or says the same as another makes room for one more.
Expected<void> Engine::Impl::show_passages(const SearchRequest& request, std::span<const Ranking> rankings,
                                           std::span<const Candidate> best, SearchReply& reply) const {
  Passages passages(request.expand == Expand::chunks);
  struct Told {
    size_t memory = 0;
    TokenSpan tokens;
    std::string text;
  };
  std::vector<Told> told;  // what each accepted candidate says, as far as it was shown or would have been
  uint64_t tokens_left = request.max_tokens.value_or(UINT64_MAX);
  for (size_t i = 0; i < best.size() && passages.size() < request.limit; ++i) {
    const Candidate& candidate = best[i];
    const Ranking& ranking = rankings[candidate.memory];
    const TokenSpan chunk = chunk_span(candidate.chunk, ranking.end_token);
    if (Passages::Passage* known = passages.that_has(candidate.memory, chunk)) {
      known->chunks.insert(std::ranges::upper_bound(known->chunks, candidate.chunk), candidate.chunk);
      continue;
    }
    const uint64_t needed = passages.added_tokens(candidate.memory, chunk);
    if (needed > tokens_left) break;
    Expected<TokenSpan> wanted = chunk;
    if (request.expand == Expand::turns) wanted = whole_turns(ranking, chunk);
    Expected<Passage> text = Passage{};
    if (wanted)
      text = store_->passage(ranking.memory.id, wanted->first, wanted->end);
    else
      text = std::unexpected(wanted.error());
    if (is_damaged(text)) {  // maybe a neighbour alone is
      wanted = chunk;
      text = store_->passage(ranking.memory.id, chunk.first, chunk.end);
    }
    if (is_damaged(text)) {
      leave_out(reply, candidate.memory, candidate.chunk, text.error());
      continue;
    }
    if (!text) return std::unexpected(std::move(text).error());
    if (text->turns.empty()) continue;  // all that was in it is being forgotten

    const auto twin = std::ranges::find_if(told, [&](const Told& each) {
      return each.text.find(text->text) != std::string::npos &&
             (each.memory != candidate.memory || each.tokens.end <= wanted->first || wanted->end <= each.tokens.first);
    });
    if (twin != told.end()) {
      if (Passages::Passage* known = passages.that_has(twin->memory, twin->tokens)) ++known->duplicates;
      continue;
    }
    const TokenSpan shown =
        request.max_tokens ? narrowed(*wanted, chunk, chunk.size() + tokens_left - needed) : *wanted;
    if (request.max_tokens) tokens_left -= passages.added_tokens(candidate.memory, shown);
    passages.add(candidate.memory, shown, candidate.chunk, i);
    told.push_back({candidate.memory, shown, std::move(text->text)});
  }

  for (Passages::Passage& each : passages.all()) {
    auto passage = store_->passage(rankings[each.memory].memory.id, each.tokens.first, each.tokens.end);
    if (is_damaged(passage)) {  // since it was read above
      leave_out(reply, each.memory, best[each.best].chunk, passage.error());
      continue;
    }
    SearchReply::Result result;
    RECALLD_TRY(result.passage, std::move(passage));
    if (result.passage.turns.empty()) continue;
    result.chunks = std::move(each.chunks);
    result.duplicates = each.duplicates;
    RECALLD_CHECK(add_result(request, rankings, best, each.best, std::move(result), reply));
  }
  return {};
}

}  // namespace recalld
