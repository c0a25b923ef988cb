// Files through plain system calls. The io_uring layer is this one with reads of its own.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "base/descriptor.h"
#include "memstore/file_io.h"

namespace recalld {

// Makes the entries of a directory durable.
Expected<void> sync_directory(const std::filesystem::path& directory);

class PosixFileIo : public FileIo {
 public:
  explicit PosixFileIo(DirectIo direct);

  Expected<void> make_directory(const std::filesystem::path& path) override;
  Expected<int> create(const std::filesystem::path& path, uint64_t bytes) override;
  Expected<int> open(const std::filesystem::path& path) override;
  void close(int file) override;
  void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) override;
  Expected<void> write(std::span<const FileWrite> writes) final;
  Expected<void> sync(int file) final;
  Expected<void> punch(int file, uint64_t offset, uint64_t bytes) final;
  Expected<void> remove(const std::filesystem::path& path) final;
  std::string describe() const override;

 protected:
  struct File {
    Descriptor descriptor;
    std::filesystem::path path;
    uint64_t generation = 0;  // no two files that had the same handle share it; from 1 on
  };

  // What is left to do of a read or a write.
  struct Transfer {
    bool write = false;
    int file = -1;
    uint64_t offset = 0;
    std::byte* data = nullptr;  // only read when `write`
    size_t bytes = 0;
  };

  // Takes what a system call did (bytes, or -errno) off the transfer. An interrupted call did nothing; the end of the
  // file is an error.
  Expected<void> advance(Transfer& transfer, int64_t result) const;

  // The holder of a handle may read this without a lock: it does not change while the file is open.
  const File& file(int handle) const { return files_[static_cast<size_t>(handle)]; }

  std::string describe_caching() const;

 private:
  Expected<void> carry_out(Transfer transfer) const;  // until nothing is left of it
  Expected<int> hold(Descriptor descriptor, const std::filesystem::path& path);

  const DirectIo direct_;
  std::atomic<bool> direct_refused_ = false;  // by the file system of some file
  std::vector<File> files_;                   // [io_files_max], by handle
  std::mutex mutex_;
  std::vector<int> free_;    // handles; guarded by mutex_
  uint64_t generation_ = 0;  // of the file that was opened last; guarded by mutex_
};

}  // namespace recalld
