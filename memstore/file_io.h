// The few file operations that segments need, behind one interface: io_uring, POSIX, and in the tests a faulty disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace recalld {

// Buffers, offsets and sizes given to an open file are multiples of this.
inline constexpr size_t io_alignment = 4096;

// A buffer fit for direct I/O. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);  // a multiple of io_alignment; contents undefined
  ByteSpan bytes() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_ = 0;
};

struct FileRead {
  int file = -1;  // a handle of the same FileIo
  uint64_t offset = 0;
  ByteSpan into;
};

struct FileWrite {
  int file = -1;
  uint64_t offset = 0;
  ByteView from;
};

// Any thread may call any function. Handles are small integers that this object gives out; they are closed with it.
class FileIo {
 public:
  virtual ~FileIo() = default;

  // Opens a file for reading and writing, making and preallocating it to `bytes` when `create` is set (it must not
  // exist then); the directory entry of a new file is durable on return.
  virtual Expected<int> open(const std::filesystem::path& path, bool create, uint64_t bytes) = 0;
  virtual void close(int file) = 0;

  // All of them, many in flight at a time; the first failure is reported after all have ended. A short read is an
  // error that names the file and the offset.
  virtual Expected<void> read(std::span<const FileRead> reads) = 0;
  virtual Expected<void> write(std::span<const FileWrite> writes) = 0;

  virtual Expected<void> sync(int file) = 0;  // data durable on return

  // Returns the space of [offset, offset + bytes); the range then reads as zeros.
  virtual Expected<void> punch(int file, uint64_t offset, uint64_t bytes) = 0;
  virtual Expected<void> remove(const std::filesystem::path& path) = 0;  // durable on return

  virtual std::string describe() const = 0;  // "io_uring, O_DIRECT", for logs and stats
};

// io_uring when the kernel allows it, otherwise POSIX; O_DIRECT file by file where the file system accepts it.
// Which one it became, and why, is logged once.
Expected<std::unique_ptr<FileIo>> open_file_io();

Expected<std::unique_ptr<FileIo>> open_file_io_uring();  // Error::io when the kernel refuses
std::unique_ptr<FileIo> open_file_io_posix();

}  // namespace recalld
