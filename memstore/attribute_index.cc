#include "memstore/attribute_index.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "memstore/journal_rows.h"
#include "memstore/row_walk.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

// A block with columns, at the most but for its last turn.
constexpr uint64_t block_turns_max = 4096;
constexpr uint64_t block_bytes_max = uint64_t{1} << 20;
// An open block grows up to there, rewritten by every append; then the next one begins.
constexpr uint64_t open_turns_max = 32;
constexpr uint64_t open_bytes_max = uint64_t{4} << 10;
// A block that will not grow gets columns when it is as large as this.
constexpr uint64_t columns_turns_min = 64;

uint64_t bytes_of(std::span<const IndexedTurn> turns) {
  uint64_t bytes = 0;
  for (const IndexedTurn& turn : turns) bytes += turn.bytes();
  return bytes;
}

// How many of the first turns fill a block; nothing when all of them do not.
std::optional<size_t> fill(std::span<const IndexedTurn> turns) {
  uint64_t bytes = 0;
  for (size_t count = 1; count <= turns.size(); ++count) {
    bytes += turns[count - 1].bytes();
    if (count == block_turns_max || bytes >= block_bytes_max) return count;
  }
  return std::nullopt;
}

// Where the tokens of the last turn before this one end; nothing when that cannot be told.
Expected<std::optional<uint64_t>> end_before(const Catalog& catalog, MemoryId id, uint64_t turn) {
  if (turn == 0) return std::optional<uint64_t>(0);
  Catalog::Cursor rows = catalog.cursor(Family::turns, row_key(id));
  const auto found = rows.seek_before(row_key(id, turn - 1, UINT32_MAX));
  if (!found && found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
  if (found && !*found) return std::optional<uint64_t>(0);
  if (!found && !rows.on_row()) return std::nullopt;
  const auto row = catalog.get(Family::turns, row_key(id, number_of(rows.key())));
  if (!row && row.error().kind != ErrorKind::corrupt) return std::unexpected(row.error());
  const auto before = row && *row ? decode_turn_head(**row) : std::nullopt;
  return before ? std::optional(before->first_position + before->tokens) : std::nullopt;
}

}  // namespace

// ---- Adding

IndexedTurn AttributeIndex::indexed(uint64_t number, uint64_t position, uint64_t tokens, const Turn& turn) const {
  return {number, position, tokens, attributes_of(turn, read_metadata_)};
}

Expected<void> AttributeIndex::stage(MemoryId id, TurnStretch of, std::vector<IndexedTurn> turns,
                                     Catalog::Batch& batch) const {
  if (!adds() || of.first == of.end) return {};
  AttributeBlocks blocks(catalog_, id);
  // Open blocks that end where this stretch begins, taken up from the last one on.
  uint64_t first = of.first, run_turns = turns.size(), run_bytes = bytes_of(turns);
  const auto take = [&]() -> Expected<bool> {
    if (first == 0) return false;
    RECALLD_TRY(const auto* const block, blocks.find(first - 1));
    if (block == nullptr || !block->head.open || block->head.end != first) return false;
    auto before = decode_turns(block->head, block->number);
    if (!before) return false;
    first = block->number;
    std::ranges::move(turns, std::back_inserter(*before));
    turns = *std::move(before);
    return true;
  };
  if (of.first > 0) {
    RECALLD_TRY(const auto* const last, blocks.find(of.first - 1));
    if (last != nullptr && last->head.open && last->head.end == of.first) {
      run_turns += last->head.run_turns;
      run_bytes += last->head.run_bytes;
      const bool small = last->head.turns < open_turns_max && last->row.size() < open_bytes_max;
      const bool full = run_turns >= block_turns_max || run_bytes >= block_bytes_max;
      for (bool more = small || full; more;) {
        RECALLD_TRY(const bool taken, take());
        more = taken && full;
      }
      // What was counted may have been forgotten, or lie before what is not indexed.
      if (full) run_turns = turns.size(), run_bytes = bytes_of(turns);
      if (full) batch.remove_range(Family::attributes, block_key(id, first), block_key(id, of.first));
    }
  }
  std::span<const IndexedTurn> left = turns;
  for (auto count = fill(left); count; count = fill(left)) {
    const uint64_t end = *count == left.size() ? of.end : left[*count].number;
    for (const auto& [key, value] : rows_of_block(id, first, end, left.first(*count)))
      batch.put(Family::attributes, key, value);
    left = left.subspan(*count);
    first = end;
    run_turns = left.size();
    run_bytes = bytes_of(left);
  }
  if (first < of.end)
    batch.put(Family::attributes, block_key(id, first), encode_open_block(first, of.end, run_turns, run_bytes, left));
  return {};
}

