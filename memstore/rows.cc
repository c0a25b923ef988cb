#include "memstore/rows.h"

#include "base/bytes.h"
#include "base/hash.h"

namespace recalld {
namespace {

void key32(ByteWriter& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out.u8(static_cast<uint8_t>(value >> shift));
}

}  // namespace

std::string row_key(MemoryId id) {
  std::string key;
  ByteWriter(key).key64(id);
  return key;
}

std::string row_key(MemoryId id, uint64_t number) {
  std::string key = row_key(id);
  ByteWriter(key).key64(number);
  return key;
}

std::string row_key(MemoryId id, uint64_t number, uint32_t part) {
  std::string key = row_key(id, number);
  ByteWriter out(key);
  key32(out, part);
  return key;
}

std::string memory_key(MemoryId id, char kind) {
  return row_key(id) += kind;
}

std::string operation_key(MemoryId id, std::string_view operation_id) {
  const Hash128 hash = hash128(as_bytes(operation_id));
  return row_key(id) += as_text(hash);
}

std::string segment_key(uint32_t segment) {
  std::string key(segment_prefix);
  ByteWriter out(key);
  key32(out, segment);
  return key;
}

std::optional<uint32_t> segment_of(std::string_view key) {
  if (!key.starts_with(segment_prefix) || key.size() != segment_prefix.size() + 4) return std::nullopt;
  uint32_t segment = 0;
  for (const char c : key.substr(segment_prefix.size())) segment = segment << 8 | static_cast<uint8_t>(c);
  return segment;
}

uint64_t number_of(std::string_view key) {
  ByteReader in(key);
  in.key64();
  return in.key64();
}

std::string JournalRecord::encode() const {
  std::string bytes;
  ByteWriter out(bytes);
  out.text(name);
  out.u64(static_cast<uint64_t>(created_us));
  out.u64(static_cast<uint64_t>(updated_us));
  out.varint(turns);
  out.varint(tokens);
  out.varint(content_bytes);
  return bytes;
}

std::optional<JournalRecord> JournalRecord::decode(std::string_view bytes) {
  ByteReader in(bytes);
  JournalRecord record;
  record.name = in.text();
  record.created_us = static_cast<int64_t>(in.u64());
  record.updated_us = static_cast<int64_t>(in.u64());
  record.turns = in.varint();
  record.tokens = in.varint();
  record.content_bytes = in.varint();
  return in.done() ? std::optional(std::move(record)) : std::nullopt;
}

std::string EncodingRecord::encode() const {
  std::string bytes;
  ByteWriter out(bytes);
  out.varint(generation);
  out.varint(chunks);
  out.varint(state_chunks);
  return bytes;
}

std::optional<EncodingRecord> EncodingRecord::decode(std::string_view bytes) {
  ByteReader in(bytes);
  EncodingRecord record;
  record.generation = in.varint();
  record.chunks = in.varint();
  record.state_chunks = in.varint();
  return in.done() ? std::optional(record) : std::nullopt;
}

std::string encode(const ChunkEntry& entry) {
  std::string bytes;
  ByteWriter out(bytes);
  out.u32(entry.segment);
  out.u32(entry.slot);
  out.u64(entry.generation);
  out.u32(entry.crc32c);
  return bytes;
}

std::optional<ChunkEntry> decode_chunk_entry(std::string_view bytes) {
  ByteReader in(bytes);
  ChunkEntry entry;
  entry.segment = in.u32();
  entry.slot = in.u32();
  entry.generation = in.u64();
  entry.crc32c = in.u32();
  return in.done() ? std::optional(entry) : std::nullopt;
}

std::string encode(KvPlace place) {
  std::string bytes;
  ByteWriter out(bytes);
  out.u32(place.segment);
  out.u32(place.slot);
  return bytes;
}

std::optional<KvPlace> decode_place(std::string_view bytes) {
  ByteReader in(bytes);
  KvPlace place;
  place.segment = in.u32();
  place.slot = in.u32();
  return in.done() ? std::optional(place) : std::nullopt;
}

std::string encode_u32(uint32_t value) {
  std::string bytes;
  ByteWriter(bytes).u32(value);
  return bytes;
}

std::optional<uint32_t> decode_u32(std::string_view bytes) {
  ByteReader in(bytes);
  const uint32_t value = in.u32();
  return in.done() ? std::optional(value) : std::nullopt;
}

std::string encode_u64(uint64_t value) {
  std::string bytes;
  ByteWriter(bytes).u64(value);
  return bytes;
}

std::optional<uint64_t> decode_u64(std::string_view bytes) {
  ByteReader in(bytes);
  const uint64_t value = in.u64();
  return in.done() ? std::optional(value) : std::nullopt;
}

}  // namespace recalld
