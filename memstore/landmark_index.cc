#include "memstore/landmark_index.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "memstore/row_walk.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

size_t in_blocks(size_t bytes) {
  return (bytes + io_alignment - 1) / io_alignment * io_alignment;
}

// The number of the extent that holds this chunk.
size_t extent_of(std::span<const Extent> extents, uint64_t chunk) {
  return static_cast<size_t>(std::ranges::upper_bound(extents, chunk, {}, &Extent::first_chunk) - extents.begin()) - 1;
}

}  // namespace

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
      if (whole.size() != place * landmark_bytes()) return std::unexpected(incomplete("store landmarks", id, page));
      batch.put(Family::landmarks, row_key(id, page), whole += part);
    }
    first += count;
    bytes.remove_prefix(part.size());
  }
  return {};
}

Error LandmarkIndex::incomplete(std::string_view action, StreamId id, uint64_t page) const {
  return {ErrorKind::corrupt, std::string(action) + " of stream " + std::to_string(id) + ": page " +
                                  std::to_string(page) + " is incomplete; run recall verify --repair"};
}

// Reads pages of one stream from disk, fastest when each comes after the one before it.
class LandmarkIndex::PageReader {
 public:
  PageReader(const LandmarkIndex& index, StreamId id)
      : index_(index), id_(id), rows_(index.catalog_.cursor(Family::landmarks, row_key(id))) {}

  // What there is of a page, at most all of it; valid until the next call.
  Expected<std::string_view> read(uint64_t page) {
    const std::string key = row_key(id_, page);
    RECALLD_TRY(bool found, next_ == page ? rows_.next() : rows_.seek(key));
    next_.reset();
    if (found && rows_.key() == key && rows_.value().size() == index_.page_landmarks_ * index_.landmark_bytes()) {
      next_ = page + 1;
      return rows_.value();
    }
    small_rows_.clear();
    while (found && rows_.key().starts_with(key)) {
      small_rows_ += rows_.value();
      RECALLD_TRY(found, rows_.next());
    }
    return small_rows_;
  }

 private:
  const LandmarkIndex& index_;
  const StreamId id_;
  Catalog::Cursor rows_;
  std::optional<uint64_t> next_;  // the page that the row after the cursor's should be of
  std::string small_rows_;
};

Expected<std::vector<Bf16>> LandmarkIndex::landmark(StreamId id, uint64_t chunk) const {
  const uint64_t number = chunk / page_landmarks_;
  const size_t place = chunk % page_landmarks_;
  std::vector<Bf16> landmark(dim_);
  if (const Page page = cached(id, number); page.filled > place) {
    std::memcpy(landmark.data(), page.data->bytes().data() + place * landmark_bytes(), landmark_bytes());
    return landmark;
  }
  PageReader reader(*this, id);
  RECALLD_TRY(const std::string_view bytes, reader.read(number));
  if (bytes.size() < (place + 1) * landmark_bytes())
    return fail(ErrorKind::corrupt, "read the landmark of chunk " + std::to_string(chunk) + " of stream " +
                                        std::to_string(id) + ": it is missing; run recall verify --repair");
  std::memcpy(landmark.data(), bytes.data() + place * landmark_bytes(), landmark_bytes());
  return landmark;
}

void LandmarkIndex::landmarks(std::span<const Extent> extents, uint64_t n, uint64_t first, std::span<Bf16> out,
                              std::vector<Unreadable>& unreadable) const {
  std::optional<PageReader> reader;
  size_t extent = extents.size();  // that it reads
  for (uint64_t chunk = first; !out.empty();) {
    const uint64_t number = chunk / page_landmarks_, begin = number * page_landmarks_;
    const uint64_t there = std::min<uint64_t>(page_landmarks_, n - begin);
    const uint64_t count = std::min<uint64_t>(begin + there - chunk, out.size() / dim_);
    const std::span<Bf16> part = out.first(count * dim_);
    const size_t from = (chunk - begin) * landmark_bytes(), bytes = part.size_bytes();
    const size_t of = extent_of(extents, begin);
    if (const Page page = cached(extents[of].stream, number); page.filled >= there) {
      std::memcpy(part.data(), page.data->bytes().data() + from, bytes);
    } else {
      if (of != extent) reader.emplace(*this, extents[extent = of].stream);
      const Expected<std::string_view> landmarks = reader->read(number);
      if (landmarks && landmarks->size() >= there * landmark_bytes()) {
        std::memcpy(part.data(), landmarks->data() + from, bytes);
      } else {
        constexpr uint16_t not_a_number = 0x7fc0;
        std::ranges::fill(part, Bf16{not_a_number});
        unreadable.push_back(
            {chunk, chunk + count - 1,
             landmarks ? incomplete("read landmarks", extents[of].stream, number).message : landmarks.error().message});
      }
    }
    chunk += count;
    out = out.subspan(part.size());
  }
}

