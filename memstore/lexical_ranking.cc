// The ranking by BM25 over the rows of `postings` (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25
// and Beyond", 2009), for each chunk alone and for it with its two neighbours.
//
// 1. The rows of all terms are read span by span, which tells in how many chunks each stands. They are kept as far as
//    there is room, those of the most frequent terms least.
// 2. What the terms of a page can make at most decides the order of the pages, and ends it: no page behind can hold one
//    of the k best. On a page only those chunks are scored near which a term stands that is rare enough to matter
//    (MaxScore: Turtle and Flood, "Query evaluation: strategies and optimizations", 1995).
// 3. Scores are summed term by term, in the order of the terms, in fp32: so they do not depend on what was left out.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "memstore/lexical_index.h"
#include "memstore/lexical_rows.h"
#include "memstore/rows.h"

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

enum class PageState : uint8_t {
  unindexed,  // it has no rows
  whole,
  damaged,  // one of them cannot be read
};

// A row that is kept.
struct Row {
  static constexpr uint32_t not_known = UINT32_MAX;
  uint32_t page = 0;
  uint32_t bytes = 0;
  size_t at = 0;
  uint32_t most = 0;           // that the term stands in a chunk, at most
  uint32_t most_in_three = 0;  // and in three neighbouring ones of the page
  uint32_t first = not_known;  // at the first place of the page
  uint32_t last = not_known;   // and at the last one

  // How often the term may stand there at most.
  uint32_t first_at_most() const { return first == not_known ? most : first; }
  uint32_t last_at_most() const { return last == not_known ? most : last; }
};

// What was read of a term.
struct TermRows {
  Term term = 0;
  uint64_t chunks = 0;  // that have it
  bool kept = true;
  std::vector<Row> rows;  // by page
  std::string bytes;
  float weight = 0;                   // idf · (k1 + 1)
  std::vector<uint32_t> row_of = {};  // by page: the number of its row
};

// A chunk that lies on no whole page.
struct LooseChunk {
  bool there = false;
  uint32_t words = 0;
  std::vector<std::pair<uint32_t, uint32_t>> counts;  // by the number of a term
};

class Ranking {
 public:
  Ranking(const Catalog& catalog, size_t page_chunks, uint64_t rows_bytes_max, const LexicalIndex::Chunks& chunks,
          std::span<const Term> terms, size_t k, float context_weight)
      : catalog_(catalog),
        page_chunks_(page_chunks),
        rows_bytes_max_(rows_bytes_max),
        chunks_(chunks),
        k_(k),
        context_weight_(context_weight),
        whole_pages_(chunks.stored / page_chunks),
        end_(chunks.stored + chunks.tail.size()),
        lengths_{.term = lengths_term, .rows = {}, .bytes = {}},
        pages_(whole_pages_),
        least_words_(whole_pages_),
        words_(page_chunks) {
    for (const Term term : terms) terms_.push_back({.term = term, .rows = {}, .bytes = {}});
  }

  Expected<LexicalRanking> run(std::span<const uint64_t> also) {
    RECALLD_CHECK(read_rows());
    RECALLD_CHECK(read_loose());
    LexicalRanking ranking;
    ranking.unindexed_chunks = unindexed_;
    ranking.also.reserve(also.size());
    for (const uint64_t chunk : also) ranking.also.push_back({.chunk = chunk});
    if (weigh()) {
      RECALLD_CHECK(rank_pages());
      RECALLD_CHECK(score(ranking.also));
    }
    std::ranges::sort(best_, better);
    for (const Candidate& candidate : best_) ranking.best.push_back(candidate.score);
    ranking.unreadable = std::move(unreadable_);
    std::erase_if(ranking.unreadable, [&](const Unreadable& lost) { return !wants_some(lost.first, lost.last + 1); });
    std::ranges::sort(ranking.unreadable, {}, &Unreadable::first);
    return ranking;
  }

