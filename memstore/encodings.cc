#include "memstore/encodings.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "base/crc32c.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

constexpr uint64_t kept_state_chunks = 1024;  // a state at a multiple of it is kept for good
constexpr size_t erased_at_once = 4096;       // records given back at a time

Error damaged_counter(std::string_view what) {
  return {ErrorKind::corrupt,
          "open store: the row of " + std::string(what) + " is not one; restore the store from a backup"};
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

std::string chunk_of(MemoryId id, uint64_t chunk) {
  return "chunk " + std::to_string(chunk) + " of memory " + std::to_string(id);
}

}  // namespace

Encodings::Encodings(const Catalog& catalog, const RecordShape& shape, uint64_t landmark_cache_bytes)
    : catalog_(catalog), shape_(shape), landmarks_(catalog, shape.landmark_dim, landmark_cache_bytes) {}

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
  for (const uint32_t segment : segments) live_.try_emplace(segment, 0);
  return {};
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

Expected<void> Encodings::fetch(MemoryId id, const Generation& of, std::span<const uint64_t> chunks,
                                ByteSpan out) const {
  assert(out.size() == chunks.size() * shape_.kv_bytes);
  std::vector<ChunkEntry> entries;
  std::vector<KvPlace> places;
  for (const uint64_t number : chunks) {
    RECALLD_TRY(const ChunkEntry entry, chunk(id, of, number));
    entries.push_back(entry);
    places.push_back({entry.segment, entry.slot});
  }
  RECALLD_CHECK(kv_->read(places, out));
  for (size_t i = 0; i < chunks.size(); ++i) {
    const ByteSpan record = out.subspan(i * shape_.kv_bytes, shape_.kv_bytes);
    if (record_crc(id, chunks[i], shape_.model, entries[i].generation, record) == entries[i].crc32c) continue;
    return fail(ErrorKind::corrupt, "read " + chunk_of(id, chunks[i]) + " in " + segment_name(entries[i].segment) +
                                        ", record " + std::to_string(entries[i].slot) +
                                        ": checksum mismatch; run recall verify --repair");
  }
  return {};
}

Expected<std::vector<Bf16>> Encodings::landmark(MemoryId id, const Generation& of, uint64_t chunk) const {
  RECALLD_CHECK(this->chunk(id, of, chunk));
  return landmarks_.landmark(of.layout.extent_of(chunk).stream, chunk);
}

Expected<std::vector<ScoredChunk>> Encodings::top_k(const Generation& of, std::span<const Bf16> query, size_t k,
                                                    WorkerPool& pool) {
  return landmarks_.top_k(of.layout.extents, of.encoding.chunks, query, k, pool);
}

Expected<std::optional<StateCheckpoint>> Encodings::state(const Generation& of, uint64_t chunks_max) const {
  // A state lies in the extent of the last chunk that it covers.
  for (size_t i = of.layout.extents.size(); i-- > 0;) {
    const Extent& extent = of.layout.extents[i];
    if (extent.first_chunk >= chunks_max) continue;
    Catalog::Cursor rows = catalog_.cursor(Family::states, row_key(extent.stream));
    const uint64_t last = std::min(chunks_max, of.layout.end_of(extent));
    RECALLD_TRY(const bool found, rows.seek_before(row_key(extent.stream, last)));
    if (!found || number_of(rows.key()) <= extent.first_chunk) continue;
    return checked_state(extent.stream, rows);
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

Expected<Encodings::Written> Encodings::write(std::span<const EncodedChunkView> chunks) {
  Written written{.chunks = chunks, .places = {}, .live = {}, .landmarks = {}};
  std::vector<ByteView> records;
  written.landmarks.reserve(chunks.size() * shape_.landmark_dim);
  for (const EncodedChunkView& chunk : chunks) {
    assert(chunk.kv.size() == shape_.kv_bytes && chunk.landmark.size() == shape_.landmark_dim);
    records.push_back(chunk.kv);
    written.landmarks.insert(written.landmarks.end(), chunk.landmark.begin(), chunk.landmark.end());
  }
  RECALLD_TRY(written.places, kv_->append(records));
  return written;
}

Expected<void> Encodings::stage(MemoryId id, Generation& to, Written& written, std::optional<ByteView> state_after,
                                Catalog::Batch& rows) const {
  written.stream = to.stream();
  written.first_chunk = to.encoding.chunks;
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
  RECALLD_CHECK(landmarks_.stage(written.stream, written.first_chunk, written.landmarks, rows));
  to.encoding.chunks += written.chunks.size();
  if (state_after) stage_state(to, to.encoding.chunks, *state_after, rows);
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

// ---- Erasing

Expected<bool> Encodings::erase_some(StreamId stream, uint64_t first_chunk, Catalog& catalog, Erased& erased) {
  std::map<uint32_t, uint32_t> live;  // of the segments touched
  std::vector<KvPlace> places;
  std::string last;
  Catalog::Cursor chunks = catalog.cursor(Family::chunks, row_key(stream));
  RECALLD_TRY(bool found, chunks.seek(row_key(stream, first_chunk)));
  for (; found && places.size() < erased_at_once;) {
    last = chunks.key();
    if (const auto entry = decode_chunk_entry(chunks.value())) {
      places.push_back({entry->segment, entry->slot});
      const auto known = live_.find(entry->segment);
      uint32_t& count = live.try_emplace(entry->segment, known == live_.end() ? 0 : known->second).first->second;
      if (count > 0) --count;  // it cannot be 0 but for damage, which must not stop an erasure
    }
    RECALLD_TRY(found, chunks.next());
  }
  if (last.empty()) return false;
  RECALLD_CHECK(kv_->release(places));
  Catalog::Batch rows(catalog);
  for (const auto& [segment, count] : live) rows.put(Family::counters, segment_key(segment), encode_u32(count));
  rows.remove_range(Family::chunks, row_key(stream, first_chunk), last + '\0');
  RECALLD_CHECK(catalog.write(rows));
  for (const auto& [segment, count] : live) live_[segment] = count;
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
    ranges.push_back({family, row_key(stream, first), end, true});
  };
  remove(Family::landmarks, first_chunk / page_chunks());
  remove(Family::states, first_chunk + 1);
  ranges.push_back({Family::chunks, row_key(stream, first_chunk), end, true});
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
