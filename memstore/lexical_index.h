// Which words stand in which chunks: the rows of `postings`, in pages of as many chunks as a page of landmarks has, and
// the ranking by BM25 over them. Everything here can be made again from the journal.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "memstore/catalog.h"
#include "memstore/chunk.h"
#include "memstore/layout.h"
#include "memstore/store.h"
#include "memstore/words.h"

namespace recalld {

// Any thread may call any function; those that write, or add to a batch, are called by one thread at a time.
class LexicalIndex {
 public:
  // `catalog` outlives it. A search keeps at most about rows_bytes_max of rows.
  LexicalIndex(const Catalog& catalog, size_t page_chunks, uint64_t rows_bytes_max)
      : catalog_(catalog), page_chunks_(page_chunks), rows_bytes_max_(rows_bytes_max) {}

  // Chunks of a span of pages, the rows of which lie together by term.
  static uint64_t span_chunks(size_t page_chunks);

  // ---- Adding
  // Reads the words of chunks [first, end) again.
  using Make = std::function<Expected<std::vector<ChunkWords>>(uint64_t first, uint64_t end)>;

  // Adds the rows of chunks first, first + 1, ... to a batch. Of a page that they fill, `make` is asked for those
  // chunks before them that have no rows, as after an earlier version of recalld.
  Expected<void> stage(StreamId id, uint64_t first, std::span<const ChunkWords> chunks, const Make& make,
                       Catalog::Batch& batch) const;

  // Of the first n chunks of a stream, the first page from `page` on of which rows are missing.
  Expected<std::optional<uint64_t>> first_missing(StreamId id, uint64_t page, uint64_t n) const;
  // Adds all rows of such a page: of all its chunks, or of those that there are.
  void stage_page(StreamId id, uint64_t page, std::span<const ChunkWords> chunks, Catalog::Batch& batch) const;

  // ---- Removing
  static constexpr uint64_t all_pages = UINT32_MAX;
  // Removes the rows of pages [first_page, end_page), in batches of bounded size. With all_pages, no small row is left
  // of any page.
  Expected<void> erase(StreamId id, uint64_t first_page, uint64_t end_page, Catalog& catalog) const;
  // Where these rows stood.
  static Catalog::Range range(StreamId id, uint64_t first_page);

  // ---- Verifying
  struct Lost {
    uint64_t page = 0;
    std::string cause;
  };
  struct Checked {
    std::vector<Lost> pages;  // in order
    bool strays = false;      // there are rows behind the last page
    uint64_t unindexed = 0;   // chunks without any row, which are not indexed yet
    uint64_t bytes = 0;       // read
  };
  // Whether all rows of chunks [first, end) are there, but for those of pages that have none: the counts of a chunk's
  // terms must make the number of its words. `first` begins a page, and both lie in one span of pages. `last`: the
  // stream ends there.
  Checked check(StreamId id, uint64_t first, uint64_t end, bool last) const;

  // ---- Ranking
  struct Chunks {
    std::span<const Extent> extents;
    uint64_t stored = 0;               // the first of them are read from these extents
    std::span<const ChunkWords> tail;  // and these follow
    // Chunks [first, last] that are left out, in order: what was forgotten stands in them still.
    std::vector<std::pair<uint64_t, uint64_t>> hidden;
    const ChunkSet* only = nullptr;  // others are not ranked, but what they hold still weighs the words
  };
  // A ranking that has found its best and keeps what it read. Belongs to one thread at a time.
  class Ranked {
   public:
    virtual ~Ranked() = default;
    // The best, and the scores of these chunks, too; called once.
    virtual Expected<LexicalRanking> with(std::span<const uint64_t> also) = 0;
  };
  // As Store::lexical_top_k, which says what the arguments mean. `terms`: different ones, in order. `chunks`, and what
  // it borrows, must outlive what is returned.
  Expected<std::unique_ptr<Ranked>> rank(const Chunks& chunks, std::span<const Term> terms, size_t k,
                                         float context_weight) const;

 private:
  const Catalog& catalog_;
  const size_t page_chunks_;
  const uint64_t rows_bytes_max_;
};

}  // namespace recalld
