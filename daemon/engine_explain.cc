// Why a search chose what it chose, down to the tokens that the heads of the model look at.
#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <utility>

#include "daemon/engine_impl.h"

namespace recalld {
namespace {

// Each part that candidates are scored by; a further one is a further row.
struct RankedPart {
  std::string_view name;
  std::optional<double> (*score)(const Candidate&);  // none: the chunk has none
  bool by_landmark, by_words;                        // the modes beside hybrid that have it
};
constexpr std::array<RankedPart, 6> ranked_parts{{
    {"landmark", [](const Candidate& each) { return std::optional(each.landmark); }, true, false},
    {"bm25", [](const Candidate& each) { return std::optional(each.bm25); }, false, true},
    {"context", [](const Candidate& each) { return std::optional(each.context); }, false, true},
    {"tokens", [](const Candidate& each) { return each.tokens; }, false, false},
    {"meaning", [](const Candidate& each) { return each.meaning; }, false, false},
    {"topic", [](const Candidate& each) { return each.topic; }, false, false},
}};

bool has_part(SearchMode mode, const RankedPart& part) {
  return mode == SearchMode::hybrid || (mode == SearchMode::landmark ? part.by_landmark : part.by_words);
}

}  // namespace

// The first tokens between the newline before a query and the token that asks.
void Engine::Impl::explain_query(std::span<const uint32_t> tokens, Asked& asked) const {
  if (asked.query.tokens.empty()) return;
  const size_t count = std::min(tokens.size() - 2, search_explained_max);
  const std::span<const float> heads = asked.query.tokens;
  const auto explained = heads.first(count * asked.query.heads.size());
  asked.heads.assign(explained.begin(), explained.end());
  constexpr std::string_view unknown = "\xef\xbf\xbd";
  for (const uint32_t token : tokens.subspan(1, count)) {
    std::string text = tokenizer_->decode({token});
    if (text == unknown || text.empty()) text = tokenizer_->piece(token);  // one byte of a character, or a space
    asked.texts.push_back(std::move(text));
  }
}

// Equal scores share a place.
void Engine::Impl::rank_parts(std::vector<Candidate>& compared) {
  for (size_t part = 0; part < ranked_parts.size(); ++part) {
    std::vector<double> scores;
    for (const Candidate& each : compared)
      if (const auto score = ranked_parts.at(part).score(each)) scores.push_back(*score);
    std::ranges::sort(scores, std::ranges::greater{});
    for (Candidate& each : compared) {
      each.part_places.resize(ranked_parts.size());
      if (const auto score = ranked_parts.at(part).score(each)) {
        const auto place = std::ranges::lower_bound(scores, *score, std::ranges::greater{});
        each.part_places[part] = {.rank = static_cast<size_t>(place - scores.begin()) + 1, .best = scores.front()};
      }
    }
  }
}

SearchReply::Why Engine::Impl::explain(const Ranking& ranking, const Candidate& candidate, SearchMode mode) {
  SearchReply::Why why;
  why.stored = candidate.chunk < ranking.memory.encoded_chunks;
  if (mode != SearchMode::lexical) {
    why.landmark_score = candidate.landmark;
    why.landmark_rank = candidate.landmark_rank;
  }
  if (mode == SearchMode::hybrid) {
    why.token_score = candidate.tokens;
    why.features = candidate.features;
    why.took = ranking.took;
  }
  if (mode != SearchMode::landmark) {
    why.bm25 = candidate.bm25;
    why.context_bm25 = candidate.context;
    why.lexical_rank = candidate.lexical_rank;
  }
  for (size_t i = 0; i < ranked_parts.size(); ++i) {
    const RankedPart& part = ranked_parts.at(i);
    const std::optional<double> score = part.score(candidate);
    if (has_part(mode, part) && score) {
      const auto& [rank, best] = candidate.part_places.at(i);
      why.parts.push_back({.name = part.name, .score = *score, .rank = rank, .best = best});
    }
  }
  return why;
}

// The token that each head of the first HSA layer looks at most inside the chunk, on behalf of the query and of each of
// its tokens.
Expected<void> Engine::Impl::explain_attention(const Ranking& ranking, uint64_t chunk, uint64_t text_first,
                                               SearchReply::Why& why) const {
  const std::vector<float>& heads = ranking.asked.query.heads;
  if (heads.empty()) return {};  // no model was asked, or it has no HSA layer
  why.layer = model_->first_hsa_layer();
  std::vector<std::byte> kv(model_->kv_bytes());
  if (const auto tail = ranking.tail_kv.find(chunk); tail != ranking.tail_kv.end())
    kv = tail->second;
  else
    RECALLD_CHECK(store_->fetch(ranking.memory.id, std::array{chunk}, kv));

  const uint64_t first = chunk * chunk_tokens;
  const size_t tokens = std::min<uint64_t>(chunk_tokens, ranking.end_token - first);  // the open chunk is padded
  // The text up to the chunk's end, and where each token ends in it.
  const uint64_t text_from = std::min(text_first, first);
  std::vector<size_t> ends;
  RECALLD_TRY(const Passage passage, store_->passage(ranking.memory.id, text_from, first + tokens, &ends));
  const auto begin_of = [&](uint64_t token) { return token == text_from ? 0 : ends[token - text_from - 1]; };
  const auto text_of = [&](uint64_t token) {
    return passage.text.substr(begin_of(token), ends[token - text_from] - begin_of(token));
  };
  // Of a token without text; nothing where it is forgotten meanwhile.
  const auto piece_of = [&](uint64_t token) {
    if (!text_of(token).empty()) return std::string();
    const auto ids = store_->tokens(ranking.memory.id, token, 1);
    return ids && !ids->empty() ? tokenizer_->piece(ids->front()) : std::string();
  };
  // Calls use(head, token in the chunk, weight) for what each head looks at most, and adds its shares up.
  std::array<double, chunk_tokens> sums{};
  const auto look = [&](std::span<const float> query, const auto& use) {
    const std::vector<float> shares = model_->head_shares(query, kv);
    for (size_t head = 0; head * chunk_tokens < shares.size(); ++head) {
      const auto of_head = std::span(shares).subspan(head * chunk_tokens, tokens);
      for (size_t i = 0; i < tokens; ++i) sums[i] += static_cast<double>(of_head[i]);
      const auto most = std::ranges::max_element(of_head);
      use(head, static_cast<size_t>(most - of_head.begin()), static_cast<double>(*most));
    }
  };

  struct Look {
    size_t head = 0;
    uint64_t token = 0;
    double weight = 0;
  };
  std::vector<Look> looks;
  look(heads, [&](size_t head, size_t at, double weight) { looks.push_back({head, first + at, weight}); });
  for (const Look& each : looks) {
    why.matches.push_back({.text = text_of(each.token),
                           .token = each.token,
                           .head = each.head,
                           .weight = each.weight,
                           .piece = piece_of(each.token)});
  }
  std::ranges::sort(why.matches, std::ranges::greater{}, &SearchReply::Why::Match::weight);

  // The query's own tokens: what each looks at most, whichever head it is, and how much all of them look at each token.
  const std::vector<std::string>& texts = ranking.asked.texts;
  if (texts.empty()) return {};
  sums.fill(0);
  std::vector<std::pair<size_t, Look>> pairs;  // with the query's token
  for (size_t asking = 0; asking < texts.size(); ++asking) {
    Look most;
    look(std::span(ranking.asked.heads).subspan(asking * heads.size(), heads.size()),
         [&](size_t head, size_t at, double weight) {
           if (weight > most.weight) most = {head, first + at, weight};
         });
    pairs.emplace_back(asking, most);
  }
  std::ranges::stable_sort(pairs, [](const auto& a, const auto& b) { return a.second.weight > b.second.weight; });
  if (pairs.size() > search_pairs_max) pairs.resize(search_pairs_max);
  for (const auto& [asking, most] : pairs) {
    why.pairs.push_back({texts[asking], text_of(most.token), most.token, most.head, most.weight, piece_of(most.token)});
  }
  double all = 0;
  for (const double sum : sums) all += sum;
  std::vector<size_t> heaviest(tokens);
  for (size_t i = 0; i < tokens; ++i) heaviest[i] = i;
  std::ranges::stable_sort(heaviest, [&](size_t a, size_t b) { return sums[a] > sums[b]; });
  if (heaviest.size() > search_weighed_max) heaviest.resize(search_weighed_max);
  std::ranges::sort(heaviest);
  for (const size_t at : heaviest) {
    const uint64_t token = first + at;
    std::string text = text_of(token);
    if (text.empty()) continue;  // a later piece of a character
    const size_t byte = token > text_first ? begin_of(token) : 0;
    why.tokens.push_back({token, byte, std::move(text), all > 0 ? sums[at] / all : 0});
  }
  return {};
}

}  // namespace recalld
