// The rows of `attributes` (docs/disk-format.md): what the turns of a memory say of themselves, in blocks of turns that
// follow each other. For attribute_*.cc only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memstore/attribute.h"
#include "memstore/chunk.h"

namespace recalld {

// A turn as it is indexed.
struct IndexedTurn {
  uint64_t number = 0;
  uint64_t position = 0;  // of its first token
  uint64_t tokens = 0;
  std::vector<Attribute> attributes{};

  uint64_t end_position() const { return position + tokens; }
  uint64_t bytes() const;  // that it takes in an index, about
};

// ---- Keys. The first row of a block, and the first byte behind all its rows; the number is that of the block.
std::string block_key(MemoryId id, uint64_t block);
std::string attribute_key(MemoryId id, uint64_t block, std::string_view attribute);
std::string column_key(MemoryId id, uint64_t block, std::string_view attribute);
std::string end_key(MemoryId id, uint64_t block);  // greater than every key of the block
bool is_block_key(std::string_view key);
uint32_t attribute_mark(std::string_view attribute);  // by which the first row of a block lists it

// ---- The first row of a block, which speaks of turns [block, end)

struct BlockHead {
  uint64_t end = 0;
  uint64_t turns = 0;           // that there are
  uint64_t first_position = 0;  // of the first of them
  uint64_t end_position = 0;    // of the last one
  bool open = false;            // the attributes stand in this row; else in columns
  uint64_t run_turns = 0;       // of an open block: turns in it and in the open ones before it, at most
  uint64_t run_bytes = 0;
  std::string_view marks;  // of the attributes with columns, u32 each, rising
  std::string_view rest;   // the turns

  bool lists(uint32_t mark) const;
};
// It borrows the row. Nothing: it is no such row; likewise below.
std::optional<BlockHead> decode_block_head(std::string_view row, uint64_t block);

// Its turns as they stand in the row, which is borrowed, without their attributes where these stand in columns.
struct TurnsView {
  struct Turn {
    uint64_t number = 0;
    uint64_t position = 0;
    uint64_t tokens = 0;
    size_t first = 0;  // of its attributes
    size_t end = 0;
    uint64_t end_position() const { return position + tokens; }
  };
  struct Member {
    std::string_view name;
    ComparedValue value;
  };
  std::vector<Turn> turns;
  std::vector<Member> attributes;  // turn by turn
};
std::optional<TurnsView> view_turns(const BlockHead& head, uint64_t block);
// The same, borrowing nothing.
std::optional<std::vector<IndexedTurn>> decode_turns(const BlockHead& head, uint64_t block);

std::string encode_open_block(uint64_t block, uint64_t end, uint64_t run_turns, uint64_t run_bytes,
                              std::span<const IndexedTurn> turns);

// All rows of a block with columns, by key.
std::vector<std::pair<std::string, std::string>> rows_of_block(MemoryId id, uint64_t block, uint64_t end,
                                                               std::span<const IndexedTurn> turns);

// ---- Sets of places: the turns of a block, counted from 0

class Places {
 public:
  explicit Places(uint64_t count) : count_(count), words_((count + 63) / 64) {}
  void add(uint64_t place) { words_[place / 64] |= uint64_t{1} << place % 64; }
  void add_all();
  void add_bits(std::string_view bits);  // a bit a place, the lowest of a byte first
  void add(const Places& other);
  void keep(const Places& other);
  void flip();
  bool has(uint64_t place) const { return (words_[place / 64] >> place % 64 & 1) != 0; }
  bool none() const;
  uint64_t count() const { return count_; }  // of the block's turns

 private:
  void trim();
  uint64_t count_;
  std::vector<uint64_t> words_;
};

// ---- A column: the values that the turns of a block have for one attribute, and which turns have each

class Column {
 public:
  static std::optional<Column> decode(std::string_view bytes, uint64_t turns);

  // Adds the turns with a value that equals, or that lies between two places of the order of values.
  bool add_equal(const ComparedValue& value, Places& places) const;
  bool add_all(Places& places) const;
  // Values of the kind of `bound` that are less (or equal, or greater) than it; false: the column is none.
  bool add_ordered(TurnCondition::Test test, const ComparedValue& bound, Places& places) const;

 private:
  struct Entry {
    ComparedValue value;
    std::string_view places;
    uint32_t turns = 0;
    bool bitmap = false;
  };
  static bool add(const Entry& entry, Places& places);
  std::vector<Entry> entries_;  // by the order of values
};

// What the row of an attribute says without its column, so that most columns need not be read.
struct ColumnSummary {
  std::string_view column;  // where it is small, all of it
  uint64_t turns = 0;       // else: turns that have a value,
  ComparedValue least;      // the least value, or where that is a long text, the beginning of it,
  ComparedValue greatest;
  bool greatest_cut = false;
  std::string_view filter;  // and a Bloom filter of the values

  bool whole() const { return !column.empty(); }
  bool may_have(const ComparedValue& value) const;
  // Whether values of the kind of `bound` pass a test that orders: none of them, all turns, or only the column tells.
  enum class Answer : uint8_t { none, all, ask };
  Answer ordered(TurnCondition::Test test, const ComparedValue& bound, uint64_t turns_of_block) const;
};
std::optional<ColumnSummary> decode_summary(std::string_view row);

}  // namespace recalld
