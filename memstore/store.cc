#include "memstore/store.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cassert>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/crc32c.h"
#include "memstore/catalog.h"
#include "memstore/data_directory.h"
#include "memstore/journal.h"
#include "memstore/kv_file.h"
#include "memstore/landmark_index.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

constexpr uint64_t budget_bytes_min = uint64_t{8} << 20;
constexpr uint64_t memtable_bytes_max = uint64_t{64} << 20;
constexpr uint64_t kept_state_chunks = 1024;  // a state at a multiple of it is kept for good
constexpr size_t release_slice = 4096;        // records given back at a time

std::string in_quotes(std::string_view name) {
  return "\"" + std::string(name) + "\"";
}

Error damaged_row(std::string_view what) {
  return {ErrorKind::corrupt, "open store: the row of " + std::string(what) + " is not one; run recall verify"};
}

// The checksum of a chunk's record, bound to what the record is of.
uint32_t record_crc(MemoryId id, uint64_t chunk, const Hash128& model, uint64_t generation, ByteView kv) {
  std::string identity;
  ByteWriter out(identity);
  out.u64(id);
  out.u64(chunk);
  identity += as_text(model);
  out.u64(generation);
  return crc32c(kv, crc32c(as_bytes(identity)));
}

}  // namespace

// Locks, in the order in which a thread takes them: encoding_mutex_, journal_mutex_, table_mutex_. The first two are
// held across the disk, each by its own kind of write; readers take only the last, which is never held across the disk.
class Store::Impl {
 public:
  Impl(DataDirectory directory, const RecordShape& shape, std::unique_ptr<Catalog> catalog, uint64_t landmark_bytes)
      : directory_(std::move(directory)),
        shape_(shape),
        catalog_(std::move(catalog)),
        journal_(*catalog_),
        landmarks_(*catalog_, shape.landmark_dim, landmark_bytes) {}

  Expected<void> load(std::unique_ptr<FileIo> io);

  Expected<std::vector<Expected<Appended>>> append(std::span<const AppendBatch> batches);
  Expected<MemoryInfo> memory(std::string_view name) const;
  Expected<MemoryInfo> memory(MemoryId id) const;
  MemoryPage memories(std::string_view prefix, std::string_view after, size_t limit) const;
  Expected<void> erase(std::string_view name);

  Expected<void> put(MemoryId id, uint64_t first_chunk, std::span<const EncodedChunkView> chunks,
                     std::optional<ByteView> state_after);
  Expected<void> put_state(MemoryId id, uint64_t chunks, ByteView state);
  Expected<std::optional<StateCheckpoint>> state(MemoryId id, uint64_t chunks_max) const;
  std::vector<MemoryId> unencoded(MemoryId after, size_t limit) const;
  Expected<ChunkEntry> chunk(MemoryId id, uint64_t chunk) const;
  Expected<void> fetch(MemoryId id, std::span<const uint64_t> chunks, ByteSpan out) const;
  Expected<std::vector<Bf16>> landmark(MemoryId id, uint64_t chunk) const;
  Expected<std::vector<ScoredChunk>> top_k(MemoryId id, std::span<const Bf16> query, size_t k, WorkerPool& pool);
  Expected<StoreStats> stats() const;

  const Journal& journal() const { return journal_; }

  // Reads from a memory that may be erased meanwhile: what is then missing or torn is no damage.
  template <class Read>
  auto read(MemoryId id, Read read_from) const -> decltype(read_from(std::declval<const MemoryInfo&>())) {
    RECALLD_TRY(const MemoryInfo info, memory(id));
    auto result = read_from(info);
    if (!result) {
      RECALLD_CHECK(memory(id));
    }
    return result;
  }

 private:
  struct Memory {
    JournalRecord journal;
    EncodingRecord encoding;
  };
  // The changes of one group commit, before they are written.
  struct Staged {
    std::map<std::string, MemoryId, std::less<>> made;  // new memories
    std::map<MemoryId, JournalRecord> records;
    std::map<std::string, Journal::Operation> operations;  // by key
    MemoryId next_memory = 0;
  };

  static MemoryInfo info(MemoryId id, const Memory& memory);
  Expected<Appended> stage(const AppendBatch& batch, Staged& staged, Catalog::Batch& rows) const;
  void stage_state(MemoryId id, EncodingRecord& encoding, uint64_t chunks, ByteView state, Catalog::Batch& rows) const;
  std::optional<MemoryId> find(std::string_view name) const;
  Expected<Memory> find(MemoryId id) const;
  Expected<void> remove_rows(MemoryId id);
  Expected<void> remove_empty_segments();
  Expected<void> finish_erase(MemoryId id);

