#include "memstore/store.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "base/quote.h"
#include "memstore/store_impl.h"
#include "memstore/store_shares.h"

namespace recalld {
namespace {

constexpr uint64_t journal_room_bytes = uint64_t{8} << 20;  // that encodings leave free on the disk
constexpr size_t drained_max = 1024;        // memories whose markers wait to be dropped; the rest go at the next start
constexpr size_t markers_dropped_max = 16;  // with one batch

StreamInfo stream_info(const MemoryRecord& record, const Generation& generation) {
  return {.memory = record.id,
          .stream = generation.stream(),
          .edition = generation.encoding.edition,
          .tokens = generation.tokens(record.journal),
          .chunks = generation.encoding.chunks};
}

CatalogOptions catalog_options(const DataDirectory& data, const StoreOptions& options) {
  const StoreShares shares = StoreShares::of(options.memory_budget_bytes, options.shape);
  return {.directory = data.catalog(),
          .cache_bytes = shares.block_bytes,
          .memtable_bytes = shares.memtable_bytes,
          .env = options.catalog_files != nullptr ? options.catalog_files->env : nullptr};
}

}  // namespace

// ---- Open

Expected<std::unique_ptr<Store>> Store::open(const std::filesystem::path& directory, StoreOptions options) {
  const RecordShape& shape = options.shape;
  if (options.memory_budget_bytes < StoreShares::budget_bytes_min)
    return fail(ErrorKind::invalid_request, "open store: the memory budget of " +
                                                std::to_string(options.memory_budget_bytes >> 20) +
                                                " MiB is too small; the store needs 8 MiB");
  assert(shape.kv_bytes > 0 && shape.landmark_dim > 0 && shape.landmark_dim % 32 == 0);
  const StoreShares shares = StoreShares::of(options.memory_budget_bytes, shape);
  if (StoreShares::states_bytes(shape) > shares.working_bytes)
    spdlog::warn(
        "open store: recurrent states of this model have {:.1f} MiB each, and up to {} MiB of them are written and "
        "compacted at a time, more than the {} MiB that the store has for them; raise --memory-budget, of which {} MiB "
        "are the store's now",
        static_cast<double>(shape.state_bytes) / 1048576.0, StoreShares::states_bytes(shape) >> 20,
        shares.working_bytes >> 20, options.memory_budget_bytes >> 20);
  RECALLD_TRY(DataDirectory data, DataDirectory::open(directory, shape));

  RECALLD_TRY(auto io, options.file_io ? options.file_io() : open_file_io());
  // RocksDB would not make the entry of its directory durable, and kv/ must not be there without it.
  RECALLD_CHECK(io->make_directory(data.catalog()));
  RECALLD_TRY(auto catalog, Catalog::open(catalog_options(data, options)));
  auto impl =
      std::make_unique<Impl>(std::move(data), shape, std::move(catalog), shares.landmark_bytes, shares.entry_bytes,
                             shares.posting_bytes, shares.selection_bytes, std::move(options.read_metadata));
  RECALLD_CHECK(impl->load(std::move(io), options.segment_bytes));
  return std::unique_ptr<Store>(new Store(std::move(impl)));
}

Expected<size_t> Store::drop_damaged_tables(const std::filesystem::path& directory, const StoreOptions& options) {
  RECALLD_TRY(const DataDirectory data, DataDirectory::open(directory, options.shape));
  RECALLD_TRY(const auto dropped, Catalog::mend(catalog_options(data, options)));
  for (const DamagedTable& table : dropped) spdlog::warn("dropped from the catalog: {}", table.text());
  return dropped.size();
}

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() = default;

Expected<void> Store::Impl::load(std::unique_ptr<FileIo> io, uint64_t segment_bytes) {
  // Counters can be counted again. Only a store without memories may lack them.
  RECALLD_TRY(const auto first_memory, table.all(0, 1));
  bool any = !first_memory.empty();
  bool recount = false;
  const auto counter = [&](std::string_view key, std::string_view what, auto decode, auto& into) -> Expected<void> {
    const auto row = catalog->get(Family::counters, key);
    if (!row && row.error().kind != ErrorKind::corrupt) return std::unexpected(row.error());
    const auto value = row && *row ? decode(**row) : std::nullopt;
    if (value) into = *value;
    if (!value && (!row || *row || any)) {
      spdlog::error("open store: the row of {} is damaged or missing; it is counted again", what);
      recount = true;
    }
    return {};
  };
  RECALLD_CHECK(counter(next_id_key, "the next number", decode_u64, next_id));
  RECALLD_CHECK(counter(journal_totals_key, "the sums of the journal", JournalTotals::decode, totals));
  Catalog::Cursor chunks = catalog->cursor(Family::chunks, "");
  const auto first_chunk = chunks.first();
  any = !first_chunk || *first_chunk;
  RECALLD_CHECK(counter(encoding_totals_key, "the sum of chunks", decode_u64, encoded_chunks));
  RECALLD_CHECK(encodings.open(directory.kv(), std::move(io), segment_bytes));
  if (recount) {
    RECALLD_CHECK(check_rows(true, found_on_opening));
    std::erase_if(found_on_opening, [](const Problem& problem) { return problem.part != "counter"; });
  }

  // Markers that a crash left behind, or that were too many to be dropped in time.
  constexpr size_t page = 1000;
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto ids, table.waiting(after, page));
    Catalog::Batch rows(*catalog);
    for (const MemoryId id : ids) {
      const auto record = table.record(id);
      if (record ? !record->next && info(*record).waiting_chunks() == 0 : record.error().kind == ErrorKind::not_found)
        rows.remove(Family::memories, waiting_key(id));
    }
    if (!rows.empty()) RECALLD_CHECK(catalog->write(rows));
    if (ids.size() < page) break;
    after = ids.back();
  }
  return encodings.remove_empty_segments(*catalog);
}