 private:
  uint64_t page_of(uint64_t chunk) const { return chunk / page_chunks_; }
  bool is_hidden(uint64_t chunk) const {
    const auto after = std::ranges::upper_bound(chunks_.hidden, chunk, {}, &std::pair<uint64_t, uint64_t>::first);
    return after != chunks_.hidden.begin() && chunk <= std::prev(after)->second;
  }
  bool wants_some(uint64_t first, uint64_t end) const {
    return chunks_.only == nullptr || chunks_.only->any(first, end);
  }
  bool hides_some(uint64_t page) const {
    const uint64_t first = page * page_chunks_, last = first + page_chunks_ - 1;
    const auto after = std::ranges::upper_bound(chunks_.hidden, last, {}, &std::pair<uint64_t, uint64_t>::first);
    return after != chunks_.hidden.begin() && first <= std::prev(after)->second;
  }

  // ---- 1. Reading

  // The extents' cursors see one moment each; what lies in an extent that others follow never changes.
  Expected<void> read_rows() {
    for (size_t i = 0; i < chunks_.extents.size(); ++i) {
      const auto [first_chunk, stream] = chunks_.extents[i];
      const bool last = i + 1 == chunks_.extents.size();
      const uint64_t first = page_of(first_chunk);
      const uint64_t end = last ? whole_pages_ : std::min(whole_pages_, page_of(chunks_.extents[i + 1].first_chunk));
      cursors_.push_back(catalog_.cursor(Family::postings, row_key(stream)));
      for (uint64_t span = first / span_pages; span * span_pages < end; ++span) {
        const uint64_t from = std::max(first, span * span_pages), to = std::min(end, (span + 1) * span_pages);
        if (from >= to) continue;
        RECALLD_CHECK(read_term(i, from, to, lengths_));
        for (TermRows& term : terms_) RECALLD_CHECK(read_term(i, from, to, term));
      }
    }
    for (uint64_t page = 0; page < whole_pages_; ++page) {
      if (pages_[page] == PageState::unindexed) unindexed_ += page_chunks_;
    }
    return {};
  }

  // The rows of a term on pages [from, to) of one span.
  Expected<void> read_term(size_t extent, uint64_t from, uint64_t to, TermRows& term) {
    Catalog::Cursor& rows = cursors_[extent];
    const StreamId stream = chunks_.extents[extent].stream;
    const std::string prefix = term_key(stream, from / span_pages, term.term);
    uint64_t at = from;
    for (Expected<bool> found = rows.seek(posting_key(stream, from, term.term));; found = rows.next()) {
      if (!found && !rows.on_row()) {
        if (found.error().kind != ErrorKind::corrupt) return std::unexpected(std::move(found).error());
        lose(at, to - 1, found.error().message);
        return {};
      }
      if ((found && !*found) || !rows.key().starts_with(prefix)) return {};
      const uint64_t page = page_of_key(rows.key());
      if (page >= to) return {};
      at = page + 1;
      if (!found)
        lose(page, page, found.error().message);
      else
        take(page, rows.value(), term);
    }
  }

  // Pages of which a row is damaged are left out.
  void lose(uint64_t first, uint64_t last, const std::string& cause) {
    for (uint64_t page = first; page <= last; ++page) pages_[page] = PageState::damaged;
    const Unreadable lost{first * page_chunks_, (last + 1) * page_chunks_ - 1, cause};
    for (const Unreadable& known : unreadable_)
      if (known.first <= lost.first && lost.last <= known.last) return;
    unreadable_.push_back(lost);
  }

  void take(uint64_t page, std::string_view value, TermRows& term) {
    if (term.term == lengths_term) {
      const auto lengths = sum_up_lengths(value);
      if (!lengths) return lose(page, page, "the row of its numbers of words is none");
      chunks_in_pages_ += page_chunks_;
      words_in_pages_ += lengths->sum;
      if (hides_some(page) && decode_lengths(value, words_)) {
        for (uint64_t place = 0; place < page_chunks_; ++place) {
          if (!is_hidden(page * page_chunks_ + place)) continue;
          --chunks_in_pages_;
          words_in_pages_ -= words_[place];
        }
      }
      if (pages_[page] == PageState::unindexed) pages_[page] = PageState::whole;
    } else {
      if (pages_[page] != PageState::whole) return;
      PostingReader row(value);
      if (hides_some(page)) {
        while (row.next()) term.chunks += is_hidden(page * page_chunks_ + row.place()) ? 0 : 1;
      } else {
        term.chunks += row.chunks();
      }
    }
    keep(page, value, term);
  }

