// The few file operations that segments need, behind one interface: io_uring, POSIX, and in the tests a faulty disk.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/error.h"

namespace recalld {

// Buffers, offsets and sizes given to an open file are multiples of this.
inline constexpr size_t io_alignment = 4096;

// Files that one FileIo holds open at a time, within the usual limit of 1024 descriptors a process.
inline constexpr size_t io_files_max = 768;

// Threads that read through a ring of their own, of one FileIo; further ones read by plain system calls, one at a time.
inline constexpr size_t io_rings_max = 8;

// Reads of one call that are in flight at a time, at most.
inline constexpr size_t reads_in_flight_max = 64;

// How long a thread that has nothing else to do looks for reads to end before it sleeps (ReadWait): a few reads of a
// local disk take less, and a slower one should not cost a core.
inline constexpr std::chrono::microseconds read_awake_max{500};

// A buffer fit for direct I/O, its own or lent. Move-only.
class AlignedBuffer {
 public:
  using GiveBack = std::function<void(std::byte*)>;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);  // a multiple of io_alignment; contents undefined
  AlignedBuffer(ByteSpan lent, GiveBack give_back) : data_(lent.data(), std::move(give_back)), size_(lent.size()) {}

  ByteSpan bytes() const { return {data_.get(), data_ ? size_ : 0}; }

 private:
  std::unique_ptr<std::byte[], GiveBack> data_;
  size_t size_ = 0;
};

struct FileRead {
  int file = -1;  // a handle of the same FileIo
  uint64_t offset = 0;
  ByteSpan into;     // alive until the read has ended
  uint64_t tag = 0;  // the caller's, to tell the reads of a stream apart
};

// What a stream reads next; nothing when there is nothing to start now.
using NextRead = std::function<std::optional<FileRead>()>;

// The read of this tag has ended: all of it was read, or the error tells why not.
using ReadDone = std::function<void(uint64_t tag, Expected<void> result)>;

// How the thread that reads waits for a stream.
struct ReadWait {
  // From the start of the stream on it looks for so long again and again whether reads have ended, before it sleeps
  // until one has: to fall asleep and be woken takes a good part of what a read does. POSIX sleeps in each read.
  std::chrono::microseconds awake{0};
  // Called once, as soon as the first reads are on their way and before done() of any of them, by POSIX before the
  // first one; never when there are none. It throws nothing, and neither reads nor writes.
  std::function<void()> begun = {};
};

struct FileWrite {
  int file = -1;
  uint64_t offset = 0;
  ByteView from;
};

// Any thread may call any function; a file is closed only when no other call uses it. Handles are small integers that
// this object gives out; they are closed with it.
class FileIo {
 public:
  virtual ~FileIo() = default;

  // Makes a directory whose parent exists; it may exist already. Durable on return.
  virtual Expected<void> make_directory(const std::filesystem::path& path) = 0;

  // Makes a file of `bytes`, with its space reserved where the file system can and has room, and opens it. Fails when
  // it exists. Its directory entry is durable on return; after a failure it is not there.
  virtual Expected<int> create(const std::filesystem::path& path, uint64_t bytes) = 0;

  // Opens a file for reading and writing; not_found when it does not exist, full when io_files_max are open.
  virtual Expected<int> open(const std::filesystem::path& path) = 0;
  virtual void close(int file) = 0;

  // Reads what next() gives and calls done() for each as it ends, in no order. next() is asked whenever one more read
  // can be in flight: with io_uring up to reads_in_flight_max of them are, with POSIX one. When it gives nothing it is
  // asked again after the next done(), and the stream ends when it gives nothing while nothing is in flight. So a
  // caller with N buffers keeps N reads going: it gives nothing while all of its buffers are in use. Both are called on
  // the calling thread. They throw nothing; they may open and close files, but not read or write. Reading past the end
  // of a file is corrupt; the message names the file and the offset.
  virtual void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) = 0;

  // A stream of these reads. The first failure is reported; the other reads may have been done or not.
  Expected<void> read(std::span<const FileRead> reads);

  // All of them, in order. The first failure is reported; what of the rest was written is not told.
  virtual Expected<void> write(std::span<const FileWrite> writes) = 0;

  virtual Expected<void> sync(int file) = 0;  // what was written is durable on return

  // Returns the space of [offset, offset + bytes), where the file system can; the range then reads as zeros.
  virtual Expected<void> punch(int file, uint64_t offset, uint64_t bytes) = 0;

  // Durable on return; not_found. The space is free on return, even while the file is still open somewhere: reads of it
  // are then corrupt.
  virtual Expected<void> remove(const std::filesystem::path& path) = 0;

  // A buffer that the calling thread reads into fastest: registered memory while it has some, plain memory otherwise.
  // Any thread may use and destroy it, before the FileIo is destroyed.
  virtual AlignedBuffer buffer(size_t bytes) { return AlignedBuffer(bytes); }

  virtual std::string describe() const = 0;  // "io_uring, O_DIRECT", for logs and stats
};

// Whether files bypass the page cache: wherever their file system allows it, or never.
enum class DirectIo { where_possible, never };

// io_uring when the kernel allows it, otherwise POSIX. Which one it became, and why, is logged.
std::unique_ptr<FileIo> open_file_io(DirectIo direct = DirectIo::where_possible);

Expected<std::unique_ptr<FileIo>> open_file_io_uring(DirectIo direct);  // Error::io when the kernel refuses
std::unique_ptr<FileIo> open_file_io_posix(DirectIo direct);

}  // namespace recalld