  const DataDirectory directory_;  // holds the lock: goes last
  const RecordShape shape_;
  const std::unique_ptr<Catalog> catalog_;
  const Journal journal_;
  LandmarkIndex landmarks_;
  std::unique_ptr<KvFile> kv_;

  // One put, or one erasure's removal of encodings, at a time: guards the order of writes to kv_ and of `encoding`
  // rows.
  std::mutex encoding_mutex_;
  std::map<uint32_t, uint32_t> live_;  // records in each segment that a chunk names; guarded by encoding_mutex_

  // One append, or one erasure's disappearance, at a time: guards the order of `journal` rows.
  std::mutex journal_mutex_;
  MemoryId next_memory_ = 1;  // guarded by journal_mutex_

  mutable std::mutex table_mutex_;  // guards what follows: what is durable, as readers see it
  std::map<MemoryId, Memory> memories_;
  std::map<std::string, MemoryId, std::less<>> names_;
};

// ---- Open

Expected<void> Store::Impl::load(std::unique_ptr<FileIo> io) {
  KvPlace next;
  Catalog::Cursor counters = catalog_->cursor(Family::counters, "");
  RECALLD_TRY(bool found, counters.first());
  for (; found;) {
    const std::string_view key = counters.key();
    if (key == next_memory_key) {
      const auto value = decode_u64(counters.value());
      if (!value) return std::unexpected(damaged_row("the next memory"));
      next_memory_ = *value;
    } else if (key == next_place_key) {
      const auto value = decode_place(counters.value());
      if (!value) return std::unexpected(damaged_row("the next record"));
      next = *value;
    } else {
      const auto segment = segment_of(key);
      const auto value = decode_u32(counters.value());
      if (!segment || !value) return std::unexpected(damaged_row("a segment"));
      live_[*segment] = *value;
    }
    RECALLD_TRY(found, counters.next());
  }

  std::vector<MemoryId> erased;
  Catalog::Cursor rows = catalog_->cursor(Family::memories, "");
  RECALLD_TRY(found, rows.first());
  for (; found;) {
    ByteReader key(rows.key());
    const MemoryId id = key.key64();
    const char kind = static_cast<char>(key.u8());
    auto journal = kind == journal_kind ? JournalRecord::decode(rows.value()) : std::nullopt;
    const auto encoding = kind == encoding_kind ? EncodingRecord::decode(rows.value()) : std::nullopt;
    if (kind == erased_kind) {
      erased.push_back(id);
    } else if (journal) {
      names_[journal->name] = id;
      memories_[id].journal = *std::move(journal);
    } else if (encoding) {
      memories_[id].encoding = *encoding;
    } else {
      return std::unexpected(damaged_row("a memory"));
    }
    RECALLD_TRY(found, rows.next());
  }

  // What lies from `next` on is about to be removed: it must be what no chunk names.
  if (!live_.empty() && next <= KvPlace{live_.rbegin()->first, 0})
    return std::unexpected(damaged_row("the next record"));
  RECALLD_TRY(kv_, KvFile::open(directory_.kv(), shape_.kv_bytes, std::move(io), next));
  // A write of the catalog that failed may have left segments behind `next` that no chunk names either.
  RECALLD_TRY(const std::vector<uint32_t> segments, kv_->segments());
  for (const uint32_t segment : segments) live_.try_emplace(segment, 0);
  // Damage to what is gone already must not keep the other memories from being opened.
  for (const MemoryId id : erased) {
    Expected<void> removed = remove_rows(id);
    if (removed) removed = finish_erase(id);
    if (!removed)
      spdlog::error("remove what is left of erased memory {}: {} (tried again at the next start)", id,
                    removed.error().message);
  }
  return remove_empty_segments();
}

// ---- The memories

MemoryInfo Store::Impl::info(MemoryId id, const Memory& memory) {
  const auto& [journal, encoding] = memory;
  return {.id = id,
          .name = journal.name,
          .turns = journal.turns,
          .tokens = journal.tokens,
          .encoded_chunks = encoding.chunks,
          .content_bytes = journal.content_bytes,
          .created_us = journal.created_us,
          .updated_us = journal.updated_us};
}

