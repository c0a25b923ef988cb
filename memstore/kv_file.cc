#include "memstore/kv_file.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <cassert>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

namespace recalld {
namespace {

constexpr size_t open_segments_max = 512;  // in the table; calls that go on may hold a few more

// Bytes of records that one call copies at a time, to write them or as they were read. A FileIo lends registered
// buffers of this size.
constexpr size_t slice_bytes = size_t{512} << 10;

constexpr std::string_view segment_suffix = ".seg";

std::optional<uint32_t> segment_number(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  uint32_t segment = 0;
  std::from_chars(name.data(), name.data() + name.size(), segment);
  if (name != segment_name(segment)) return std::nullopt;
  return segment;
}

// A segment that is missing or too short for what the catalog says cannot be mended here.
std::unexpected<Error> damaged(Error error) {
  if (error.kind == ErrorKind::not_found) error.kind = ErrorKind::corrupt;
  if (error.kind == ErrorKind::corrupt) error.message += "; run `recall verify`";
  return std::unexpected(std::move(error));
}

}  // namespace

std::string segment_name(uint32_t segment) {
  const std::string digits = std::to_string(segment);
  return std::string(6 - std::min<size_t>(6, digits.size()), '0').append(digits).append(segment_suffix);
}

// A segment's file, closed with the last call that uses it.
class KvFile::OpenSegment {
 public:
  OpenSegment(FileIo& io, int file) : io_(io), file_(file) {}
  ~OpenSegment() { io_.close(file_); }
  OpenSegment(const OpenSegment&) = delete;
  OpenSegment& operator=(const OpenSegment&) = delete;

  int file() const { return file_; }