// ---- In RAM

// What is cached of a page; an empty one when nothing is.
LandmarkIndex::Page LandmarkIndex::cached(StreamId id, uint64_t page) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  return found != by_id_.end() && page < found->second->pages.size() ? found->second->pages[page] : Page{};
}

void LandmarkIndex::drop(std::list<CachedStream>::iterator memory) {
  cached_bytes_ -= memory->bytes;
  by_id_.erase(memory->id);
  cached_.erase(memory);
}

LandmarkIndex::Search LandmarkIndex::note_search(StreamId id) {
  Search search{.number = searches_ + 1, .before = searches_};
  const uint64_t oldest = searches_ - std::min<uint64_t>(searches_, searched_.size());
  while (search.before > oldest && searched_[search.before % searched_.size()] != id) --search.before;
  if (search.before == oldest) search.before = 0;
  searched_[search.number % searched_.size()] = id;
  searches_ = search.number;
  if (const auto found = by_id_.find(id); found != by_id_.end()) {
    found->second->last_search = search.number;
    cached_.splice(cached_.begin(), cached_, found->second);
  }
  return search;
}

// Frees streams that have not been searched since the search before this one, least recently searched ones first, but
// nothing of `id` itself: a scan over more than fits would throw out each page just before it needs it again.
bool LandmarkIndex::make_room(StreamId id, Search search, uint64_t bytes) {
  for (auto memory = cached_.end(); cached_bytes_ + bytes > cache_bytes_max_ && memory != cached_.begin();) {
    --memory;
    if (memory->id == id) continue;
    if (memory->last_search != 0 && memory->last_search >= search.before) break;
    const auto after = std::next(memory);
    drop(memory);
    memory = after;
  }
  return cached_bytes_ + bytes <= cache_bytes_max_;
}

// Puts a page in the place of what is cached of it, if there is room.
bool LandmarkIndex::replace(StreamId id, Search search, uint64_t number, Page page) {
  // About what a stream takes in the tables beside its pages: its list node and a hash node.
  constexpr uint64_t stream_bytes = sizeof(CachedStream) + 96;
  const auto found = by_id_.find(id);
  const size_t pages_before = found == by_id_.end() ? 0 : found->second->pages.size();
  const size_t pages = std::max<size_t>(pages_before, number + 1);
  uint64_t added = page.data->bytes().size() + (pages - pages_before) * sizeof(Page);
  if (found == by_id_.end()) added += stream_bytes;
  if (number < pages_before && found->second->pages[number].data)
    added -= found->second->pages[number].data->bytes().size();
  if (!make_room(id, search, added)) return false;

  if (found == by_id_.end()) {
    const auto made = cached_.emplace(search.number > 0 ? cached_.begin() : cached_.end());
    made->id = id;
    made->last_search = search.number;
    by_id_[id] = made;
  }
  CachedStream& memory = *by_id_.at(id);
  memory.pages.reserve(pages);  // no more than is counted
  memory.pages.resize(pages);
  memory.pages[number] = std::move(page);
  memory.bytes += added;
  cached_bytes_ += added;
  return true;
}

