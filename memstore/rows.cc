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

std::string name_key(std::string_view name) {
  const Hash128 hash = hash128(as_bytes(name));
  return memory_key(0, name_kind) += as_text(hash);
}

std::string waiting_key(MemoryId id) {
  std::string key = memory_key(0, waiting_kind);
  ByteWriter(key).key64(id);
  return key;
}

std::string erasure_key(uint64_t number) {
  std::string key = memory_key(0, erasure_kind);
  ByteWriter(key).key64(number);
  return key;
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
  out.varint(next_turn);
  out.varint(next_position);
  out.varint(turns);
  out.varint(content_bytes);
  out.varint(operations);
  return bytes;
}

std::optional<JournalRecord> JournalRecord::decode(std::string_view bytes) {
  ByteReader in(bytes);
  JournalRecord record;
  record.name = in.text();
  record.created_us = static_cast<int64_t>(in.u64());
  record.updated_us = static_cast<int64_t>(in.u64());
  record.next_turn = in.varint();
  record.next_position = in.varint();
  record.turns = in.varint();
  record.content_bytes = in.varint();
  record.operations = in.varint();
  return in.done() ? std::optional(std::move(record)) : std::nullopt;
}

std::string EncodingRecord::encode() const {
  std::string bytes;
  ByteWriter out(bytes);
  out.varint(generation);
  out.varint(edition);
  out.varint(chunks);
  out.varint(state_chunks);
  return bytes;
}

std::optional<EncodingRecord> EncodingRecord::decode(std::string_view bytes) {
  ByteReader in(bytes);
  EncodingRecord record;
  record.generation = in.varint();
  record.edition = in.varint();
  record.chunks = in.varint();
  record.state_chunks = in.varint();
  return in.done() ? std::optional(record) : std::nullopt;
}

std::string ErasureRecord::encode() const {
  std::string bytes;
  ByteWriter out(bytes);
  out.varint(memory);
  out.varint(stream);
  out.varint(first_chunk);
  out.u8(whole_memory);
  out.varint(first_turn);
  out.varint(end_turn);
  out.varint(first_position);
  out.varint(end_position);
  return bytes;
}

std::optional<ErasureRecord> ErasureRecord::decode(std::string_view bytes) {
  ByteReader in(bytes);
  ErasureRecord record;
  record.memory = in.varint();
  record.stream = in.varint();
  record.first_chunk = in.varint();
  record.whole_memory = in.u8() != 0;
  record.first_turn = in.varint();
  record.end_turn = in.varint();
  record.first_position = in.varint();
  record.end_position = in.varint();
  return in.done() ? std::optional(record) : std::nullopt;
}

std::string JournalTotals::encode() const {
  std::string bytes;
  ByteWriter out(bytes);
  out.varint(memories);
  out.varint(turns);
  out.varint(tokens);
  return bytes;
}

std::optional<JournalTotals> JournalTotals::decode(std::string_view bytes) {
  ByteReader in(bytes);
  JournalTotals totals;
  totals.memories = in.varint();
  totals.turns = in.varint();
  totals.tokens = in.varint();
  return in.done() ? std::optional(totals) : std::nullopt;
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
