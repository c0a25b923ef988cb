// Forgetting: what was said vanishes at once; what encodings know of it, and the bytes on disk, follow.
//
// 1. forget() removes the rows of the turns, and their tokens become a gap in the journal's positions, in one batch.
//    When encoded chunks hold any of these tokens, the batch also begins the next generation: it shares the pages of
//    chunks before the first of them, and has a stream of its own for all others.
// 2. The encoder fills that generation through put() while the old one goes on serving.
// 3. swap() lets it serve, in one batch. What only the old one named becomes an erasure.
// 4. erase_forgotten() gives back the bytes: of K/V records, of rows in tables and logs. A record of the erasure stays
//    in the catalog until that is done, so that a crash resumes it.
#include <algorithm>
#include <cassert>
#include <utility>

#include "base/quote.h"
#include "memstore/store_impl.h"

namespace recalld {
namespace {

constexpr size_t gaps_max = 262'144;  // of a memory: they are read with every request

// The part of the gaps from `position` on.
Gaps from(const Gaps& gaps, uint64_t position) {
  std::vector<Gaps::Gap> parts;
  for (const Gaps::Gap& gap : gaps.gaps()) {
    if (gap.end() <= position) continue;
    const uint64_t begin = std::max(gap.position, position);
    parts.push_back({begin, gap.end() - begin});
  }
  return Gaps::of(std::move(parts));
}

// Ranges by number and apart from each other.
std::vector<TurnRange> in_order(std::span<const TurnRange> turns) {
  std::vector<TurnRange> sorted(turns.begin(), turns.end());
  std::ranges::sort(sorted, {}, &TurnRange::first);
  std::vector<TurnRange> out;
  for (const TurnRange& range : sorted) {
    if (range.last < range.first) continue;
    if (out.empty() || out.back().last < range.first)
      out.push_back(range);
    else
      out.back().last = std::max(out.back().last, range.last);
  }
  return out;
}

// What becomes of a memory.
struct Plan {
  MemoryRecord memory;              // as it will be
  bool serving_changed = false;     // its gaps are others
  std::optional<Extent> discarded;  // of a next generation that can no longer become anything
  Forgotten forgotten;
};

// Takes `removal` out of the memory. `new_stream` is for a next generation, should there be one.
Plan plan(const MemoryRecord& before, const Journal::Removal& removal, uint64_t page_chunks, StreamId new_stream) {
  Plan plan{.memory = before, .serving_changed = false, .discarded = {}, .forgotten = {}};
  const Gaps removed = Gaps::of(removal.gaps);
  Gaps journal_gaps = before.gaps();
  journal_gaps.add(removed);

  MemoryRecord& memory = plan.memory;
  memory.journal.turns -= removal.turn_count;
  memory.journal.content_bytes -= removal.content_bytes;

  // What is not encoded yet never will be.
  Generation& serving = memory.serving;
  const uint64_t encoded_end = serving.end_position();
  const Gaps waiting = from(removed, encoded_end);
  plan.serving_changed = !waiting.empty();
  if (plan.serving_changed) {
    serving.layout.gaps.add(waiting);
    ++serving.encoding.edition;
  }

  // A next generation that has not come as far goes on; one that has begins anew.
  uint64_t generation = serving.encoding.generation;
  if (memory.next) {
    generation = memory.next->encoding.generation;
    if (removed.gaps().front().position >= memory.next->end_position()) {
      memory.next->layout.gaps = journal_gaps;
      ++memory.next->encoding.edition;
    } else {
      plan.discarded = memory.next->layout.extents.back();
      memory.next.reset();
    }
  }
  const auto first = Gaps::first_difference(serving.layout.gaps, journal_gaps);
  uint64_t first_chunk = serving.encoding.chunks;
  if (first) first_chunk = std::min(first_chunk, serving.layout.gaps.token_of(*first) / chunk_tokens);
  if (first && !memory.next) {
    // Whole pages before it are shared; the state is taken up at the newest checkpoint in them.
    const uint64_t shared = first_chunk / page_chunks * page_chunks;
    memory.next = Generation{.encoding = {.generation = generation + 1, .edition = 0, .chunks = shared},
                             .layout = {.gaps = std::move(journal_gaps), .extents = {}}};
    for (const Extent& extent : serving.layout.extents)
      if (extent.first_chunk < shared) memory.next->layout.extents.push_back(extent);
    memory.next->layout.extents.push_back({shared, new_stream});
  }
  plan.forgotten = {.id = memory.id,
                    .turns = removal.turns,
                    .turn_count = removal.turn_count,
                    .tokens = removed.tokens(),
                    .content_bytes = removal.content_bytes,
                    .chunks = serving.encoding.chunks - first_chunk,
                    .rebuilding = memory.next.has_value()};
  return plan;
}

}  // namespace

Expected<Forgotten> Store::find_turns(MemoryId id, std::span<const TurnRange> turns) const {
  return impl_->read(id, [&](const MemoryRecord& record) -> Expected<Forgotten> {
    RECALLD_TRY(const Journal::Removal removal, impl_->journal.find(id, in_order(turns)));
    if (removal.turn_count == 0) return Forgotten{.id = id};
    Forgotten forgotten = plan(record, removal, impl_->encodings.page_chunks(), 0).forgotten;
    return forgotten;
  });
}

Expected<Forgotten> Store::forget(MemoryId id, std::span<const TurnRange> turns) {
  const std::lock_guard forgetting(impl_->forgetting);
  RECALLD_TRY(const Journal::Removal removal, impl_->journal.find(id, in_order(turns)));
  const std::lock_guard encoding(impl_->encoding_mutex);
  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord before, impl_->table.record(id));
  if (removal.turn_count == 0) return Forgotten{.id = id, .rebuilding = before.next.has_value()};