// ---- The memories

MemoryInfo Store::Impl::info(const MemoryRecord& record) {
  MemoryInfo info{.id = record.id,
                  .name = record.journal.name,
                  .turns = record.journal.turns,
                  .next_turn = record.journal.next_turn,
                  .tokens = record.serving.tokens(record.journal),
                  .encoded_chunks = record.serving.encoding.chunks,
                  .content_bytes = record.journal.content_bytes,
                  .created_us = record.journal.created_us,
                  .updated_us = record.journal.updated_us,
                  .serving = stream_info(record, record.serving),
                  .next = {}};
  if (record.next) {
    info.next = stream_info(record, *record.next);
    info.next_first_chunk = record.next->layout.extents.back().first_chunk;
  }
  return info;
}

Expected<const Generation*> Store::Impl::find(const MemoryRecord& record, const StreamInfo& of) {
  const Generation* const found = record.serving.stream() == of.stream                ? &record.serving
                                  : record.next && record.next->stream() == of.stream ? &*record.next
                                                                                      : nullptr;
  if (found && found->encoding.edition == of.edition) return found;
  return fail(ErrorKind::busy,
              "memory " + std::to_string(record.id) + " was changed meanwhile: turns of it were forgotten; ask again");
}

Expected<MemoryInfo> Store::memory(std::string_view name) const {
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(name));
  return Impl::info(record);
}

Expected<MemoryInfo> Store::memory(MemoryId id) const {
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(id));
  return Impl::info(record);
}

Expected<Store::MemoryPage> Store::memories(std::string_view prefix, std::string_view after, size_t limit) const {
  RECALLD_TRY(MemoryTable::Page page, impl_->table.list(prefix, after, limit));
  MemoryPage out;
  for (const MemoryId id : page.memories) {
    auto info = memory(id);
    if (info)
      out.memories.push_back(*std::move(info));
    else if (info.error().kind != ErrorKind::not_found)  // removed while we were listing
      return std::unexpected(std::move(info).error());
  }
  out.next = std::move(page.next);
  return out;
}

Expected<std::vector<MemoryId>> Store::memory_ids(MemoryId after, size_t limit) const {
  return impl_->table.all(after, limit);
}

Expected<std::vector<MemoryId>> Store::unencoded(MemoryId after, size_t limit) const {
  std::vector<MemoryId> ids;
  while (ids.size() < limit) {
    RECALLD_TRY(const auto marked, impl_->table.waiting(after, limit));
    for (const MemoryId id : marked) {
      const auto info = memory(id);
      // One that is damaged does not keep the others waiting; verify() names it.
      if (!info && info.error().kind != ErrorKind::not_found && info.error().kind != ErrorKind::corrupt)
        return std::unexpected(info.error());
      if (info && (info->waiting_chunks() > 0 || info->next) && ids.size() < limit) ids.push_back(id);
    }
    if (marked.size() < limit) break;
    after = marked.back();
  }
  return ids;
}

// ---- Append: one synced batch for the whole group

