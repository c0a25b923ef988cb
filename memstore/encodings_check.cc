// Checking the encodings: whether entries, K/V, landmarks, states and segments are all there and fit each other.
#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "memstore/encodings.h"
#include "memstore/row_walk.h"
#include "memstore/rows.h"

namespace recalld {

Encodings::Checked Encodings::check(MemoryId id, const Generation& of, uint64_t first, uint64_t end) const {
  Checked checked;
  const Extent extent = of.layout.extent_of(first);
  const bool last_extent = extent == of.layout.extents.back();
  const bool whole = last_extent && end == of.encoding.chunks;
  // Neighbours with one cause are one problem.
  const auto report = [&](std::string_view part, uint64_t number, const std::string& cause) {
    if (!checked.problems.empty()) {
      Problem& before = checked.problems.back();
      if (before.part == part && before.message == cause && before.last + 1 >= number) {
        before.last = std::max(before.last, number);
        return;
      }
    }
    checked.problems.push_back(
        {.part = std::string(part), .first = number, .last = number, .message = cause, .repairable = true});
  };
  const auto stray = [&](std::string_view part, uint64_t number) {
    checked.lost.strays = true;
    report(part, number, "its row stands behind the memory's last encoded chunk");
  };

  // Entries.
  std::vector<std::optional<ChunkEntry>> entries(end - first);
  std::vector<std::string> causes(end - first, "its row is missing");
  walk_rows(
      catalog_, Family::chunks, extent.stream, first, whole ? UINT64_MAX : end,
      [&](uint64_t chunk, std::string_view key, const Expected<std::string_view>& value) {
        if (chunk >= end) {
          stray("chunk", chunk);
          return false;
        }
        auto entry = value && key.size() == row_key(0, 0).size() ? decode_chunk_entry(*value) : std::nullopt;
        const bool stale = entry && (last_extent ? entry->generation != of.encoding.generation
                                                 : entry->generation > of.encoding.generation);
        if (value) checked.bytes += value->size();
        if (entry && !stale)
          entries[chunk - first] = *entry;
        else
          causes[chunk - first] = stale   ? "its row is of another generation"
                                  : value ? "its row is no entry of a chunk"
                                          : "its row does not match its checksum";
        return true;
      },
      [&](uint64_t chunk, const Error& error) {
        if (chunk < end) causes[chunk - first] = "its row cannot be read: " + error.message;
        return chunk < end ? chunk + 1 : UINT64_MAX;
      });
  std::vector<uint64_t> chunks;
  std::vector<KvPlace> places;
  for (uint64_t chunk = first; chunk < end; ++chunk) {
    if (const auto& entry = entries[chunk - first]) {
      chunks.push_back(chunk);
      places.push_back({entry->segment, entry->slot});
    } else {
      report("chunk", chunk, causes[chunk - first]);
      checked.lost.chunks.push_back(chunk);
    }
  }

  // K/V.
  constexpr size_t records_at_once = 64;
  std::vector<std::byte> records(std::min(records_at_once, places.size()) * shape_.kv_bytes);
  for (size_t from = 0; from < places.size(); from += records_at_once) {
    const size_t count = std::min(records_at_once, places.size() - from);
    std::vector<std::string> failures(count);
    kv_->read(std::span(places).subspan(from, count), std::span(records).first(count * shape_.kv_bytes),
              [&](uint64_t i, const Expected<void>& read) {
                if (!read) failures[i] = read.error().message;
              });
    for (size_t i = 0; i < count; ++i) {
      const uint64_t chunk = chunks[from + i];
      const ChunkEntry& entry = *entries[chunk - first];
      if (failures[i].empty()) {
        checked.bytes += shape_.kv_bytes;
        const ByteView record = std::span(records).subspan(i * shape_.kv_bytes, shape_.kv_bytes);
        if (record_crc(id, chunk, shape_.model, entry.generation, record) == entry.crc32c) continue;
        failures[i] = "the record in " + segment_name(entry.segment) + " does not match its checksum";
      }
      report("kv", chunk, failures[i]);
      checked.lost.chunks.push_back(chunk);
    }
  }
  std::ranges::sort(checked.lost.chunks);
  checked.chunks = end - first;

  // Landmarks.
  for (const LandmarkIndex::Lost& lost : landmarks_.check(extent.stream, first, end, whole, checked.bytes)) {
    report("landmark", lost.chunk, lost.cause);
    checked.lost.landmarks.push_back(lost.chunk);
  }
  if (whole) {
    const uint64_t page = (end + page_chunks() - 1) / page_chunks();
    walk_rows(
        catalog_, Family::landmarks, extent.stream, page, UINT64_MAX,
        [&](uint64_t number, std::string_view, const Expected<std::string_view>&) {
          stray("landmark", number * page_chunks());
          return false;
        },
        [](uint64_t, const Error&) { return UINT64_MAX; });
  }

  // States: those kept for good, and the newest.
  std::map<uint64_t, std::string> wanted;  // and what is wrong with each
  for (uint64_t after = (first / kept_state_chunks + 1) * kept_state_chunks; after <= end; after += kept_state_chunks)
    wanted.emplace(after, "it is missing");
  if (const uint64_t newest = of.encoding.state_chunks; newest > first && newest <= end)
    wanted.emplace(newest, "it is missing");
  walk_rows(
      catalog_, Family::states, extent.stream, first + 1, whole ? UINT64_MAX : end + 1,
      [&](uint64_t after, std::string_view, const Expected<std::string_view>& value) {
        if (after > end) {
          stray("state", after);
          return false;
        }
        ++checked.states;
        if (value) checked.bytes += value->size();
        if (value && value->size() == shape_.state_bytes) {
          wanted.erase(after);
          return true;
        }
        const std::string cause = value ? "its row has the wrong size" : "its row does not match its checksum";
        if (const auto found = wanted.find(after); found != wanted.end()) {
          found->second = cause;
        } else {
          report("state", after, cause);
          checked.lost.needless.push_back(after);
        }
        return true;
      },
      [&](uint64_t after, const Error& error) {
        const auto next = wanted.lower_bound(after);
        if (next == wanted.end()) return UINT64_MAX;
        next->second = "it cannot be read: " + error.message;
        return next->first + 1;
      });
  for (const auto& [after, cause] : wanted) {
    report("state", after, cause);
    checked.lost.states.push_back(after);
  }
  return checked;
}

std::vector<Problem> Encodings::check_segments() const {
  std::vector<Problem> problems;
  for (const auto& [segment, count] : live_) {
    if (count == 0) continue;
    const auto whole = kv_->check(segment);
    if (!whole)
      problems.push_back(
          {.part = "segment", .first = segment, .last = segment, .message = whole.error().message, .repairable = true});
  }
  return problems;
}

}  // namespace recalld