  const uint64_t next_id_before = impl_->next_id;
  const StreamId new_stream = impl_->next_id++;
  Plan plan = recalld::plan(before, removal, impl_->encodings.page_chunks(), new_stream);
  const MemoryRecord& after = plan.memory;
  Catalog::Batch rows(*impl_->catalog);
  const auto changed = [&]() -> Expected<void> {
    if (after.gaps().gaps().size() > gaps_max)
      return fail(ErrorKind::full, "forget turns of memory " + in_quotes(before.journal.name) +
                                       ": this would leave more than " + std::to_string(gaps_max) +
                                       " separate holes in it; forget longer ranges of turns, or export it, leave the "
                                       "turns out and import it again");
    Journal::stage(id, removal, rows);
    // Blocks that speak of them go whole: index_turns() makes them again, without these turns.
    RECALLD_TRY(const uint64_t first_row, impl_->attributes.stage_removal(id, removal.turns, rows));
    rows.put(Family::memories, memory_key(id, journal_kind), after.journal.encode());
    if (plan.serving_changed) MemoryTable::stage_serving(id, after.serving, rows);
    if (after.next || before.next) MemoryTable::stage_next(id, after.next, rows);
    if (after.next) rows.put(Family::memories, waiting_key(id), "");
    if (plan.discarded)
      impl_->stage_erasure({.memory = id, .stream = plan.discarded->stream, .first_chunk = plan.discarded->first_chunk},
                           rows);
    impl_->stage_erasure({.memory = id,
                          .first_turn = std::min(first_row, removal.turns.front().first),
                          .end_turn = removal.turns.back().last + 1,
                          .first_position = removal.gaps.front().position,
                          .end_position = removal.gaps.back().end()},
                         rows);
    rows.put(Family::counters, next_id_key, encode_u64(impl_->next_id));
    JournalTotals totals = impl_->totals;
    totals.turns -= removal.turn_count;
    totals.tokens -= plan.forgotten.tokens;
    rows.put(Family::counters, journal_totals_key, totals.encode());
    RECALLD_CHECK(impl_->catalog->write(rows));
    const std::lock_guard sums(impl_->totals_mutex);
    impl_->totals = totals;
    return {};
  }();
  if (!changed) {
    impl_->next_id = next_id_before;
    return std::unexpected(changed.error());
  }
  if (plan.discarded) impl_->encodings.forget(plan.discarded->stream);
  return std::move(plan.forgotten);
}