 private:
  FileIo& io_;
  const int file_;
};

KvFile::KvFile(std::filesystem::path directory, uint32_t kv_bytes, std::unique_ptr<FileIo> io, KvPlace next,
               uint64_t segment_bytes)
    : directory_(std::move(directory)),
      kv_bytes_(kv_bytes),
      record_bytes_((kv_bytes + io_alignment - 1) / io_alignment * io_alignment),
      slots_per_segment_(std::max<uint64_t>(1, segment_bytes / record_bytes_)),
      slice_records_(std::max<size_t>(1, slice_bytes / record_bytes_)),
      io_(std::move(io)),
      next_(next.slot < slots_per_segment_ ? next : KvPlace{next.segment + 1, 0}) {}

Expected<std::unique_ptr<KvFile>> KvFile::open(std::filesystem::path directory, uint32_t kv_bytes,
                                               std::unique_ptr<FileIo> io, KvPlace next, uint64_t segment_bytes) {
  assert(kv_bytes > 0);
  std::unique_ptr<KvFile> file(new KvFile(std::move(directory), kv_bytes, std::move(io), next, segment_bytes));
  RECALLD_CHECK(file->io_->make_directory(file->directory_));
  RECALLD_TRY(const std::vector<uint32_t> segments, file->segments());
  // Where the segment that was being filled is gone, the next one is begun: what it held is damage, and no reason to
  // store nothing any more.
  if (file->next_.slot > 0 && std::ranges::find(segments, file->next_.segment) == segments.end())
    file->next_ = {file->next_.segment + 1, 0};
  const uint32_t first_leftover = file->next_.segment + (file->next_.slot > 0 ? 1 : 0);
  for (const uint32_t segment : segments) {
    if (segment >= first_leftover) RECALLD_CHECK(file->io_->remove(file->path(segment)));
  }
  // A segment that is damaged must not keep the others from being read.
  if (const auto emptied = file->empty_tail(); !emptied)
    spdlog::error("empty the end of {}: {} (tried again at the next start)", segment_name(file->next_.segment),
                  emptied.error().message);
  return file;
}

// Makes a hole of what follows the last record. An append that a crash broke off may have left records there, which no
// erasure of their memory would find.
Expected<void> KvFile::empty_tail() {
  if (next_.slot == 0) return {};
  const Expected<std::shared_ptr<OpenSegment>> segment = open_segment(next_.segment);
  if (!segment) return std::unexpected(segment.error());
  const int handle = (*segment)->file();
  RECALLD_CHECK(io_->punch(handle, offset(next_.slot), offset(slots_per_segment_) - offset(next_.slot)));
  return io_->sync(handle);
}

KvPlace KvFile::next() const {
  const std::lock_guard lock(mutex_);
  return next_;
}

Expected<std::vector<KvPlace>> KvFile::append(std::span<const ByteView> records) {
  KvPlace end = next();
  std::vector<KvPlace> places;
  places.reserve(records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    places.push_back(end);
    end = end.slot + 1 < slots_per_segment_ ? KvPlace{end.segment, end.slot + 1} : KvPlace{end.segment + 1, 0};
  }

  {
    const std::lock_guard lock(mutex_);
    tail_dirty_ = true;
  }
  std::vector<std::shared_ptr<OpenSegment>> touched;
  const AlignedBuffer buffer(std::min(slice_records_, records.size()) * record_bytes_);
  for (size_t first = 0; first < records.size();) {
    const KvPlace place = places[first];
    if (touched.empty() || place.slot == 0) {
      RECALLD_TRY(std::shared_ptr<OpenSegment> segment, segment_to_append(place));
      touched.push_back(std::move(segment));
    }
    const size_t count = std::min({slice_records_, records.size() - first, size_t{slots_per_segment_ - place.slot}});
    const ByteSpan slice = buffer.bytes().first(count * record_bytes_);
    for (size_t i = 0; i < count; ++i) {
      assert(records[first + i].size() == kv_bytes_);
      const ByteSpan record = slice.subspan(i * record_bytes_, record_bytes_);
      std::ranges::copy(records[first + i], record.begin());
      std::ranges::fill(record.subspan(kv_bytes_), std::byte{0});
    }
    const FileWrite write{touched.back()->file(), offset(place.slot), slice};
    RECALLD_CHECK(io_->write({&write, 1}));
    first += count;
  }
  for (const auto& segment : touched) RECALLD_CHECK(io_->sync(segment->file()));

  const std::lock_guard lock(mutex_);
  next_ = end;
  tail_dirty_ = false;
  return places;
}

Expected<void> KvFile::clean_tail() {
  const KvPlace next = this->next();
  {
    const std::lock_guard lock(mutex_);
    if (!tail_dirty_) return {};
  }
  RECALLD_TRY(const std::vector<uint32_t> numbers, segments());
  for (const uint32_t segment : numbers) {
    if (segment < next.segment || (segment == next.segment && next.slot > 0)) continue;
    RECALLD_CHECK(io_->remove(path(segment)));
    const std::lock_guard lock(mutex_);
    open_.erase(segment);
  }
  RECALLD_CHECK(empty_tail());
  const std::lock_guard lock(mutex_);
  tail_dirty_ = false;
  return {};
}

void KvFile::stream(const NextKvRead& next, const ReadDone& done, const ReadWait& wait) const {
  struct Reading {
    uint64_t tag = 0;
    std::shared_ptr<OpenSegment> segment;
    ByteSpan into;
    ByteSpan copied_from;  // empty: `into` itself was read into
  };
  std::vector<Reading> readings(reads_in_flight_max);
  std::vector<size_t> free_readings;  // the numbers of those not in flight
  for (size_t i = 0; i < readings.size(); ++i) free_readings.push_back(i);
  AlignedBuffer buffer;                // made for the first record that is copied
  std::vector<ByteSpan> free_records;  // parts of the buffer

  const auto is_direct = [&](ByteSpan into) {
    return kv_bytes_ == record_bytes_ && reinterpret_cast<uintptr_t>(into.data()) % io_alignment == 0;
  };
  const auto next_of_file = [&]() -> std::optional<FileRead> {
    // Whether the next record is copied is not known before it is given.
    while (!free_readings.empty() && (buffer.bytes().empty() || !free_records.empty())) {
      const std::optional<KvRead> read = next();
      if (!read) break;
      assert(read->into.size() == kv_bytes_);
      Expected<std::shared_ptr<OpenSegment>> segment = open_segment(read->place.segment);
      if (!segment) {
        done(read->tag, damaged(std::move(segment).error()));
        continue;
      }
      const size_t number = free_readings.back();
      free_readings.pop_back();
      Reading& reading = readings[number];
      reading = {read->tag, *std::move(segment), read->into, {}};
      ByteSpan into = read->into;
      if (!is_direct(into)) {
        if (buffer.bytes().empty()) {
          buffer = io_->buffer(slice_records_ * record_bytes_);
          for (size_t i = 0; i < slice_records_; ++i)
            free_records.push_back(buffer.bytes().subspan(i * record_bytes_, record_bytes_));
        }
        into = reading.copied_from = free_records.back();
        free_records.pop_back();
      }
      return FileRead{reading.segment->file(), offset(read->place.slot), into, number};
    }
    return std::nullopt;
  };
  const auto done_by_file = [&](uint64_t number, Expected<void> result) {
    Reading& reading = readings[number];
    if (!reading.copied_from.empty()) {
      if (result) std::ranges::copy(reading.copied_from.first(kv_bytes_), reading.into.begin());
      free_records.push_back(reading.copied_from);
    }
    const uint64_t tag = reading.tag;
    reading = {};
    free_readings.push_back(number);
    done(tag, result ? std::move(result) : damaged(std::move(result).error()));
  };
  io_->stream(next_of_file, done_by_file, wait);
}

void KvFile::read(std::span<const KvPlace> places, ByteSpan out, const ReadDone& done) const {
  assert(out.size() == places.size() * kv_bytes_);
  size_t given = 0;
  const auto next = [&]() -> std::optional<KvRead> {
    if (given == places.size()) return std::nullopt;
    const size_t i = given++;
    return KvRead{places[i], out.subspan(i * kv_bytes_, kv_bytes_), i};
  };
  stream(next, done);
}

Expected<void> KvFile::read(std::span<const KvPlace> places, ByteSpan out) const {
  std::optional<Error> failure;
  read(places, out, [&](uint64_t, Expected<void> result) {
    if (!result && !failure) failure = std::move(result).error();
  });
  if (failure) return std::unexpected(*std::move(failure));
  return {};
}

Expected<void> KvFile::release(std::span<const KvPlace> places) {
  std::vector<KvPlace> sorted(places.begin(), places.end());
  std::ranges::sort(sorted);
  for (auto place = sorted.begin(); place != sorted.end();) {
    const uint32_t number = place->segment;
    const auto end = std::ranges::find_if(place, sorted.end(), [&](KvPlace of) { return of.segment != number; });
    const Expected<std::shared_ptr<OpenSegment>> segment = open_segment(number);
    if (!segment && segment.error().kind != ErrorKind::not_found) return std::unexpected(segment.error());
    if (segment) RECALLD_CHECK(punch(**segment, {place, end}));
    place = end;
  }
  return {};
}

// Makes one hole of each run of neighbours. places: sorted, of this segment
Expected<void> KvFile::punch(const OpenSegment& segment, std::span<const KvPlace> places) {
  for (size_t first = 0, end = 0; first < places.size(); first = end) {
    for (end = first + 1; end < places.size() && places[end].slot - places[end - 1].slot <= 1;) ++end;
    const uint64_t begin = offset(places[first].slot);
    RECALLD_CHECK(io_->punch(segment.file(), begin, offset(places[end - 1].slot) + record_bytes_ - begin));
  }
  return io_->sync(segment.file());
}

Expected<void> KvFile::check(uint32_t segment) const {
  const std::string file = path(segment).string();
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) return damaged(Error{ErrorKind::corrupt, "find " + file + ": it is missing"});
  const uint64_t bytes = offset(slots_per_segment_);
  if (static_cast<uint64_t>(status.st_size) < bytes)
    return damaged(Error{ErrorKind::corrupt, "find " + file + ": it has " + std::to_string(status.st_size) + " of " +
                                                 std::to_string(bytes) + " bytes"});
  return {};
}

