#include "memstore/lexical_index.h"

#include <algorithm>
#include <utility>

#include "memstore/lexical_rows.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

constexpr size_t removed_at_once = 8'192;  // rows in a batch

// Calls row(key, value) for the rows of a cursor from where it stands on, over damaged ones, until it returns false.
// `value` is an Expected<std::string_view>. Fails where rows cannot even be listed.
template <class Row>
Expected<void> walk(Catalog::Cursor& rows, Expected<bool> found, Row row) {
  for (;; found = rows.next()) {
    if (!found && !rows.on_row()) return std::unexpected(std::move(found).error());
    if (found && !*found) return {};
    const auto key = decode_posting_key(rows.key());
    const auto value = found ? Expected<std::string_view>(rows.value()) : std::unexpected(std::move(found).error());
    if (key && !row(*key, value)) return {};
  }
}

}  // namespace

uint64_t LexicalIndex::span_chunks(size_t page_chunks) {
  return span_pages * page_chunks;
}

// ---- Adding

Expected<void> LexicalIndex::stage(StreamId id, uint64_t first, std::span<const ChunkWords> chunks, const Make& make,
                                   Catalog::Batch& batch) const {
  while (!chunks.empty()) {
    const uint64_t page = first / page_chunks_;
    const auto place = static_cast<uint32_t>(first % page_chunks_);
    const size_t count = std::min<size_t>(page_chunks_ - place, chunks.size());
    const auto part = chunks.first(count);
    if (place + count < page_chunks_) {
      batch.put(Family::postings, small_row_key(id, page, place), encode_small_row(part));
    } else {
      std::vector<std::optional<ChunkWords>> known(place);
      Catalog::Cursor rows = catalog_.cursor(Family::postings, small_rows_key(id));
      const auto walked = walk(rows, rows.seek(small_row_key(id, page, 0)), [&](const PostingKey& key, auto value) {
        if (key.page != page) return false;
        batch.remove(Family::postings, rows.key());
        auto row = value ? decode_small_row(*value) : std::nullopt;
        for (size_t i = 0; row && i < row->size() && key.place + i < place; ++i)
          known[key.place + i] = std::move((*row)[i]);
        return true;
      });
      if (!walked && walked.error().kind != ErrorKind::corrupt) return walked;
      std::vector<ChunkWords> whole;
      whole.reserve(page_chunks_);
      for (uint32_t at = 0; at < place;) {
        if (known[at]) {
          whole.push_back(*std::move(known[at++]));
          continue;
        }
        uint32_t end = at;
        while (end < place && !known[end]) ++end;
        RECALLD_TRY(std::vector<ChunkWords> made, make(page * page_chunks_ + at, page * page_chunks_ + end));
        std::ranges::move(made, std::back_inserter(whole));
        at = end;
      }
      whole.insert(whole.end(), part.begin(), part.end());
      stage_page(id, page, whole, batch);
    }
    first += count;
    chunks = chunks.subspan(count);
  }
  return {};
}

void LexicalIndex::stage_page(StreamId id, uint64_t page, std::span<const ChunkWords> chunks,
                              Catalog::Batch& batch) const {
  if (chunks.size() < page_chunks_) {
    batch.remove_range(Family::postings, small_row_key(id, page, 0), small_row_key(id, page + 1, 0));
    batch.put(Family::postings, small_row_key(id, page, 0), encode_small_row(chunks));
    return;
  }
  struct Entry {
    Term term;
    uint32_t place;
    uint32_t count;
  };
  std::vector<Entry> entries;
  std::vector<uint32_t> lengths;
  for (uint32_t place = 0; place < chunks.size(); ++place) {
    lengths.push_back(chunks[place].words);
    for (const auto& [term, count] : chunks[place].terms) entries.push_back({term, place, count});
  }
  std::ranges::stable_sort(entries, {}, &Entry::term);
  for (size_t at = 0; at < entries.size();) {
    const Term term = entries[at].term;
    PostingWriter writer;
    for (; at < entries.size() && entries[at].term == term; ++at) writer.add(entries[at].place, entries[at].count);
    batch.put(Family::postings, posting_key(id, page, term), writer.row());
  }
  batch.put(Family::postings, posting_key(id, page, lengths_term), encode_lengths(lengths));
}