Expected<std::vector<Expected<Appended>>> Store::append(std::span<const AppendBatch> batches) {
  const std::lock_guard lock(impl_->journal_mutex);
  Catalog::Batch rows(*impl_->catalog);
  Impl::Staged staged;
  staged.next_id = impl_->next_id;
  staged.totals = impl_->totals;
  std::vector<Expected<Appended>> replies;
  replies.reserve(batches.size());
  for (const AppendBatch& batch : batches) replies.push_back(impl_->stage(batch, staged, rows));
  if (staged.journals.empty()) return replies;

  for (auto& [id, journal] : staged.journals) {
    rows.put(Family::memories, memory_key(id, journal_kind), journal.record.encode());
    RECALLD_CHECK(impl_->attributes.stage(id, journal.appended, std::move(journal.turns), rows));
  }
  rows.put(Family::counters, journal_totals_key, staged.totals.encode());
  if (staged.next_id != impl_->next_id) rows.put(Family::counters, next_id_key, encode_u64(staged.next_id));
  RECALLD_CHECK(impl_->drop_markers(staged, rows));
  RECALLD_CHECK(impl_->catalog->write(rows));

  impl_->next_id = staged.next_id;
  const std::lock_guard sums(impl_->totals_mutex);
  impl_->totals = staged.totals;
  return replies;
}

// Adds nothing to the rows when it fails, so that a batch fails alone.
Expected<Appended> Store::Impl::stage(const AppendBatch& batch, Staged& staged, Catalog::Batch& rows) const {
  if (batch.turns.empty())
    return fail(ErrorKind::invalid_request, "append to " + in_quotes(batch.memory) + ": no turns");
  for (const NewTurn& turn : batch.turns) {
    assert(!turn.ids.empty() && turn.ids.size() == turn.ends.size());
    assert(turn.ends.back() == stream_text(turn.turn).size());
    (void)turn;
  }
  RECALLD_TRY(std::optional<MemoryId> id, table.find(batch.memory));
  if (const auto made = staged.made.find(batch.memory); made != staged.made.end()) id = made->second;

  if (!batch.operation_id.empty() && id) {
    const auto same = staged.operations.find(operation_key(*id, batch.operation_id));
    std::optional<Journal::Operation> known;
    if (same != staged.operations.end()) {
      known = same->second;
      known->reply.repeated = true;
    } else {
      RECALLD_TRY(known, journal.operation(*id, batch.operation_id));
    }
    if (known && (known->id != batch.operation_id || known->digest != batch.operation_digest))
      return fail(ErrorKind::invalid_request, "append to " + in_quotes(batch.memory) +
                                                  ": this operation_id has been used for other turns; give each "
                                                  "operation its own");
    if (known) return known->reply;
  }

  const bool made = !id;
  const auto staged_before = id ? staged.journals.find(*id) : staged.journals.end();
  Staged::Journal next{.record = {.name = batch.memory, .created_us = batch.now_us}, .forgotten_tokens = 0};
  if (staged_before != staged.journals.end()) {
    next = staged_before->second;
  } else if (id) {
    RECALLD_TRY(MemoryRecord stored, table.record(*id));
    next = {.record = std::move(stored.journal), .forgotten_tokens = stored.gaps().tokens()};
    next.appended.first = next.record.next_turn;
  }
  JournalRecord& record = next.record;
  Appended reply{.id = made ? staged.next_id : *id,
                 .first_turn = batch.turns.front().number.value_or(record.next_turn)};
  const uint64_t position = record.next_position;
  if (made) {
    ++staged.next_id;
    ++staged.totals.memories;
    staged.made[batch.memory] = reply.id;
    rows.put(Family::memories, name_key(batch.memory), encode_u64(reply.id));
  }
  add_indexed(batch.turns, record.next_turn, record.next_position, next.turns);
  Journal::stage(reply.id, batch.turns, record, rows);
  next.appended.end = record.next_turn;
  record.updated_us = batch.now_us;
  reply.last_turn = record.next_turn - 1;
  reply.end_token = record.next_position - next.forgotten_tokens;
  reply.tokens = record.next_position - position;
  staged.totals.turns += batch.turns.size();
  staged.totals.tokens += reply.tokens;
  // What waited before has its marker already.
  if (reply.end_token / chunk_tokens > (reply.end_token - reply.tokens) / chunk_tokens)
    rows.put(Family::memories, waiting_key(reply.id), "");
  if (!batch.operation_id.empty()) {
    Journal::Operation operation{batch.operation_id, batch.operation_digest, reply};
    Journal::stage(reply.id, operation, rows);
    ++record.operations;
    staged.operations[operation_key(reply.id, batch.operation_id)] = std::move(operation);
  }
  staged.journals[reply.id] = std::move(next);
  return reply;
}

