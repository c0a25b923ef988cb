// The rows of the journal: turns, runs of tokens, and operations (docs/disk-format.md). For journal.cc and
// journal_check.cc only.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/bytes.h"
#include "memstore/journal.h"
#include "memstore/turn.h"

namespace recalld {

// ---- Rows of `turns`

struct TurnRow {
  Turn turn;  // content: its first piece
  uint64_t first_position = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
};

std::string encode_turn(const Turn& turn, uint64_t first_position, uint64_t tokens);
std::optional<TurnRow> decode_turn(std::string_view bytes);       // nothing: it is no such row; likewise below
std::optional<TurnRow> decode_turn_head(std::string_view bytes);  // the same without the content

// ---- Rows of `tokens`

struct TokenRun {
  uint64_t first_position = 0;
  uint64_t turn = 0;
  uint64_t first_byte = 0;  // in the turn's stream text
  uint64_t count = 0;
  std::string_view ids;      // count × u32
  std::string_view lengths;  // count × varint

  uint64_t end_position() const { return first_position + count; }

  void copy_ids(uint64_t from, uint64_t end, uint32_t* out) const {
    static_assert(std::endian::native == std::endian::little, "ids are copied as they lie on disk");
    std::memcpy(out, ids.data() + from * sizeof(uint32_t), (end - from) * sizeof(uint32_t));
  }
  // Where tokens [from, end) of the run lie in the stream text.
  std::pair<uint64_t, uint64_t> byte_range(uint64_t from, uint64_t end) const {
    ByteReader in(lengths);
    uint64_t at = first_byte;
    for (uint64_t i = 0; i < from; ++i) at += in.varint();
    const uint64_t start = at;
    for (uint64_t i = from; i < end; ++i) at += in.varint();
    return {start, at};
  }
};

// ids, and where each of them ends in the turn's stream text; `first_byte` is where the first one begins.
std::string encode_run(uint64_t turn, uint64_t first_byte, std::span<const uint32_t> ids,
                       std::span<const uint32_t> ends);
// The run borrows the bytes.
std::optional<TokenRun> decode_run(std::string_view key, std::string_view bytes);

// ---- Rows of `operations`

std::string encode_operation(const Journal::Operation& operation);
std::optional<Journal::Operation> decode_operation(std::string_view bytes);

}  // namespace recalld
