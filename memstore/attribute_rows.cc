#include "memstore/attribute_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "base/bytes.h"
#include "base/hash.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

constexpr uint64_t attribute_bytes = 24;  // what an attribute takes beside its name and value, about
constexpr size_t small_column_bytes = 1024;
constexpr size_t bound_bytes_max = 64;  // of a text as the least or greatest value
constexpr int filter_bits_set = 4;      // by a value, of 8 bits a value
constexpr uint8_t columns_form = 0, open_form = 1;

// ---- Values

enum Tag : uint8_t { other_tag, false_tag, true_tag, natural_tag, negative_tag, double_tag, text_tag };

// Numbers that are equal are written alike.
void write(ByteWriter& out, const ComparedValue& value) {
  using Kind = ComparedValue::Kind;
  switch (value.kind) {
    case Kind::incomparable:
      return out.u8(other_tag);
    case Kind::flag:
      return out.u8(value.flag ? true_tag : false_tag);
    case Kind::text:
      out.u8(text_tag);
      return out.text(value.text);
    case Kind::number:
      break;
  }
  constexpr long double natural_end = 18446744073709551616.0L, negative_least = -9223372036854775808.0L;
  const long double number = value.number;
  if (number >= 0 && number < natural_end && std::trunc(number) == number) {
    out.u8(natural_tag);
    out.varint(static_cast<uint64_t>(number));
  } else if (number < 0 && number >= negative_least && std::trunc(number) == number) {
    out.u8(negative_tag);
    out.varint(static_cast<uint64_t>(-(number + 1)));
  } else {
    out.u8(double_tag);
    out.u64(std::bit_cast<uint64_t>(static_cast<double>(number)));
  }
}

ComparedValue read_value(ByteReader& in, bool& ok) {
  using Kind = ComparedValue::Kind;
  ComparedValue value;
  const uint8_t tag = in.u8();
  ok = ok && tag <= text_tag;
  if (tag == false_tag || tag == true_tag) {
    value.kind = Kind::flag;
    value.flag = tag == true_tag;
  } else if (tag == text_tag) {
    value.kind = Kind::text;
    value.text = in.text();
  } else if (tag != other_tag) {
    value.kind = Kind::number;
    if (tag == natural_tag) value.number = static_cast<long double>(in.varint());
    if (tag == negative_tag) value.number = -static_cast<long double>(in.varint()) - 1;
    if (tag == double_tag) value.number = std::bit_cast<double>(in.u64());
  }
  ok = ok && in.ok();
  return value;
}

AttributeValue owned(const ComparedValue& value) {
  using Kind = ComparedValue::Kind;
  if (value.kind == Kind::flag) return value.flag;
  if (value.kind == Kind::text) return std::string(value.text);
  if (value.kind == Kind::incomparable) return Incomparable{};
  constexpr long double natural_end = 18446744073709551616.0L, negative_least = -9223372036854775808.0L;
  if (std::trunc(value.number) == value.number && value.number >= 0 && value.number < natural_end)
    return static_cast<uint64_t>(value.number);
  if (std::trunc(value.number) == value.number && value.number < 0 && value.number >= negative_least)
    return static_cast<int64_t>(value.number);
  return static_cast<double>(value.number);
}

// The bits of a Bloom filter of so many bytes that a value sets.
std::array<uint64_t, filter_bits_set> filter_bits(const ComparedValue& value, size_t bytes) {
  std::string written;
  ByteWriter out(written);
  write(out, value);
  const Hash128 hash = hash128(as_bytes(written));
  ByteReader in(as_text(hash));
  const uint64_t first = in.u64(), step = in.u64() | 1;
  std::array<uint64_t, filter_bits_set> bits{};
  for (size_t i = 0; i < bits.size(); ++i) bits.at(i) = (first + i * step) % (bytes * 8);
  return bits;
}

// ---- Columns

struct Cell {
  ComparedValue value;
  uint32_t place = 0;
};

// The cells of an attribute, by the order of values, then by place.
std::string encode_column(std::span<const Cell> cells, uint64_t turns, uint64_t& values) {
  std::string entries;
  ByteWriter out(entries);
  values = 0;
  for (size_t at = 0; at < cells.size();) {
    size_t end = at + 1;
    while (end < cells.size() && cells[end].value.order(cells[at].value) == 0) ++end;
    const size_t count = end - at;
    std::string places;
    const bool bitmap = count > turns / 8;
    if (bitmap) {
      places.assign((turns + 7) / 8, '\0');
      for (size_t i = at; i < end; ++i)
        places[cells[i].place / 8] = static_cast<char>(places[cells[i].place / 8] | 1 << cells[i].place % 8);
    } else {
      ByteWriter list(places);
      for (size_t i = at; i < end; ++i) list.varint(cells[i].place - (i == at ? 0 : cells[i - 1].place));
    }
    write(out, cells[at].value);
    out.varint(2 * count + (bitmap ? 1 : 0));
    out.text(places);
    ++values;
    at = end;
  }
  std::string column;
  ByteWriter(column).varint(values);
  return column += entries;
}

