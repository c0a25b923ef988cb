// The ranking by BM25 over the rows of `postings` (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25
// and Beyond", 2009), for each chunk alone and for it with its two neighbours.
//
// 1. The rows of all terms are read, which tells in how many chunks each stands (ranked_rows.h).
// 2. What the terms of a page can make at most decides the order of the pages, and ends it: no page behind can hold one
//    of the k best. On a page only those chunks are scored near which a term stands that is rare enough to matter
//    (MaxScore: Turtle and Flood, "Query evaluation: strategies and optimizations", 1995).
// 3. Scores are summed term by term, in the order of the terms, in fp32: so they do not depend on what was left out.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>

#include "memstore/lexical_index.h"
#include "memstore/lexical_rows.h"
#include "memstore/ranked_rows.h"

namespace recalld {
namespace {

constexpr float k1 = 1.2f, b = 0.75f;
constexpr size_t terms_max = 64;   // of a query: the rarest
constexpr size_t block = 16;       // chunks that are scored together
constexpr float rounding = 1e-4f;  // by which sums of so many numbers may be off, relatively
constexpr float least_norm = k1 * (1 - b);

struct Candidate {
  LexicalScore score;
  float total = 0;
};

bool better(const Candidate& x, const Candidate& y) {
  return x.total != y.total ? x.total > y.total : x.score.chunk < y.score.chunk;
}

class Ranking final : public LexicalIndex::Ranked, private RankedRows {
 public:
  Ranking(const Catalog& catalog, size_t page_chunks, uint64_t rows_bytes_max, const LexicalIndex::Chunks& chunks,
          std::span<const Term> terms, size_t k, float context_weight)
      : RankedRows(catalog, page_chunks, rows_bytes_max, chunks, terms), k_(k), context_weight_(context_weight) {}

  // Finds the best.
  Expected<void> run() {
    RECALLD_CHECK(read());
    ranks_ = weigh();
    return ranks_ ? rank_pages() : Expected<void>();
  }

  Expected<LexicalRanking> with(std::span<const uint64_t> also) override {
    LexicalRanking ranking;
    ranking.unindexed_chunks = unindexed_;
    ranking.also.reserve(also.size());
    for (const uint64_t chunk : also) ranking.also.push_back({.chunk = chunk});
    if (ranks_) RECALLD_CHECK(score(ranking.also));
    std::ranges::sort(best_, better);
    for (const Candidate& candidate : best_) ranking.best.push_back(candidate.score);
    ranking.unreadable = std::move(unreadable_);
    std::erase_if(ranking.unreadable, [&](const Unreadable& lost) { return !wants_some(lost.first, lost.last + 1); });
    std::ranges::sort(ranking.unreadable, {}, &Unreadable::first);
    return ranking;
  }

 private:
  // ---- 2. Weights and bounds

  // Whether there is anything to rank.
  bool weigh() {
    note_rows(lengths_);
    uint64_t chunks = chunks_in_pages_, words = words_in_pages_;
    for (const LooseChunk& chunk : loose_) {
      chunks += chunk.there ? 1 : 0;
      words += chunk.words;
    }
    if (words == 0) return false;
    const double average = static_cast<double>(words) / static_cast<double>(chunks);
    const double edges = length(0) + length(end_ - 1);
    const double context = chunks == 1 ? average : 3 * average - edges / static_cast<double>(chunks);
    length_weight_ = static_cast<float>(double{k1 * b} / average);
    context_length_weight_ = static_cast<float>(double{k1 * b} / std::max(context, 1.0));

    std::vector<uint32_t> rarest = numbers(terms_.size());
    std::erase_if(rarest, [&](uint32_t term) { return terms_[term].chunks == 0; });
    std::ranges::stable_sort(rarest, {}, [&](uint32_t term) { return terms_[term].chunks; });
    if (rarest.size() > terms_max) rarest.resize(terms_max);
    std::ranges::sort(rarest);  // which is the order of terms
    std::vector<TermRows> chosen;
    std::vector<uint32_t> number(terms_.size(), UINT32_MAX);
    for (const uint32_t term : rarest) {
      number[term] = static_cast<uint32_t>(chosen.size());
      chosen.push_back(std::move(terms_[term]));
    }
    terms_ = std::move(chosen);
    for (LooseChunk& chunk : loose_) {
      std::erase_if(chunk.counts, [&](const auto& each) { return number[each.first] == UINT32_MAX; });
      for (auto& [term, count] : chunk.counts) term = number[term];
    }
    for (TermRows& term : terms_) {
      const double idf = std::log1p((static_cast<double>(chunks) - static_cast<double>(term.chunks) + 0.5) /
                                    (static_cast<double>(term.chunks) + 0.5));
      term.weight = static_cast<float>(idf * double{k1 + 1});
    }
    for (TermRows& term : terms_) note_rows(term);
    bounds_here_.resize(terms_.size());
    stride_ = (page_chunks_ + block - 1) / block * block + 2;
    counts_.resize(terms_.size() * stride_);
    touched_.resize(terms_.size() * (stride_ / block));
    present_.resize(terms_.size());
    lengths_here_.resize(stride_);
    return !terms_.empty();
  }