// Markers go with the next append rather than with a write of their own: a marker too many is harmless.
Expected<void> Store::Impl::drop_markers(const Staged& staged, Catalog::Batch& rows) {
  std::vector<MemoryId> ids;
  {
    const std::lock_guard lock(totals_mutex);
    while (!drained.empty() && ids.size() < markers_dropped_max)
      ids.push_back(drained.extract(drained.begin()).value());
  }
  for (const MemoryId id : ids) {
    if (staged.journals.contains(id)) continue;
    const auto record = table.record(id);
    if (!record && record.error().kind == ErrorKind::io) return std::unexpected(record.error());
    if (record && !record->next && info(*record).waiting_chunks() == 0) rows.remove(Family::memories, waiting_key(id));
  }
  return {};
}

// ---- Reading the journal

Expected<std::vector<StoredTurn>> Store::turns(MemoryId id, uint64_t first, size_t limit, size_t bytes_max) const {
  return impl_->read(id, [&](const MemoryRecord& record) {
    return impl_->journal.turns(id, record.serving.layout.gaps, record.gaps(), first, record.journal.next_turn,
                                record.journal.next_position, limit, bytes_max);
  });
}

Expected<std::vector<uint32_t>> Store::tokens(const StreamInfo& of, uint64_t first, size_t count) const {
  return impl_->read(of.memory, [&](const MemoryRecord& record) -> Expected<std::vector<uint32_t>> {
    RECALLD_TRY(const Generation* const generation, Impl::find(record, of));
    const uint64_t tokens = generation->tokens(record.journal);
    const uint64_t from = std::min(first, tokens);
    return impl_->journal.tokens(of.memory, generation->layout.gaps, record.gaps(), from,
                                 from + std::min<uint64_t>(count, tokens - from));
  });
}

Expected<std::vector<uint32_t>> Store::tokens(MemoryId id, uint64_t first, size_t count) const {
  RECALLD_TRY(const MemoryInfo info, memory(id));
  return tokens(info.serving, first, count);
}

Expected<Passage> Store::passage(MemoryId id, uint64_t first, uint64_t end, std::vector<size_t>* token_ends) const {
  return impl_->read(id, [&](const MemoryRecord& record) -> Expected<Passage> {
    const uint64_t tokens = record.serving.tokens(record.journal);
    if (first >= end || end > tokens)
      return fail(ErrorKind::invalid_request, "read tokens " + std::to_string(first) + " to " + std::to_string(end) +
                                                  " of memory " + in_quotes(record.journal.name) + ": it has " +
                                                  std::to_string(tokens));
    return impl_->journal.passage(id, record.serving.layout.gaps, record.gaps(), first, end, token_ends);
  });
}

Expected<std::optional<uint64_t>> Store::last_turn_within(MemoryId id, uint64_t tokens) const {
  return impl_->read(id, [&](const MemoryRecord& record) -> Expected<std::optional<uint64_t>> {
    const uint64_t end = std::min(tokens, record.serving.tokens(record.journal));
    if (end == 0) return std::nullopt;
    return impl_->journal.last_turn_within(id, record.serving.layout.gaps, record.gaps(), end);
  });
}

// ---- Encodings: K/V first, then everything that names it in one batch

Expected<void> Store::put(MemoryId id, uint64_t first_chunk, std::span<const EncodedChunkView> chunks,
                          std::optional<ByteView> state_after) {
  RECALLD_TRY(const MemoryInfo info, memory(id));
  assert(first_chunk == info.encoded_chunks);
  (void)first_chunk;
  return put(info.serving, chunks, state_after);
}

// Encodings can wait and be made later; turns cannot. So the last room on the disk is left to the journal, and to
// forgetting, which needs some to begin with.
Expected<void> Store::Impl::check_room() const {
  std::error_code problem;
  const auto space = std::filesystem::space(directory.path(), problem);
  if (problem || space.available >= journal_room_bytes) return {};
  return fail(ErrorKind::full, "store encoded chunks: the disk of " + directory.path().string() + " has " +
                                   std::to_string(space.available >> 20) + " MiB left, and " +
                                   std::to_string(journal_room_bytes >> 20) +
                                   " are kept for turns; make room, and encoding goes on");
}