std::string encode_summary(std::span<const Cell> cells, uint64_t values) {
  std::string row;
  ByteWriter out(row);
  out.u8(0);
  out.varint(cells.size());
  const auto bound = [&](ComparedValue value) {
    const bool cut = value.text.size() > bound_bytes_max;
    value.text = value.text.substr(0, bound_bytes_max);
    write(out, value);
    return cut;
  };
  bound(cells.front().value);
  const bool cut = bound(cells.back().value);
  out.u8(cut ? 1 : 0);
  std::string filter(values, '\0');
  for (const Cell& cell : cells)
    for (const uint64_t bit : filter_bits(cell.value, filter.size()))
      filter[bit / 8] = static_cast<char>(filter[bit / 8] | 1 << bit % 8);
  out.text(filter);
  return row;
}

void write_place(ByteWriter& out, const IndexedTurn& turn, uint64_t number_from, uint64_t position_from) {
  out.varint(turn.number - number_from);
  out.varint(turn.position - position_from);
  out.varint(turn.tokens);
}

std::string begin_row(uint8_t form, uint64_t block, uint64_t end, std::span<const IndexedTurn> turns) {
  std::string row;
  ByteWriter out(row);
  out.u8(form);
  out.varint(end - block);
  out.varint(turns.size());
  out.varint(turns.empty() ? 0 : turns.front().position);
  out.varint(turns.empty() ? 0 : turns.back().end_position() - turns.front().position);
  return row;
}

}  // namespace

uint64_t IndexedTurn::bytes() const {
  uint64_t bytes = 0;
  for (const Attribute& each : attributes) {
    const auto* const text = std::get_if<std::string>(&each.value);
    bytes += attribute_bytes + each.name.size() + (text != nullptr ? text->size() : 0);
  }
  return bytes;
}

// ---- Keys

std::string block_key(MemoryId id, uint64_t block) {
  return row_key(id, block);
}

std::string attribute_key(MemoryId id, uint64_t block, std::string_view attribute) {
  const Hash128 hash = hash128(as_bytes(attribute));
  return row_key(id, block) += as_text(hash);
}

std::string column_key(MemoryId id, uint64_t block, std::string_view attribute) {
  return attribute_key(id, block, attribute) += '\1';
}

std::string end_key(MemoryId id, uint64_t block) {
  return block_key(id, block).append(sizeof(Hash128) + 2, '\xff');
}

bool is_block_key(std::string_view key) {
  return key.size() == 16;
}

uint32_t attribute_mark(std::string_view attribute) {
  const Hash128 hash = hash128(as_bytes(attribute));
  return ByteReader(as_text(hash)).u32();
}

// ---- The first row

bool BlockHead::lists(uint32_t mark) const {
  size_t from = 0, to = marks.size() / sizeof mark;
  while (from < to) {
    const size_t middle = (from + to) / 2;
    const uint32_t there = ByteReader(marks.substr(middle * sizeof mark, sizeof mark)).u32();
    if (there == mark) return true;
    if (there < mark)
      from = middle + 1;
    else
      to = middle;
  }
  return false;
}

std::optional<BlockHead> decode_block_head(std::string_view row, uint64_t block) {
  ByteReader in(row);
  BlockHead head;
  const uint8_t form = in.u8();
  if (form != columns_form && form != open_form) return std::nullopt;
  head.open = form == open_form;
  head.end = block + in.varint();
  head.turns = in.varint();
  head.first_position = in.varint();
  head.end_position = head.first_position + in.varint();
  if (head.open) {
    head.run_turns = in.varint();
    head.run_bytes = in.varint();
  } else {
    const uint64_t marks = in.varint();
    if (marks > in.rest().size() / sizeof(uint32_t)) return std::nullopt;
    head.marks = in.take(marks * sizeof(uint32_t));
  }
  head.rest = in.rest();
  constexpr uint64_t turn_bytes_least = 3;
  if (!in.ok() || head.turns > head.rest.size() / turn_bytes_least) return std::nullopt;
  return head;
}

std::optional<TurnsView> view_turns(const BlockHead& head, uint64_t block) {
  ByteReader in(head.rest);
  TurnsView view;
  view.turns.resize(head.turns);
  uint64_t number = block, position = head.first_position;
  bool ok = true;
  for (TurnsView::Turn& turn : view.turns) {
    turn.number = number + in.varint();
    turn.position = position + in.varint();
    turn.tokens = in.varint();
    ok = ok && turn.number < head.end && turn.number >= number && turn.position >= position;
    number = turn.number + 1;
    position = turn.end_position();
    if (!head.open) continue;
    turn.first = view.attributes.size();
    for (uint64_t left = in.varint(); ok && in.ok() && left > 0; --left) {
      const std::string_view name = in.text();
      view.attributes.push_back({name, read_value(in, ok)});
    }
    turn.end = view.attributes.size();
  }
  ok = ok && in.done() && (view.turns.empty() || position == head.end_position);
  return ok ? std::optional(std::move(view)) : std::nullopt;
}