Expected<std::optional<uint64_t>> LexicalIndex::first_missing(StreamId id, uint64_t page, uint64_t n) const {
  const uint64_t whole_pages = n / page_chunks_;
  Catalog::Cursor rows = catalog_.cursor(Family::postings, row_key(id));
  while (page < whole_pages) {
    // The lengths of a span's pages follow each other.
    const uint64_t end = std::min(whole_pages, (page / span_pages + 1) * span_pages);
    RECALLD_CHECK(walk(rows, rows.seek(posting_key(id, page, lengths_term)), [&](const PostingKey& key, const auto&) {
      const bool expected = !key.small && key.term == lengths_term && key.page == page && page < end;
      if (expected) ++page;
      return expected;
    }));
    if (page < end) return page;
  }
  if (n % page_chunks_ == 0 || page > whole_pages) return std::nullopt;
  uint64_t covered = 0;
  RECALLD_CHECK(walk(rows, rows.seek(small_row_key(id, page, 0)), [&](const PostingKey& key, const auto& value) {
    if (!key.small || key.page != page || key.place > covered) return false;
    const auto row = value ? decode_small_row(*value) : std::nullopt;
    if (row) covered = std::max(covered, key.place + row->size());
    return true;
  }));
  return covered < n % page_chunks_ ? std::optional(page) : std::nullopt;
}

// ---- Removing

Expected<void> LexicalIndex::erase(StreamId id, uint64_t first_page, uint64_t end_page, Catalog& catalog) const {
  // Spans that go whole, and small rows, are ranges of keys.
  const uint64_t first_whole = (first_page + span_pages - 1) / span_pages, end_whole = end_page / span_pages;
  {
    Catalog::Batch batch(catalog);
    if (end_page == all_pages) {
      batch.remove_range(Family::postings, span_key(id, first_whole), row_key(id + 1));
    } else {
      if (first_whole < end_whole)
        batch.remove_range(Family::postings, span_key(id, first_whole), span_key(id, end_whole));
      batch.remove_range(Family::postings, small_row_key(id, first_page, 0), small_row_key(id, end_page, 0));
    }
    RECALLD_CHECK(catalog.write(batch));
  }
  // Of the others, the pages stand side by side under each term.
  const auto erase_in = [&](uint64_t span) -> Expected<void> {
    Catalog::Cursor rows = catalog.cursor(Family::postings, span_key(id, span));
    std::optional<Catalog::Batch> batch;
    size_t removed = 0;
    Expected<void> written;
    RECALLD_CHECK(walk(rows, rows.first(), [&](const PostingKey& key, const auto&) {
      if (key.page < first_page || key.page >= end_page) return true;
      if (!batch) batch.emplace(catalog);
      batch->remove(Family::postings, rows.key());
      if (++removed % removed_at_once == 0) {
        written = catalog.write(*batch);
        batch.reset();
      }
      return written.has_value();
    }));
    RECALLD_CHECK(written);
    return batch ? catalog.write(*batch) : Expected<void>();
  };
  if (first_page % span_pages != 0) RECALLD_CHECK(erase_in(first_page / span_pages));
  const bool same_span = first_page % span_pages != 0 && first_page / span_pages == end_whole;
  if (end_page != all_pages && end_page % span_pages != 0 && !same_span) RECALLD_CHECK(erase_in(end_whole));
  return {};
}

Catalog::Range LexicalIndex::range(StreamId id, uint64_t first_page) {
  return {Family::postings, span_key(id, first_page / span_pages), row_key(id + 1)};
}

// ---- Verifying