std::optional<MemoryId> Store::Impl::find(std::string_view name) const {
  const std::lock_guard lock(table_mutex_);
  const auto found = names_.find(name);
  return found == names_.end() ? std::nullopt : std::optional(found->second);
}

Expected<MemoryInfo> Store::Impl::memory(std::string_view name) const {
  const std::lock_guard lock(table_mutex_);
  const auto found = names_.find(name);
  if (found == names_.end())
    return fail(ErrorKind::not_found, "there is no memory " + in_quotes(name) + "; recall memories lists them");
  return info(found->second, memories_.at(found->second));
}

// Of the memory of this number.
Expected<Store::Impl::Memory> Store::Impl::find(MemoryId id) const {
  const std::lock_guard lock(table_mutex_);
  const auto found = memories_.find(id);
  if (found == memories_.end())
    return fail(ErrorKind::not_found, "there is no memory of number " + std::to_string(id) + ": it has been deleted");
  return found->second;
}

Expected<MemoryInfo> Store::Impl::memory(MemoryId id) const {
  RECALLD_TRY(const Memory found, find(id));
  return info(id, found);
}

Store::MemoryPage Store::Impl::memories(std::string_view prefix, std::string_view after, size_t limit) const {
  MemoryPage page;
  const std::lock_guard lock(table_mutex_);
  auto name = after < prefix ? names_.lower_bound(prefix) : names_.upper_bound(after);
  for (; name != names_.end() && name->first.starts_with(prefix); ++name) {
    if (page.memories.size() == limit) {
      if (limit > 0) page.next = page.memories.back().name;
      break;
    }
    page.memories.push_back(info(name->second, memories_.at(name->second)));
  }
  return page;
}

std::vector<MemoryId> Store::Impl::unencoded(MemoryId after, size_t limit) const {
  std::vector<MemoryId> ids;
  const std::lock_guard lock(table_mutex_);
  for (auto memory = memories_.upper_bound(after); memory != memories_.end() && ids.size() < limit; ++memory) {
    if (info(memory->first, memory->second).waiting_chunks() > 0) ids.push_back(memory->first);
  }
  return ids;
}

// ---- Append: one synced batch for the whole group

Expected<std::vector<Expected<Appended>>> Store::Impl::append(std::span<const AppendBatch> batches) {
  const std::lock_guard lock(journal_mutex_);
  Catalog::Batch rows(*catalog_);
  Staged staged;
  staged.next_memory = next_memory_;
  std::vector<Expected<Appended>> replies;
  replies.reserve(batches.size());
  for (const AppendBatch& batch : batches) replies.push_back(stage(batch, staged, rows));
  if (staged.records.empty()) return replies;

  for (const auto& [id, record] : staged.records)
    rows.put(Family::memories, memory_key(id, journal_kind), record.encode());
  if (staged.next_memory != next_memory_) rows.put(Family::counters, next_memory_key, encode_u64(staged.next_memory));
  RECALLD_CHECK(catalog_->write(rows));

  next_memory_ = staged.next_memory;
  const std::lock_guard table(table_mutex_);
  for (auto& [id, record] : staged.records) {
    names_[record.name] = id;
    memories_[id].journal = std::move(record);
  }
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
  std::optional<MemoryId> id = find(batch.memory);
  if (const auto made = staged.made.find(batch.memory); made != staged.made.end()) id = made->second;

  if (!batch.operation_id.empty() && id) {
    const auto same = staged.operations.find(operation_key(*id, batch.operation_id));
    std::optional<Journal::Operation> known;
    if (same != staged.operations.end()) {
      known = same->second;
      known->reply.repeated = true;
    } else {
      RECALLD_TRY(known, journal_.operation(*id, batch.operation_id));
    }
    if (known && (known->id != batch.operation_id || known->digest != batch.operation_digest))
      return fail(ErrorKind::invalid_request, "append to " + in_quotes(batch.memory) +
                                                  ": this operation_id has been used for other turns; give each "
                                                  "operation its own");
    if (known) return known->reply;
  }

  if (!id) {
    id = staged.next_memory++;
    staged.made[batch.memory] = *id;
    staged.records[*id] = {.name = batch.memory, .created_us = batch.now_us};
  } else if (!staged.records.contains(*id)) {
    const std::lock_guard lock(table_mutex_);
    staged.records[*id] = memories_.at(*id).journal;
  }
  JournalRecord& record = staged.records.at(*id);
  Appended reply{.id = *id, .first_turn = record.turns};
  const uint64_t tokens_before = record.tokens;
  Journal::stage(*id, batch.turns, record, rows);
  record.updated_us = batch.now_us;
  reply.last_turn = record.turns - 1;
  reply.end_token = record.tokens;
  reply.tokens = record.tokens - tokens_before;
  if (!batch.operation_id.empty()) {
    Journal::Operation operation{batch.operation_id, batch.operation_digest, reply};
    Journal::stage(*id, operation, rows);
    staged.operations[operation_key(*id, batch.operation_id)] = std::move(operation);
  }
  return reply;
}