void LandmarkIndex::keep(StreamId id, Search search, uint64_t number, std::string_view landmarks) {
  const size_t bytes = in_blocks(landmarks.size());
  const std::lock_guard lock(mutex_);
  if (const auto found = by_id_.find(id); found != by_id_.end() && number < found->second->pages.size() &&
                                          found->second->pages[number].filled * landmark_bytes() >= landmarks.size())
    return;
  if (!make_room(id, search, bytes)) return;  // before it is copied for nothing
  Page page{.data = std::make_shared<AlignedBuffer>(bytes), .filled = landmarks.size() / landmark_bytes()};
  std::memcpy(page.data->bytes().data(), landmarks.data(), landmarks.size());
  replace(id, search, number, std::move(page));
}

void LandmarkIndex::publish(StreamId id, uint64_t first, std::span<const Bf16> landmarks) {
  const std::lock_guard lock(mutex_);
  ByteView bytes = std::as_bytes(landmarks);
  while (!bytes.empty()) {
    const uint64_t number = first / page_landmarks_;
    const size_t place = first % page_landmarks_;
    const size_t count = std::min(page_landmarks_ - place, bytes.size() / landmark_bytes());
    const size_t from = place * landmark_bytes(), size = count * landmark_bytes();
    const auto found = by_id_.find(id);
    Page* known =
        found != by_id_.end() && number < found->second->pages.size() ? &found->second->pages[number] : nullptr;
    if ((known ? known->filled : 0) == place) {
      if (known && known->data && from + size <= known->data->bytes().size()) {
        std::memcpy(known->data->bytes().data() + from, bytes.data(), size);
        known->filled = place + count;
      } else {
        // The last page grows by doubling, so that small memories take little.
        const size_t wanted =
            std::min(std::bit_ceil(std::max(from + size, io_alignment)), in_blocks(page_landmarks_ * landmark_bytes()));
        Page grown{.data = std::make_shared<AlignedBuffer>(wanted), .filled = place + count};
        if (from > 0) std::memcpy(grown.data->bytes().data(), known->data->bytes().data(), from);
        std::memcpy(grown.data->bytes().data() + from, bytes.data(), size);
        replace(id, {}, number, std::move(grown));
      }
    }
    first += count;
    bytes = bytes.subspan(size);
  }
}

void LandmarkIndex::forget(StreamId id) {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_id_.find(id); found != by_id_.end()) drop(found->second);
}

uint64_t LandmarkIndex::cached_bytes() const {
  const std::lock_guard lock(mutex_);
  return cached_bytes_;
}

// ---- The scan