  // What tells how much the row can make. Rows of many chunks are not worth being read for it.
  Row summed_up(uint64_t page, std::string_view value, Term term) {
    constexpr uint32_t chunks_read_max = 64;
    Row row;
    row.page = static_cast<uint32_t>(page);
    row.bytes = static_cast<uint32_t>(value.size());
    if (term == lengths_term) {
      const LengthsSummary lengths = sum_up_lengths(value).value_or(LengthsSummary());
      if (!hides_some(page)) least_words_[page] = lengths.least;
      row.first = lengths.first;
      row.last = lengths.last;
      return row;
    }
    PostingReader reader(value);
    row.most = reader.count_max();
    row.most_in_three = 3 * row.most;
    if (reader.chunks() > chunks_read_max) return row;
    row.first = row.last = row.most_in_three = 0;
    std::array<uint32_t, 3> places{UINT32_MAX, UINT32_MAX, UINT32_MAX}, counts{};  // the last three
    for (size_t i = 0; reader.next(); ++i) {
      places[i % 3] = reader.place();
      counts[i % 3] = reader.count();
      uint32_t in_three = 0;
      for (size_t j = 0; j < 3; ++j)
        if (places[j] != UINT32_MAX && places[j] + 2 >= reader.place()) in_three += counts[j];
      row.most_in_three = std::max(row.most_in_three, in_three);
      if (reader.place() == 0) row.first = reader.count();
      if (reader.place() + 1 == page_chunks_) row.last = reader.count();
    }
    return row;
  }

  void keep(uint64_t page, std::string_view value, TermRows& term) {
    if (!term.kept) return;
    term.rows.push_back(summed_up(page, value, term.term));
    term.rows.back().at = term.bytes.size();
    term.bytes += value;
    kept_bytes_ += value.size() + sizeof(Row);
    while (kept_bytes_ > rows_bytes_max_) {
      const auto bytes = [](const TermRows& of) { return of.bytes.size() + of.rows.size() * sizeof(Row); };
      TermRows* largest = &lengths_;
      for (TermRows& each : terms_)
        if (bytes(each) > bytes(*largest)) largest = &each;
      kept_bytes_ -= bytes(*largest);
      largest->kept = false;
      largest->rows = {};
      largest->bytes = {};
    }
  }

  // The stored chunks behind the last whole page, and the tail.
  Expected<void> read_loose() {
    loose_first_ = whole_pages_ * page_chunks_;
    loose_.resize(end_ - loose_first_);
    const uint64_t stored = chunks_.stored - loose_first_;
    if (stored > 0) RECALLD_CHECK(read_last_page(stored));
    for (uint64_t i = 0; i < stored; ++i) unindexed_ += loose_[i].there ? 0 : 1;
    for (size_t i = 0; i < chunks_.tail.size(); ++i) take(loose_[stored + i], chunks_.tail[i]);
    for (size_t i = 0; i < loose_.size(); ++i) {
      if (is_hidden(loose_first_ + i)) loose_[i] = {};
      for (const auto& [term, count] : loose_[i].counts) ++terms_[term].chunks;
    }
    return {};
  }

