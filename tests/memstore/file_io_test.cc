#include "memstore/file_io.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <future>
#include <latch>
#include <ostream>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/supervised_calls.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// Runs `body` on a thread whose system call `number` fails with `error_number`; nothing else notices.
template <class Body>
void with_refused_call(uint32_t number, int error_number, Body body) {
  with_supervised_calls(
      number, [&](const seccomp_data&) { return std::optional<int64_t>(-error_number); }, body);
}

// A block whose every 8 bytes tell where in the file it belongs.
void fill(ByteSpan bytes, uint64_t offset) {
  for (size_t i = 0; i < bytes.size(); i += sizeof offset, offset += sizeof offset)
    std::memcpy(bytes.data() + i, &offset, sizeof offset);
}

bool is_filled(ByteView bytes, uint64_t offset) {
  for (size_t i = 0; i < bytes.size(); i += sizeof offset, offset += sizeof offset) {
    if (std::memcmp(bytes.data() + i, &offset, sizeof offset) != 0) return false;
  }
  return true;
}

bool is_zero(ByteView bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

// Fills blocks [first, first + count) of 4096 bytes.
void write_blocks(FileIo& io, int file, uint64_t first, uint64_t count) {
  const AlignedBuffer buffer(count * io_alignment);
  fill(buffer.bytes(), first * io_alignment);
  const FileWrite write{file, first * io_alignment, buffer.bytes()};
  const auto written = io.write({&write, 1});
  ASSERT_TRUE(written) << written.error().message;
}

// Blocks [first, first + count) are as write_blocks() left them, read each on its own and from registered memory where
// there is some.
testing::AssertionResult holds_blocks(FileIo& io, int file, uint64_t first, uint64_t count) {
  const AlignedBuffer buffer = io.buffer(count * io_alignment);
  std::ranges::fill(buffer.bytes(), std::byte{0xff});
  std::vector<FileRead> reads;
  for (uint64_t i = 0; i < count; ++i)
    reads.push_back({file, (first + i) * io_alignment, buffer.bytes().subspan(i * io_alignment, io_alignment)});
  if (const auto read = io.read(reads); !read) return testing::AssertionFailure() << read.error().message;
  if (!is_filled(buffer.bytes(), first * io_alignment)) return testing::AssertionFailure() << "other bytes";
  return testing::AssertionSuccess();
}

// Rings that this process has.
size_t rings() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone).string().contains("io_uring")) ++count;
  }
  return count;
}

struct Case {
  enum class Layer { posix, uring, uring_unregistered } layer;
  DirectIo direct;
  const char* directory;  // nullptr: the usual one
  const char* name;

  friend std::ostream& operator<<(std::ostream& out, const Case& shown) { return out << shown.name; }
};

class FileIoTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& param = GetParam();
    if (param.layer == Case::Layer::posix) {
      io_ = open_file_io_posix(param.direct);
      return;
    }
    Expected<std::unique_ptr<FileIo>> io = open_file_io_uring(param.direct);
    if (!io) GTEST_SKIP() << io.error().message;
    if (param.layer == Case::Layer::uring_unregistered)
      with_refused_call(SYS_io_uring_register, ENOMEM, [&] { io = open_file_io_uring(param.direct); });
    ASSERT_TRUE(io) << io.error().message;
    io_ = *std::move(io);
  }

  int create(const std::string& name, uint64_t bytes) {
    const Expected<int> file = io_->create(path(name), bytes);
    if (!file) throw std::runtime_error(file.error().message);
    return *file;
  }

  void write_blocks(int file, uint64_t first, uint64_t count) { recalld::write_blocks(*io_, file, first, count); }

  std::filesystem::path path(const std::string& name) const { return directory_.path() / name; }

  TempDir directory_{GetParam().directory != nullptr ? GetParam().directory : std::filesystem::temp_directory_path()};
  std::unique_ptr<FileIo> io_;
};

