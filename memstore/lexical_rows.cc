#include "memstore/lexical_rows.h"

#include <algorithm>
#include <numeric>

#include "memstore/rows.h"

namespace recalld {
namespace {

constexpr size_t term_key_bytes = 24, small_row_key_bytes = 20;

void key32(std::string& key, uint64_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) key += static_cast<char>(value >> shift);
}

uint32_t take32(ByteReader& in) {
  uint32_t value = 0;
  for (const char c : in.take(4)) value = value << 8 | static_cast<uint8_t>(c);
  return value;
}

}  // namespace

// ---- Keys

std::string span_key(StreamId stream, uint64_t span) {
  std::string key = row_key(stream);
  key32(key, span);
  return key;
}

std::string term_key(StreamId stream, uint64_t span, Term term) {
  std::string key = span_key(stream, span);
  ByteWriter(key).key64(term);
  return key;
}

std::string posting_key(StreamId stream, uint64_t page, Term term) {
  std::string key = term_key(stream, page / span_pages, term);
  key32(key, page);
  return key;
}

std::string small_rows_key(StreamId stream) {
  return span_key(stream, small_rows_span);
}

std::string small_row_key(StreamId stream, uint64_t page, uint32_t place) {
  std::string key = small_rows_key(stream);
  key32(key, page);
  key32(key, place);
  return key;
}

std::optional<PostingKey> decode_posting_key(std::string_view key) {
  PostingKey decoded;
  decoded.small = key.size() == small_row_key_bytes;
  if (!decoded.small && key.size() != term_key_bytes) return std::nullopt;
  ByteReader in(key);
  in.key64();
  const uint32_t span = take32(in);
  if ((span == small_rows_span) != decoded.small) return std::nullopt;
  if (!decoded.small) decoded.term = in.key64();
  decoded.page = take32(in);
  if (decoded.small) decoded.place = take32(in);
  if (!decoded.small && decoded.page / span_pages != span) return std::nullopt;
  return decoded;
}

uint64_t page_of_key(std::string_view key) {
  uint64_t page = 0;
  for (const char c : key.substr(key.size() - 4)) page = page << 8 | static_cast<uint8_t>(c);
  return page;
}

// ---- A term on a page

void PostingWriter::add(uint32_t place, uint32_t count) {
  ByteWriter out(entries_);
  out.varint(uint64_t{place - next_place_} << 1 | (count > 1 ? 1 : 0));
  if (count > 1) out.varint(count);
  next_place_ = place + 1;
  ++chunks_;
  count_max_ = std::max(count_max_, count);
}

std::string PostingWriter::row() const {
  std::string row;
  ByteWriter out(row);
  out.varint(chunks_);
  out.varint(count_max_);
  return row += entries_;
}

// ---- How many words the chunks of a page have

std::string encode_lengths(std::span<const uint32_t> lengths) {
  std::string row;
  ByteWriter out(row);
  out.varint(std::accumulate(lengths.begin(), lengths.end(), uint64_t{0}));
  out.varint(*std::ranges::min_element(lengths));
  for (const uint32_t length : lengths) out.varint(length);
  return row;
}

bool decode_lengths(std::string_view row, std::span<uint32_t> lengths) {
  ByteReader in(row);
  const uint64_t expected = in.varint();
  in.varint();
  uint64_t sum = 0;
  const std::string_view bytes = in.rest();
  if (in.ok() && bytes.size() == lengths.size()) {  // a byte each
    uint8_t high = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      lengths[i] = static_cast<uint8_t>(bytes[i]);
      high |= static_cast<uint8_t>(bytes[i]);
      sum += lengths[i];
    }
    return high < 0x80 && sum == expected;
  }
  for (uint32_t& length : lengths) {
    length = static_cast<uint32_t>(in.varint());
    sum += length;
  }
  return in.done() && sum == expected;
}

std::optional<LengthsSummary> sum_up_lengths(std::string_view row) {
  ByteReader in(row);
  LengthsSummary summary;
  summary.sum = in.varint();
  summary.least = static_cast<uint32_t>(in.varint());
  const std::string_view lengths = in.rest();
  summary.first = static_cast<uint32_t>(in.varint());
  if (!in.ok()) return std::nullopt;
  // The last varint begins behind the last byte before it that ends one.
  size_t begin = lengths.size() - 1;
  while (begin > 0 && static_cast<uint8_t>(lengths[begin - 1]) >= 0x80) --begin;
  ByteReader last(lengths.substr(begin));
  summary.last = static_cast<uint32_t>(last.varint());
  return last.done() ? std::optional(summary) : std::nullopt;
}

// ---- Chunks of a page that is not full

std::string encode_small_row(std::span<const ChunkWords> chunks) {
  std::string row;
  ByteWriter out(row);
  out.varint(chunks.size());
  for (const ChunkWords& chunk : chunks) {
    out.varint(chunk.terms.size());
    for (const auto& [term, count] : chunk.terms) {
      out.u64(term);
      out.varint(count);
    }
  }
  return row;
}

std::optional<std::vector<ChunkWords>> decode_small_row(std::string_view row) {
  constexpr size_t term_bytes_least = 9;
  ByteReader in(row);
  std::vector<ChunkWords> chunks;
  for (uint64_t left = in.varint(); in.ok() && left > 0; --left) {
    ChunkWords& chunk = chunks.emplace_back();
    const uint64_t terms = in.varint();
    if (terms > in.rest().size() / term_bytes_least) return std::nullopt;
    chunk.terms.reserve(terms);
    for (uint64_t i = 0; i < terms; ++i) {
      const Term term = in.u64();
      const auto count = static_cast<uint32_t>(in.varint());
      if (!chunk.terms.empty() && chunk.terms.back().term >= term) return std::nullopt;
      chunk.terms.push_back({term, count});
      chunk.words += count;
    }
  }
  return in.done() ? std::optional(std::move(chunks)) : std::nullopt;
}

}  // namespace recalld