std::optional<std::vector<IndexedTurn>> decode_turns(const BlockHead& head, uint64_t block) {
  const auto view = view_turns(head, block);
  if (!view) return std::nullopt;
  std::vector<IndexedTurn> turns;
  turns.reserve(view->turns.size());
  for (const TurnsView::Turn& turn : view->turns) {
    turns.push_back({turn.number, turn.position, turn.tokens, {}});
    for (size_t i = turn.first; i < turn.end; ++i)
      turns.back().attributes.push_back({std::string(view->attributes[i].name), owned(view->attributes[i].value)});
  }
  return turns;
}

std::string encode_open_block(uint64_t block, uint64_t end, uint64_t run_turns, uint64_t run_bytes,
                              std::span<const IndexedTurn> turns) {
  std::string row = begin_row(open_form, block, end, turns);
  ByteWriter out(row);
  out.varint(run_turns);
  out.varint(run_bytes);
  uint64_t number = block, position = turns.empty() ? 0 : turns.front().position;
  for (const IndexedTurn& turn : turns) {
    write_place(out, turn, number, position);
    number = turn.number + 1;
    position = turn.end_position();
    out.varint(turn.attributes.size());
    for (const auto& [name, value] : turn.attributes) {
      out.text(name);
      write(out, ComparedValue::of(value));
    }
  }
  return row;
}

std::vector<std::pair<std::string, std::string>> rows_of_block(MemoryId id, uint64_t block, uint64_t end,
                                                               std::span<const IndexedTurn> turns) {
  std::map<std::string_view, std::vector<Cell>> columns;  // by attribute
  for (uint32_t place = 0; place < turns.size(); ++place)
    for (const auto& [name, value] : turns[place].attributes)
      columns[name].push_back({ComparedValue::of(value), place});

  std::vector<uint32_t> marks;
  std::vector<std::pair<std::string, std::string>> rows;
  for (auto& [name, cells] : columns) {
    marks.push_back(attribute_mark(name));
    std::ranges::stable_sort(cells, [](const Cell& a, const Cell& b) { return a.value.order(b.value) < 0; });
    uint64_t values = 0;
    std::string column = encode_column(cells, turns.size(), values);
    if (column.size() <= small_column_bytes) {
      rows.emplace_back(attribute_key(id, block, name), '\1' + column);
    } else {
      rows.emplace_back(attribute_key(id, block, name), encode_summary(cells, values));
      rows.emplace_back(column_key(id, block, name), std::move(column));
    }
  }
  std::ranges::sort(marks);
  const auto [same, marks_end] = std::ranges::unique(marks);
  marks.erase(same, marks_end);

  std::string first = begin_row(columns_form, block, end, turns);
  ByteWriter out(first);
  out.varint(marks.size());
  for (const uint32_t mark : marks) out.u32(mark);
  uint64_t number = block, position = turns.empty() ? 0 : turns.front().position;
  for (const IndexedTurn& turn : turns) {
    write_place(out, turn, number, position);
    number = turn.number + 1;
    position = turn.end_position();
  }
  rows.emplace_back(block_key(id, block), std::move(first));
  std::ranges::sort(rows);
  return rows;
}

// ---- Sets of places

void Places::trim() {
  if (count_ % 64 != 0) words_.back() &= (uint64_t{1} << count_ % 64) - 1;
}

void Places::add_all() {
  std::ranges::fill(words_, ~uint64_t{0});
  trim();
}

void Places::add_bits(std::string_view bits) {
  for (size_t i = 0; i < bits.size(); ++i) words_[i / 8] |= uint64_t{static_cast<uint8_t>(bits[i])} << i % 8 * 8;
  trim();
}

void Places::add(const Places& other) {
  for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
}