// ---- Encodings: K/V first, then everything that names it in one batch

Expected<void> Store::Impl::put(MemoryId id, uint64_t first_chunk, std::span<const EncodedChunkView> chunks,
                                std::optional<ByteView> state_after) {
  const std::lock_guard lock(encoding_mutex_);  // an erasure waits for it, so the memory cannot go meanwhile
  RECALLD_TRY(const Memory memory, find(id));
  EncodingRecord next = memory.encoding;
  assert(!chunks.empty() && first_chunk == next.chunks);
  assert((first_chunk + chunks.size()) * chunk_tokens <= memory.journal.tokens);
  assert(!state_after || state_after->size() == shape_.state_bytes);

  std::vector<ByteView> records;
  std::vector<Bf16> landmarks;
  landmarks.reserve(chunks.size() * shape_.landmark_dim);
  for (const EncodedChunkView& chunk : chunks) {
    assert(chunk.kv.size() == shape_.kv_bytes && chunk.landmark.size() == shape_.landmark_dim);
    records.push_back(chunk.kv);
    landmarks.insert(landmarks.end(), chunk.landmark.begin(), chunk.landmark.end());
  }
  RECALLD_TRY(const auto places, kv_->append(records));

  Catalog::Batch rows(*catalog_);
  std::map<uint32_t, uint32_t> live;  // of the segments touched
  for (size_t i = 0; i < chunks.size(); ++i) {
    const uint64_t chunk = first_chunk + i;
    const auto [segment, slot] = places[i];
    const uint32_t crc = record_crc(id, chunk, shape_.model, next.generation, records[i]);
    rows.put(Family::chunks, row_key(id, chunk), encode(ChunkEntry{segment, slot, next.generation, crc}));
    ++live.try_emplace(segment, live_.contains(segment) ? live_.at(segment) : 0).first->second;
  }
  for (const auto& [segment, count] : live) rows.put(Family::counters, segment_key(segment), encode_u32(count));
  rows.put(Family::counters, next_place_key, encode(kv_->next()));
  RECALLD_CHECK(landmarks_.stage(id, first_chunk, landmarks, rows));
  next.chunks += chunks.size();
  if (state_after) stage_state(id, next, next.chunks, *state_after, rows);
  rows.put(Family::memories, memory_key(id, encoding_kind), next.encode());
  RECALLD_CHECK(catalog_->write(rows));

  for (const auto& [segment, count] : live) live_[segment] = count;
  landmarks_.publish(id, first_chunk, landmarks);
  const std::lock_guard table(table_mutex_);
  memories_.at(id).encoding = next;
  return {};
}

// Makes this the newest state and drops the one before it, unless that is one of those kept for good.
void Store::Impl::stage_state(MemoryId id, EncodingRecord& encoding, uint64_t chunks, ByteView state,
                              Catalog::Batch& rows) const {
  if (encoding.state_chunks % kept_state_chunks != 0) rows.remove(Family::states, row_key(id, encoding.state_chunks));
  rows.put(Family::states, row_key(id, chunks), as_text(state));
  encoding.state_chunks = chunks;
}

Expected<void> Store::Impl::put_state(MemoryId id, uint64_t chunks, ByteView state) {
  const std::lock_guard lock(encoding_mutex_);
  RECALLD_TRY(const Memory memory, find(id));
  EncodingRecord next = memory.encoding;
  assert(chunks > 0 && chunks <= next.chunks && state.size() == shape_.state_bytes);
  if (chunks <= next.state_chunks) return {};  // one as new is there
  Catalog::Batch rows(*catalog_);
  stage_state(id, next, chunks, state, rows);
  rows.put(Family::memories, memory_key(id, encoding_kind), next.encode());
  RECALLD_CHECK(catalog_->write(rows));
  const std::lock_guard table(table_mutex_);
  memories_.at(id).encoding = next;
  return {};
}