Expected<bool> Store::swap(MemoryId id, bool at_once) {
  const std::lock_guard encoding(impl_->encoding_mutex);
  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord before, impl_->table.record(id));
  if (!before.next) return false;
  const Generation& serving = *before.next;
  const bool complete = (serving.encoding.chunks + 1) * chunk_tokens > serving.tokens(before.journal);
  if (!at_once && !complete && serving.end_position() < before.serving.end_position()) return false;

  Catalog::Batch rows(*impl_->catalog);
  MemoryTable::stage_serving(id, serving, rows);
  MemoryTable::stage_next(id, std::nullopt, rows);
  if (!complete) rows.put(Family::memories, waiting_key(id), "");
  const uint64_t shared = serving.layout.extents.back().first_chunk;
  std::vector<StreamId> dropped;
  for (const Extent& extent : before.serving.layout.extents) {
    if (before.serving.layout.end_of(extent) <= shared) continue;
    impl_->stage_erasure({.memory = id, .stream = extent.stream, .first_chunk = std::max(shared, extent.first_chunk)},
                         rows);
    dropped.push_back(extent.stream);
  }
  // The newest state of the old generation may lie in what is shared, where only those kept for good belong.
  if (const uint64_t chunks = before.serving.encoding.state_chunks; chunks > 0 && chunks <= shared)
    impl_->encodings.stage_old_state(before.serving, chunks, rows);
  rows.put(Family::counters, next_id_key, encode_u64(impl_->next_id));
  const uint64_t encoded = impl_->encoded_chunks - before.serving.encoding.chunks + serving.encoding.chunks;
  rows.put(Family::counters, encoding_totals_key, encode_u64(encoded));
  RECALLD_CHECK(impl_->catalog->write(rows));
  for (const StreamId stream : dropped) impl_->encodings.forget(stream);
  const std::lock_guard sums(impl_->totals_mutex);
  impl_->encoded_chunks = encoded;
  if (complete) impl_->drained.insert(id);
  return true;
}

Expected<MemoryInfo> Store::remove(std::string_view name) {
  const std::lock_guard forgetting(impl_->forgetting);
  const std::lock_guard encoding(impl_->encoding_mutex);
  const std::lock_guard journal(impl_->journal_mutex);
  RECALLD_TRY(const MemoryRecord memory, impl_->table.record(name));
  std::map<StreamId, uint64_t> streams;  // and the first chunk of each
  for (const Extent& extent : memory.serving.layout.extents) streams.emplace(extent.stream, extent.first_chunk);
  if (memory.next) {
    for (const Extent& extent : memory.next->layout.extents) streams.emplace(extent.stream, extent.first_chunk);
  }

  Catalog::Batch rows(*impl_->catalog);
  rows.remove(Family::memories, name_key(name));
  rows.remove_all(Family::memories, row_key(memory.id));
  rows.remove(Family::memories, waiting_key(memory.id));
  for (const auto& [stream, first_chunk] : streams)
    impl_->stage_erasure({.memory = memory.id, .stream = stream, .first_chunk = first_chunk}, rows);
  impl_->stage_erasure({.memory = memory.id, .whole_memory = true}, rows);
  rows.put(Family::counters, next_id_key, encode_u64(impl_->next_id));
  JournalTotals totals = impl_->totals;
  --totals.memories;
  totals.turns -= memory.journal.turns;
  totals.tokens -= memory.tokens();
  rows.put(Family::counters, journal_totals_key, totals.encode());
  const uint64_t encoded = impl_->encoded_chunks - memory.serving.encoding.chunks;
  rows.put(Family::counters, encoding_totals_key, encode_u64(encoded));
  RECALLD_CHECK(impl_->catalog->write(rows));

  for (const auto& [stream, first_chunk] : streams) impl_->encodings.forget(stream);
  impl_->selector.forget(memory.id);
  const std::lock_guard sums(impl_->totals_mutex);
  impl_->totals = totals;
  impl_->encoded_chunks = encoded;
  return Impl::info(memory);
}

// ---- Erasing bytes