void Places::keep(const Places& other) {
  for (size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
}

void Places::flip() {
  for (uint64_t& word : words_) word = ~word;
  trim();
}

bool Places::none() const {
  return std::ranges::all_of(words_, [](uint64_t word) { return word == 0; });
}

// ---- Columns

std::optional<Column> Column::decode(std::string_view bytes, uint64_t turns) {
  ByteReader in(bytes);
  Column column;
  const uint64_t values = in.varint();
  constexpr uint64_t entry_bytes_least = 4;
  if (!in.ok() || values > in.rest().size() / entry_bytes_least + 1) return std::nullopt;
  column.entries_.reserve(values);
  bool ok = true;
  for (uint64_t i = 0; ok && i < values; ++i) {
    Entry entry;
    entry.value = read_value(in, ok);
    const uint64_t count = in.varint();
    entry.places = in.text();
    entry.bitmap = (count & 1) != 0;
    entry.turns = static_cast<uint32_t>(count / 2);
    ok = ok && in.ok() && count / 2 <= turns;
    ok = ok && (entry.bitmap ? entry.places.size() == (turns + 7) / 8 : entry.places.size() >= entry.turns);
    ok = ok && (column.entries_.empty() || column.entries_.back().value.order(entry.value) < 0);
    column.entries_.push_back(entry);
  }
  return ok && in.done() ? std::optional(std::move(column)) : std::nullopt;
}

bool Column::add(const Entry& entry, Places& places) {
  if (entry.bitmap) {
    places.add_bits(entry.places);
    return true;
  }
  ByteReader in(entry.places);
  uint64_t place = 0;
  for (uint32_t i = 0; i < entry.turns; ++i) {
    place += in.varint();
    if (!in.ok() || place >= places.count()) return false;
    places.add(place);
  }
  return in.done();
}

bool Column::add_equal(const ComparedValue& value, Places& places) const {
  const auto found = std::ranges::lower_bound(
      entries_, value, [](const ComparedValue& a, const ComparedValue& b) { return a.order(b) < 0; }, &Entry::value);
  return found == entries_.end() || !found->value.equals(value) || add(*found, places);
}

bool Column::add_all(Places& places) const {
  return std::ranges::all_of(entries_, [&](const Entry& entry) { return add(entry, places); });
}

bool Column::add_ordered(TurnCondition::Test test, const ComparedValue& bound, Places& places) const {
  using Test = TurnCondition::Test;
  const auto before = [](const ComparedValue& a, const ComparedValue& b) { return a.order(b) < 0; };
  const auto kind =
      std::ranges::equal_range(entries_, bound.kind, {}, [](const Entry& each) { return each.value.kind; });
  const auto least = std::ranges::lower_bound(kind, bound, before, &Entry::value);
  const auto greater = std::ranges::upper_bound(kind, bound, before, &Entry::value);
  const auto from = test == Test::above ? greater : test == Test::from ? least : kind.begin();
  const auto end = test == Test::below ? least : test == Test::to ? greater : kind.end();
  return std::all_of(from, end, [&](const Entry& entry) { return add(entry, places); });
}

// ---- Summaries

bool ColumnSummary::may_have(const ComparedValue& value) const {
  if (value.order(least) < 0 || (!greatest_cut && value.order(greatest) > 0)) return false;
  if (filter.empty()) return true;
  return std::ranges::all_of(filter_bits(value, filter.size()),
                             [&](uint64_t bit) { return (static_cast<uint8_t>(filter[bit / 8]) >> bit % 8 & 1) != 0; });
}

ColumnSummary::Answer ColumnSummary::ordered(TurnCondition::Test test, const ComparedValue& bound,
                                             uint64_t turns_of_block) const {
  using Test = TurnCondition::Test;
  // Where the greatest value is cut, it is what is left of it or greater.
  const bool above_all = !greatest_cut && bound.order(greatest) > 0;
  if (bound.kind < least.kind || bound.kind > greatest.kind) return Answer::none;
  const bool pure = least.kind == bound.kind && greatest.kind == bound.kind;
  const bool full = turns == turns_of_block;
  if (test == Test::above || test == Test::from) {
    if (greatest.kind == bound.kind && (above_all || (test == Test::above && !greatest_cut && bound.equals(greatest))))
      return Answer::none;
    const bool passes = bound.order(least) < 0 || (test == Test::from && bound.equals(least));
    return pure && full && passes ? Answer::all : Answer::ask;
  }
  if (least.kind == bound.kind && (bound.order(least) < 0 || (test == Test::below && bound.equals(least))))
    return Answer::none;
  const bool passes = above_all || (test == Test::to && !greatest_cut && bound.equals(greatest));
  return pure && full && passes ? Answer::all : Answer::ask;
}

std::optional<ColumnSummary> decode_summary(std::string_view row) {
  ByteReader in(row);
  ColumnSummary summary;
  const uint8_t whole = in.u8();
  if (!in.ok() || whole > 1) return std::nullopt;
  if (whole == 1) {
    summary.column = in.rest();
    return summary.column.empty() ? std::nullopt : std::optional(summary);
  }
  bool ok = true;
  summary.turns = in.varint();
  summary.least = read_value(in, ok);
  summary.greatest = read_value(in, ok);
  summary.greatest_cut = in.u8() != 0;
  summary.filter = in.text();
  return ok && in.done() ? std::optional(summary) : std::nullopt;
}

}  // namespace recalld
