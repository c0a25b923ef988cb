// A disk that fails: wraps another FileIo and, driven by a seed, refuses calls, flips bits and forgets what was not
// synced. A test shows describe(), which names the seed, with SCOPED_TRACE.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "memstore/file_io.h"

namespace recalld {

// Each happens to one in so many; 0: never.
struct Faults {
  uint32_t reads_failed = 0;
  uint32_t reads_flipped = 0;  // one bit of what is read is wrong
  uint32_t writes_failed = 0;  // a part may have reached the disk
  uint32_t syncs_failed = 0;
};

class FaultyFileIo final : public FileIo {
 public:
  FaultyFileIo(std::unique_ptr<FileIo> disk, uint64_t seed, Faults faults = {})
      : disk_(std::move(disk)), seed_(seed), random_(seed), faults_(faults) {}

  void set(Faults faults);

  // Every write since the last good sync of its file survives, vanishes or is torn at its 512-byte sectors. From now
  // on all calls fail: what is left is read through another FileIo.
  Expected<void> cut_power();

  Expected<void> make_directory(const std::filesystem::path& path) override;
  Expected<int> create(const std::filesystem::path& path, uint64_t bytes) override;
  Expected<int> open(const std::filesystem::path& path) override;
  void close(int file) override;
  void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) override;
  Expected<void> write(std::span<const FileWrite> writes) override;
  Expected<void> sync(int file) override;
  Expected<void> punch(int file, uint64_t offset, uint64_t bytes) override;
  Expected<void> remove(const std::filesystem::path& path) override;
  std::string describe() const override;

 private:
  struct Unsynced {
    uint64_t offset = 0;
    std::vector<std::byte> before;  // what the write replaced
  };

  // The functions below want mutex_ held.
  bool happens(uint32_t one_in) { return one_in != 0 && below(one_in) == 0; }
  uint64_t below(uint64_t bound) { return random_() % bound; }
  Expected<void> powered() const;
  Expected<void> spoil(const FileRead& read);
  Expected<void> write_remembering(const FileWrite& write);
  Expected<void> forget(int file, const Unsynced& write);

  const std::unique_ptr<FileIo> disk_;
  const uint64_t seed_;
  std::mutex mutex_;  // guards what follows
  std::mt19937_64 random_;
  Faults faults_;
  bool power_ = true;
  std::map<int, std::filesystem::path> open_;
  std::map<std::filesystem::path, std::vector<Unsynced>> unsynced_;  // oldest first
};

}  // namespace recalld
