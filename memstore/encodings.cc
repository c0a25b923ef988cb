#include "memstore/encodings.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "base/crc32c.h"
#include "memstore/row_walk.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

constexpr size_t erased_at_once = 4096;  // records given back at a time

Error damaged_counter(std::string_view what) {
  return {ErrorKind::corrupt,
          "open store: the row of " + std::string(what) + " is not one; restore the store from a backup"};
}

std::string chunk_of(MemoryId id, uint64_t chunk) {
  return "chunk " + std::to_string(chunk) + " of memory " + std::to_string(id);
}

}  // namespace

Encodings::Encodings(const Catalog& catalog, const RecordShape& shape, uint64_t landmark_cache_bytes,
                     uint64_t entry_cache_bytes)
    : catalog_(catalog),
      shape_(shape),
      landmarks_(catalog, shape.landmark_dim, landmark_cache_bytes),
      entries_(entry_cache_bytes) {}

Expected<void> Encodings::open(const std::filesystem::path& directory, std::unique_ptr<FileIo> io,
                               uint64_t segment_bytes) {
  KvPlace next;
  RECALLD_TRY(const auto row, catalog_.get(Family::counters, next_place_key));
  if (row) {
    const auto place = decode_place(*row);
    if (!place) return std::unexpected(damaged_counter("the next record"));
    next = *place;
  }
  Catalog::Cursor counters = catalog_.cursor(Family::counters, segment_prefix);
  RECALLD_TRY(bool found, counters.first());
  while (found) {
    const auto segment = segment_of(counters.key());
    const auto value = decode_u32(counters.value());
    if (!segment || !value) return std::unexpected(damaged_counter("a segment"));
    live_[*segment] = *value;
    RECALLD_TRY(found, counters.next());
  }

  // What lies from `next` on is about to be removed: it must be what no chunk names.
  if (!live_.empty() && next <= KvPlace{live_.rbegin()->first, 0})
    return std::unexpected(damaged_counter("the next record"));
  RECALLD_TRY(kv_, KvFile::open(directory, shape_.kv_bytes, std::move(io), next, segment_bytes));
  // A write of the catalog that failed may have left segments behind `next` that no chunk names either.
  RECALLD_TRY(const std::vector<uint32_t> segments, kv_->segments());
  // Yet where the row of a segment has been lost, chunks do name it.
  std::map<uint32_t, uint32_t> uncounted;
  for (const uint32_t segment : segments) {
    if (!live_.contains(segment)) uncounted[segment] = 0;
  }
  if (!uncounted.empty()) {
    Catalog::Cursor chunks = catalog_.cursor(Family::chunks, "");
    Expected<bool> there = chunks.first();
    for (; !there || *there; there = chunks.next()) {
      if (!there && !chunks.on_row()) return std::unexpected(std::move(there).error());
      const auto entry = there ? decode_chunk_entry(chunks.value()) : std::nullopt;
      if (!entry) continue;
      if (const auto counted = uncounted.find(entry->segment); counted != uncounted.end()) ++counted->second;
    }
  }
  live_.insert(uncounted.begin(), uncounted.end());
  return {};
}

uint32_t Encodings::record_crc(MemoryId id, uint64_t chunk, const Hash128& model, uint64_t generation, ByteView kv) {
  std::string identity;
  ByteWriter out(identity);
  out.u64(id);
  out.u64(chunk);
  identity += as_text(model);
  out.u64(generation);
  return crc32c(kv, crc32c(as_bytes(identity)));
}

// ---- Reading

Expected<ChunkEntry> Encodings::chunk(MemoryId id, const Generation& of, uint64_t chunk) const {
  if (chunk >= of.encoding.chunks)
    return fail(ErrorKind::not_found, chunk_of(id, chunk) + " is not stored: " + std::to_string(of.encoding.chunks) +
                                          " chunks are, from 0 on");
  RECALLD_TRY(const auto row, catalog_.get(Family::chunks, row_key(of.layout.extent_of(chunk).stream, chunk)));
  const auto entry = row ? decode_chunk_entry(*row) : std::nullopt;
  if (!entry)
    return fail(ErrorKind::corrupt,
                "find " + chunk_of(id, chunk) + ": its row is missing or no such row; run recall verify --repair");
  return *entry;
}