LexicalIndex::Checked LexicalIndex::check(StreamId id, uint64_t first, uint64_t end, bool last) const {
  Checked checked;
  const uint64_t first_page = first / page_chunks_, whole_end = end / page_chunks_;
  const uint64_t end_page = (end + page_chunks_ - 1) / page_chunks_;
  struct Page {
    std::string cause;
    std::optional<std::vector<uint32_t>> lengths;
    std::vector<uint64_t> counted;  // words, by chunk
    bool rows = false;              // there is one
  };
  std::vector<Page> pages(end_page - first_page);
  const auto blame = [&](uint64_t page, std::string cause) {
    if (page >= first_page && page < end_page && pages[page - first_page].cause.empty())
      pages[page - first_page].cause = std::move(cause);
  };

  // Whole pages: the counts of all terms must make up the words of each chunk.
  for (uint64_t page = first_page; page < whole_end; ++page) pages[page - first_page].counted.resize(page_chunks_);
  Catalog::Cursor rows = catalog_.cursor(Family::postings, span_key(id, first_page / span_pages));
  const auto walked = walk(rows, rows.first(), [&](const PostingKey& key, const Expected<std::string_view>& value) {
    checked.strays = checked.strays || (last && key.page >= whole_end);
    if (value) checked.bytes += value->size();
    if (key.page < first_page || key.page >= whole_end) return true;
    Page& page = pages[key.page - first_page];
    page.rows = true;
    if (!value) {
      blame(key.page, "a row of its words does not match its checksum");
    } else if (key.term == lengths_term) {
      page.lengths.emplace(page_chunks_);
      if (!decode_lengths(*value, *page.lengths)) blame(key.page, "the row of its numbers of words is none");
    } else {
      PostingReader row(*value);
      uint32_t chunks = 0;
      for (; row.next() && row.place() < page_chunks_; ++chunks) page.counted[row.place()] += row.count();
      if (chunks != row.chunks()) blame(key.page, "a row of its words is none");
    }
    return true;
  });
  for (uint64_t page = first_page; page < whole_end; ++page) {
    const Page& found = pages[page - first_page];
    if (!walked)
      blame(page, "rows of its words cannot be read: " + walked.error().message);
    else if (!found.rows)
      checked.unindexed += page_chunks_;
    else if (!found.lengths)
      blame(page, "the row of its numbers of words is missing");
    else if (!std::ranges::equal(*found.lengths, found.counted))
      blame(page, "rows of its words are missing");
  }

  // The last page, when it is not full; small rows of another page are left over.
  if (last) {
    const auto places = static_cast<uint32_t>(end % page_chunks_);
    std::vector<char> there(places);
    uint64_t first_place = places;  // of all rows: what lies before it is not indexed
    Catalog::Cursor small = catalog_.cursor(Family::postings, small_rows_key(id));
    const auto read = walk(small, small.first(), [&](const PostingKey& key, const Expected<std::string_view>& value) {
      if (value) checked.bytes += value->size();
      if (key.page != whole_end) {
        checked.strays = true;
        return true;
      }
      first_place = std::min<uint64_t>(first_place, key.place);
      const auto row = value ? decode_small_row(*value) : std::nullopt;
      if (!row)
        blame(key.page, value ? "a row of its words is none" : "a row of its words does not match its checksum");
      const uint64_t until = row ? std::min<uint64_t>(places, key.place + row->size()) : 0;
      for (uint64_t place = key.place; place < until; ++place) there[place] = 1;
      checked.strays = checked.strays || (row && key.place + row->size() > places);
      return true;
    });
    if (!read) blame(whole_end, "rows of its words cannot be read: " + read.error().message);
    if (read) checked.unindexed += first_place;
    if (static_cast<uint64_t>(std::ranges::count(there, 1)) != places - first_place)
      blame(whole_end, "rows of its words are missing");
    Catalog::Cursor behind = catalog_.cursor(Family::postings, row_key(id));
    const auto found = behind.seek(span_key(id, first_page / span_pages + 1));
    const auto key = behind.on_row() ? decode_posting_key(behind.key()) : std::nullopt;
    checked.strays = checked.strays || (found && *found && key && !key->small);
  }
  for (uint64_t page = first_page; page < end_page; ++page) {
    if (!pages[page - first_page].cause.empty())
      checked.pages.push_back({page, std::move(pages[page - first_page].cause)});
  }
  return checked;
}

}  // namespace recalld
