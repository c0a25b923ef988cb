#include "tests/support/faulty_file_io.h"

#include <algorithm>
#include <ranges>

namespace recalld {
namespace {

constexpr size_t sector_bytes = 512;

}  // namespace

void FaultyFileIo::set(Faults faults) {
  const std::lock_guard lock(mutex_);
  faults_ = faults;
}

Expected<void> FaultyFileIo::cut_power() {
  const std::lock_guard lock(mutex_);
  power_ = false;
  for (const auto& [path, writes] : unsynced_) {
    RECALLD_TRY(const int file, disk_->open(path));
    for (const Unsynced& write : writes | std::views::reverse) RECALLD_CHECK(forget(file, write));
    RECALLD_CHECK(disk_->sync(file));
    disk_->close(file);
  }
  unsynced_.clear();
  return {};
}

Expected<void> FaultyFileIo::forget(int file, const Unsynced& write) {
  enum Fate { survives, vanishes, is_torn };
  const auto fate = static_cast<Fate>(below(3));
  if (fate == survives) return {};
  const AlignedBuffer buffer(write.before.size());
  const ByteSpan now = buffer.bytes();
  const FileRead read{file, write.offset, now};
  RECALLD_CHECK(disk_->read({&read, 1}));
  for (size_t at = 0; at < now.size(); at += sector_bytes) {
    if (fate == vanishes || happens(2)) std::ranges::copy_n(&write.before[at], sector_bytes, &now[at]);
  }
  const FileWrite back{file, write.offset, now};
  return disk_->write({&back, 1});
}

Expected<void> FaultyFileIo::make_directory(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  return disk_->make_directory(path);
}

Expected<int> FaultyFileIo::create(const std::filesystem::path& path, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  RECALLD_TRY(const int file, disk_->create(path, bytes));
  open_[file] = path;
  return file;
}

Expected<int> FaultyFileIo::open(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  RECALLD_TRY(const int file, disk_->open(path));
  open_[file] = path;
  return file;
}

void FaultyFileIo::close(int file) {
  const std::lock_guard lock(mutex_);
  open_.erase(file);
  disk_->close(file);
}

void FaultyFileIo::stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) {
  // The caller's functions run without the lock: they may open and close files.
  std::map<uint64_t, FileRead> in_flight;  // by a number of our own
  uint64_t given = 0;
  const auto next_of_disk = [&]() -> std::optional<FileRead> {
    std::optional<FileRead> read = next();
    if (!read) return std::nullopt;
    in_flight[given] = *read;
    read->tag = given++;
    return read;
  };
  const auto done_by_disk = [&](uint64_t number, Expected<void> result) {
    const FileRead read = in_flight.at(number);
    in_flight.erase(number);
    if (result) {
      const std::lock_guard lock(mutex_);
      result = spoil(read);
    }
    done(read.tag, std::move(result));
  };
  disk_->stream(next_of_disk, done_by_disk, wait);
}

Expected<void> FaultyFileIo::spoil(const FileRead& read) {
  RECALLD_CHECK(powered());
  if (happens(faults_.reads_failed)) return fail(ErrorKind::io, "read " + open_[read.file].string() + ": made to fail");
  if (happens(faults_.reads_flipped)) read.into[below(read.into.size())] ^= std::byte{1} << below(8);
  return {};
}

Expected<void> FaultyFileIo::write(std::span<const FileWrite> writes) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  for (const FileWrite& write : writes) {
    if (!happens(faults_.writes_failed)) {
      RECALLD_CHECK(write_remembering(write));
      continue;
    }
    const size_t part = below(write.from.size() / io_alignment + 1) * io_alignment;
    RECALLD_CHECK(write_remembering({write.file, write.offset, write.from.first(part)}));
    return fail(ErrorKind::io, "write " + open_[write.file].string() + ": made to fail");
  }
  return {};
}

Expected<void> FaultyFileIo::write_remembering(const FileWrite& write) {
  const AlignedBuffer before(write.from.size());
  const FileRead read{write.file, write.offset, before.bytes()};
  RECALLD_CHECK(disk_->read({&read, 1}));
  unsynced_[open_[write.file]].push_back({write.offset, {before.bytes().begin(), before.bytes().end()}});
  return disk_->write({&write, 1});
}

Expected<void> FaultyFileIo::sync(int file) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  if (happens(faults_.syncs_failed)) return fail(ErrorKind::io, "sync " + open_[file].string() + ": made to fail");
  RECALLD_CHECK(disk_->sync(file));
  unsynced_.erase(open_[file]);
  return {};
}

Expected<void> FaultyFileIo::punch(int file, uint64_t offset, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  return disk_->punch(file, offset, bytes);
}

Expected<void> FaultyFileIo::remove(const std::filesystem::path& path) {
  const std::lock_guard lock(mutex_);
  RECALLD_CHECK(powered());
  RECALLD_CHECK(disk_->remove(path));
  unsynced_.erase(path);
  return {};
}

std::string FaultyFileIo::describe() const {
  return "faults of seed " + std::to_string(seed_);
}

Expected<void> FaultyFileIo::powered() const {
  if (!power_) return fail(ErrorKind::io, "the power is cut");
  return {};
}

}  // namespace recalld
