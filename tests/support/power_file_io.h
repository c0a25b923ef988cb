// The segments' files on a PowerDisk, in the order of calls of the POSIX file layer.
//
// The store lists its segments in the operating system's directory. So every file and directory made here has an empty
// twin there, which mirror_power_disk() brings in step with a disk that lost some of them.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "memstore/file_io.h"
#include "tests/support/power_disk.h"

namespace recalld {

class PowerFileIo final : public FileIo {
 public:
  explicit PowerFileIo(PowerDisk& disk) : disk_(disk) {}  // which outlives it

  Expected<void> make_directory(const std::filesystem::path& path) override;
  Expected<int> create(const std::filesystem::path& path, uint64_t bytes) override;
  Expected<int> open(const std::filesystem::path& path) override;
  void close(int file) override;
  void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) override;
  Expected<void> write(std::span<const FileWrite> writes) override;
  Expected<void> sync(int file) override;
  Expected<void> punch(int file, uint64_t offset, uint64_t bytes) override;
  Expected<void> remove(const std::filesystem::path& path) override;
  std::string describe() const override { return "a disk that loses its power"; }

 private:
  int hold(PowerDisk::FileRef file);
  PowerDisk::FileRef file(int handle) const;

  PowerDisk& disk_;
  mutable std::mutex mutex_;  // guards what follows
  std::vector<PowerDisk::FileRef> files_;
};

// Makes the twins of the files in this directory of the disk, and removes all others.
void mirror_power_disk(const PowerDisk& disk, const std::filesystem::path& directory);

}  // namespace recalld