Expected<std::vector<std::vector<ScoredChunk>>> LandmarkIndex::top_k(std::span<const Extent> extents, uint64_t n,
                                                                     std::span<const Bf16> queries, size_t k,
                                                                     WorkerPool& pool,
                                                                     std::vector<Unreadable>& unreadable,
                                                                     const ChunkSet* only) {
  const size_t count = queries.size() / dim_;
  if (n == 0 || k == 0 || count == 0) return std::vector<std::vector<ScoredChunk>>(count);
  std::vector<Page> pages((n + page_landmarks_ - 1) / page_landmarks_);
  std::vector<Search> searches(extents.size());
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < extents.size(); ++i) {
      searches[i] = note_search(extents[i].stream);
      const auto found = by_id_.find(extents[i].stream);
      if (found == by_id_.end()) continue;
      const std::vector<Page>& cached = found->second->pages;
      size_t end = std::min(cached.size(), pages.size());
      if (i + 1 < extents.size()) end = std::min<size_t>(end, extents[i + 1].first_chunk / page_landmarks_);
      for (size_t page = extents[i].first_chunk / page_landmarks_; page < end; ++page) pages[page] = cached[page];
    }
  }
  const auto count_of = [&](uint64_t number) {
    return std::min<uint64_t>(page_landmarks_, n - number * page_landmarks_);
  };
  std::vector<uint64_t> in_ram, on_disk;
  for (uint64_t number = 0; number < pages.size(); ++number) {
    const uint64_t first = number * page_landmarks_;
    if (only != nullptr && !only->any(first, first + count_of(number))) {
      pages[number] = {};
      continue;
    }
    (pages[number].filled < count_of(number) ? on_disk : in_ram).push_back(number);
  }

  struct Worker {
    std::vector<TopK> best;  // by query
    std::vector<float> dots;
    std::vector<Unreadable> unreadable;
  };
  std::vector<Worker> workers(pool.threads(),
                              Worker{std::vector(count, TopK(k)), std::vector<float>(page_landmarks_), {}});
  const auto score = [&](Worker& worker, uint64_t number, const void* landmarks) {
    const uint64_t begin = number * page_landmarks_, behind = begin + count_of(number);
    const auto score_run = [&](uint64_t first, uint64_t end) {
      const Bf16* const from = static_cast<const Bf16*>(landmarks) + (first - begin) * dim_;
      for (size_t query = 0; query < count; ++query) {
        landmark_dots_cpu(queries.subspan(query * dim_, dim_), from, end - first, worker.dots.data());
        for (uint64_t chunk = first; chunk < end; ++chunk)
          worker.best[query].offer({chunk, worker.dots[chunk - first]});
      }
    };
    if (only == nullptr) return score_run(begin, behind);
    for (uint64_t first = only->first_in(begin, behind); first < behind;) {
      const uint64_t end = only->first_out(first, behind);
      score_run(first, end);
      first = only->first_in(end, behind);
    }
  };
  const auto read_and_score = [&](Worker& worker, std::span<const uint64_t> numbers) {
    std::optional<PageReader> reader;
    size_t extent = extents.size();  // that it reads
    for (const uint64_t number : numbers) {
      if (const size_t of = extent_of(extents, number * page_landmarks_); of != extent)
        reader.emplace(*this, extents[extent = of].stream);
      const StreamId stream = extents[extent].stream;
      const Expected<std::string_view> landmarks = reader->read(number);
      if (!landmarks || landmarks->size() < count_of(number) * landmark_bytes()) {
        const uint64_t first = number * page_landmarks_;
        worker.unreadable.push_back(
            {first, first + count_of(number) - 1,
             landmarks ? incomplete("scan landmarks", stream, number).message : landmarks.error().message});
        continue;
      }
      score(worker, number, landmarks->data());
      keep(stream, searches[extent], number, *landmarks);
    }
  };

  // Each reader takes pages that follow each other on disk. They begin first, and the other workers score meanwhile
  // what is in RAM.
  const size_t readers = std::min({pool.threads(), scan_readers_max, on_disk.size()});
  pool.run(readers + in_ram.size(), [&](size_t task, size_t worker) {
    Worker& mine = workers[worker];
    if (task >= readers) {
      const uint64_t number = in_ram[task - readers];
      score(mine, number, pages[number].data->bytes().data());
      pages[number] = {};
      return;
    }
    const size_t from = on_disk.size() * task / readers, to = on_disk.size() * (task + 1) / readers;
    read_and_score(mine, std::span(on_disk).subspan(from, to - from));
  });

  for (Worker& worker : workers) std::ranges::move(worker.unreadable, std::back_inserter(unreadable));
  std::ranges::sort(unreadable, {}, &Unreadable::first);
  std::vector<std::vector<ScoredChunk>> best(count);
  for (size_t query = 0; query < count; ++query) {
    TopK of_all(k);
    for (Worker& worker : workers)
      for (const ScoredChunk& chunk : worker.best[query].take()) of_all.offer(chunk);
    best[query] = of_all.take();
  }
  return best;
}

// ---- Verifying and mending