Expected<std::optional<TurnStretch>> AttributeIndex::first_missing(MemoryId id, uint64_t from, uint64_t end) const {
  AttributeBlocks blocks(catalog_, id);
  for (uint64_t at = from; at < end;) {
    RECALLD_TRY(const auto* const block, blocks.find(at));
    if (block == nullptr) return TurnStretch{at, end};
    if (block->number > at) return TurnStretch{at, std::min(block->number, end)};
    at = block->head.end;
  }
  return std::nullopt;
}

Expected<AttributeIndex::Made> AttributeIndex::make(const MemoryRecord& memory, TurnStretch stretch) const {
  const Gaps& gaps = memory.gaps();
  const auto follows = [&](const std::optional<uint64_t>& end, uint64_t position) {
    return end && *end <= position && gaps.token_of(*end) == gaps.token_of(position);
  };
  RECALLD_TRY(std::optional<uint64_t> position, end_before(catalog_, memory.id, stretch.first));
  Made made{.of = TurnStretch{stretch.first, stretch.end}, .turns = {}, .next = stretch.end};
  TurnStretch& of = *made.of;
  uint64_t bytes = 0;
  bool ended = false;  // before the end of the stretch, or where it is known that nothing is missing up to there
  std::optional<Error> failed;
  const auto stop = [&](uint64_t end, uint64_t next) {
    of.end = end;
    made.next = next;
    ended = true;
    return false;
  };
  const auto end_of_last = [&] { return made.turns.empty() ? of.first : made.turns.back().number + 1; };
  walk_rows(
      catalog_, Family::turns, memory.id, stretch.first, UINT64_MAX,
      [&](uint64_t number, std::string_view key, const Expected<std::string_view>& value) {
        if (!value && value.error().kind != ErrorKind::corrupt) {
          failed = value.error();
          return false;
        }
        if (key.size() != row_key(0, 0).size()) return true;  // a later piece of its content
        const auto row = value ? decode_turn_head(*value) : std::nullopt;
        if (number >= stretch.end) {
          const bool whole = row && follows(position, row->first_position);
          return stop(whole ? stretch.end : end_of_last(), stretch.end);
        }
        if (!row) return stop(end_of_last(), number + 1);
        if (!follows(position, row->first_position)) {
          // A turn is missing before this one.
          if (!made.turns.empty()) return stop(end_of_last(), number);
          of.first = number;
        }
        if (made.turns.size() == block_turns_max || bytes >= block_bytes_max) return stop(end_of_last(), end_of_last());
        position = row->first_position + row->tokens;
        made.turns.push_back(indexed(number, row->first_position, row->tokens, row->turn));
        bytes += made.turns.back().bytes();
        return true;
      },
      [&](uint64_t, const Error& error) {
        if (error.kind != ErrorKind::corrupt) failed = error;
        if (!ended) stop(end_of_last(), stretch.end);
        return UINT64_MAX;
      });
  if (failed) return std::unexpected(*std::move(failed));
  if (!ended && !follows(position, memory.journal.next_position)) of.end = end_of_last();
  if (of.first >= of.end) made.of.reset();
  return made;
}

void AttributeIndex::stage_block(MemoryId id, const Made& made, bool last, Catalog::Batch& batch) const {
  const auto& [first, end] = *made.of;
  batch.remove_range(Family::attributes, block_key(id, first), block_key(id, end));
  if (last ? fill(made.turns).has_value() : made.turns.size() >= columns_turns_min) {
    for (const auto& [key, value] : rows_of_block(id, first, end, made.turns))
      batch.put(Family::attributes, key, value);
  } else {
    batch.put(Family::attributes, block_key(id, first),
              encode_open_block(first, end, made.turns.size(), bytes_of(made.turns), made.turns));
  }
}

// ---- Removing