  static std::vector<uint32_t> numbers(size_t count) {
    std::vector<uint32_t> out(count);
    std::iota(out.begin(), out.end(), 0u);
    return out;
  }

  // What a chunk of a page can get for a term at most.
  float bound(const TermRows& term, uint64_t page) const {
    const float everything = term.weight * (1 + context_weight_);
    if (!term.kept || page >= whole_pages_) return everything;
    const Row* const row = row_of(term, page);
    uint32_t beside = 0, words_beside = 0;
    if (page > 0) {
      if (const Row* before = row_of(term, page - 1)) beside += before->last_at_most();
      words_beside = least_words_[page - 1];
    }
    if (page + 1 < whole_pages_) {
      if (const Row* behind = row_of(term, page + 1)) beside += behind->first_at_most();
      words_beside = std::min(words_beside, least_words_[page + 1]);
    } else {
      words_beside = 0;
      if (!loose_.empty()) beside += loose_count(loose_.front(), static_cast<uint32_t>(&term - terms_.data()));
    }
    if (row == nullptr && beside == 0) return 0;
    const auto least = static_cast<float>(least_words_[page]);
    const float least_in_three =
        (page_chunks_ > 1 ? 2 * least : least) + std::min(least, static_cast<float>(words_beside));
    const float norm = least_norm + length_weight_ * least;
    const float context_norm = least_norm + context_length_weight_ * least_in_three;
    const float most = row == nullptr ? 0 : static_cast<float>(row->most);
    const float in_context = static_cast<float>(beside + (row == nullptr ? 0 : row->most_in_three));
    return term.weight * (most / (most + norm) + context_weight_ * in_context / (in_context + context_norm));
  }

  // What a chunk of each page can get at most.
  std::vector<float> bounds() const {
    const uint64_t pages = (end_ + page_chunks_ - 1) / page_chunks_;
    std::vector<float> most(pages);
    for (uint64_t page = 0; page < whole_pages_; ++page) {
      if (pages_[page] != PageState::whole) continue;
      for (const TermRows& term : terms_) most[page] += bound(term, page);
    }
    for (uint64_t page = whole_pages_; page < pages; ++page) most[page] = std::numeric_limits<float>::infinity();
    return most;
  }

  // ---- 3. Scoring

  Expected<void> rank_pages() {
    if (k_ == 0) return {};
    const std::vector<float> most = bounds();
    std::vector<uint32_t> order = numbers(most.size());
    std::ranges::stable_sort(order, std::ranges::greater{}, [&](uint32_t page) { return most[page]; });
    for (const uint32_t page : order) {
      if (best_.size() == k_ && most[page] * (1 + rounding) < best_.front().total) break;
      if (most[page] == 0) break;
      if (!wants_some(page * page_chunks_, (page + 1) * page_chunks_)) continue;
      RECALLD_CHECK(score_page(page, {}));
    }
    return {};
  }

  // Gives chunks their scores.
  Expected<void> score(std::vector<LexicalScore>& wanted) {
    std::vector<LexicalScore*> in_order;
    for (LexicalScore& each : wanted)
      if (each.chunk < end_ && !is_hidden(each.chunk)) in_order.push_back(&each);
    std::ranges::sort(in_order, {}, &LexicalScore::chunk);
    for (size_t from = 0; from < in_order.size();) {
      size_t to = from;
      const uint64_t page = page_of(in_order[from]->chunk);
      while (to < in_order.size() && page_of(in_order[to]->chunk) == page) ++to;
      RECALLD_CHECK(score_page(page, std::span(in_order).subspan(from, to - from)));
      from = to;
    }
    return {};
  }

