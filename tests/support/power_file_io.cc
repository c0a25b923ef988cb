#include "tests/support/power_file_io.h"

#include <filesystem>
#include <fstream>
#include <utility>

namespace recalld {

Expected<void> PowerFileIo::make_directory(const std::filesystem::path& path) {
  RECALLD_CHECK(disk_.make_directory(path));
  std::filesystem::create_directory(path);
  return disk_.sync_directory(path.parent_path());
}

Expected<int> PowerFileIo::create(const std::filesystem::path& path, uint64_t bytes) {
  RECALLD_TRY(const PowerDisk::FileRef file, disk_.create(path, true));
  std::ofstream twin(path);
  const auto finish = [&]() -> Expected<void> {
    RECALLD_CHECK(disk_.resize(*file, bytes));
    return disk_.sync_directory(path.parent_path());
  };
  if (auto finished = finish(); !finished) {
    (void)disk_.remove(path);
    std::filesystem::remove(path);
    return std::unexpected(std::move(finished).error());
  }
  return hold(file);
}

Expected<int> PowerFileIo::open(const std::filesystem::path& path) {
  RECALLD_TRY(PowerDisk::FileRef file, disk_.open(path));
  return hold(std::move(file));
}

int PowerFileIo::hold(PowerDisk::FileRef file) {
  const std::lock_guard lock(mutex_);
  files_.push_back(std::move(file));
  return static_cast<int>(files_.size() - 1);
}

PowerDisk::FileRef PowerFileIo::file(int handle) const {
  const std::lock_guard lock(mutex_);
  return files_.at(static_cast<size_t>(handle));
}

void PowerFileIo::close(int file) {
  const std::lock_guard lock(mutex_);
  files_.at(static_cast<size_t>(file)).reset();
}

void PowerFileIo::stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) {
  const auto read_one = [this](const FileRead& read) -> Expected<void> {
    RECALLD_TRY(const size_t bytes, disk_.read(*file(read.file), read.offset, read.into));
    if (bytes < read.into.size())
      return fail(ErrorKind::corrupt, "read at " + std::to_string(read.offset) + ": the file ends before that");
    return {};
  };
  bool has_begun = false;
  while (const std::optional<FileRead> read = next()) {
    if (!std::exchange(has_begun, true) && wait.begun) wait.begun();
    done(read->tag, read_one(*read));
  }
}

Expected<void> PowerFileIo::write(std::span<const FileWrite> writes) {
  for (const FileWrite& write : writes) RECALLD_CHECK(disk_.write(*file(write.file), write.offset, write.from));
  return {};
}

Expected<void> PowerFileIo::sync(int handle) {
  return disk_.sync(*file(handle));
}

Expected<void> PowerFileIo::punch(int handle, uint64_t offset, uint64_t bytes) {
  return disk_.punch(*file(handle), offset, bytes);
}

Expected<void> PowerFileIo::remove(const std::filesystem::path& path) {
  RECALLD_CHECK(disk_.remove(path));
  std::filesystem::remove(path);
  return disk_.sync_directory(path.parent_path());
}

void mirror_power_disk(const PowerDisk& disk, const std::filesystem::path& directory) {
  std::filesystem::remove_all(directory);
  const auto names = disk.list(directory);
  if (!names) return;
  std::filesystem::create_directory(directory);
  for (const std::string& name : *names) std::ofstream twin(directory / name);
}

}  // namespace recalld