Expected<uint64_t> AttributeIndex::stage_removal(MemoryId id, std::span<const TurnRange> turns,
                                                 Catalog::Batch& batch) const {
  AttributeBlocks blocks(catalog_, id);
  uint64_t first = turns.front().first;
  uint64_t done = 0;  // turns before this one have no block any more that need go
  for (const TurnRange& range : turns) {
    if (range.last < done) continue;
    RECALLD_TRY(const AttributeBlocks::Place place, blocks.place_of(range.first));
    stage_removal(id, {place.first_row, range.last + 1}, batch);
    first = std::min(first, place.first_row);
    done = place.whole_end;
  }
  // An open block that was split when it got columns may have told of its turns from within the block before.
  if (first == 0) return 0;
  Catalog::Cursor rows = catalog_.cursor(Family::attributes, row_key(id));
  const auto found = rows.seek_before(end_key(id, first - 1));
  if (!found && found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
  return (found && *found) || rows.on_row() ? number_of(rows.key()) : 0;
}

void AttributeIndex::stage_removal(MemoryId id, TurnStretch blocks, Catalog::Batch& batch) {
  batch.remove_range(Family::attributes, block_key(id, blocks.first), block_key(id, blocks.end));
}

Catalog::Range AttributeIndex::range(MemoryId id, TurnStretch blocks) {
  return {Family::attributes, block_key(id, blocks.first), block_key(id, blocks.end)};
}

// ---- Verifying

namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;

// As many rows as the block has, whatever makes a block full by now; nothing when its turns cannot all be read.
Expected<std::optional<Rows>> rows_that_belong(const AttributeIndex& index, const MemoryRecord& memory,
                                               const AttributeBlocks::Block& block) {
  const uint64_t first = block.number, end = block.head.end;
  std::vector<IndexedTurn> turns;
  for (uint64_t at = first; at < end;) {
    RECALLD_TRY(auto made, index.make(memory, {at, end}));
    if (!made.of || made.of->first != at || (made.of->end < end && made.next != made.of->end)) return std::nullopt;
    std::ranges::move(made.turns, std::back_inserter(turns));
    at = made.of->end;
  }
  if (!block.head.open) return rows_of_block(memory.id, first, end, turns);
  return Rows{
      {block_key(memory.id, first), encode_open_block(first, end, block.head.run_turns, block.head.run_bytes, turns)}};
}

// What is wrong with the rows of a block; empty: nothing. Without `expected` they need only be whole.
std::string compare(Catalog::Cursor& rows, MemoryId id, TurnStretch of, const Rows* expected, uint64_t& bytes) {
  size_t at = 0;
  auto found = rows.seek(block_key(id, of.first));
  for (; !found || *found; found = rows.next()) {
    if (!found && !rows.on_row()) return "its rows cannot be read: " + found.error().message;
    const uint64_t there = number_of(rows.key());
    if (there >= of.end) break;
    if (there != of.first) return "rows stand where none belong";
    if (!found) return "a row does not match its checksum";
    bytes += rows.value().size();
    if (expected == nullptr) continue;
    if (at == expected->size() || rows.key() != (*expected)[at].first || rows.value() != (*expected)[at].second)
      return at < expected->size() && rows.key() > (*expected)[at].first ? "a row is missing"
                                                                         : "a row does not fit the turns";
    ++at;
  }
  return expected != nullptr && at != expected->size() ? "a row is missing" : "";
}

}  // namespace

Expected<std::optional<AttributeIndex::Checked>> AttributeIndex::check(const MemoryRecord& memory,
                                                                       uint64_t from) const {
  const MemoryId id = memory.id;
  AttributeBlocks blocks(catalog_, id);
  RECALLD_TRY(const auto* const block, blocks.find(from));
  // Rows of what find() has passed over, or that stand where no block is.
  Catalog::Cursor rows = catalog_.cursor(Family::attributes, row_key(id));
  const bool inside = block != nullptr && block->number < from;
  auto found = rows.seek(block_key(id, from));
  if (!found && !rows.on_row())
    return Checked{.block = {from, UINT64_MAX}, .cause = "its rows cannot be read: " + found.error().message};
  const bool any = !found || *found;
  const uint64_t number = any ? number_of(rows.key()) : UINT64_MAX;
  if (any && (block == nullptr || (!inside && number < block->number) || (inside && number < block->head.end)))
    return Checked{.block = {number, number + 1}, .cause = "its rows are damaged, or stand where none belong"};
  if (block == nullptr) return std::nullopt;

  const TurnStretch of{block->number, block->head.end};
  Checked checked{.block = of, .cause = {}};
  const auto listed = decode_turns(block->head, block->number);
  if (!listed || block->head.end > memory.journal.next_turn) {
    checked.cause = listed ? "it stands behind the memory's last turn" : "its first row is none";
    return checked;
  }
  checked.turns = static_cast<uint64_t>(
      std::ranges::count_if(*listed, [&](const IndexedTurn& turn) { return turn.number >= from; }));
  Rows expected;
  if (adds()) {
    RECALLD_TRY(auto made, rows_that_belong(*this, memory, *block));
    if (!made) return checked;
    expected = *std::move(made);
  }
  checked.cause = compare(rows, id, of, adds() ? &expected : nullptr, checked.bytes);
  return checked;
}

}  // namespace recalld
