// The attributes of turns: indexing them with the turns, or later where they are not indexed, and mending the index.
#include <algorithm>
#include <utility>

#include "memstore/store_impl.h"

namespace recalld {

void Store::Impl::add_indexed(std::span<const NewTurn> turns, uint64_t next_turn, uint64_t position,
                              std::vector<IndexedTurn>& out) const {
  if (!attributes.adds()) return;
  for (const NewTurn& turn : turns) {
    const uint64_t number = turn.number.value_or(next_turn);
    out.push_back(attributes.indexed(number, position, turn.ids.size(), turn.turn));
    next_turn = number + 1;
    position += turn.ids.size();
  }
}

// Whether bytes of turns in this stretch are still to be erased.
Expected<bool> Store::Impl::erases_turns(MemoryId id, TurnStretch stretch) const {
  Catalog::Cursor rows = catalog->cursor(Family::memories, memory_key(0, erasure_kind));
  Expected<bool> found = rows.first();
  for (; !found || *found; found = rows.next()) {
    if (!found && !rows.on_row()) return std::unexpected(std::move(found).error());
    const auto record = found ? ErasureRecord::decode(rows.value()) : std::nullopt;
    if (record && record->memory == id && record->first_turn < stretch.end && stretch.first < record->end_turn)
      return true;
  }
  return false;
}

// Turns are read before the lock is taken, since their contents stand in the same rows and may be large.
Expected<std::optional<uint64_t>> Store::index_turns(MemoryId id, uint64_t from) {
  if (!impl_->attributes.adds()) return std::nullopt;
  RECALLD_TRY(const MemoryRecord before, impl_->table.record(id));
  RECALLD_TRY(const auto missing, impl_->attributes.first_missing(id, from, before.journal.next_turn));
  if (!missing) return std::nullopt;
  RECALLD_TRY(const auto made, impl_->attributes.make(before, *missing));
  if (!made.of) return made.next;
  // What is to be erased lies under the same keys: it must not be hidden by what is written now.
  RECALLD_TRY(const bool erasing, impl_->erases_turns(id, *made.of));
  if (erasing) return made.next;

  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord now, impl_->table.record(id));
  RECALLD_TRY(const auto still, impl_->attributes.first_missing(id, made.of->first, made.of->end));
  const bool same =
      now.gaps() == before.gaps() && still && still->first == made.of->first && still->end == made.of->end;
  if (!same) return missing->first;
  RECALLD_CHECK(impl_->catalog->ready());
  RECALLD_CHECK(impl_->check_room());
  Catalog::Batch rows(*impl_->catalog);
  impl_->attributes.stage_block(id, made, made.of->end == before.journal.next_turn, rows);
  RECALLD_CHECK(impl_->catalog->write(rows));
  return made.next;
}

Expected<void> Store::drop_attributes(MemoryId id, std::span<const TurnRange> turns) {
  const std::lock_guard reclaiming(impl_->reclaiming);
  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(id));
  Catalog::Batch rows(*impl_->catalog);
  for (const TurnRange& range : turns) AttributeIndex::stage_removal(record.id, {range.first, range.last + 1}, rows);
  RECALLD_CHECK(impl_->catalog->write(rows));
  // Blocks that are made again may begin elsewhere, and forgetting looks for bytes of turns by where blocks begin.
  std::vector<Catalog::Range> ranges;
  for (const TurnRange& range : turns) ranges.push_back(AttributeIndex::range(id, {range.first, range.last + 1}));
  RECALLD_CHECK(impl_->catalog->reclaim(ranges));
  return {};
}

}  // namespace recalld