Expected<std::vector<MemoryId>> Store::to_erase() const {
  std::set<MemoryId> memories;
  Catalog::Cursor rows = impl_->catalog->cursor(Family::memories, memory_key(0, erasure_kind));
  Expected<bool> found = rows.first();
  for (; !found || *found; found = rows.next()) {
    if (!found && !rows.on_row()) return std::unexpected(std::move(found).error());
    const auto record = found ? ErasureRecord::decode(rows.value()) : std::nullopt;
    if (record) memories.insert(record->memory);  // verify_store() names one that is damaged
  }
  return std::vector(memories.begin(), memories.end());
}

Expected<Erasure> Store::erase_forgotten(MemoryId id) {
  const std::lock_guard reclaiming(impl_->reclaiming);
  std::vector<std::pair<std::string, ErasureRecord>> records;
  {
    Catalog::Cursor rows = impl_->catalog->cursor(Family::memories, memory_key(0, erasure_kind));
    Expected<bool> found = rows.first();
    for (; !found || *found; found = rows.next()) {
      if (!found && !rows.on_row()) return std::unexpected(std::move(found).error());
      const auto record = found ? ErasureRecord::decode(rows.value()) : std::nullopt;
      if (record && record->memory == id) records.emplace_back(rows.key(), *record);
    }
  }
  Encodings::Erased erased;
  std::vector<Catalog::Range> ranges;
  for (const auto& [key, record] : records) RECALLD_CHECK(impl_->erase(record, erased, ranges));
  if (!records.empty()) {
    {
      const std::lock_guard encoding(impl_->encoding_mutex);
      RECALLD_CHECK(impl_->catalog->ready());
      RECALLD_CHECK(impl_->encodings.release_refused());
      RECALLD_CHECK(impl_->encodings.remove_empty_segments(*impl_->catalog));
    }
    RECALLD_TRY(erased.catalog_bytes, impl_->catalog->reclaim(ranges));
    Catalog::Batch rows(*impl_->catalog);
    for (const auto& [key, record] : records) rows.remove(Family::memories, key);
    RECALLD_CHECK(impl_->catalog->write(rows));
  }
  Erasure erasure{.segments = {}, .catalog_bytes = erased.catalog_bytes};
  for (const auto& [segment, of] : erased.segments) erasure.segments.push_back({segment, of.records, of.bytes});
  return erasure;
}

// Removes the rows and gives back the K/V; adds where rows were removed to `ranges`.
Expected<void> Store::Impl::erase(const ErasureRecord& record, Encodings::Erased& erased,
                                  std::vector<Catalog::Range>& ranges) {
  if (record.stream != 0) {
    for (bool more = true; more;) {
      const std::lock_guard encoding(encoding_mutex);
      RECALLD_TRY(more, encodings.erase_some(record.stream, record.first_chunk, *catalog, erased));
    }
    const uint64_t first_page = record.first_chunk / encodings.page_chunks();
    RECALLD_CHECK(lexical.erase(record.stream, first_page, LexicalIndex::all_pages, *catalog));
    ranges.push_back(LexicalIndex::range(record.stream, first_page));
    Catalog::Batch rows(*catalog);
    encodings.stage_erasure(record.stream, record.first_chunk, rows, ranges);
    RECALLD_CHECK(catalog->write(rows));
  }
  if (record.whole_memory) {
    Catalog::Batch rows(*catalog);
    for (const Family family : {Family::turns, Family::tokens, Family::operations, Family::attributes}) {
      rows.remove_all(family, row_key(record.memory));
      ranges.push_back(Catalog::all_of(family, row_key(record.memory)));
    }
    RECALLD_CHECK(catalog->write(rows));
    ranges.push_back(Catalog::all_of(Family::memories, row_key(record.memory)));
  }
  if (record.end_turn > record.first_turn) {
    const auto range = [&](Family family, uint64_t first, uint64_t end) {
      ranges.push_back({family, row_key(record.memory, first), row_key(record.memory, end)});
    };
    range(Family::turns, record.first_turn, record.end_turn);
    range(Family::attributes, record.first_turn, record.end_turn);
    range(Family::tokens, record.first_position, record.end_position);
  }
  return {};
}

Expected<void> Store::erase(std::string_view name) {
  RECALLD_TRY(const MemoryInfo info, remove(name));
  RECALLD_CHECK(erase_forgotten(info.id));
  return {};
}

}  // namespace recalld