Expected<void> Store::put(const StreamInfo& to, std::span<const EncodedChunkView> chunks,
                          std::optional<ByteView> state_after) {
  const std::lock_guard lock(impl_->encoding_mutex);  // removals wait for it, so the memory cannot go meanwhile
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(to.memory));
  RECALLD_TRY(const Generation* const found, Impl::find(record, to));
  const bool serving = found == &record.serving;
  Generation generation = *found;
  if (generation.encoding.chunks != to.chunks)
    return fail(ErrorKind::busy, "store chunk " + std::to_string(to.chunks) + " of memory " +
                                     std::to_string(to.memory) + ": " + std::to_string(generation.encoding.chunks) +
                                     " chunks are stored by now; ask again");
  assert(!chunks.empty() && (to.chunks + chunks.size()) * chunk_tokens <= generation.tokens(record.journal));
  // What can fail comes before the K/V is written: records that no chunk names are hard to find again.
  RECALLD_CHECK(impl_->catalog->ready());
  RECALLD_CHECK(impl_->encodings.release_refused());
  RECALLD_CHECK(impl_->check_room());
  Catalog::Batch rows(*impl_->catalog);
  RECALLD_CHECK(impl_->stage_words(record, generation, chunks.size(), rows));
  RECALLD_TRY(Encodings::Written written, impl_->encodings.write(generation, chunks, rows));
  impl_->encodings.stage(to.memory, generation, written, state_after, rows);
  rows.put(Family::memories, memory_key(to.memory, serving ? encoding_kind : next_encoding_kind),
           generation.encoding.encode());
  const uint64_t encoded = impl_->encoded_chunks + (serving ? chunks.size() : 0);
  rows.put(Family::counters, encoding_totals_key, encode_u64(encoded));
  if (auto stored = impl_->catalog->write(rows); !stored) {
    impl_->encodings.refused(written);
    return stored;
  }

  impl_->encodings.written(written);
  const std::lock_guard sums(impl_->totals_mutex);
  impl_->encoded_chunks = encoded;
  const bool waits = (generation.encoding.chunks + 1) * chunk_tokens <= generation.tokens(record.journal);
  if (serving && !record.next && !waits && impl_->drained.size() < drained_max) impl_->drained.insert(to.memory);
  return {};
}

Expected<void> Store::put_state(MemoryId id, uint64_t chunks, ByteView state) {
  RECALLD_TRY(const MemoryInfo info, memory(id));
  return put_state(info.serving, chunks, state);
}

Expected<void> Store::put_state(const StreamInfo& of, uint64_t chunks, ByteView state) {
  const std::lock_guard lock(impl_->encoding_mutex);
  RECALLD_TRY(const MemoryRecord record, impl_->table.record(of.memory));
  RECALLD_TRY(const Generation* const found, Impl::find(record, of));
  Generation generation = *found;
  assert(chunks > 0 && chunks <= generation.encoding.chunks);
  // One as new is there, or the state is one that an earlier extent has room for only.
  if (chunks <= generation.encoding.state_chunks || chunks <= generation.layout.extents.back().first_chunk) return {};
  Catalog::Batch rows(*impl_->catalog);
  impl_->encodings.stage_state(generation, chunks, state, rows);
  rows.put(Family::memories, memory_key(of.memory, found == &record.serving ? encoding_kind : next_encoding_kind),
           generation.encoding.encode());
  return impl_->catalog->write(rows);
}

Expected<std::optional<StateCheckpoint>> Store::state(const StreamInfo& of, uint64_t chunks_max,
                                                      std::string* damage) const {
  return impl_->read(of.memory, [&](const MemoryRecord& record) -> Expected<std::optional<StateCheckpoint>> {
    RECALLD_TRY(const Generation* const generation, Impl::find(record, of));
    return impl_->encodings.state(*generation, chunks_max, damage);
  });
}

Expected<std::optional<StateCheckpoint>> Store::state(MemoryId id, uint64_t chunks_max) const {
  RECALLD_TRY(const MemoryInfo info, memory(id));
  return state(info.serving, chunks_max);
}

Expected<ChunkEntry> Store::chunk(MemoryId id, uint64_t chunk) const {
  return impl_->read(id, [&](const MemoryRecord& record) { return impl_->encodings.chunk(id, record.serving, chunk); });
}

Expected<std::vector<Bf16>> Store::landmark(MemoryId id, uint64_t chunk) const {
  return impl_->read(id,
                     [&](const MemoryRecord& record) { return impl_->encodings.landmark(id, record.serving, chunk); });
}