Expected<ChunkEntry> Encodings::find(MemoryId id, const Generation& of, uint64_t entries_version,
                                     uint64_t chunk) const {
  if (chunk < of.encoding.chunks) {
    const Extent& extent = of.layout.extent_of(chunk);
    if (const auto kept = entries_.find(extent.stream, chunk)) return *kept;
    const uint64_t first = chunk / EntryCache::block_chunks * EntryCache::block_chunks;
    // Rows behind these are not of this generation, or not there yet.
    const uint64_t end = std::min(of.encoding.chunks, of.layout.end_of(extent));
    const EntryCache::Block block = read_entries(extent.stream, first, end);
    if (block.there[chunk - first]) {
      entries_.keep(extent.stream, first, block, entries_version);
      return block.entries[chunk - first];
    }
  }
  return this->chunk(id, of, chunk);  // which says what is wrong
}

EntryCache::Block Encodings::read_entries(StreamId stream, uint64_t first, uint64_t end) const {
  EntryCache::Block block;
  walk_rows(
      catalog_, Family::chunks, stream, first, std::min(end, first + EntryCache::block_chunks),
      [&](uint64_t chunk, std::string_view key, const Expected<std::string_view>& value) {
        const auto entry = value && key == row_key(stream, chunk) ? decode_chunk_entry(*value) : std::nullopt;
        if (entry) block.entries[chunk - first] = *entry;
        block.there[chunk - first] = entry.has_value();
        return true;
      },
      [](uint64_t, const Error&) { return UINT64_MAX; });
  return block;
}

Expected<void> Encodings::fetch(MemoryId id, const Generation& of, uint64_t entries_version,
                                std::span<const uint64_t> chunks, ByteSpan out, std::vector<Unreadable>& unreadable,
                                const FetchWait& wait) const {
  assert(out.size() == chunks.size() * shape_.kv_bytes);
  std::vector<Fetched> records(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i) {
    Fetched& record = records[i];
    record.chunk = chunks[i];
    record.into = out.subspan(i * shape_.kv_bytes, shape_.kv_bytes);
    auto entry = find(id, of, entries_version, chunks[i]);
    if (entry)
      record.entry = *entry;
    else
      record.failure = std::move(entry).error();
    if (record.failure && record.failure->kind != ErrorKind::corrupt)
      return std::unexpected(*std::move(record.failure));
  }
  read(id, records, wait);
  while (!std::ranges::all_of(records, &Fetched::whole)) {
    RECALLD_TRY(const bool moved, find_again(id, of, records));
    if (!moved) break;
    read(id, records, {.reads = {.awake = wait.reads.awake}, .whole = wait.whole});
  }
  for (Fetched& record : records) {
    if (record.whole) continue;
    if (record.failure->kind != ErrorKind::corrupt) return std::unexpected(*std::move(record.failure));
    unreadable.push_back({record.chunk, record.chunk, std::move(record.failure->message)});
  }
  return {};
}

void Encodings::read(MemoryId id, std::span<Fetched> records, const FetchWait& wait) const {
  size_t given = 0;
  const auto next = [&]() -> std::optional<KvRead> {
    while (given < records.size() && (records[given].whole || records[given].failure)) ++given;
    if (given == records.size()) return std::nullopt;
    const Fetched& record = records[given];
    return KvRead{{record.entry->segment, record.entry->slot}, record.into, given++};
  };
  // Each is checked while the others are on their way.
  const auto done = [&](uint64_t i, Expected<void> result) {
    Fetched& record = records[i];
    const ChunkEntry& entry = *record.entry;
    if (!result)
      record.failure = std::move(result).error();
    else if (record_crc(id, record.chunk, shape_.model, entry.generation, record.into) != entry.crc32c)
      record.failure = {ErrorKind::corrupt, "read " + chunk_of(id, record.chunk) + " in " +
                                                segment_name(entry.segment) + ", record " + std::to_string(entry.slot) +
                                                ": checksum mismatch; run recall verify --repair"};
    else
      record.whole = true;
    if (record.whole && wait.whole) wait.whole(i);
  };
  kv_->stream(next, done, wait.reads);
}

