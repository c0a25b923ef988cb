// Listing what an export needs of a memory, and writing what it says into another.
#include <algorithm>
#include <cassert>
#include <utility>

#include "base/quote.h"
#include "memstore/store_impl.h"

namespace recalld {

// ---- Reading

Expected<std::vector<StoredOperation>> Store::operations(MemoryId id, const std::optional<Hash128>& after,
                                                         size_t limit) const {
  return impl_->journal.operations(id, after, limit);
}

Expected<std::optional<StateCheckpoint>> Store::next_state(const StreamInfo& of, uint64_t after,
                                                           uint64_t chunks_max) const {
  return impl_->read(of.memory, [&](const MemoryRecord& record) -> Expected<std::optional<StateCheckpoint>> {
    RECALLD_TRY(const Generation* const generation, Impl::find(record, of));
    return impl_->encodings.next_state(*generation, after, chunks_max);
  });
}

// ---- Restoring: each in one batch

Expected<MemoryInfo> Store::restore_memory(std::string_view name, int64_t created_us, int64_t updated_us) {
  const std::lock_guard lock(impl_->journal_mutex);
  RECALLD_TRY(const auto there, impl_->table.find(name));
  if (there) return fail(ErrorKind::busy, "make memory " + in_quotes(name) + ": it was made meanwhile; ask again");
  const MemoryId id = impl_->next_id;
  JournalTotals totals = impl_->totals;
  ++totals.memories;
  const JournalRecord journal{.name = std::string(name), .created_us = created_us, .updated_us = updated_us};
  Catalog::Batch rows(*impl_->catalog);
  rows.put(Family::memories, name_key(name), encode_u64(id));
  rows.put(Family::memories, memory_key(id, journal_kind), journal.encode());
  rows.put(Family::counters, next_id_key, encode_u64(id + 1));
  rows.put(Family::counters, journal_totals_key, totals.encode());
  RECALLD_CHECK(impl_->catalog->write(rows));
  impl_->next_id = id + 1;
  {
    const std::lock_guard sums(impl_->totals_mutex);
    impl_->totals = totals;
  }
  return memory(id);
}

Expected<MemoryInfo> Store::restore_turns(MemoryId id, uint64_t next_turn, std::span<const NewTurn> turns,
                                          int64_t updated_us) {
  const std::lock_guard lock(impl_->journal_mutex);
  RECALLD_TRY(MemoryRecord memory, impl_->table.record(id));
  JournalRecord& journal = memory.journal;
  if (journal.next_turn != next_turn)
    return fail(ErrorKind::busy, "append to memory " + in_quotes(journal.name) + ": turn " + std::to_string(next_turn) +
                                     " was to come next, and turn " + std::to_string(journal.next_turn) +
                                     " does by now");
  assert(std::ranges::all_of(turns, [&](const NewTurn& turn) { return turn.number && *turn.number >= next_turn; }));
  const uint64_t tokens_before = memory.serving.tokens(journal);
  const uint64_t position = journal.next_position;
  Catalog::Batch rows(*impl_->catalog);
  std::vector<IndexedTurn> indexed;
  impl_->add_indexed(turns, next_turn, position, indexed);
  Journal::stage(id, turns, journal, rows);
  RECALLD_CHECK(impl_->attributes.stage(id, {next_turn, journal.next_turn}, std::move(indexed), rows));
  journal.updated_us = updated_us;
  rows.put(Family::memories, memory_key(id, journal_kind), journal.encode());
  if (memory.serving.tokens(journal) / chunk_tokens > tokens_before / chunk_tokens)
    rows.put(Family::memories, waiting_key(id), "");
  JournalTotals totals = impl_->totals;
  totals.turns += turns.size();
  totals.tokens += journal.next_position - position;
  rows.put(Family::counters, journal_totals_key, totals.encode());
  RECALLD_CHECK(impl_->catalog->write(rows));
  const std::lock_guard sums(impl_->totals_mutex);
  impl_->totals = totals;
  return Impl::info(memory);
}

Expected<uint64_t> Store::restore_operations(MemoryId id, std::span<const StoredOperation> operations) {
  const std::lock_guard lock(impl_->journal_mutex);
  RECALLD_TRY(MemoryRecord memory, impl_->table.record(id));
  Catalog::Batch rows(*impl_->catalog);
  std::map<std::string, const StoredOperation*, std::less<>> added;
  for (const StoredOperation& operation : operations) {
    RECALLD_TRY(const auto known, impl_->journal.operation(id, operation.id));
    const auto same = added.find(operation.id);
    const bool other = known ? known->id != operation.id || known->digest != operation.digest
                             : same != added.end() && same->second->digest != operation.digest;
    if (other)
      return fail(ErrorKind::invalid_request, "restore an operation of memory " + in_quotes(memory.journal.name) +
                                                  ": its operation_id " + in_quotes(operation.id) +
                                                  " has been used for other turns");
    if (known || same != added.end()) continue;
    // The token after its last turn, or after what is left of the turns up to there.
    RECALLD_TRY(const auto last, turns(id, operation.last_turn, 1, 0));
    uint64_t end_token = memory.serving.tokens(memory.journal);
    if (!last.empty()) end_token = last[0].first_token + (last[0].turn == operation.last_turn ? last[0].tokens : 0);
    const Appended reply{.id = id,
                         .first_turn = operation.first_turn,
                         .last_turn = operation.last_turn,
                         .tokens = operation.tokens,
                         .end_token = end_token};
    Journal::stage(id, Journal::Operation{operation.id, operation.digest, reply}, rows);
    added.emplace(operation.id, &operation);
  }
  if (added.empty()) return 0;
  memory.journal.operations += added.size();
  rows.put(Family::memories, memory_key(id, journal_kind), memory.journal.encode());
  RECALLD_CHECK(impl_->catalog->write(rows));
  return added.size();
}

Expected<MemoryInfo> Store::restore_end(MemoryId id, uint64_t next_turn, int64_t updated_us) {
  const std::lock_guard lock(impl_->journal_mutex);
  RECALLD_TRY(MemoryRecord memory, impl_->table.record(id));
  JournalRecord& journal = memory.journal;
  const bool changes =
      journal.next_turn < next_turn || (journal.next_turn == next_turn && journal.updated_us != updated_us);
  if (!changes) return Impl::info(memory);
  Catalog::Batch rows(*impl_->catalog);
  RECALLD_CHECK(impl_->attributes.stage(id, {journal.next_turn, next_turn}, {}, rows));
  journal.next_turn = next_turn;
  journal.updated_us = updated_us;
  rows.put(Family::memories, memory_key(id, journal_kind), journal.encode());
  RECALLD_CHECK(impl_->catalog->write(rows));
  return Impl::info(memory);
}

}  // namespace recalld
