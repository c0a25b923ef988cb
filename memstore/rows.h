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
std::string name_key(std::string_view name);     // in `memories`: leads to the id
std::string waiting_key(MemoryId id);            // in `memories`: something of it waits to be encoded
std::string erasure_key(uint64_t number);        // in `memories`
std::string operation_key(MemoryId id, std::string_view operation_id);
std::string segment_key(uint32_t segment);  // in `counters`

// In `memories`, behind the id of a memory. The last two belong to the generation that is being made.
inline constexpr char journal_kind = 'j', encoding_kind = 'e', layout_kind = 'l', next_encoding_kind = 'E',
                      next_layout_kind = 'L';
// In `memories`, behind id 0, which no memory has.
inline constexpr char name_kind = 'n', waiting_kind = 'w', erasure_kind = 'x';

// In `counters`.
inline constexpr std::string_view next_id_key = "m", next_place_key = "k", journal_totals_key = "j",
                                  encoding_totals_key = "e";
inline constexpr std::string_view segment_prefix = "s";

std::optional<uint32_t> segment_of(std::string_view key);  // the reverse of segment_key

// The number in bytes [8, 16) of a key, behind the memory's id.
uint64_t number_of(std::string_view key);

// ---- Records. decode() yields nothing when the bytes are not such a record.

// What appends know of a memory.
struct JournalRecord {
  std::string name;
  int64_t created_us = 0;
  int64_t updated_us = 0;
  uint64_t next_turn = 0;      // the number that the next turn gets
  uint64_t next_position = 0;  // where its tokens begin
  uint64_t turns = 0;          // that there are: appended and not forgotten
  uint64_t content_bytes = 0;  // of these
  uint64_t operations = 0;     // operation_ids that are known

  std::string encode() const;
  static std::optional<JournalRecord> decode(std::string_view bytes);
};

// What the encoder knows of one generation of a memory.
struct EncodingRecord {
  uint64_t generation = 0;
  uint64_t edition = 0;       // changes with the gaps of the generation
  uint64_t chunks = 0;        // encoded
  uint64_t state_chunks = 0;  // covered by the newest state; 0: there is none that it knows of

  std::string encode() const;
  static std::optional<EncodingRecord> decode(std::string_view bytes);
};

// Rows that nothing names any more, on their way out. A stream and what is left of a memory's journal are erased by
// records of their own.
struct ErasureRecord {
  MemoryId memory = 0;
  StreamId stream = 0;        // 0: none. Its chunks from first_chunk on, with their K/V, landmarks and states
  uint64_t first_chunk = 0;   // a multiple of the chunks of a page of landmarks
  bool whole_memory = false;  // every row of the journal of the memory, which is gone
  uint64_t first_turn = 0;    // else: between which turns, and positions of tokens, rows were removed; ends excluded
  uint64_t end_turn = 0;
  uint64_t first_position = 0;
  uint64_t end_position = 0;

  std::string encode() const;
  static std::optional<ErasureRecord> decode(std::string_view bytes);
};

// Sums over all memories.
struct JournalTotals {
  uint64_t memories = 0;
  uint64_t turns = 0;
  uint64_t tokens = 0;

  std::string encode() const;
  static std::optional<JournalTotals> decode(std::string_view bytes);
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