Expected<std::optional<StateCheckpoint>> Store::Impl::state(MemoryId id, uint64_t chunks_max) const {
  Catalog::Cursor rows = catalog_->cursor(Family::states, row_key(id));
  RECALLD_TRY(const bool found, rows.seek_before(row_key(id, chunks_max)));
  if (!found) return std::nullopt;
  if (rows.value().size() != shape_.state_bytes)
    return fail(ErrorKind::corrupt, "read the state of memory " + std::to_string(id) + " after chunk " +
                                        std::to_string(number_of(rows.key())) + ": wrong size; run recall verify");
  return StateCheckpoint{number_of(rows.key()), std::string(rows.value())};
}

Expected<ChunkEntry> Store::Impl::chunk(MemoryId id, uint64_t chunk) const {
  RECALLD_TRY(const Memory memory, find(id));
  if (chunk >= memory.encoding.chunks)
    return fail(ErrorKind::not_found, "chunk " + std::to_string(chunk) + " of memory " + std::to_string(id) +
                                          " is not stored: " + std::to_string(memory.encoding.chunks) +
                                          " chunks are, from 0 on");
  RECALLD_TRY(const auto row, catalog_->get(Family::chunks, row_key(id, chunk)));
  const auto entry = row ? decode_chunk_entry(*row) : std::nullopt;
  if (!entry)
    return fail(ErrorKind::corrupt, "find chunk " + std::to_string(chunk) + " of memory " + std::to_string(id) +
                                        ": its row is missing or no such row; run recall verify");
  return *entry;
}

Expected<void> Store::Impl::fetch(MemoryId id, std::span<const uint64_t> chunks, ByteSpan out) const {
  assert(out.size() == chunks.size() * shape_.kv_bytes);
  std::vector<ChunkEntry> entries;
  std::vector<KvPlace> places;
  for (const uint64_t number : chunks) {
    RECALLD_TRY(const ChunkEntry entry, chunk(id, number));
    entries.push_back(entry);
    places.push_back({entry.segment, entry.slot});
  }
  RECALLD_CHECK(kv_->read(places, out));
  for (size_t i = 0; i < chunks.size(); ++i) {
    const ByteSpan record = out.subspan(i * shape_.kv_bytes, shape_.kv_bytes);
    if (record_crc(id, chunks[i], shape_.model, entries[i].generation, record) == entries[i].crc32c) continue;
    return fail(ErrorKind::corrupt, "read chunk " + std::to_string(chunks[i]) + " of memory " + std::to_string(id) +
                                        " in " + segment_name(entries[i].segment) + ", record " +
                                        std::to_string(entries[i].slot) + ": checksum mismatch; run recall verify");
  }
  return {};
}

Expected<std::vector<Bf16>> Store::Impl::landmark(MemoryId id, uint64_t chunk) const {
  RECALLD_CHECK(this->chunk(id, chunk));
  return landmarks_.landmark(id, chunk);
}

Expected<std::vector<ScoredChunk>> Store::Impl::top_k(MemoryId id, std::span<const Bf16> query, size_t k,
                                                      WorkerPool& pool) {
  auto best =
      read(id, [&](const MemoryInfo& info) { return landmarks_.top_k(id, info.encoded_chunks, query, k, pool); });
  // The scan may have cached pages of a memory that was erased, and forgotten, after it had begun.
  if (!memory(id)) landmarks_.forget(id);
  return best;
}

// ---- Erase: the memory is gone durably at once, then its space is returned. An open goes on with what a crash left.

Expected<void> Store::Impl::erase(std::string_view name) {
  MemoryId id = 0;
  {
    const std::lock_guard encoding(encoding_mutex_);
    {
      const std::lock_guard journal(journal_mutex_);
      RECALLD_TRY(const MemoryInfo info, memory(name));
      id = info.id;
      Catalog::Batch rows(*catalog_);
      rows.remove(Family::memories, memory_key(id, journal_kind));
      rows.remove(Family::memories, memory_key(id, encoding_kind));
      rows.put(Family::memories, memory_key(id, erased_kind), "");
      RECALLD_CHECK(catalog_->write(rows));
      const std::lock_guard table(table_mutex_);
      names_.erase(info.name);
      memories_.erase(id);
    }
    landmarks_.forget(id);
    RECALLD_CHECK(remove_rows(id));
    RECALLD_CHECK(remove_empty_segments());
  }
  return finish_erase(id);
}