LandmarkIndex::Read LandmarkIndex::read(StreamId id, uint64_t first, uint64_t end, bool keep_bytes) const {
  Read read;
  const size_t bytes = landmark_bytes(), page_bytes = page_landmarks_ * bytes;
  read.there.resize((end - first) * page_landmarks_);
  read.causes.resize(end - first);
  read.filled.resize(end - first);
  if (keep_bytes) read.bytes.resize((end - first) * page_bytes);
  const auto blame = [&](uint64_t page, std::string cause) {
    if (read.causes[page - first].empty()) read.causes[page - first] = std::move(cause);
  };
  // What load() would take: the whole row, or small ones that follow each other.
  const auto take = [&](uint64_t page, size_t place, std::string_view landmarks) {
    const size_t count = std::min(landmarks.size() / bytes, page_landmarks_ - place);
    const size_t at = (page - first) * page_landmarks_ + place;
    std::fill_n(read.there.begin() + static_cast<ptrdiff_t>(at), count, 1);
    if (keep_bytes) landmarks.copy(read.bytes.data() + at * bytes, count * bytes);
    read.filled[page - first] = place + landmarks.size() / bytes;
  };
  walk_rows(
      catalog_, Family::landmarks, id, first, end,
      [&](uint64_t page, std::string_view key, const Expected<std::string_view>& value) {
        const bool small = key.size() != row_key(0, 0).size();
        if (!value) {
          blame(page, "a row of its page does not match its checksum");
          return true;
        }
        read.read_bytes += value->size();
        if (small && read.filled[page - first] == page_landmarks_) return true;  // replaced by the whole row
        const uint64_t place = !small || key.size() < 20 ? 0
                                                         : uint64_t{static_cast<uint8_t>(key[16])} << 24 |
                                                               uint64_t{static_cast<uint8_t>(key[17])} << 16 |
                                                               uint64_t{static_cast<uint8_t>(key[18])} << 8 |
                                                               uint64_t{static_cast<uint8_t>(key[19])};
        const bool fits = value->size() % bytes == 0 && !value->empty() &&
                          place + value->size() / bytes <= page_landmarks_ && (small || value->size() == page_bytes);
        if (fits)
          take(page, place, *value);
        else
          blame(page, "a row of its page has the wrong size");
        return true;
      },
      [&](uint64_t page, const Error& error) {
        blame(page, "its page cannot be read: " + error.message);
        return page + 1;
      });
  return read;
}

std::vector<LandmarkIndex::Lost> LandmarkIndex::check(StreamId id, uint64_t first, uint64_t end, bool last_page,
                                                      uint64_t& bytes) const {
  const uint64_t first_page = first / page_landmarks_, end_page = (end + page_landmarks_ - 1) / page_landmarks_;
  const Read read = this->read(id, first_page, end_page, false);
  bytes += read.read_bytes;
  std::vector<Lost> lost;
  for (uint64_t page = first_page; page < end_page; ++page) {
    const uint64_t begin = page * page_landmarks_, until = std::min(end, begin + page_landmarks_);
    const std::string& cause = read.causes[page - first_page];
    const size_t lost_before = lost.size();
    for (uint64_t chunk = begin; chunk < until; ++chunk) {
      if (!read.there[chunk - first]) lost.push_back({chunk, cause.empty() ? "it is missing in its page" : cause});
    }
    // A page of which a needless row is damaged, or which has more than there are chunks, is written anew too.
    const bool more = last_page && until == end && read.filled[page - first_page] > until - begin;
    if (lost.size() == lost_before && (!cause.empty() || more))
      lost.push_back({until - 1, cause.empty() ? "its page has landmarks of more chunks than there are" : cause});
  }
  return lost;
}

Expected<void> LandmarkIndex::stage_again(StreamId id, uint64_t page, uint64_t n,
                                          const std::map<uint64_t, std::span<const Bf16>>& made,
                                          Catalog::Batch& batch) const {
  Read read = this->read(id, page, page + 1, true);
  const uint64_t begin = page * page_landmarks_, count = std::min<uint64_t>(page_landmarks_, n - begin);
  for (uint64_t place = 0; place < count; ++place) {
    if (const auto again = made.find(begin + place); again != made.end())
      as_text(std::as_bytes(again->second)).copy(read.bytes.data() + place * landmark_bytes(), landmark_bytes());
    else if (!read.there[place])
      return fail(ErrorKind::corrupt, "mend landmarks of stream " + std::to_string(id) + ": that of chunk " +
                                          std::to_string(begin + place) +
                                          " cannot be read either; run recall verify --repair again");
  }
  read.bytes.resize(count * landmark_bytes());
  batch.remove_range(Family::landmarks, row_key(id, page), row_key(id, page + 1));
  batch.put(Family::landmarks, count == page_landmarks_ ? row_key(id, page) : row_key(id, page, 0), read.bytes);
  return {};
}

}  // namespace recalld