  // Offers the chunks of a page that may be among the best; or, when some are wanted, scores these alone.
  Expected<void> score_page(uint64_t page, std::span<LexicalScore* const> wanted) {
    if (page < whole_pages_ && pages_[page] != PageState::whole) return {};
    const uint64_t first = page * page_chunks_;
    const size_t count = std::min<uint64_t>(page_chunks_, end_ - first);
    active_.assign((count + block - 1) / block, 0);
    std::ranges::fill(present_, 0);
    for (const LexicalScore* each : wanted) active_[(each->chunk - first) / block] = 1;

    // Terms that together cannot lift a chunk among the best do not make it a candidate.
    for (uint32_t term = 0; term < terms_.size(); ++term) bounds_here_[term] = {bound(terms_[term], page), term};
    std::ranges::sort(bounds_here_, std::ranges::greater{});
    size_t essential = wanted.empty() ? terms_.size() : 0;
    if (wanted.empty() && best_.size() == k_) {
      float rest = 0;
      while (essential > 0) {
        rest += bounds_here_[essential - 1].first;
        if (rest * (1 + rounding) >= best_.front().total) break;
        --essential;
      }
    }
    bool any = !wanted.empty();
    for (size_t i = 0; i < terms_.size(); ++i) {
      if (i == essential && !any) return {};
      if (bounds_here_[i].first > 0) RECALLD_CHECK(fill(page, bounds_here_[i].second, i < essential, any));
    }
    if (!any) return {};
    if (wanted.empty() && chunks_.only != nullptr) {
      for (size_t at = 0; at < active_.size(); ++at)
        if (!wants_some(first + at * block, first + (at + 1) * block)) active_[at] = 0;
    }
    RECALLD_CHECK(fill_lengths(page));

    size_t next_wanted = 0;
    for (size_t at = 0; at < active_.size(); ++at) {
      if (active_[at] == 0) continue;
      std::array<float, block> alone{}, context{};
      score_block(at * block, alone, context);
      for (size_t i = 0; i < block && at * block + i < count; ++i) {
        const LexicalScore score{first + at * block + i, alone[i], context[i]};
        if (!wanted.empty()) {
          for (; next_wanted < wanted.size() && wanted[next_wanted]->chunk <= score.chunk; ++next_wanted)
            if (wanted[next_wanted]->chunk == score.chunk) *wanted[next_wanted] = score;
          continue;
        }
        offer(score);
      }
    }
    return {};
  }

  void offer(const LexicalScore& score) {
    const Candidate candidate{score, score.bm25 + context_weight_ * score.context};
    if (candidate.total <= 0) return;
    if (best_.size() == k_ && !better(candidate, best_.front())) return;
    if (is_hidden(score.chunk) || !is_there(score.chunk)) return;
    if (chunks_.only != nullptr && !chunks_.only->contains(score.chunk)) return;
    if (best_.size() == k_) {
      std::ranges::pop_heap(best_, better);
      best_.back() = candidate;
    } else {
      best_.push_back(candidate);
    }
    std::ranges::push_heap(best_, better);
  }

  bool is_there(uint64_t chunk) const { return chunk < loose_first_ || loose_[chunk - loose_first_].there; }

  void score_block(size_t from, std::array<float, block>& alone, std::array<float, block>& context) const {
    std::array<float, block> norm, context_norm;
    for (size_t i = 0; i < block; ++i) {
      const float* lengths = &lengths_here_[from + i];  // of the chunk before
      norm[i] = least_norm + length_weight_ * lengths[1];
      context_norm[i] = least_norm + context_length_weight_ * (lengths[0] + lengths[1] + lengths[2]);
    }
    for (size_t term = 0; term < terms_.size(); ++term) {
      if (present_[term] == 0 || touched_[term * (stride_ / block) + from / block] == 0) continue;
      const float* counts = &counts_[term * stride_ + from];
      const float weight = terms_[term].weight;
      for (size_t i = 0; i < block; ++i) {
        const float count = counts[i + 1], in_context = counts[i] + counts[i + 1] + counts[i + 2];
        alone[i] += weight * (count / (count + norm[i]));
        context[i] += weight * (in_context / (in_context + context_norm[i]));
      }
    }
  }

