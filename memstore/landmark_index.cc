#include "memstore/landmark_index.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "memstore/rows.h"

namespace recalld {

LandmarkIndex::LandmarkIndex(const Catalog& catalog, uint32_t dim, uint64_t cache_bytes)
    : catalog_(catalog),
      dim_(dim),
      page_landmarks_(std::max<size_t>(1, landmark_page_bytes / landmark_bytes())),
      cache_bytes_max_(cache_bytes) {}

// ---- On disk: whole pages, and the last one in small rows

Expected<void> LandmarkIndex::stage(StreamId id, uint64_t first, std::span<const Bf16> landmarks,
                                    Catalog::Batch& batch) const {
  std::string_view bytes = as_text(std::as_bytes(landmarks));
  while (!bytes.empty()) {
    const uint64_t page = first / page_landmarks_;
    const size_t place = first % page_landmarks_;
    const size_t count = std::min(page_landmarks_ - place, bytes.size() / landmark_bytes());
    const std::string_view part = bytes.substr(0, count * landmark_bytes());
    if (place + count < page_landmarks_) {
      batch.put(Family::landmarks, row_key(id, page, static_cast<uint32_t>(place)), part);
    } else {
      std::string whole;
      Catalog::Cursor rows = catalog_.cursor(Family::landmarks, row_key(id, page));
      RECALLD_TRY(bool found, rows.first());
      while (found) {
        whole += rows.value();
        batch.remove(Family::landmarks, rows.key());
        RECALLD_TRY(found, rows.next());
      }
      if (whole.size() != place * landmark_bytes())
        return fail(ErrorKind::corrupt, "store landmarks of stream " + std::to_string(id) + ": page " +
                                            std::to_string(page) + " is incomplete; run recall verify --repair");
      batch.put(Family::landmarks, row_key(id, page), whole += part);
    }
    first += count;
    bytes.remove_prefix(part.size());
  }
  return {};
}

// Reads what there is of a page, at most all of it.
Expected<LandmarkIndex::Page> LandmarkIndex::load(StreamId id, uint64_t page) const {
  Page loaded;
  std::string small_rows;
  Catalog::Cursor rows = catalog_.cursor(Family::landmarks, row_key(id, page));
  RECALLD_TRY(bool found, rows.first());
  const auto fill = [&](std::string_view bytes) {
    loaded.filled = bytes.size() / landmark_bytes();
    const size_t capacity = (bytes.size() + io_alignment - 1) / io_alignment * io_alignment;
    loaded.data = std::make_shared<AlignedBuffer>(capacity);
    std::memcpy(loaded.data->bytes().data(), bytes.data(), loaded.filled * landmark_bytes());
  };
  if (found && rows.value().size() == page_landmarks_ * landmark_bytes()) {
    fill(rows.value());
    return loaded;
  }
  while (found) {
    small_rows += rows.value();
    RECALLD_TRY(found, rows.next());
  }
  fill(small_rows);
  return loaded;
}

Expected<std::vector<Bf16>> LandmarkIndex::landmark(StreamId id, uint64_t chunk) const {
  const uint64_t number = chunk / page_landmarks_;
  const size_t place = chunk % page_landmarks_;
  Page page;
  {
    const std::lock_guard lock(mutex_);
    const auto memory = cached_.find(id);
    if (memory != cached_.end() && number < memory->second.pages.size()) page = memory->second.pages[number];
  }
  if (page.filled <= place) {
    RECALLD_TRY(page, load(id, number));
  }
  if (page.filled <= place)
    return fail(ErrorKind::corrupt, "read the landmark of chunk " + std::to_string(chunk) + " of stream " +
                                        std::to_string(id) + ": it is missing; run recall verify --repair");
  std::vector<Bf16> landmark(dim_);
  std::memcpy(landmark.data(), page.data->bytes().data() + place * landmark_bytes(), landmark_bytes());
  return landmark;
}

// ---- In RAM

// Frees pages of the memories that were used least recently, but none of `id` itself: a scan over more than fits would
// throw out each page just before it needs it again.
bool LandmarkIndex::make_room(StreamId id, uint64_t bytes) {
  while (cached_bytes_ + bytes > cache_bytes_max_) {
    auto oldest = cached_.end();
    for (auto memory = cached_.begin(); memory != cached_.end(); ++memory) {
      if (memory->first == id || memory->second.bytes == 0) continue;
      if (oldest == cached_.end() || memory->second.last_use < oldest->second.last_use) oldest = memory;
    }
    if (oldest == cached_.end()) return false;
    cached_bytes_ -= oldest->second.bytes;
    cached_.erase(oldest);
  }
  return true;
}

void LandmarkIndex::keep(StreamId id, uint64_t number, Page page) {
  const std::lock_guard lock(mutex_);
  const auto memory = cached_.find(id);
  if (memory == cached_.end()) return;  // forgotten meanwhile
  auto& pages = memory->second.pages;
  if (number >= pages.size()) pages.resize(number + 1);
  if (pages[number].filled >= page.filled) return;
  const uint64_t bytes = page.data->bytes().size();
  if (!make_room(id, bytes)) return;
  const uint64_t bytes_before = pages[number].data ? pages[number].data->bytes().size() : 0;
  memory->second.bytes = memory->second.bytes - bytes_before + bytes;
  cached_bytes_ = cached_bytes_ - bytes_before + bytes;
  pages[number] = std::move(page);
}

void LandmarkIndex::publish(StreamId id, uint64_t first, std::span<const Bf16> landmarks) {
  const std::lock_guard lock(mutex_);
  CachedStream& memory = cached_[id];
  memory.last_use = ++uses_;
  ByteView bytes = std::as_bytes(landmarks);
  while (!bytes.empty()) {
    const uint64_t number = first / page_landmarks_;
    const size_t place = first % page_landmarks_;
    const size_t count = std::min(page_landmarks_ - place, bytes.size() / landmark_bytes());
    const size_t from = place * landmark_bytes(), size = count * landmark_bytes();
    if (number >= memory.pages.size()) memory.pages.resize(number + 1);
    Page& page = memory.pages[number];
    if (page.filled == place) {
      // The last page grows by doubling, so that small memories take little.
      const size_t capacity = page.data ? page.data->bytes().size() : 0;
      const size_t wanted =
          std::min(std::bit_ceil(std::max(from + size, io_alignment)),
                   (page_landmarks_ * landmark_bytes() + io_alignment - 1) / io_alignment * io_alignment);
      const bool fits = from + size <= capacity;
      if (fits || make_room(id, wanted - capacity)) {
        if (!fits) {
          auto grown = std::make_shared<AlignedBuffer>(wanted);
          if (page.data) std::memcpy(grown->bytes().data(), page.data->bytes().data(), from);
          page.data = std::move(grown);
          memory.bytes += wanted - capacity;
          cached_bytes_ += wanted - capacity;
        }
        std::memcpy(page.data->bytes().data() + from, bytes.data(), size);
        page.filled = place + count;
      }
    }
    first += count;
    bytes = bytes.subspan(size);
  }
}

void LandmarkIndex::forget(StreamId id) {
  const std::lock_guard lock(mutex_);
  const auto memory = cached_.find(id);
  if (memory == cached_.end()) return;
  cached_bytes_ -= memory->second.bytes;
  cached_.erase(memory);
}

uint64_t LandmarkIndex::cached_bytes() const {
  const std::lock_guard lock(mutex_);
  return cached_bytes_;
}

// ---- The scan

Expected<std::vector<ScoredChunk>> LandmarkIndex::top_k(std::span<const Extent> extents, uint64_t n,
                                                        std::span<const Bf16> query, size_t k, WorkerPool& pool) {
  if (n == 0 || k == 0) return std::vector<ScoredChunk>();
  std::vector<Page> pages((n + page_landmarks_ - 1) / page_landmarks_);
  std::vector<StreamId> streams(pages.size());
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < extents.size(); ++i) {
      CachedStream& cached = cached_[extents[i].stream];
      cached.last_use = ++uses_;
      const size_t end = i + 1 < extents.size()
                             ? std::min<size_t>(pages.size(), extents[i + 1].first_chunk / page_landmarks_)
                             : pages.size();
      for (size_t page = extents[i].first_chunk / page_landmarks_; page < end; ++page) {
        streams[page] = extents[i].stream;
        if (page < cached.pages.size()) pages[page] = cached.pages[page];
      }
    }
  }

  struct Worker {
    TopK best;
    std::vector<float> dots;
    std::optional<Error> error;
  };
  std::vector<Worker> workers(pool.threads(), Worker{TopK(k), std::vector<float>(page_landmarks_), std::nullopt});
  pool.run(pages.size(), [&](size_t number, size_t worker) {
    Worker& mine = workers[worker];
    if (mine.error) return;
    const uint64_t first = number * page_landmarks_;
    const size_t count = std::min<uint64_t>(page_landmarks_, n - first);
    Page page = std::move(pages[number]);
    if (page.filled < count) {
      auto loaded = load(streams[number], number);
      if (!loaded || loaded->filled < count) {
        mine.error = loaded ? Error{ErrorKind::corrupt, "scan landmarks of stream " + std::to_string(streams[number]) +
                                                            ": page " + std::to_string(number) +
                                                            " is incomplete; run recall verify --repair"}
                            : std::move(loaded).error();
        return;
      }
      page = *std::move(loaded);
      keep(streams[number], number, page);
    }
    const auto* landmarks = reinterpret_cast<const Bf16*>(page.data->bytes().data());
    landmark_dots_cpu(query, landmarks, count, mine.dots.data());
    for (size_t i = 0; i < count; ++i) mine.best.offer({first + i, mine.dots[i]});
  });

  TopK best(k);
  for (Worker& worker : workers) {
    if (worker.error) return std::unexpected(*std::move(worker.error));
    for (const ScoredChunk& chunk : worker.best.take()) best.offer(chunk);
  }
  return best.take();
}

}  // namespace recalld