  Expected<void> read_last_page(uint64_t stored) {
    const StreamId stream = chunks_.extents.back().stream;
    Catalog::Cursor& rows = cursors_.back();
    const auto damaged = [&](const Error& error) -> Expected<void> {
      if (error.kind != ErrorKind::corrupt) return std::unexpected(error);
      unreadable_.push_back({loose_first_, loose_first_ + stored - 1, error.message});
      return {};
    };
    // It may have been filled since `stored` was read, and then has rows by term.
    auto found = rows.seek(posting_key(stream, whole_pages_, lengths_term));
    if (!found && !rows.on_row()) return damaged(found.error());
    if (found && *found && rows.key() == posting_key(stream, whole_pages_, lengths_term)) {
      if (!decode_lengths(rows.value(), words_))
        return damaged({ErrorKind::corrupt, "the row of the numbers of words of page " + std::to_string(whole_pages_) +
                                                " of stream " + std::to_string(stream) +
                                                " is none; run recall verify --repair"});
      for (uint64_t i = 0; i < stored; ++i) loose_[i] = {.there = true, .words = words_[i], .counts = {}};
      for (uint32_t term = 0; term < terms_.size(); ++term) {
        const std::string key = posting_key(stream, whole_pages_, terms_[term].term);
        found = rows.seek(key);
        if (!found) return damaged(found.error());
        if (!*found || rows.key() != key) continue;
        for (PostingReader row(rows.value()); row.next() && row.place() < stored;)
          loose_[row.place()].counts.emplace_back(term, row.count());
      }
      return {};
    }
    found = rows.seek(small_row_key(stream, whole_pages_, 0));
    for (;; found = rows.next()) {
      if (!found && !rows.on_row()) return damaged(found.error());
      if (found && !*found) return {};
      const auto key = decode_posting_key(rows.key());
      if (!key || !key->small || key->page != whole_pages_) return {};
      const auto row = found ? decode_small_row(rows.value()) : std::nullopt;
      if (!found) RECALLD_CHECK(damaged(found.error()));
      for (uint64_t i = 0; row && i < row->size() && key->place + i < stored; ++i)
        take(loose_[key->place + i], (*row)[i]);
    }
  }

  void take(LooseChunk& into, const ChunkWords& chunk) const {
    into = {.there = true, .words = chunk.words, .counts = {}};
    auto found = chunk.terms.begin();
    for (uint32_t term = 0; term < terms_.size(); ++term) {
      found = std::lower_bound(found, chunk.terms.end(), terms_[term].term,
                               [](const TermCount& each, Term wanted) { return each.term < wanted; });
      if (found == chunk.terms.end()) break;
      if (found->term == terms_[term].term) into.counts.emplace_back(term, found->count);
    }
  }

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

  void note_rows(TermRows& term) const {
    if (!term.kept) return;
    term.row_of.assign(whole_pages_, Row::not_known);
    for (uint32_t i = 0; i < term.rows.size(); ++i) term.row_of[term.rows[i].page] = i;
  }