  // Sets the counts of a term in the chunks of a page, the one before and the one behind. With `marks`, the blocks
  // become active in which it makes a difference, and `any` says whether there is one.
  Expected<void> fill(uint64_t page, uint32_t number, bool marks, bool& any) {
    TermRows& term = terms_[number];
    float* counts = &counts_[size_t{number} * stride_];
    char* touched = &touched_[size_t{number} * (stride_ / block)];
    const uint64_t first = page * page_chunks_;
    bool cleared = false;
    const auto set = [&](int64_t place, uint32_t count) {
      if (!cleared) {
        std::fill_n(counts, stride_, 0.0f);
        std::fill_n(touched, stride_ / block, 0);
      }
      cleared = true;
      counts[place + 1] = static_cast<float>(count);
      const auto last = static_cast<int64_t>(active_.size()) - 1;
      for (const int64_t of : {place - 1, place + 1}) {
        const auto at = static_cast<size_t>(std::clamp<int64_t>(of / static_cast<int64_t>(block), 0, last));
        touched[at] = 1;
        if (marks) active_[at] = 1;
      }
      any = any || marks;
    };
    if (first > 0) {
      RECALLD_TRY(const uint32_t before, count_at(term, number, first - 1));
      if (before > 0) set(-1, before);
    }
    if (page < whole_pages_) {
      RECALLD_TRY(const auto row, find_row(term, page, 1));
      if (row) {
        const bool some_hidden = hides_some(page);
        uint32_t at_first = 0, at_last = 0;
        for (PostingReader reader(*row); reader.next() && reader.place() < page_chunks_;) {
          if (reader.place() == 0) at_first = reader.count();
          if (reader.place() + 1 == page_chunks_) at_last = reader.count();
          if (some_hidden && is_hidden(first + reader.place())) continue;
          set(reader.place(), reader.count());
        }
        if (Row* known = row_of(term, page)) {
          known->first = at_first;
          known->last = at_last;
        }
      }
    } else {
      for (uint64_t chunk = first; chunk < std::min(end_, first + page_chunks_); ++chunk) {
        RECALLD_TRY(const uint32_t count, count_at(term, number, chunk));
        if (count > 0) set(static_cast<int64_t>(chunk - first), count);
      }
    }
    if (first + page_chunks_ < end_) {
      RECALLD_TRY(const uint32_t behind, count_at(term, number, first + page_chunks_));
      if (behind > 0) set(static_cast<int64_t>(page_chunks_), behind);
    }
    present_[number] = cleared ? 1 : 0;
    return {};
  }

  Expected<void> fill_lengths(uint64_t page) {
    const uint64_t first = page * page_chunks_, end = std::min(end_, first + page_chunks_);
    std::ranges::fill(lengths_here_, 0.0f);
    if (first > 0) lengths_here_[0] = static_cast<float>(length(first - 1));
    if (page < whole_pages_) {
      RECALLD_TRY(const auto row, find_row(lengths_, page, 1));
      const bool there = row && decode_lengths(*row, words_), some_hidden = hides_some(page);
      for (size_t place = 0; there && place < page_chunks_; ++place) {
        if (!some_hidden || !is_hidden(first + place)) lengths_here_[place + 1] = static_cast<float>(words_[place]);
      }
    } else {
      for (uint64_t chunk = first; chunk < end; ++chunk)
        lengths_here_[chunk - first + 1] = static_cast<float>(loose_[chunk - loose_first_].words);
    }
    if (end < end_) lengths_here_[page_chunks_ + 1] = static_cast<float>(length(end));
    return {};
  }

  const size_t k_;
  const float context_weight_;
  float length_weight_ = 0;  // by which a word more makes a count less
  float context_length_weight_ = 0;
  bool ranks_ = false;           // there is anything to rank
  std::vector<Candidate> best_;  // a heap, the worst on top

  // Of the page that is being scored: its chunks stand from place 1 on, between their neighbours.
  size_t stride_ = 0;
  std::vector<float> counts_;  // [terms, stride]
  std::vector<char> present_;  // by term: it stands there
  std::vector<char> touched_;  // [terms, blocks]: it makes a difference in the block
  std::vector<float> lengths_here_;
  std::vector<std::pair<float, uint32_t>> bounds_here_;  // what each term can make at most, the greatest first
  std::vector<char> active_;                             // by block: a chunk of it may be among the best
};

}  // namespace

Expected<std::unique_ptr<LexicalIndex::Ranked>> LexicalIndex::rank(const Chunks& chunks, std::span<const Term> terms,
                                                                   size_t k, float context_weight) const {
  auto ranking = std::make_unique<Ranking>(catalog_, page_chunks_, rows_bytes_max_, chunks, terms, k, context_weight);
  RECALLD_CHECK(ranking->run());
  return ranking;
}

}  // namespace recalld