// Gives the K/V of an erased memory back, and then removes all its rows but the one that says that it is erased.
Expected<void> Store::Impl::remove_rows(MemoryId id) {
  std::map<uint32_t, uint32_t> live = live_;
  std::vector<KvPlace> places;
  Catalog::Cursor chunks = catalog_->cursor(Family::chunks, row_key(id));
  RECALLD_TRY(bool found, chunks.first());
  while (found) {
    if (const auto entry = decode_chunk_entry(chunks.value())) {
      places.push_back({entry->segment, entry->slot});
      --live[entry->segment];
    }
    RECALLD_TRY(found, chunks.next());
    if (!found || places.size() == release_slice) {
      RECALLD_CHECK(kv_->release(places));
      places.clear();
    }
  }
  Catalog::Batch rows(*catalog_);
  for (const auto& [segment, count] : live) {
    if (count != live_[segment]) rows.put(Family::counters, segment_key(segment), encode_u32(count));
  }
  for (const Family family : {Family::turns, Family::tokens, Family::operations, Family::chunks, Family::landmarks,
                              Family::states, Family::postings})
    rows.remove_all(family, row_key(id));
  RECALLD_CHECK(catalog_->write(rows));
  live_ = std::move(live);
  return {};
}

// Segments that no chunk names go, but for the one that is being filled.
Expected<void> Store::Impl::remove_empty_segments() {
  std::vector<uint32_t> empty;
  for (const auto& [segment, count] : live_) {
    if (count == 0 && segment < kv_->next().segment) empty.push_back(segment);
  }
  if (empty.empty()) return {};
  RECALLD_CHECK(kv_->remove(empty));
  Catalog::Batch rows(*catalog_);
  for (const uint32_t segment : empty) rows.remove(Family::counters, segment_key(segment));
  RECALLD_CHECK(catalog_->write(rows));
  for (const uint32_t segment : empty) live_.erase(segment);
  return {};
}

Expected<void> Store::Impl::finish_erase(MemoryId id) {
  RECALLD_CHECK(catalog_->reclaim(row_key(id)));
  Catalog::Batch rows(*catalog_);
  rows.remove(Family::memories, memory_key(id, erased_kind));
  return catalog_->write(rows);
}

Expected<StoreStats> Store::Impl::stats() const {
  StoreStats stats;
  {
    const std::lock_guard lock(table_mutex_);
    stats.memories = memories_.size();
    for (const auto& [id, memory] : memories_) {
      const MemoryInfo each = info(id, memory);
      stats.turns += each.turns;
      stats.tokens += each.tokens;
      stats.encoded_chunks += each.encoded_chunks;
      stats.waiting_chunks += each.waiting_chunks();
    }
  }
  RECALLD_TRY(const KvFile::Usage kv, kv_->usage());
  stats.kv_segments = kv.segments;
  stats.kv_bytes_on_disk = kv.bytes_on_disk;
  const Catalog::Usage catalog = catalog_->usage();
  stats.catalog_bytes_on_disk = catalog.bytes_on_disk;
  stats.block_cache_bytes = catalog.block_cache_bytes;
  stats.memtable_bytes = catalog.memtable_bytes;
  stats.landmark_cache_bytes = landmarks_.cached_bytes();
  stats.file_io = kv_->describe();
  return stats;
}

// ---- The front door

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() = default;

Expected<std::unique_ptr<Store>> Store::open(const std::filesystem::path& directory, StoreOptions options) {
  const RecordShape& shape = options.shape;
  if (options.memory_budget_bytes < budget_bytes_min)
    return fail(ErrorKind::invalid_request, "open store: the memory budget of " +
                                                std::to_string(options.memory_budget_bytes >> 20) +
                                                " MiB is too small; the store needs 8 MiB");
  assert(shape.kv_bytes > 0 && shape.landmark_dim > 0 && shape.landmark_dim % 32 == 0);
  RECALLD_TRY(DataDirectory data, DataDirectory::open(directory, shape));

  // Half of the budget for landmarks, a quarter for the catalog's blocks and memtables; the last quarter is what the
  // catalog's open tables and compactions and the buffers of reads and writes take.
  const uint64_t budget = options.memory_budget_bytes;
  RECALLD_TRY(auto catalog, Catalog::open({.directory = data.catalog(),
                                           .cache_bytes = budget / 4,
                                           .memtable_bytes = std::min(budget / 8, memtable_bytes_max)}));
  RECALLD_TRY(auto io, options.file_io ? options.file_io() : open_file_io());
  auto impl = std::make_unique<Impl>(std::move(data), shape, std::move(catalog), budget / 2);
  RECALLD_CHECK(impl->load(std::move(io)));
  return std::unique_ptr<Store>(new Store(std::move(impl)));
}

