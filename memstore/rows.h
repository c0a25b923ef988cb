// The catalog's keys and the records of the store's own tables, as docs/disk-format.md has them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "memstore/chunk.h"
#include "memstore/kv_file.h"

namespace recalld {

// ---- Keys. Rows of a memory begin with its id, so that row_key(id) is the prefix of them all.
std::string row_key(MemoryId id);
std::string row_key(MemoryId id, uint64_t number);
std::string row_key(MemoryId id, uint64_t number, uint32_t part);
std::string memory_key(MemoryId id, char kind);  // in `memories`
std::string operation_key(MemoryId id, std::string_view operation_id);
std::string segment_key(uint32_t segment);  // in `counters`

inline constexpr char journal_kind = 'j', encoding_kind = 'e', erased_kind = 'x';  // in `memories`
inline constexpr std::string_view next_memory_key = "m", next_place_key = "k";     // in `counters`
inline constexpr std::string_view segment_prefix = "s";                            // in `counters`

std::optional<uint32_t> segment_of(std::string_view key);  // the reverse of segment_key

// The number in bytes [8, 16) of a key, behind the memory's id.
uint64_t number_of(std::string_view key);

// ---- Records. decode() yields nothing when the bytes are not such a record.

// What appends know of a memory.
struct JournalRecord {
  std::string name;
  int64_t created_us = 0;
  int64_t updated_us = 0;
  uint64_t turns = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;

  std::string encode() const;
  static std::optional<JournalRecord> decode(std::string_view bytes);
};

// What the encoder knows of a memory.
struct EncodingRecord {
  uint64_t generation = 0;
  uint64_t chunks = 0;        // encoded
  uint64_t state_chunks = 0;  // covered by the newest state; 0: there is none

  std::string encode() const;
  static std::optional<EncodingRecord> decode(std::string_view bytes);
};

std::string encode(const ChunkEntry& entry);
std::optional<ChunkEntry> decode_chunk_entry(std::string_view bytes);

std::string encode(KvPlace place);
std::optional<KvPlace> decode_place(std::string_view bytes);

std::string encode_u32(uint32_t value);
std::optional<uint32_t> decode_u32(std::string_view bytes);
std::string encode_u64(uint64_t value);
std::optional<uint64_t> decode_u64(std::string_view bytes);

}  // namespace recalld
