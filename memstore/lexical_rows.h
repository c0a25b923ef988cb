// The rows of `postings` (docs/disk-format.md): which words stand in which chunks of a stream. For lexical_*.cc only.
//
// A whole page has one row for each of its terms, and one for how many words each chunk has. The chunks of a page that
// is not full yet lie in small rows, one a write, chunk by chunk.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "memstore/chunk.h"
#include "memstore/words.h"

namespace recalld {

// Rows of so many pages lie together, by term: a search finds those of its terms close to each other, and erasing from
// some page on finds most of what is to go in one range of keys.
inline constexpr uint64_t span_pages = 256;
inline constexpr Term lengths_term = 0;  // under which the counts of words stand: no word has it
inline constexpr uint32_t small_rows_span = UINT32_MAX;

// ---- Keys
std::string span_key(StreamId stream, uint64_t span);
std::string term_key(StreamId stream, uint64_t span, Term term);
std::string posting_key(StreamId stream, uint64_t page, Term term);
std::string small_rows_key(StreamId stream);
std::string small_row_key(StreamId stream, uint64_t page, uint32_t place);

struct PostingKey {
  uint64_t page = 0;
  Term term = 0;
  bool small = false;  // else:
  uint32_t place = 0;  // of a small row: its first chunk
};
std::optional<PostingKey> decode_posting_key(std::string_view key);
uint64_t page_of_key(std::string_view key);  // of a row of a term

// ---- A term on a page

// Writes the row of a term, place by place.
class PostingWriter {
 public:
  void add(uint32_t place, uint32_t count);  // places rise
  std::string row() const;

 private:
  std::string entries_;
  uint32_t chunks_ = 0;
  uint32_t count_max_ = 0;
  uint32_t next_place_ = 0;
};

// Reads it again.
class PostingReader {
 public:
  explicit PostingReader(std::string_view row) : at_(row.data()), end_(row.data() + row.size()) {
    chunks_ = varint();
    count_max_ = varint();
  }
  uint32_t chunks() const { return chunks_; }        // that have the term
  uint32_t count_max() const { return count_max_; }  // the most often that it stands in one
  // The next chunk; false at the end, or where the row is none.
  bool next() {
    if (at_ == end_) return false;
    const uint32_t word = varint();
    place_ += (word >> 1) + 1;
    count_ = (word & 1) != 0 ? varint() : 1;
    return ok_;
  }
  uint32_t place() const { return place_; }
  uint32_t count() const { return count_; }

 private:
  uint32_t varint() {
    uint32_t value = 0;
    for (int shift = 0; at_ != end_ && shift < 32; shift += 7) {
      const auto byte = static_cast<uint8_t>(*at_++);
      value |= static_cast<uint32_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    at_ = end_;
    return 0;
  }

  const char* at_;
  const char* end_;
  bool ok_ = true;
  uint32_t chunks_ = 0;
  uint32_t count_max_ = 0;
  uint32_t place_ = UINT32_MAX;  // before the first
  uint32_t count_ = 0;
};

// ---- How many words the chunks of a page have
std::string encode_lengths(std::span<const uint32_t> lengths);
bool decode_lengths(std::string_view row, std::span<uint32_t> lengths);  // of all chunks of a page; false: it is none
struct LengthsSummary {
  uint64_t sum = 0;
  uint32_t least = 0;
  uint32_t first = 0;  // of the first chunk, and of the last
  uint32_t last = 0;
};
std::optional<LengthsSummary> sum_up_lengths(std::string_view row);  // without reading all of it

// ---- Chunks of a page that is not full
std::string encode_small_row(std::span<const ChunkWords> chunks);
std::optional<std::vector<ChunkWords>> decode_small_row(std::string_view row);

}  // namespace recalld