Expected<bool> Encodings::find_again(MemoryId id, const Generation& of, std::span<Fetched> records) const {
  bool moved = false;
  for (Fetched& record : records) {
    if (!record.entry || !record.failure || record.failure->kind != ErrorKind::corrupt) continue;
    auto entry = chunk(id, of, record.chunk);
    if (!entry && entry.error().kind != ErrorKind::corrupt) return std::unexpected(std::move(entry).error());
    if (entry && *entry == *record.entry) continue;
    entries_.forget(of.layout.extent_of(record.chunk).stream);
    if (!entry) {
      record.failure = std::move(entry).error();
      continue;
    }
    record.entry = *entry;
    record.failure.reset();
    moved = true;
  }
  return moved;
}

Expected<std::vector<Bf16>> Encodings::landmark(MemoryId id, const Generation& of, uint64_t chunk) const {
  RECALLD_CHECK(this->chunk(id, of, chunk));
  return landmarks_.landmark(of.layout.extent_of(chunk).stream, chunk);
}

Expected<void> Encodings::landmarks(MemoryId id, const Generation& of, uint64_t first, std::span<Bf16> out,
                                    std::vector<Unreadable>& unreadable) const {
  const uint64_t stored = of.encoding.chunks, count = out.size() / shape_.landmark_dim;
  assert(out.size() == count * shape_.landmark_dim);
  if (first > stored || count > stored - first)
    return fail(ErrorKind::busy, "read landmarks of memory " + std::to_string(id) + ": it has " +
                                     std::to_string(stored) +
                                     " chunks by now: turns of it were forgotten meanwhile; ask again");
  landmarks_.landmarks(of.layout.extents, stored, first, out, unreadable);
  return {};
}

Expected<std::vector<std::vector<ScoredChunk>>> Encodings::top_k(const Generation& of, uint64_t chunks_max,
                                                                 std::span<const Bf16> queries, size_t k,
                                                                 WorkerPool& pool, std::vector<Unreadable>& unreadable,
                                                                 const ChunkSet* only) {
  return landmarks_.top_k(of.layout.extents, std::min(of.encoding.chunks, chunks_max), queries, k, pool, unreadable,
                          only);
}