Expected<std::vector<Expected<Appended>>> Store::append(std::span<const AppendBatch> batches) {
  return impl_->append(batches);
}

Expected<MemoryInfo> Store::memory(std::string_view name) const {
  return impl_->memory(name);
}

Expected<MemoryInfo> Store::memory(MemoryId id) const {
  return impl_->memory(id);
}

Expected<Store::MemoryPage> Store::memories(std::string_view prefix, std::string_view after, size_t limit) const {
  return impl_->memories(prefix, after, limit);
}

Expected<std::vector<StoredTurn>> Store::turns(MemoryId id, uint64_t first, size_t limit, size_t bytes_max) const {
  return impl_->read(
      id, [&](const MemoryInfo& info) { return impl_->journal().turns(id, first, info.turns, limit, bytes_max); });
}

Expected<std::vector<uint32_t>> Store::tokens(MemoryId id, uint64_t first, size_t count) const {
  return impl_->read(id, [&](const MemoryInfo& info) {
    const uint64_t from = std::min(first, info.tokens);
    return impl_->journal().tokens(id, from, from + std::min(count, info.tokens - from));
  });
}

Expected<Passage> Store::passage(MemoryId id, uint64_t first, uint64_t end) const {
  return impl_->read(id, [&](const MemoryInfo& info) -> Expected<Passage> {
    if (first >= end || end > info.tokens)
      return fail(ErrorKind::invalid_request, "read tokens " + std::to_string(first) + " to " + std::to_string(end) +
                                                  " of memory " + in_quotes(info.name) + ": it has " +
                                                  std::to_string(info.tokens));
    return impl_->journal().passage(id, first, end);
  });
}

Expected<std::optional<uint64_t>> Store::last_turn_within(MemoryId id, uint64_t tokens) const {
  return impl_->read(id, [&](const MemoryInfo& info) -> Expected<std::optional<uint64_t>> {
    if (tokens == 0) return std::nullopt;
    return impl_->journal().last_turn_within(id, std::min(tokens, info.tokens));
  });
}

Expected<void> Store::erase(std::string_view name) {
  return impl_->erase(name);
}

Expected<void> Store::put(MemoryId id, uint64_t first_chunk, std::span<const EncodedChunkView> chunks,
                          std::optional<ByteView> state_after) {
  return impl_->put(id, first_chunk, chunks, state_after);
}

Expected<void> Store::put_state(MemoryId id, uint64_t chunks, ByteView state) {
  return impl_->put_state(id, chunks, state);
}

Expected<std::optional<StateCheckpoint>> Store::state(MemoryId id, uint64_t chunks_max) const {
  return impl_->read(id, [&](const MemoryInfo&) { return impl_->state(id, chunks_max); });
}

Expected<std::vector<MemoryId>> Store::unencoded(MemoryId after, size_t limit) const {
  return impl_->unencoded(after, limit);
}

Expected<ChunkEntry> Store::chunk(MemoryId id, uint64_t chunk) const {
  return impl_->read(id, [&](const MemoryInfo&) { return impl_->chunk(id, chunk); });
}

Expected<std::vector<Bf16>> Store::landmark(MemoryId id, uint64_t chunk) const {
  return impl_->read(id, [&](const MemoryInfo&) { return impl_->landmark(id, chunk); });
}

Expected<void> Store::fetch(MemoryId id, std::span<const uint64_t> chunks, ByteSpan out) const {
  return impl_->read(id, [&](const MemoryInfo&) { return impl_->fetch(id, chunks, out); });
}

Expected<std::vector<ScoredChunk>> Store::top_k(MemoryId id, std::span<const Bf16> query, size_t k,
                                                WorkerPool& pool) const {
  return impl_->top_k(id, query, k, pool);
}

Expected<StoreStats> Store::stats() const {
  return impl_->stats();
}

}  // namespace recalld