INSTANTIATE_TEST_SUITE_P(
    Layers, FileIoTest,
    testing::Values(Case{Case::Layer::uring, DirectIo::where_possible, nullptr, "UringDirect"},
                    Case{Case::Layer::uring, DirectIo::never, nullptr, "UringBuffered"},
                    Case{Case::Layer::uring, DirectIo::where_possible, "/dev/shm", "UringInMemory"},
                    Case{Case::Layer::uring_unregistered, DirectIo::where_possible, nullptr, "UringUnregistered"},
                    Case{Case::Layer::posix, DirectIo::where_possible, nullptr, "PosixDirect"},
                    Case{Case::Layer::posix, DirectIo::never, nullptr, "PosixBuffered"},
                    Case{Case::Layer::posix, DirectIo::where_possible, "/dev/shm", "PosixInMemory"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_P(FileIoTest, SaysWhatItIs) {
  create("file", io_alignment);
  const Case& param = GetParam();
  const std::string description = io_->describe();
  EXPECT_THAT(description, StartsWith(param.layer == Case::Layer::posix ? "posix, " : "io_uring, "));
  EXPECT_NE(description.contains("buffered"), description.contains("O_DIRECT"));
  EXPECT_TRUE(description.contains("buffered") || param.direct == DirectIo::where_possible);
  EXPECT_EQ(description.ends_with("not registered"), param.layer == Case::Layer::uring_unregistered);
}

TEST_P(FileIoTest, ReadsBackWhatWasWrittenAfterOpeningAgain) {
  const int file = create("file", 8 * io_alignment);
  write_blocks(file, 2, 3);
  ASSERT_TRUE(io_->sync(file));
  io_->close(file);
  const Expected<int> again = io_->open(path("file"));
  ASSERT_TRUE(again) << again.error().message;
  const AlignedBuffer buffer(8 * io_alignment);
  const FileRead read{*again, 0, buffer.bytes()};
  ASSERT_TRUE(io_->read({&read, 1}));
  EXPECT_TRUE(is_zero(buffer.bytes().first(2 * io_alignment)));
  EXPECT_TRUE(is_filled(buffer.bytes().subspan(2 * io_alignment, 3 * io_alignment), 2 * io_alignment));
  EXPECT_TRUE(is_zero(buffer.bytes().subspan(5 * io_alignment)));
}

TEST_P(FileIoTest, CarriesMoreTransfersThanARingHolds) {
  constexpr size_t blocks = 1000;
  const int file = create("file", blocks * io_alignment);
  const AlignedBuffer out(blocks * io_alignment);
  fill(out.bytes(), 0);
  const AlignedBuffer in(blocks * io_alignment);
  std::vector<FileWrite> writes;
  std::vector<FileRead> reads;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t at = i * 7 % blocks * io_alignment;  // every block once, out of order
    writes.push_back({file, at, out.bytes().subspan(at, io_alignment)});
    reads.push_back({file, at, in.bytes().subspan(at, io_alignment)});
  }
  ASSERT_TRUE(io_->write(writes));
  ASSERT_TRUE(io_->read(reads));
  EXPECT_TRUE(is_filled(in.bytes(), 0));
}

TEST_P(FileIoTest, ThreadsReadDifferentFilesAtOnce) {
  constexpr size_t threads = 12;  // more than there are rings
  constexpr size_t blocks = 32;
  std::vector<int> files;
  for (size_t i = 0; i < threads; ++i) {
    files.push_back(create("file" + std::to_string(i), (i + 1) * blocks * io_alignment));
    write_blocks(files.back(), i * blocks, blocks);  // each holds blocks of another place
  }
  std::atomic<size_t> wrong = 0;
  {
    std::vector<std::jthread> readers;
    for (size_t i = 0; i < threads; ++i) {
      readers.emplace_back([&, i] {
        for (size_t round = 0; round < 50; ++round) {
          const AlignedBuffer buffer = io_->buffer(blocks * io_alignment);
          std::vector<FileRead> reads;
          for (size_t block = 0; block < blocks; ++block)
            reads.push_back({files[i], (i * blocks + block) * io_alignment,
                             buffer.bytes().subspan(block * io_alignment, io_alignment)});
          if (!io_->read(reads) || !is_filled(buffer.bytes(), i * blocks * io_alignment)) ++wrong;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0u);
}

TEST_P(FileIoTest, HandlesAreUsedAgainForOtherFiles) {
  for (size_t i = 0; i < 3; ++i) {
    const int file = create("file" + std::to_string(i), 4 * io_alignment);
    write_blocks(file, i, 1);
    const AlignedBuffer buffer = io_->buffer(io_alignment);
    const FileRead read{file, i * io_alignment, buffer.bytes()};
    ASSERT_TRUE(io_->read({&read, 1}));
    EXPECT_TRUE(is_filled(buffer.bytes(), i * io_alignment));
    io_->close(file);
  }
}

TEST_P(FileIoTest, AThreadNeverReadsAClosedFileThroughAHandleThatWasUsedAgain) {
  constexpr size_t threads = 3;
  int file = create("file0", 8 * io_alignment);
  write_blocks(file, 0, 1);
  std::atomic<size_t> round = 0;
  std::atomic<size_t> wrong = 0;
  {
    // The threads know the handle in every round, and find another file behind it each time.
    std::barrier turn(threads + 1);
    std::vector<std::jthread> readers;
    for (size_t i = 0; i < threads; ++i) {
      readers.emplace_back([&] {
        while (round < 8) {
          if (!holds_blocks(*io_, file, round, 1)) ++wrong;
          turn.arrive_and_wait();
          turn.arrive_and_wait();  // meanwhile the file is closed, and another one opened
        }
      });
    }
    while (round < 8) {
      turn.arrive_and_wait();
      io_->close(file);
      const int next = create("file" + std::to_string(round + 1), 8 * io_alignment);
      EXPECT_EQ(next, file);
      ++round;
      if (round < 8) write_blocks(next, round, 1);
      turn.arrive_and_wait();
    }
  }
  EXPECT_EQ(wrong, 0u);
}

TEST_P(FileIoTest, AStreamKeepsAsManyReadsGoingAsItsCallerGives) {
  constexpr size_t blocks = 500;
  const int file = create("file", blocks * io_alignment);
  write_blocks(file, 0, blocks);
  for (const size_t buffers : {size_t{1}, size_t{7}, reads_in_flight_max, 2 * reads_in_flight_max}) {
    const AlignedBuffer memory = io_->buffer(buffers * io_alignment);
    std::vector<size_t> free;
    for (size_t i = 0; i < buffers; ++i) free.push_back(i);
    std::vector<uint64_t> block_of(buffers);
    std::vector<size_t> times_read(blocks);
    uint64_t given = 0;
    size_t in_flight_max = 0;
    const auto part = [&](size_t i) { return memory.bytes().subspan(i * io_alignment, io_alignment); };
    io_->stream(
        [&]() -> std::optional<FileRead> {
          if (free.empty() || given == blocks) return std::nullopt;
          const size_t i = free.back();
          free.pop_back();
          in_flight_max = std::max(in_flight_max, buffers - free.size());
          block_of[i] = given++;
          return FileRead{file, block_of[i] * io_alignment, part(i), i};
        },
        [&](uint64_t i, const Expected<void>& result) {
          EXPECT_TRUE(result) << result.error().message;
          EXPECT_TRUE(is_filled(part(i), block_of[i] * io_alignment));
          ++times_read[block_of[i]];
          free.push_back(i);
        },
        {.awake = std::chrono::microseconds(buffers == 7 ? 100'000 : 0)});
    EXPECT_EQ(times_read, std::vector<size_t>(blocks, 1));
    EXPECT_EQ(free.size(), buffers);
    EXPECT_EQ(in_flight_max, GetParam().layer == Case::Layer::posix ? 1 : std::min(buffers, reads_in_flight_max));
  }
}

TEST_P(FileIoTest, AStreamTellsOfEveryReadWhetherItFailed) {
  const int file = create("file", 100 * io_alignment);
  write_blocks(file, 0, 100);
  const AlignedBuffer buffer(300 * io_alignment);
  const auto part = [&](uint64_t i) { return buffer.bytes().subspan(i * io_alignment, io_alignment); };
  uint64_t given = 0;
  std::vector<size_t> ended(300);
  io_->stream(
      [&]() -> std::optional<FileRead> {
        if (given == 300) return std::nullopt;
        const uint64_t i = given++;
        if (i % 50 == 7) return FileRead{file, 0, {}, i};                  // nothing to read
        return FileRead{file, (i * 37) % 300 * io_alignment, part(i), i};  // two of three are past the end
      },
      [&](uint64_t i, const Expected<void>& result) {
        ++ended[i];
        const uint64_t block = (i * 37) % 300;
        EXPECT_EQ(result.has_value(), block < 100 || i % 50 == 7) << i;
        if (!result) {
          EXPECT_THAT(result.error().message, HasSubstr(std::to_string(block * io_alignment) + " of "));
        } else if (i % 50 != 7) {
          EXPECT_TRUE(is_filled(part(i), block * io_alignment)) << i;
        }
      },
      {});
  EXPECT_EQ(ended, std::vector<size_t>(300, 1));
}

TEST_P(FileIoTest, AStreamTellsOnceThatItsReadsHaveBegunBeforeAnyHasEndedHoweverItWaits) {
  const int file = create("file", 100 * io_alignment);
  write_blocks(file, 0, 100);
  const AlignedBuffer buffer = io_->buffer(100 * io_alignment);
  for (const auto awake :
       {std::chrono::microseconds(0), std::chrono::microseconds(1), std::chrono::microseconds(100'000)}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{8}, size_t{100}}) {
      SCOPED_TRACE(std::to_string(count) + " reads, awake for " + std::to_string(awake.count()));
      std::ranges::fill(buffer.bytes(), std::byte{0xff});
      size_t given = 0, begun = 0, ended = 0;
      io_->stream(
          [&]() -> std::optional<FileRead> {
            if (given == count) return std::nullopt;
            const size_t i = given++;
            return FileRead{file, i * io_alignment, buffer.bytes().subspan(i * io_alignment, io_alignment), i};
          },
          [&](uint64_t i, const Expected<void>& result) {
            EXPECT_EQ(begun, 1u);
            EXPECT_TRUE(result) << result.error().message;
            EXPECT_TRUE(is_filled(buffer.bytes().subspan(i * io_alignment, io_alignment), i * io_alignment)) << i;
            ++ended;
          },
          {.awake = awake, .begun = [&] {
             ++begun;
             EXPECT_GT(given, 0u);
             EXPECT_EQ(ended, 0u);
           }});
      EXPECT_EQ(begun, count > 0 ? 1u : 0u);
      EXPECT_EQ(ended, count);
    }
  }
}

TEST_P(FileIoTest, ReadingPastTheEndNamesFileAndOffset) {
  const int file = create("file", 2 * io_alignment);
  const AlignedBuffer buffer(io_alignment);
  const std::vector<FileRead> reads{{file, 0, buffer.bytes()}, {file, 2 * io_alignment, buffer.bytes()}};
  const auto read = io_->read(reads);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(read.error().message, HasSubstr("8192 of " + path("file").string()));
}

TEST_P(FileIoTest, AFileThatEndsInsideABlockIsTooShort) {
  std::ofstream(path("file")) << std::string(io_alignment + 100, 'x');
  const Expected<int> file = io_->open(path("file"));
  ASSERT_TRUE(file) << file.error().message;
  const AlignedBuffer buffer(2 * io_alignment);
  const FileRead read{*file, 0, buffer.bytes()};
  const auto short_read = io_->read({&read, 1});
  ASSERT_FALSE(short_read);
  EXPECT_EQ(short_read.error().kind, ErrorKind::corrupt);
}

TEST_P(FileIoTest, OneFailureAmongManyTransfersIsReportedWhenAllHaveEnded) {
  const int file = create("file", 200 * io_alignment);
  const AlignedBuffer buffer(201 * io_alignment);
  std::vector<FileRead> reads;
  for (size_t i = 0; i < 201; ++i)
    reads.push_back({file, i * io_alignment, buffer.bytes().subspan(i * io_alignment, io_alignment)});
  std::ranges::rotate(reads, reads.begin() + 150);
  EXPECT_FALSE(io_->read(reads));
  // The ring serves the next call as if nothing had been.
  write_blocks(file, 0, 1);
  ASSERT_TRUE(io_->read({&reads[51], 1}));
  EXPECT_TRUE(is_filled(reads[51].into, 0));
}

TEST_P(FileIoTest, PunchedSpaceReadsAsZerosAndIsReturned) {
  const int file = create("file", 64 * io_alignment);
  write_blocks(file, 0, 64);
  ASSERT_TRUE(io_->sync(file));
  struct stat before {};
  ASSERT_EQ(::stat(path("file").c_str(), &before), 0);
  const auto punched = io_->punch(file, 8 * io_alignment, 16 * io_alignment);
  ASSERT_TRUE(punched) << punched.error().message;
  ASSERT_TRUE(io_->sync(file));
  struct stat after {};
  ASSERT_EQ(::stat(path("file").c_str(), &after), 0);
  EXPECT_EQ(before.st_blocks - after.st_blocks, 16 * io_alignment / 512);
  EXPECT_EQ(before.st_size, after.st_size);
  const AlignedBuffer buffer(64 * io_alignment);
  const FileRead read{file, 0, buffer.bytes()};
  ASSERT_TRUE(io_->read({&read, 1}));
  EXPECT_TRUE(is_filled(buffer.bytes().first(8 * io_alignment), 0));
  EXPECT_TRUE(is_zero(buffer.bytes().subspan(8 * io_alignment, 16 * io_alignment)));
  EXPECT_TRUE(is_filled(buffer.bytes().subspan(24 * io_alignment), 24 * io_alignment));
}

TEST_P(FileIoTest, AFileSystemWithoutHolesAndReservationsHoldsZerosInstead) {
  constexpr uint64_t blocks = 200;  // more than one write of zeros
  int file = -1;
  with_refused_call(SYS_fallocate, EOPNOTSUPP, [&] {
    file = create("file", (blocks + 2) * io_alignment);
    write_blocks(file, 0, blocks + 2);
    const auto punched = io_->punch(file, io_alignment, blocks * io_alignment);
    EXPECT_TRUE(punched) << punched.error().message;
  });
  const AlignedBuffer buffer((blocks + 2) * io_alignment);
  const FileRead read{file, 0, buffer.bytes()};
  ASSERT_TRUE(io_->read({&read, 1}));
  EXPECT_TRUE(is_filled(buffer.bytes().first(io_alignment), 0));
  EXPECT_TRUE(is_zero(buffer.bytes().subspan(io_alignment, blocks * io_alignment)));
  EXPECT_TRUE(is_filled(buffer.bytes().last(io_alignment), (blocks + 1) * io_alignment));
}

TEST_P(FileIoTest, CreatedFilesHaveTheirSizeAndAreNeverOverwritten) {
  create("file", 3 * io_alignment);
  EXPECT_EQ(std::filesystem::file_size(path("file")), 3 * io_alignment);
  const auto again = io_->create(path("file"), io_alignment);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().kind, ErrorKind::io);
  EXPECT_THAT(again.error().message, HasSubstr(path("file").string()));
  EXPECT_EQ(std::filesystem::file_size(path("file")), 3 * io_alignment);
}

TEST_P(FileIoTest, AFileThatDoesNotFitTakesNoRoomOrIsNotLeftBehind) {
  const auto file = io_->create(path("file"), uint64_t{1} << 46);
  struct stat status {};
  if (file) {  // its file system lets it have the size, without room
    ASSERT_EQ(::stat(path("file").c_str(), &status), 0);
    EXPECT_EQ(status.st_blocks, 0);
    return io_->close(*file);
  }
  EXPECT_THAT(file.error().message, HasSubstr(path("file").string()));
  EXPECT_FALSE(std::filesystem::exists(path("file")));
}

TEST_P(FileIoTest, WhatIsMissingIsNotFound) {
  EXPECT_EQ(io_->open(path("none")).error().kind, ErrorKind::not_found);
  EXPECT_EQ(io_->remove(path("none")).error().kind, ErrorKind::not_found);
  EXPECT_EQ(io_->make_directory(path("none") / "below").error().kind, ErrorKind::not_found);
}

TEST_P(FileIoTest, DirectoriesMayExistAlready) {
  ASSERT_TRUE(io_->make_directory(path("directory")));
  ASSERT_TRUE(io_->make_directory(path("directory")));
  EXPECT_TRUE(std::filesystem::is_directory(path("directory")));
}

TEST_P(FileIoTest, RemovedFilesAreGone) {
  io_->close(create("file", io_alignment));
  ASSERT_TRUE(io_->remove(path("file")));
  EXPECT_FALSE(std::filesystem::exists(path("file")));
}

TEST_P(FileIoTest, TheSpaceOfARemovedFileIsFreeWhateverStillHoldsIt) {
  const int file = create("file", 64 * io_alignment);
  write_blocks(file, 0, 64);
  ASSERT_TRUE(holds_blocks(*io_, file, 0, 64));  // now the file is registered with a ring
  const Descriptor other(::open(path("file").c_str(), O_RDONLY | O_CLOEXEC));
  io_->close(file);
  ASSERT_TRUE(io_->remove(path("file")));
  struct stat left {};
  ASSERT_EQ(::fstat(other.get(), &left), 0);
  EXPECT_EQ(left.st_blocks, 0);
  EXPECT_EQ(left.st_nlink, 0u);
}

TEST_P(FileIoTest, AFileSystemThatRefusesDirectIoIsReadThroughTheCache) {
  const auto refuse = [](const seccomp_data& call) -> std::optional<int64_t> {
    if (call.args[1] == F_SETFL && (call.args[2] & O_DIRECT) != 0) return -EINVAL;
    return std::nullopt;
  };
  with_supervised_calls(SYS_fcntl, refuse, [&] {
    const int file = create("file", 8 * io_alignment);
    write_blocks(file, 0, 8);
    EXPECT_TRUE(io_->sync(file));
    EXPECT_TRUE(holds_blocks(*io_, file, 0, 8));
  });
  EXPECT_THAT(io_->describe(), HasSubstr("buffered"));
}

TEST_P(FileIoTest, InterruptedAndShortTransfersAreFinished) {
  constexpr uint64_t blocks = 160;
  const int file = create("file", blocks * io_alignment);
  const AlignedBuffer out(blocks * io_alignment);
  fill(out.bytes(), 0);
  size_t calls = 0;
  const auto interrupt_or_shorten = [&](const seccomp_data& call) -> std::optional<int64_t> {
    if (++calls % 2 == 1) return -EINTR;
    const auto write = ::pwrite(static_cast<int>(call.args[0]), reinterpret_cast<const void*>(call.args[1]),
                                std::min<size_t>(call.args[2], io_alignment), static_cast<off_t>(call.args[3]));
    return write == -1 ? -errno : write;
  };
  with_supervised_calls(SYS_pwrite64, interrupt_or_shorten, [&] {
    const FileWrite write{file, 0, out.bytes()};
    const auto written = io_->write({&write, 1});
    EXPECT_TRUE(written) << written.error().message;
  });
  EXPECT_EQ(calls, 2 * blocks);

  const AlignedBuffer in(blocks * io_alignment);
  std::ranges::fill(in.bytes(), std::byte{0xff});
  const auto read_all = [&] {
    std::vector<FileRead> reads;  // of 4 blocks each
    for (size_t at = 0; at < in.bytes().size(); at += 4 * io_alignment)
      reads.push_back({file, at, in.bytes().subspan(at, 4 * io_alignment)});
    const auto read = io_->read(reads);
    EXPECT_TRUE(read) << read.error().message;
  };
  calls = 0;
  size_t shortened = 0;
  if (GetParam().layer == Case::Layer::posix) {
    with_supervised_calls(
        SYS_pread64,
        [&](const seccomp_data& call) -> std::optional<int64_t> {
          if (++calls % 2 == 1) return -EINTR;
          ++shortened;
          const auto read = ::pread(static_cast<int>(call.args[0]), reinterpret_cast<void*>(call.args[1]),
                                    std::min<size_t>(call.args[2], io_alignment), static_cast<off_t>(call.args[3]));
          return read == -1 ? -errno : read;
        },
        read_all);
  } else {
    // A ring's requests lie in memory that is shared with the kernel: they are made shorter there.
    const auto shorten = [&](int ring) {
      constexpr size_t bytes = reads_in_flight_max * sizeof(io_uring_sqe);
      void* const mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
      ASSERT_NE(mapped, MAP_FAILED);
      for (io_uring_sqe& request : std::span(static_cast<io_uring_sqe*>(mapped), reads_in_flight_max)) {
        if ((request.opcode != IORING_OP_READ && request.opcode != IORING_OP_READ_FIXED) || request.len <= io_alignment)
          continue;
        request.len = io_alignment;
        ++shortened;
      }
      ::munmap(mapped, bytes);
    };
    with_supervised_calls(
        SYS_io_uring_enter,
        [&](const seccomp_data& call) -> std::optional<int64_t> {
          constexpr std::array refusals{EINTR, EAGAIN, EINTR, EBUSY};
          if (++calls % 2 == 1 && calls > 2) return -refusals[calls / 2 % refusals.size()];
          shorten(static_cast<int>(call.args[0]));
          return std::nullopt;
        },
        read_all);
  }
  EXPECT_GE(shortened, blocks / 4);
  EXPECT_TRUE(is_filled(in.bytes(), 0));
}

TEST_P(FileIoTest, OpeningTooManyFilesIsRefusedUntilOneIsClosed) {
  create("file", 0);
  std::vector<int> files;
  for (size_t i = 1; i < io_files_max; ++i) {
    const Expected<int> file = io_->open(path("file"));
    ASSERT_TRUE(file) << file.error().message;
    files.push_back(*file);
  }
  EXPECT_EQ(io_->open(path("file")).error().kind, ErrorKind::full);
  io_->close(files.back());
  EXPECT_TRUE(io_->open(path("file")));
}

TEST_P(FileIoTest, BuffersAreAlignedAndLentToOneAtATime) {
  std::vector<AlignedBuffer> buffers;
  for (size_t i = 0; i < 20; ++i) {
    buffers.push_back(io_->buffer(2 * io_alignment));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffers.back().bytes().data()) % io_alignment, 0u);
    ASSERT_EQ(buffers.back().bytes().size(), 2 * io_alignment);
    fill(buffers.back().bytes(), i << 32);
  }
  for (size_t i = 0; i < buffers.size(); ++i) EXPECT_TRUE(is_filled(buffers[i].bytes(), i << 32));
}

// The layer in use, on a file of 32 blocks that each test fills and reads.
class UringTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto ring = open_file_io_uring(DirectIo::where_possible); !ring) GTEST_SKIP() << ring.error().message;
  }

  // Makes the file, or makes it anew.
  int make_file(FileIo& io) const {
    std::filesystem::remove(path());
    const Expected<int> file = io.create(path(), 32 * io_alignment);
    if (!file) throw std::runtime_error(file.error().message);
    write_blocks(io, *file, 0, 32);
    return *file;
  }

  std::filesystem::path path() const { return directory_.path() / "file"; }

  TempDir directory_;
};

TEST_F(UringTest, IsWhatIsOpenedWhereItWorks) {
  EXPECT_THAT(open_file_io()->describe(), StartsWith("io_uring"));
}

TEST_F(UringTest, GivesWayToPosixWhereTheKernelRefusesRings) {
  for (const uint32_t call : {SYS_io_uring_setup, SYS_io_uring_enter}) {
    for (const int refusal : {ENOSYS, EPERM}) {
      with_refused_call(call, refusal, [&] {
        EXPECT_FALSE(open_file_io_uring(DirectIo::where_possible));
        const auto io = open_file_io();
        EXPECT_THAT(io->describe(), StartsWith("posix"));
        EXPECT_TRUE(holds_blocks(*io, make_file(*io), 0, 32));
      });
    }
  }
}

TEST_F(UringTest, AThreadThatIsRefusedARingReadsAllTheSame) {
  const auto io = open_file_io();
  const int file = make_file(*io);
  for (const uint32_t call : {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register})
    with_refused_call(call, EPERM, [&] { EXPECT_TRUE(holds_blocks(*io, file, 0, 32)) << call; });
  EXPECT_THAT(io->describe(), testing::EndsWith(", not registered"));  // because of the last one
  EXPECT_TRUE(holds_blocks(*io, file, 0, 32));
}

TEST_F(UringTest, OlderKernelsGetRingsThatTheyKnow) {
  // What kernels before 6.1, and before 5.19, do not know.
  for (const unsigned unknown : {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                                 IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN}) {
    std::vector<unsigned> tried;
    size_t accepted = 0;
    with_supervised_calls(
        SYS_io_uring_setup,
        [&](const seccomp_data& call) -> std::optional<int64_t> {
          tried.push_back(read_argument<io_uring_params>(call.args[1]).flags);
          if ((tried.back() & unknown) != 0) return -EINVAL;
          ++accepted;
          return std::nullopt;
        },
        [&] {
          const auto io = open_file_io();
          EXPECT_THAT(io->describe(), StartsWith("io_uring"));
          EXPECT_TRUE(holds_blocks(*io, make_file(*io), 0, 32));
        });
    ASSERT_FALSE(tried.empty());
    EXPECT_EQ(tried.front(), IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    EXPECT_EQ(tried.back(), (unknown & IORING_SETUP_COOP_TASKRUN) != 0 ? 0 : IORING_SETUP_COOP_TASKRUN);
    EXPECT_EQ(accepted, 2u);  // the first one, and the one that read
  }
}

TEST_F(UringTest, ThreadsThatEndGiveTheirRingsBack) {
  const size_t before = rings();
  auto io = open_file_io();
  const int file = make_file(*io);
  EXPECT_EQ(rings(), before);
  for (size_t generation = 0; generation < 3; ++generation) {
    constexpr ptrdiff_t threads = 12;
    std::latch all_have_read(threads + 1);
    std::latch counted(1);
    std::vector<std::jthread> readers;
    for (ptrdiff_t i = 0; i < threads; ++i) {
      readers.emplace_back([&] {
        EXPECT_TRUE(holds_blocks(*io, file, 0, 32));
        all_have_read.arrive_and_wait();
        counted.wait();
      });
    }
    all_have_read.arrive_and_wait();
    EXPECT_EQ(rings(), before + io_rings_max);
    counted.count_down();
    readers.clear();
    EXPECT_EQ(rings(), before);
  }
}

TEST_F(UringTest, RingsAreClosedWithTheirFileIoAndNeverServeAnother) {
  const size_t before = rings();
  for (size_t i = 0; i < 20; ++i) {  // an address is likely to be used again
    auto io = open_file_io();
    EXPECT_TRUE(holds_blocks(*io, make_file(*io), 0, 32));
    EXPECT_EQ(rings(), before + 1);
    io.reset();
    EXPECT_EQ(rings(), before);
  }
  // The thread ends after its FileIo.
  auto io = open_file_io();
  const int file = make_file(*io);
  std::latch has_read(1);
  std::latch is_closed(1);
  std::jthread reader([&] {
    EXPECT_TRUE(holds_blocks(*io, file, 0, 32));
    has_read.count_down();
    is_closed.wait();
  });
  has_read.wait();
  io.reset();
  EXPECT_EQ(rings(), before);
  is_closed.count_down();
}

TEST_F(UringTest, ABufferMayOutliveTheThreadThatItWasLentTo) {
  const auto io = open_file_io();
  const int file = make_file(*io);
  AlignedBuffer buffer;
  std::jthread([&] { buffer = io->buffer(32 * io_alignment); }).join();
  std::vector<std::jthread> others;
  std::latch all_have_one(12);
  for (size_t i = 0; i < 12; ++i) {
    others.emplace_back([&, i] {  // none of these gets the same memory
      const AlignedBuffer own = io->buffer(32 * io_alignment);
      fill(own.bytes(), i << 32);
      all_have_one.arrive_and_wait();
      EXPECT_TRUE(is_filled(own.bytes(), i << 32));
    });
  }
  const FileRead read{file, 0, buffer.bytes()};
  EXPECT_TRUE(io->read({&read, 1}));
  others.clear();
  EXPECT_TRUE(is_filled(buffer.bytes(), 0));
}

// Runs body() in a child process of an ordinary user who may lock so many bytes of memory. Who starts as root becomes a
// user of whom there is nothing else: locked memory is counted by user, over all processes.
template <class Body>
void as_ordinary_user(const TempDir& directory, uint64_t locked_bytes_max, Body body) {
  const uid_t user = 20000 + static_cast<uid_t>(::getpid()) % 40000;
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown(directory.path().c_str(), user, user), 0);
  }
  const pid_t child = ::fork();
  ASSERT_NE(child, -1);
  if (child == 0) {
    const rlimit limit{locked_bytes_max, locked_bytes_max};
    if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) ::_exit(2);
    if (::geteuid() == 0 && (::setgid(user) != 0 || ::setuid(user) != 0)) ::_exit(3);
    body();
    std::fflush(stdout);
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the child ended with status " << status;
}

TEST_F(UringTest, AnOrdinaryUserWhoMayLockNoMemoryReadsUnregistered) {
  if (::geteuid() != 0) GTEST_SKIP() << "what this user's other processes lock counts as well";
  as_ordinary_user(directory_, 64 << 10, [&] {
    const auto io = open_file_io();
    EXPECT_THAT(io->describe(), StartsWith("io_uring"));
    EXPECT_THAT(io->describe(), testing::EndsWith("not registered"));
    EXPECT_TRUE(holds_blocks(*io, make_file(*io), 0, 32));
  });
}

TEST_F(UringTest, AnOrdinaryUserWhoMayLockNothingAtAllReadsAllTheSame) {
  as_ordinary_user(directory_, 0, [&] {
    const auto io = open_file_io();  // some kernels count the ring itself, and refuse it
    EXPECT_THAT(io->describe(), testing::AnyOf(StartsWith("posix"), testing::EndsWith("not registered")));
    EXPECT_TRUE(holds_blocks(*io, make_file(*io), 0, 32));
  });
}

TEST_F(UringTest, AnOrdinaryUserWhoMayLockLittleMemoryRegistersAsManyBuffersAsFit) {
  if (::geteuid() != 0) GTEST_SKIP() << "what this user's other processes lock counts as well";
  as_ordinary_user(directory_, 1200 << 10, [&] {  // two of 512 KiB
    const auto io = open_file_io();
    const int file = make_file(*io);
    std::latch two_have_read(3);
    std::latch all_have_read(1);
    std::vector<std::jthread> readers;
    for (size_t i = 0; i < 2; ++i) {
      readers.emplace_back([&] {
        EXPECT_TRUE(holds_blocks(*io, file, 0, 32));
        two_have_read.arrive_and_wait();
        all_have_read.wait();
      });
    }
    two_have_read.arrive_and_wait();
    EXPECT_THAT(io->describe(), testing::Not(testing::EndsWith("not registered")));
    EXPECT_TRUE(holds_blocks(*io, file, 0, 32));
    EXPECT_THAT(io->describe(), testing::EndsWith("not registered"));
    all_have_read.count_down();
  });
}

}  // namespace
}  // namespace recalld