Expected<std::optional<StateCheckpoint>> Encodings::state(const Generation& of, uint64_t chunks_max,
                                                          std::string* damage) const {
  const auto pass_over = [&](uint64_t chunks, const std::string& cause) {
    if (damage != nullptr && damage->empty())
      *damage = "read the state after chunk " + std::to_string(chunks) + ": " + cause +
                "; an earlier one is taken; run recall verify --repair";
  };
  // A state lies in the extent of the last chunk that it covers.
  for (size_t i = of.layout.extents.size(); i-- > 0;) {
    const Extent& extent = of.layout.extents[i];
    if (extent.first_chunk >= chunks_max) continue;
    Catalog::Cursor rows = catalog_.cursor(Family::states, row_key(extent.stream));
    uint64_t last = std::min(chunks_max, of.layout.end_of(extent));
    while (last > extent.first_chunk) {
      const auto found = rows.seek_before(row_key(extent.stream, last));
      if (!found && !rows.on_row()) {  // this stretch of rows cannot be read: the one before the last kept state can
        if (found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
        pass_over(last, found.error().message);
        last = (last - 1) / kept_state_chunks * kept_state_chunks;
        continue;
      }
      if (found && !*found) break;
      const uint64_t chunks = number_of(rows.key());
      if (chunks <= extent.first_chunk) break;
      if (found && rows.value().size() == shape_.state_bytes) return StateCheckpoint{chunks, std::string(rows.value())};
      pass_over(chunks, found ? "wrong size" : "checksum mismatch");
      last = chunks - 1;
    }
  }
  return std::nullopt;
}

Expected<std::optional<StateCheckpoint>> Encodings::next_state(const Generation& of, uint64_t after,
                                                               uint64_t chunks_max) const {
  for (const Extent& extent : of.layout.extents) {
    const uint64_t last = std::min(chunks_max, of.layout.end_of(extent));
    const uint64_t before = std::max(after, extent.first_chunk);
    if (before >= last) continue;
    Catalog::Cursor rows = catalog_.cursor(Family::states, row_key(extent.stream));
    RECALLD_TRY(const bool found, rows.seek(row_key(extent.stream, before + 1)));
    if (found && number_of(rows.key()) <= last) return checked_state(extent.stream, rows);
  }
  return std::nullopt;
}

// The state in the row that the cursor stands on.
Expected<std::optional<StateCheckpoint>> Encodings::checked_state(StreamId stream, const Catalog::Cursor& row) const {
  if (row.value().size() != shape_.state_bytes)
    return fail(ErrorKind::corrupt, "read the state after chunk " + std::to_string(number_of(row.key())) +
                                        " of stream " + std::to_string(stream) +
                                        ": wrong size; run recall verify --repair");
  return StateCheckpoint{number_of(row.key()), std::string(row.value())};
}

// ---- Adding

Expected<Encodings::Written> Encodings::write(const Generation& to, std::span<const EncodedChunkView> chunks,
                                              Catalog::Batch& rows) {
  Written written{.chunks = chunks,
                  .places = {},
                  .live = {},
                  .landmarks = {},
                  .stream = to.stream(),
                  .first_chunk = to.encoding.chunks};
  std::vector<ByteView> records;
  written.landmarks.reserve(chunks.size() * shape_.landmark_dim);
  for (const EncodedChunkView& chunk : chunks) {
    assert(chunk.kv.size() == shape_.kv_bytes && chunk.landmark.size() == shape_.landmark_dim);
    records.push_back(chunk.kv);
    written.landmarks.insert(written.landmarks.end(), chunk.landmark.begin(), chunk.landmark.end());
  }
  RECALLD_CHECK(landmarks_.stage(written.stream, written.first_chunk, written.landmarks, rows));
  RECALLD_TRY(written.places, kv_->append(records));
  return written;
}

void Encodings::stage(MemoryId id, Generation& to, Written& written, std::optional<ByteView> state_after,
                      Catalog::Batch& rows) const {
  for (size_t i = 0; i < written.chunks.size(); ++i) {
    const uint64_t chunk = written.first_chunk + i;
    const auto [segment, slot] = written.places[i];
    const uint32_t crc = record_crc(id, chunk, shape_.model, to.encoding.generation, written.chunks[i].kv);
    rows.put(Family::chunks, row_key(written.stream, chunk),
             encode(ChunkEntry{segment, slot, to.encoding.generation, crc}));
    ++written.live.try_emplace(segment, live_.contains(segment) ? live_.at(segment) : 0).first->second;
  }
  for (const auto& [segment, count] : written.live) rows.put(Family::counters, segment_key(segment), encode_u32(count));
  rows.put(Family::counters, next_place_key, encode(kv_->next()));
  to.encoding.chunks += written.chunks.size();
  if (state_after) stage_state(to, to.encoding.chunks, *state_after, rows);
}

void Encodings::refused(const Written& written) {
  refused_.insert(refused_.end(), written.places.begin(), written.places.end());
  for (const KvPlace place : written.places) live_.try_emplace(place.segment, 0);
}

Expected<void> Encodings::release_refused() {
  RECALLD_CHECK(kv_->clean_tail());
  if (refused_.empty()) return {};
  RECALLD_CHECK(kv_->release(refused_));
  refused_.clear();
  return {};
}

void Encodings::written(const Written& written) {
  for (const auto& [segment, count] : written.live) live_[segment] = count;
  landmarks_.publish(written.stream, written.first_chunk, written.landmarks);
}

void Encodings::stage_state(Generation& to, uint64_t chunks, ByteView state, Catalog::Batch& rows) const {
  assert(state.size() == shape_.state_bytes);
  const uint64_t before = to.encoding.state_chunks;
  // One in an earlier extent may be another generation's newest too.
  if (before % kept_state_chunks != 0 && before > to.layout.extents.back().first_chunk)
    rows.remove(Family::states, row_key(to.stream(), before));
  rows.put(Family::states, row_key(to.stream(), chunks), as_text(state));
  to.encoding.state_chunks = chunks;
}

void Encodings::stage_old_state(const Generation& of, uint64_t chunks, Catalog::Batch& rows) const {
  if (chunks % kept_state_chunks != 0)
    rows.remove(Family::states, row_key(of.layout.extent_of(chunks - 1).stream, chunks));
}

// ---- Mending

Expected<Encodings::Mended> Encodings::write_again(std::span<const MendedChunk> chunks) {
  Mended mended;
  std::vector<ByteView> records;
  for (const MendedChunk& chunk : chunks) {
    assert(chunk.encoded.kv.size() == shape_.kv_bytes && chunk.encoded.landmark.size() == shape_.landmark_dim);
    if (chunk.kv) records.push_back(chunk.encoded.kv);
  }
  RECALLD_TRY(mended.written.places, kv_->append(records));
  return mended;
}

Expected<void> Encodings::stage_again(MemoryId id, const Generation& of, std::span<const MendedChunk> chunks,
                                      std::span<const StateCheckpoint> states, Mended& mended,
                                      Catalog::Batch& rows) const {
  std::map<uint32_t, uint32_t>& live = mended.written.live;
  const auto count = [&](uint32_t segment) -> uint32_t& {
    const auto known = live_.find(segment);
    return live.try_emplace(segment, known == live_.end() ? 0 : known->second).first->second;
  };
  auto place = mended.written.places.begin();
  std::map<uint64_t, std::span<const Bf16>> landmarks;
  for (const MendedChunk& chunk : chunks) {
    const Extent& extent = of.layout.extent_of(chunk.chunk);
    assert(chunk.chunk < of.encoding.chunks && chunk.chunk / page_chunks() == chunks.front().chunk / page_chunks());
    if (chunk.landmark) landmarks.emplace(chunk.chunk, chunk.encoded.landmark);
    if (!chunk.kv) continue;
    // The generation of the extent stays: it is that of its other entries.
    uint64_t generation = of.encoding.generation;
    const auto entry_of = [&](uint64_t number) -> std::optional<ChunkEntry> {
      const auto row = catalog_.get(Family::chunks, row_key(extent.stream, number));
      return row && *row ? decode_chunk_entry(**row) : std::nullopt;
    };
    if (const auto before = entry_of(chunk.chunk)) {
      generation = std::min(generation, before->generation);
      mended.released.push_back({before->segment, before->slot});
      if (uint32_t& named = count(before->segment); named > 0) --named;
    } else if (extent != of.layout.extents.back()) {
      const uint64_t end = std::min(of.layout.end_of(extent), of.encoding.chunks);
      for (uint64_t other = extent.first_chunk; other < end; ++other) {
        if (const auto neighbour = entry_of(other)) {
          generation = neighbour->generation;
          break;
        }
      }
    }
    ++count(place->segment);
    const uint32_t crc = record_crc(id, chunk.chunk, shape_.model, generation, chunk.encoded.kv);
    rows.put(Family::chunks, row_key(extent.stream, chunk.chunk),
             encode(ChunkEntry{place->segment, place->slot, generation, crc}));
    ++place;
  }
  for (const auto& [segment, named] : live) rows.put(Family::counters, segment_key(segment), encode_u32(named));
  if (!mended.written.places.empty()) rows.put(Family::counters, next_place_key, encode(kv_->next()));
  if (!landmarks.empty()) {
    const uint64_t page = chunks.front().chunk / page_chunks();
    RECALLD_CHECK(landmarks_.stage_again(of.layout.extent_of(chunks.front().chunk).stream, page, of.encoding.chunks,
                                         landmarks, rows));
  }
  for (const StateCheckpoint& state : states) {
    assert(state.bytes.size() == shape_.state_bytes);
    rows.put(Family::states, row_key(of.layout.extent_of(state.chunks - 1).stream, state.chunks), state.bytes);
  }
  return {};
}

Expected<void> Encodings::written_again(const Generation& of, const Mended& mended) {
  for (const auto& [segment, count] : mended.written.live) live_[segment] = count;
  for (const Extent& extent : of.layout.extents) forget(extent.stream);
  return kv_->release(mended.released);
}

std::vector<KvPlace> Encodings::stage_without(const Generation& of, const Verification::Lost& lost,
                                              Catalog::Batch& rows) {
  for (const uint64_t chunks : lost.needless) {
    if (chunks > 0 && chunks != of.encoding.state_chunks)
      rows.remove(Family::states, row_key(of.layout.extent_of(chunks - 1).stream, chunks));
  }
  std::vector<KvPlace> places;
  if (!lost.strays) return places;
  const StreamId stream = of.stream();
  const std::string end = row_key(stream + 1);
  walk_rows(
      catalog_, Family::chunks, stream, of.encoding.chunks, UINT64_MAX,
      [&](uint64_t, std::string_view, const Expected<std::string_view>& value) {
        if (const auto entry = value ? decode_chunk_entry(*value) : std::nullopt)
          places.push_back({entry->segment, entry->slot});
        return true;
      },
      [](uint64_t, const Error&) { return UINT64_MAX; });
  for (const KvPlace& place : places) {
    uint32_t& named = live_[place.segment];
    if (named > 0) --named;
    rows.put(Family::counters, segment_key(place.segment), encode_u32(named));
  }
  rows.remove_range(Family::chunks, row_key(stream, of.encoding.chunks), end);
  rows.remove_range(Family::landmarks, row_key(stream, (of.encoding.chunks + page_chunks() - 1) / page_chunks()), end);
  rows.remove_range(Family::states, row_key(stream, of.encoding.chunks + 1), end);
  return places;
}

Expected<void> Encodings::written_without(const Generation& of, std::span<const KvPlace> places) {
  forget(of.stream());
  return kv_->release(places);
}

Expected<void> Encodings::release_unnamed(Catalog& catalog) {
  const KvPlace next = kv_->next();
  RECALLD_TRY(const std::vector<uint32_t> segments, kv_->segments());
  std::map<uint32_t, std::vector<bool>> named;
  for (const uint32_t segment : segments) {
    if (segment <= next.segment) named[segment].resize(segment == next.segment ? next.slot : kv_->slots_per_segment());
  }
  std::map<uint32_t, uint32_t> live;
  for (const auto& [segment, count] : live_) live[segment] = 0;
  Catalog::Cursor chunks = catalog.cursor(Family::chunks, "");
  Expected<bool> found = chunks.first();
  for (; !found || *found; found = chunks.next()) {
    if (!found && !chunks.on_row()) return std::unexpected(std::move(found).error());
    const auto entry = found ? decode_chunk_entry(chunks.value()) : std::nullopt;
    if (!entry) continue;  // whose record it was cannot be told: it is made again
    ++live[entry->segment];
    const auto segment = named.find(entry->segment);
    if (segment != named.end() && entry->slot < segment->second.size()) segment->second[entry->slot] = true;
  }
  std::vector<KvPlace> unnamed;
  for (const auto& [segment, slots] : named) {
    for (uint32_t slot = 0; slot < slots.size(); ++slot)
      if (!slots[slot]) unnamed.push_back({segment, slot});
  }
  entries_.forget_all();
  RECALLD_CHECK(kv_->release(unnamed));
  Catalog::Batch rows(catalog);
  for (const auto& [segment, count] : live) rows.put(Family::counters, segment_key(segment), encode_u32(count));
  RECALLD_CHECK(catalog.write(rows));
  live_ = std::move(live);
  return {};
}

// ---- Erasing

void Encodings::forget(StreamId stream) {
  landmarks_.forget(stream);
  entries_.forget(stream);
}

Expected<bool> Encodings::erase_some(StreamId stream, uint64_t first_chunk, Catalog& catalog, Erased& erased) {
  std::map<uint32_t, uint32_t> live;  // of the segments touched
  std::vector<KvPlace> places;
  std::string last;
  Catalog::Cursor chunks = catalog.cursor(Family::chunks, row_key(stream));
  // A damaged row does not say which record was its own: all records that no chunk names go then.
  bool damaged = false;
  Expected<bool> found = chunks.seek(row_key(stream, first_chunk));
  for (; places.size() < erased_at_once; found = chunks.next()) {
    if (!found && !chunks.on_row()) return std::unexpected(std::move(found).error());
    if (found && !*found) break;
    last = chunks.key();
    const auto entry = found ? decode_chunk_entry(chunks.value()) : std::nullopt;
    damaged = damaged || !entry;
    if (entry) {
      places.push_back({entry->segment, entry->slot});
      const auto known = live_.find(entry->segment);
      uint32_t& count = live.try_emplace(entry->segment, known == live_.end() ? 0 : known->second).first->second;
      if (count > 0) --count;  // it cannot be 0 but for damage, which must not stop an erasure
    }
  }
  if (last.empty()) return false;
  RECALLD_CHECK(kv_->release(places));
  Catalog::Batch rows(catalog);
  for (const auto& [segment, count] : live) rows.put(Family::counters, segment_key(segment), encode_u32(count));
  rows.remove_range(Family::chunks, row_key(stream, first_chunk), last + '\0');
  RECALLD_CHECK(catalog.write(rows));
  entries_.forget(stream);
  for (const auto& [segment, count] : live) live_[segment] = count;
  if (damaged) RECALLD_CHECK(release_unnamed(catalog));
  for (const KvPlace& place : places) {
    Erased::Segment& segment = erased.segments[place.segment];
    ++segment.records;
    segment.bytes += kv_->record_bytes();
  }
  return true;
}

void Encodings::stage_erasure(StreamId stream, uint64_t first_chunk, Catalog::Batch& rows,
                              std::vector<Catalog::Range>& ranges) const {
  const std::string end = row_key(stream + 1);
  const auto remove = [&](Family family, uint64_t first) {
    rows.remove_range(family, row_key(stream, first), end);
    ranges.push_back({family, row_key(stream, first), end});
  };
  remove(Family::landmarks, first_chunk / page_chunks());
  remove(Family::states, first_chunk + 1);
  ranges.push_back({Family::chunks, row_key(stream, first_chunk), end});
}

Expected<void> Encodings::remove_empty_segments(Catalog& catalog) {
  std::vector<uint32_t> empty;
  for (const auto& [segment, count] : live_) {
    if (count == 0 && segment < kv_->next().segment) empty.push_back(segment);
  }
  if (empty.empty()) return {};
  RECALLD_CHECK(kv_->remove(empty));
  Catalog::Batch rows(catalog);
  for (const uint32_t segment : empty) rows.remove(Family::counters, segment_key(segment));
  RECALLD_CHECK(catalog.write(rows));
  for (const uint32_t segment : empty) live_.erase(segment);
  return {};
}

}  // namespace recalld