  static uint32_t loose_count(const LooseChunk& chunk, uint32_t number) {
    for (const auto& [of, count] : chunk.counts)
      if (of == number) return count;
    return 0;
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

  // How often a term stands in a chunk, which is the first or the last of a whole page, or loose.
  Expected<uint32_t> count_at(TermRows& term, uint32_t number, uint64_t chunk) {
    if (chunk >= loose_first_) return loose_count(loose_[chunk - loose_first_], number);
    const uint64_t page = page_of(chunk);
    const auto place = static_cast<uint32_t>(chunk % page_chunks_);
    if (pages_[page] != PageState::whole || is_hidden(chunk)) return 0;
    Row* known = row_of(term, page);
    if (term.kept && known == nullptr) return 0;
    if (known != nullptr && place == 0 && known->first != Row::not_known) return known->first;
    if (known != nullptr && place > 0 && known->last != Row::not_known) return known->last;
    RECALLD_TRY(const auto row, find_row(term, page, place == 0 ? 2 : 0));
    if (!row) return 0;
    uint32_t count = 0;
    for (PostingReader reader(*row); reader.next() && reader.place() <= place;)
      if (reader.place() == place) count = reader.count();
    if (known != nullptr) (place == 0 ? known->first : known->last) = count;
    return count;
  }

  template <class Rows>
  static auto row_of(Rows& term, uint64_t page) -> decltype(&term.rows[0]) {
    if (!term.kept || term.row_of[page] == Row::not_known) return nullptr;
    return &term.rows[term.row_of[page]];
  }

  // The row of a term on a page, valid until the next one is asked for with the same `use`.
  Expected<std::optional<std::string_view>> find_row(TermRows& term, uint64_t page, size_t use) {
    if (term.kept) {
      const Row* row = row_of(term, page);
      return row == nullptr ? std::optional<std::string_view>()
                            : std::string_view(term.bytes).substr(row->at, row->bytes);
    }
    const auto after = std::ranges::upper_bound(chunks_.extents, page * page_chunks_, {}, &Extent::first_chunk);
    const auto extent = static_cast<size_t>(after - chunks_.extents.begin()) - 1;
    const std::string key = posting_key(chunks_.extents[extent].stream, page, term.term);
    Catalog::Cursor& rows = cursors_[extent];
    const auto found = rows.seek(key);
    if (!found && found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
    if (!found || !*found || rows.key() != key) return std::optional<std::string_view>();
    read_again_[use] = rows.value();
    return std::optional<std::string_view>(read_again_[use]);
  }
  std::optional<std::string_view> row_at(TermRows& term, uint64_t page, size_t use) {
    auto row = find_row(term, page, use);
    return row ? *row : std::nullopt;
  }

  // How many words a chunk has.
  double length(uint64_t chunk) {
    if (chunk >= loose_first_) return loose_[chunk - loose_first_].words;
    if (pages_[page_of(chunk)] != PageState::whole || is_hidden(chunk)) return 0;
    if (const Row* known = row_of(lengths_, page_of(chunk)))  // it is the first or the last of its page
      return chunk % page_chunks_ == 0 ? known->first : known->last;
    const auto row = row_at(lengths_, page_of(chunk), 0);
    return row && decode_lengths(*row, words_) ? words_[chunk % page_chunks_] : 0;
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

  const Catalog& catalog_;
  const size_t page_chunks_;
  const uint64_t rows_bytes_max_;
  const LexicalIndex::Chunks& chunks_;
  const size_t k_;
  const float context_weight_;
  const uint64_t whole_pages_;            // of stored chunks
  const uint64_t end_;                    // one past the last chunk
  std::vector<Catalog::Cursor> cursors_;  // of the extents
  TermRows lengths_;
  std::vector<TermRows> terms_;  // in order
  uint64_t kept_bytes_ = 0;
  std::vector<PageState> pages_;  // of whole_pages_
  uint64_t chunks_in_pages_ = 0;
  uint64_t words_in_pages_ = 0;
  std::vector<uint32_t> least_words_;  // by page: of a chunk; 0: not known
  std::vector<uint32_t> words_;        // of the chunks of a page: what was decoded last
  uint64_t loose_first_ = 0;
  std::vector<LooseChunk> loose_;  // from chunk loose_first_ on
  uint64_t unindexed_ = 0;
  std::vector<Unreadable> unreadable_;

  float length_weight_ = 0;  // by which a word more makes a count less
  float context_length_weight_ = 0;
  std::vector<Candidate> best_;  // a heap, the worst on top

  // Of the page that is being scored: its chunks stand from place 1 on, between their neighbours.
  size_t stride_ = 0;
  std::vector<float> counts_;  // [terms, stride]
  std::vector<char> present_;  // by term: it stands there
  std::vector<char> touched_;  // [terms, blocks]: it makes a difference in the block
  std::vector<float> lengths_here_;
  std::vector<std::pair<float, uint32_t>> bounds_here_;  // what each term can make at most, the greatest first
  std::vector<char> active_;                             // by block: a chunk of it may be among the best
  std::array<std::string, 3> read_again_;
};

}  // namespace

Expected<LexicalRanking> LexicalIndex::rank(const Chunks& chunks, std::span<const Term> terms, size_t k,
                                            float context_weight, std::span<const uint64_t> also) const {
  return Ranking(catalog_, page_chunks_, rows_bytes_max_, chunks, terms, k, context_weight).run(also);
}

}  // namespace recalld