Expected<void> Store::landmarks(MemoryId id, uint64_t first, std::span<Bf16> out,
                                std::vector<Unreadable>* unreadable) const {
  return impl_->read_around_damage(id, unreadable, [&](const MemoryRecord& record, std::vector<Unreadable>& damaged) {
    return impl_->encodings.landmarks(id, record.serving, first, out, damaged);
  });
}

Expected<void> Store::fetch(MemoryId id, std::span<const uint64_t> chunks, ByteSpan out,
                            std::vector<Unreadable>* unreadable, const FetchWait& wait) const {
  const uint64_t version = impl_->encodings.entries_version();
  const FetchWait again{.reads = {.awake = wait.reads.awake}};
  bool is_first = true;
  return impl_->read_around_damage(id, unreadable, [&](const MemoryRecord& record, std::vector<Unreadable>& damaged) {
    return impl_->encodings.fetch(id, record.serving, version, chunks, out, damaged,
                                  std::exchange(is_first, false) ? wait : again);
  });
}

Expected<std::vector<ScoredChunk>> Store::top_k(MemoryId id, std::span<const Bf16> query, size_t k, WorkerPool& pool,
                                                std::vector<Unreadable>* unreadable, const ChunkSet* only) const {
  RECALLD_TRY(auto best, top_k_each(id, UINT64_MAX, query, k, pool, unreadable, only));
  return std::move(best.front());
}

Expected<std::vector<std::vector<ScoredChunk>>> Store::top_k_each(MemoryId id, uint64_t chunks_max,
                                                                  std::span<const Bf16> queries, size_t k,
                                                                  WorkerPool& pool, std::vector<Unreadable>* unreadable,
                                                                  const ChunkSet* only) const {
  std::set<StreamId> scanned;
  std::vector<Unreadable> lost;
  std::vector<std::vector<ScoredChunk>> rest;
  auto best = impl_->read(id, [&](const MemoryRecord& record) -> Expected<std::vector<std::vector<ScoredChunk>>> {
    for (const Extent& extent : record.serving.layout.extents) scanned.insert(extent.stream);
    lost.clear();
    RECALLD_TRY(rest, impl_->encodings.top_k(record.serving, chunks_max, queries, k, pool, lost, only));
    if (!lost.empty()) return fail(ErrorKind::corrupt, lost.front().message);  // or the memory was changed meanwhile
    return rest;
  });
  if (!best && !lost.empty() && unreadable != nullptr) {
    *unreadable = std::move(lost);
    best = std::move(rest);
  }
  // The scan may have cached pages of a stream that was erased, and forgotten, after it had begun.
  const auto now = impl_->table.record(id);
  for (const StreamId stream : scanned) {
    const bool there = now && std::ranges::find(now->serving.layout.extents, stream, &Extent::stream) !=
                                  now->serving.layout.extents.end();
    if (!there) impl_->encodings.forget(stream);
  }
  return best;
}

Expected<StoreStats> Store::stats() const {
  StoreStats stats;
  {
    const std::lock_guard lock(impl_->totals_mutex);
    stats.memories = impl_->totals.memories;
    stats.turns = impl_->totals.turns;
    stats.tokens = impl_->totals.tokens;
    stats.encoded_chunks = impl_->encoded_chunks;
  }
  constexpr size_t page = 1000;
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto ids, impl_->table.waiting(after, page));
    for (const MemoryId id : ids) {
      const auto info = memory(id);
      if (info) stats.waiting_chunks += info->waiting_chunks() + (info->next ? info->next->waiting_chunks() : 0);
    }
    if (ids.size() < page) break;
    after = ids.back();
  }
  RECALLD_TRY(const KvFile::Usage kv, impl_->encodings.kv_usage());
  stats.kv_segments = kv.segments;
  stats.kv_bytes_on_disk = kv.bytes_on_disk;
  const Catalog::Usage catalog = impl_->catalog->usage();
  stats.catalog_bytes_on_disk = catalog.bytes_on_disk;
  stats.block_cache_bytes = catalog.block_cache_bytes;
  stats.memtable_bytes = catalog.memtable_bytes;
  stats.landmark_cache_bytes = impl_->encodings.landmark_cache_bytes();
  stats.entry_cache_bytes = impl_->encodings.entry_cache_bytes();
  stats.file_io = impl_->encodings.describe_io();
  return stats;
}

}  // namespace recalld
