#include "memstore/ranked_rows.h"

#include <algorithm>

#include "memstore/rows.h"

namespace recalld {

RankedRows::RankedRows(const Catalog& catalog, size_t page_chunks, uint64_t rows_bytes_max,
                       const LexicalIndex::Chunks& chunks, std::span<const Term> terms)
    : page_chunks_(page_chunks),
      chunks_(chunks),
      whole_pages_(chunks.stored / page_chunks),
      end_(chunks.stored + chunks.tail.size()),
      lengths_{.term = lengths_term, .rows = {}, .bytes = {}},
      pages_(whole_pages_),
      least_words_(whole_pages_),
      words_(page_chunks),
      catalog_(catalog),
      rows_bytes_max_(rows_bytes_max) {
  for (const Term term : terms) terms_.push_back({.term = term, .rows = {}, .bytes = {}});
}

Expected<void> RankedRows::read() {
  RECALLD_CHECK(read_rows());
  return read_loose();
}

// The extents' cursors see one moment each; what lies in an extent that others follow never changes.
Expected<void> RankedRows::read_rows() {
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
Expected<void> RankedRows::read_term(size_t extent, uint64_t from, uint64_t to, TermRows& term) {
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
void RankedRows::lose(uint64_t first, uint64_t last, const std::string& cause) {
  for (uint64_t page = first; page <= last; ++page) pages_[page] = PageState::damaged;
  const Unreadable lost{first * page_chunks_, (last + 1) * page_chunks_ - 1, cause};
  for (const Unreadable& known : unreadable_)
    if (known.first <= lost.first && lost.last <= known.last) return;
  unreadable_.push_back(lost);
}

void RankedRows::take(uint64_t page, std::string_view value, TermRows& term) {
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
RankedRows::Row RankedRows::summed_up(uint64_t page, std::string_view value, Term term) {
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

void RankedRows::keep(uint64_t page, std::string_view value, TermRows& term) {
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
Expected<void> RankedRows::read_loose() {
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

Expected<void> RankedRows::read_last_page(uint64_t stored) {
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

void RankedRows::take(LooseChunk& into, const ChunkWords& chunk) const {
  into = {.there = true, .words = chunk.words, .counts = {}};
  auto found = chunk.terms.begin();
  for (uint32_t term = 0; term < terms_.size(); ++term) {
    found = std::lower_bound(found, chunk.terms.end(), terms_[term].term,
                             [](const TermCount& each, Term wanted) { return each.term < wanted; });
    if (found == chunk.terms.end()) break;
    if (found->term == terms_[term].term) into.counts.emplace_back(term, found->count);
  }
}

void RankedRows::note_rows(TermRows& term) const {
  if (!term.kept) return;
  term.row_of.assign(whole_pages_, Row::not_known);
  for (uint32_t i = 0; i < term.rows.size(); ++i) term.row_of[term.rows[i].page] = i;
}

Expected<uint32_t> RankedRows::count_at(TermRows& term, uint32_t number, uint64_t chunk) {
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

Expected<std::optional<std::string_view>> RankedRows::find_row(TermRows& term, uint64_t page, size_t use) {
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

std::optional<std::string_view> RankedRows::row_at(TermRows& term, uint64_t page, size_t use) {
  auto row = find_row(term, page, use);
  return row ? *row : std::nullopt;
}

double RankedRows::length(uint64_t chunk) {
  if (chunk >= loose_first_) return loose_[chunk - loose_first_].words;
  if (pages_[page_of(chunk)] != PageState::whole || is_hidden(chunk)) return 0;
  if (const Row* known = row_of(lengths_, page_of(chunk)))  // it is the first or the last of its page
    return chunk % page_chunks_ == 0 ? known->first : known->last;
  const auto row = row_at(lengths_, page_of(chunk), 0);
  return row && decode_lengths(*row, words_) ? words_[chunk % page_chunks_] : 0;
}

}  // namespace recalld