Expected<void> KvFile::lengthen(uint32_t segment) {
  std::error_code error;
  const uint64_t bytes = offset(slots_per_segment_), now = std::filesystem::file_size(path(segment), error);
  if (error || now >= bytes) return {};
  std::filesystem::resize_file(path(segment), bytes, error);
  if (error) return std::unexpected(system_error("lengthen " + path(segment).string(), error.value()));
  return {};
}

Expected<std::vector<uint32_t>> KvFile::segments() const {
  std::vector<uint32_t> segments;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory_, error), end; !error && entry != end;
       entry.increment(error)) {
    if (const auto segment = segment_number(entry->path())) segments.push_back(*segment);
  }
  if (error) return std::unexpected(system_error("list " + directory_.string(), error.value()));
  return segments;
}

Expected<void> KvFile::remove(std::span<const uint32_t> segments) {
  for (const uint32_t segment : segments) {
    assert(segment != next().segment);
    // First the name, then the open file: a read in between cannot open it again.
    const Expected<void> removed = io_->remove(path(segment));
    if (!removed && removed.error().kind != ErrorKind::not_found) return removed;
    const std::lock_guard lock(mutex_);
    open_.erase(segment);
  }
  return {};
}

Expected<KvFile::Usage> KvFile::usage() const {
  RECALLD_TRY(const std::vector<uint32_t> numbers, segments());
  Usage usage;
  for (const uint32_t segment : numbers) {
    struct stat status {};
    if (::stat(path(segment).c_str(), &status) != 0) continue;  // removed meanwhile
    ++usage.segments;
    usage.bytes_on_disk += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return usage;
}

Expected<std::shared_ptr<KvFile::OpenSegment>> KvFile::open_segment(uint32_t segment) const {
  const std::lock_guard lock(mutex_);
  if (const auto found = open_.find(segment); found != open_.end()) return found->second;
  RECALLD_TRY(const int file, io_->open(path(segment)));
  return keep_open(segment, file);
}

Expected<std::shared_ptr<KvFile::OpenSegment>> KvFile::segment_to_append(KvPlace first) {
  // A segment whose first place is not yet named may be there all the same, from an append that failed.
  Expected<std::shared_ptr<OpenSegment>> segment = open_segment(first.segment);
  if (segment || segment.error().kind != ErrorKind::not_found) return segment;
  if (first.slot > 0) return damaged(std::move(segment).error());
  RECALLD_TRY(const int file, io_->create(path(first.segment), uint64_t{slots_per_segment_} * record_bytes_));
  const std::lock_guard lock(mutex_);
  return keep_open(first.segment, file);
}

std::shared_ptr<KvFile::OpenSegment> KvFile::keep_open(uint32_t segment, int file) const {
  auto kept = std::make_shared<OpenSegment>(*io_, file);
  if (open_.size() >= open_segments_max) open_.erase(open_.begin());
  open_.emplace(segment, kept);
  return kept;
}

}  // namespace recalld
