#include "memstore/file_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <ostream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// Runs `body` on a thread whose system call `number` fails with `error_number`; nothing else notices.
template <class Body>
void with_refused_call(uint32_t number, uint32_t error_number, Body body) {
  std::thread([&] {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error_number),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{std::size(program), program};
    ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), 0);
    body();
  }).join();
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

  // Fills blocks [first, first + count) of 4096 bytes.
  void write_blocks(int file, uint64_t first, uint64_t count) {
    const AlignedBuffer buffer = io_->buffer(count * io_alignment);
    fill(buffer.bytes(), first * io_alignment);
    const FileWrite write{file, first * io_alignment, buffer.bytes()};
    const auto written = io_->write({&write, 1});
    ASSERT_TRUE(written) << written.error().message;
  }

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
  constexpr size_t threads = 9;
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

TEST_P(FileIoTest, AFileThatDoesNotFitIsNotLeftBehind) {
  const auto file = io_->create(path("file"), uint64_t{1} << 46);
  ASSERT_FALSE(file);
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

TEST(OpenFileIo, FallsBackToPosixWhereTheKernelRefusesRings) {
  for (const uint32_t refusal : {ENOSYS, EPERM}) {
    with_refused_call(SYS_io_uring_setup, refusal, [] {
      EXPECT_FALSE(open_file_io_uring(DirectIo::where_possible));
      EXPECT_THAT(open_file_io()->describe(), StartsWith("posix"));
    });
  }
}

TEST(OpenFileIo, PrefersIoUringWhereItWorks) {
  if (const auto ring = open_file_io_uring(DirectIo::where_possible); !ring) GTEST_SKIP() << ring.error().message;
  EXPECT_THAT(open_file_io()->describe(), StartsWith("io_uring"));
}

}  // namespace
}  // namespace recalld
