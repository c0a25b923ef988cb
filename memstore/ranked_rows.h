// What the ranking by words reads of the rows of `postings`: in how many chunks each term of a query stands, and where.
// For lexical_ranking.cc, which derives from it.
//
// The rows of all terms are read span by span and kept as far as there is room, those of the most frequent terms least;
// a row that is not kept is read again where it is asked for.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memstore/lexical_index.h"
#include "memstore/lexical_rows.h"

namespace recalld {

class RankedRows {
 protected:
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

  // Everything is borrowed. Reads nothing yet.
  RankedRows(const Catalog& catalog, size_t page_chunks, uint64_t rows_bytes_max, const LexicalIndex::Chunks& chunks,
             std::span<const Term> terms);

  // Damaged rows are told in unreadable_, and their pages left out; fails where the catalog does.
  Expected<void> read();

  // Once all rows of a term are read: lets row_of() find them.
  void note_rows(TermRows& term) const;

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
  static uint32_t loose_count(const LooseChunk& chunk, uint32_t number) {
    for (const auto& [of, count] : chunk.counts)
      if (of == number) return count;
    return 0;
  }
  template <class Rows>
  static auto row_of(Rows& term, uint64_t page) -> decltype(&term.rows[0]) {
    if (!term.kept || term.row_of[page] == Row::not_known) return nullptr;
    return &term.rows[term.row_of[page]];
  }

  // How often a term stands in a chunk, which is the first or the last of a whole page, or loose.
  Expected<uint32_t> count_at(TermRows& term, uint32_t number, uint64_t chunk);
  // The row of a term on a page, valid until the next one is asked for with the same `use`.
  Expected<std::optional<std::string_view>> find_row(TermRows& term, uint64_t page, size_t use);
  std::optional<std::string_view> row_at(TermRows& term, uint64_t page, size_t use);
  // How many words a chunk has.
  double length(uint64_t chunk);

  const size_t page_chunks_;
  const LexicalIndex::Chunks& chunks_;
  const uint64_t whole_pages_;  // of stored chunks
  const uint64_t end_;          // one past the last chunk
  TermRows lengths_;
  std::vector<TermRows> terms_;   // in order
  std::vector<PageState> pages_;  // of whole_pages_
  uint64_t chunks_in_pages_ = 0;
  uint64_t words_in_pages_ = 0;
  std::vector<uint32_t> least_words_;  // by page: of a chunk; 0: not known
  std::vector<uint32_t> words_;        // of the chunks of a page: what was decoded last
  uint64_t loose_first_ = 0;
  std::vector<LooseChunk> loose_;  // from chunk loose_first_ on
  uint64_t unindexed_ = 0;
  std::vector<Unreadable> unreadable_;

 private:
  Expected<void> read_rows();
  Expected<void> read_term(size_t extent, uint64_t from, uint64_t to, TermRows& term);
  void lose(uint64_t first, uint64_t last, const std::string& cause);
  void take(uint64_t page, std::string_view value, TermRows& term);
  Row summed_up(uint64_t page, std::string_view value, Term term);
  void keep(uint64_t page, std::string_view value, TermRows& term);
  Expected<void> read_loose();
  Expected<void> read_last_page(uint64_t stored);
  void take(LooseChunk& into, const ChunkWords& chunk) const;

  const Catalog& catalog_;
  const uint64_t rows_bytes_max_;
  std::vector<Catalog::Cursor> cursors_;  // of the extents
  uint64_t kept_bytes_ = 0;
  std::array<std::string, 3> read_again_;
};

}  // namespace recalld
