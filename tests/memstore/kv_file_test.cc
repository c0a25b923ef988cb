#include "memstore/kv_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>

#include "memstore/file_io_posix.h"
#include "tests/support/faulty_file_io.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using testing::HasSubstr;

constexpr uint32_t kv_bytes = 5000;  // two blocks on disk
constexpr uint32_t slots = 8192;     // of a segment

// A record like no other number's.
std::vector<std::byte> record(uint32_t number) {
  std::vector<std::byte> bytes(kv_bytes);
  std::minstd_rand random(number + 1);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() >> 16);
  return bytes;
}

Expected<std::vector<KvPlace>> append(KvFile& file, uint32_t first, uint32_t count) {
  std::vector<std::vector<std::byte>> records;
  for (uint32_t i = 0; i < count; ++i) records.push_back(record(first + i));
  return file.append(std::vector<ByteView>(records.begin(), records.end()));
}

class KvFileTest : public testing::Test {
 protected:
  std::unique_ptr<KvFile> open(KvPlace next, std::unique_ptr<FileIo> io = open_file_io()) {
    auto file = KvFile::open(directory(), kv_bytes, std::move(io), next);
    if (!file) throw std::runtime_error(file.error().message);
    return *std::move(file);
  }

  std::unique_ptr<FaultyFileIo> faulty_io(uint64_t seed, Faults faults = {}) {
    return std::make_unique<FaultyFileIo>(open_file_io(), seed, faults);
  }

  // Record `number` alone is at `place`.
  static testing::AssertionResult holds(const KvFile& file, KvPlace place, uint32_t number) {
    std::vector<std::byte> out(kv_bytes);
    if (const auto read = file.read({&place, 1}, out); !read)
      return testing::AssertionFailure() << read.error().message;
    if (out != record(number)) return testing::AssertionFailure() << "other bytes than those of record " << number;
    return testing::AssertionSuccess();
  }

  void make_segment(uint32_t segment) {
    std::filesystem::create_directories(directory());
    std::ofstream(path(segment)) << segment;
    std::filesystem::resize_file(path(segment), kv_segment_bytes);
  }

  std::filesystem::path directory() const { return temporary_.path() / "kv"; }
  std::filesystem::path path(uint32_t segment) const { return directory() / segment_name(segment); }

  TempDir temporary_;
};

TEST_F(KvFileTest, SegmentNamesSortByNumber) {
  EXPECT_EQ(segment_name(0), "000000.seg");
  EXPECT_EQ(segment_name(31), "000031.seg");
  EXPECT_EQ(segment_name(1234567), "1234567.seg");
}

TEST_F(KvFileTest, RecordsArePaddedToWholeBlocks) {
  const auto file = open({});
  EXPECT_EQ(file->record_bytes(), 8192u);
  EXPECT_EQ(file->slots_per_segment(), slots);
}

TEST_F(KvFileTest, ReadsRecordsBackInAnyOrder) {
  const auto file = open({});
  ASSERT_TRUE(append(*file, 0, 1));
  const auto places = append(*file, 1, 99);  // more than one slice
  ASSERT_TRUE(places) << places.error().message;
  ASSERT_EQ(places->size(), 99u);
  EXPECT_EQ(places->front(), (KvPlace{0, 1}));
  EXPECT_EQ(file->next(), (KvPlace{0, 100}));

  std::vector<KvPlace> wanted;
  for (uint32_t i = 0; i < 150; ++i) wanted.push_back({0, i * 37 % 100});
  std::vector<std::byte> out(wanted.size() * kv_bytes);
  const auto read = file->read(wanted, out);
  ASSERT_TRUE(read) << read.error().message;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto bytes = std::span(out).subspan(i * kv_bytes, kv_bytes);
    EXPECT_TRUE(std::ranges::equal(bytes, record(wanted[i].slot))) << i;
  }
}

TEST_F(KvFileTest, NothingToWriteOrReadIsFine) {
  const auto file = open({});
  EXPECT_THAT(*append(*file, 0, 0), testing::IsEmpty());
  EXPECT_TRUE(file->read({}, {}));
  EXPECT_EQ(file->usage()->segments, 0u);
}

TEST_F(KvFileTest, GoesOnInTheNextSegmentWhenOneIsFull) {
  ASSERT_TRUE(append(*open({}), 0, 1));
  const auto file = open({0, slots - 2});
  const auto places = append(*file, 100, 4);
  ASSERT_TRUE(places) << places.error().message;
  EXPECT_THAT(*places,
              testing::ElementsAre(KvPlace{0, slots - 2}, KvPlace{0, slots - 1}, KvPlace{1, 0}, KvPlace{1, 1}));
  EXPECT_EQ(file->next(), (KvPlace{1, 2}));
  for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(holds(*file, (*places)[i], 100 + i));
  EXPECT_TRUE(holds(*file, {0, 0}, 0));
  EXPECT_EQ(std::filesystem::file_size(path(0)), kv_segment_bytes);
  EXPECT_EQ(std::filesystem::file_size(path(1)), kv_segment_bytes);
  EXPECT_EQ(file->usage()->segments, 2u);
}

TEST_F(KvFileTest, APlacePastTheEndOfASegmentMeansTheNextOne) {
  ASSERT_TRUE(append(*open({}), 0, 1));
  const auto file = open({0, slots});
  EXPECT_EQ(file->next(), (KvPlace{1, 0}));
  ASSERT_TRUE(append(*file, 1, 1));
  EXPECT_TRUE(holds(*file, {1, 0}, 1));
}

TEST_F(KvFileTest, ReopeningFindsTheRecordsAndWritesOverWhatWasNeverNamed) {
  ASSERT_TRUE(append(*open({}), 0, 10));
  const auto file = open({0, 7});
  ASSERT_TRUE(append(*file, 50, 1));
  EXPECT_TRUE(holds(*file, {0, 6}, 6));
  EXPECT_TRUE(holds(*file, {0, 7}, 50));
}

TEST_F(KvFileTest, OpeningRemovesSegmentsThatHoldNothingNamed) {
  for (uint32_t segment = 0; segment < 4; ++segment) make_segment(segment);
  std::ofstream(directory() / "000003.seg.old") << "not ours";
  open({2, 1});
  EXPECT_TRUE(std::filesystem::exists(path(2)));
  EXPECT_FALSE(std::filesystem::exists(path(3)));
  open({2, 0});
  EXPECT_TRUE(std::filesystem::exists(path(1)));
  EXPECT_FALSE(std::filesystem::exists(path(2)));
  EXPECT_TRUE(std::filesystem::exists(directory() / "000003.seg.old"));
}

TEST_F(KvFileTest, AFailedAppendIsWrittenAgainAtTheSamePlaces) {
  for (const Faults faults : {Faults{.writes_failed = 1}, Faults{.syncs_failed = 1}}) {
    const TempDir fresh;
    auto io = faulty_io(1);
    FaultyFileIo& disk = *io;
    SCOPED_TRACE(disk.describe());
    auto file = *KvFile::open(fresh.path(), kv_bytes, std::move(io), {});
    disk.set(faults);
    for (int attempt = 0; attempt < 2; ++attempt) EXPECT_EQ(append(*file, 10, 3).error().kind, ErrorKind::io);
    EXPECT_EQ(file->next(), KvPlace{});
    disk.set({});
    const auto places = append(*file, 20, 3);
    ASSERT_TRUE(places) << places.error().message;
    EXPECT_THAT(*places, testing::ElementsAre(KvPlace{0, 0}, KvPlace{0, 1}, KvPlace{0, 2}));
    for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(holds(*file, {0, i}, 20 + i));
  }
}

TEST_F(KvFileTest, AFailedReadIsReportedAndTheNextOneWorks) {
  auto io = faulty_io(1);
  FaultyFileIo& disk = *io;
  const auto file = open({}, std::move(io));
  ASSERT_TRUE(append(*file, 0, 2));
  disk.set({.reads_failed = 1});
  std::vector<std::byte> out(kv_bytes);
  const KvPlace place{0, 1};
  EXPECT_EQ(file->read({&place, 1}, out).error().kind, ErrorKind::io);
  disk.set({});
  EXPECT_TRUE(holds(*file, place, 1));
}

TEST_F(KvFileTest, AReadTellsOfEveryRecordWhetherItIsThere) {
  constexpr uint64_t seed = 11;
  auto io = faulty_io(seed);
  FaultyFileIo& disk = *io;
  SCOPED_TRACE(disk.describe());
  const auto file = open({5, 0}, std::move(io));
  ASSERT_TRUE(append(*file, 0, 100));
  std::vector<KvPlace> places;
  for (uint32_t i = 0; i < 300; ++i) {
    places.push_back({5, i * 37 % 100});
    if (i % 20 == 3) places.back() = {2, i};      // in a segment that is missing
    if (i % 20 == 9) places.back() = {5, slots};  // past the end of one
  }
  disk.set({.reads_failed = 4});
  std::vector<std::byte> out(places.size() * kv_bytes);
  std::map<uint64_t, Expected<void>> results;
  file->read(places, out, [&](uint64_t i, Expected<void> result) {
    EXPECT_TRUE(results.emplace(i, std::move(result)).second) << i << " ended twice";
  });
  ASSERT_EQ(results.size(), places.size());
  size_t failed = 0;
  for (const auto& [i, result] : results) {
    SCOPED_TRACE(i);
    if (places[i].segment == 2 || places[i].slot == slots) {
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().kind, ErrorKind::corrupt);
      EXPECT_THAT(result.error().message, HasSubstr(segment_name(places[i].segment)));
      EXPECT_THAT(result.error().message, HasSubstr("run `recall verify`"));
    } else if (result) {
      EXPECT_TRUE(std::ranges::equal(std::span(out).subspan(i * kv_bytes, kv_bytes), record(places[i].slot)));
    } else {
      EXPECT_EQ(result.error().kind, ErrorKind::io);
      EXPECT_THAT(result.error().message, HasSubstr("made to fail"));
      ++failed;
    }
  }
  EXPECT_GT(failed, 30u);
  EXPECT_LT(failed, 120u);
  EXPECT_FALSE(file->read(places, out));
}

TEST_F(KvFileTest, AStreamReadsStraightIntoAlignedMemoryAndCopiesToOther) {
  // Notes where the disk reads to.
  class WatchedFileIo final : public PosixFileIo {
   public:
    explicit WatchedFileIo(std::vector<const std::byte*>& into) : PosixFileIo(DirectIo::never), into_(into) {}
    void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) override {
      const auto watched = [&] {
        std::optional<FileRead> read = next();
        if (read) into_.push_back(read->into.data());
        return read;
      };
      PosixFileIo::stream(watched, done, wait);
    }

   private:
    std::vector<const std::byte*>& into_;
  };
  constexpr size_t bytes = 4 * io_alignment;
  constexpr size_t count = 100;  // more than are copied at a time
  std::vector<const std::byte*> into;
  const auto file = *KvFile::open(directory(), bytes, std::make_unique<WatchedFileIo>(into), {});
  std::vector<std::byte> records(count * bytes);
  std::minstd_rand random(1);
  for (std::byte& byte : records) byte = static_cast<std::byte>(random() >> 16);
  std::vector<ByteView> views;
  for (size_t i = 0; i < count; ++i) views.push_back(std::span(records).subspan(i * bytes, bytes));
  const auto places = file->append(views);
  ASSERT_TRUE(places) << places.error().message;

  const AlignedBuffer memory((count + 1) * bytes);
  for (const size_t shift : {size_t{0}, size_t{1}, size_t{512}}) {
    const ByteSpan out = memory.bytes().subspan(shift, count * bytes);
    into.clear();
    ASSERT_TRUE(file->read(*places, out));
    EXPECT_TRUE(std::ranges::equal(out, records));
    ASSERT_EQ(into.size(), count);
    for (size_t i = 0; i < count; ++i) EXPECT_EQ(into[i] == &out[i * bytes], shift == 0);
  }
}

TEST_F(KvFileTest, AStreamGoesOnAsItsCallerGetsRoomAgain) {
  const auto file = open({});
  ASSERT_TRUE(append(*file, 0, 50));
  std::vector<std::byte> out(3 * kv_bytes);
  std::vector<size_t> free{0, 1, 2};
  std::vector<uint32_t> number_of(3);
  std::vector<size_t> times_read(500);
  uint32_t given = 0;
  const auto part = [&](size_t i) { return std::span(out).subspan(i * kv_bytes, kv_bytes); };
  file->stream(
      [&]() -> std::optional<KvRead> {
        if (free.empty() || given == times_read.size()) return std::nullopt;
        const size_t i = free.back();
        free.pop_back();
        number_of[i] = given++;
        return KvRead{{number_of[i] % 10 == 3 ? 7u : 0u, number_of[i] % 50}, part(i), i};  // segment 7 is missing
      },
      [&](uint64_t i, const Expected<void>& result) {
        EXPECT_EQ(result.has_value(), number_of[i] % 10 != 3);
        if (result) {
          EXPECT_TRUE(std::ranges::equal(part(i), record(number_of[i] % 50)));
        }
        ++times_read[number_of[i]];
        free.push_back(i);
      });
  EXPECT_EQ(times_read, std::vector<size_t>(500, 1));
}

TEST_F(KvFileTest, WhatAppendReturnedOutlivesAnyPowerCut) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const TempDir fresh;
    std::mt19937_64 random(seed);
    std::vector<std::pair<KvPlace, uint32_t>> named;  // as a catalog would
    KvPlace next;
    uint32_t number = 0;
    for (int life = 0; life < 3; ++life) {
      auto io = faulty_io(random(), {.writes_failed = 8, .syncs_failed = 8});
      FaultyFileIo& disk = *io;
      SCOPED_TRACE(disk.describe());
      {
        auto file = *KvFile::open(fresh.path(), kv_bytes, std::move(io), next);
        for (const auto& [place, of] : named) ASSERT_TRUE(holds(*file, place, of));
        for (int call = 0; call < 10; ++call) {
          const auto count = static_cast<uint32_t>(1 + random() % 40);
          const auto places = append(*file, number, count);
          for (uint32_t i = 0; places && i < count; ++i) named.emplace_back((*places)[i], number + i);
          number += count;
        }
        next = file->next();
        const auto cut = disk.cut_power();
        ASSERT_TRUE(cut) << cut.error().message;
      }
    }
    const auto file = *KvFile::open(fresh.path(), kv_bytes, open_file_io(), next);
    EXPECT_FALSE(named.empty());
    for (const auto& [place, of] : named) ASSERT_TRUE(holds(*file, place, of)) << "seed " << seed;
  }
}

TEST_F(KvFileTest, OpeningEmptiesWhatFollowsTheLastRecord) {
  ASSERT_TRUE(append(*open({}), 0, 3));
  const auto file = open({0, 2});  // as if the third had been written when the power went
  EXPECT_TRUE(holds(*file, {0, 1}, 1));
  std::vector<std::byte> out(kv_bytes, std::byte{1});
  const KvPlace place{0, 2};
  ASSERT_TRUE(file->read({&place, 1}, out));
  EXPECT_EQ(out, std::vector<std::byte>(kv_bytes));
}

TEST_F(KvFileTest, ReleasedRecordsReadAsZerosAndTheirSpaceIsReturned) {
  const auto file = open({});
  ASSERT_TRUE(append(*file, 0, 20));
  const uint64_t before = file->usage()->bytes_on_disk;
  const std::vector<KvPlace> places{{0, 9}, {0, 3}, {0, 4}, {0, 5}, {0, 4}, {7, 0}};  // one twice, one long gone
  const auto released = file->release(places);
  ASSERT_TRUE(released) << released.error().message;
  EXPECT_EQ(before - file->usage()->bytes_on_disk, 4 * file->record_bytes());
  for (uint32_t slot = 0; slot < 20; ++slot) {
    if (slot != 9 && (slot < 3 || slot > 5)) {
      EXPECT_TRUE(holds(*file, {0, slot}, slot));
      continue;
    }
    std::vector<std::byte> out(kv_bytes, std::byte{1});
    const KvPlace place{0, slot};
    ASSERT_TRUE(file->read({&place, 1}, out));
    EXPECT_EQ(out, std::vector<std::byte>(kv_bytes)) << slot;
  }
}

TEST_F(KvFileTest, RemovedSegmentsAreGoneForReadersToo) {
  ASSERT_TRUE(append(*open({}), 0, 1));
  const auto file = open({0, slots});
  ASSERT_TRUE(append(*file, 1, 1));
  ASSERT_TRUE(holds(*file, {0, 0}, 0));
  const std::vector<uint32_t> gone{0};
  ASSERT_TRUE(file->remove(gone));
  ASSERT_TRUE(file->remove(gone));
  EXPECT_FALSE(holds(*file, {0, 0}, 0));
  EXPECT_TRUE(holds(*file, {1, 0}, 1));
  EXPECT_EQ(file->usage()->segments, 1u);
}

TEST_F(KvFileTest, AMissingSegmentIsCorruptAndTheMessageTellsWhatToDo) {
  const auto file = open({5, 3});
  const KvPlace place{2, 0};
  std::vector<std::byte> out(kv_bytes);
  const auto read = file->read({&place, 1}, out);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(read.error().message, HasSubstr("000002.seg"));
  EXPECT_THAT(read.error().message, HasSubstr("run `recall verify`"));
  // The one that was being filled is missing too: storing goes on in the next.
  const auto places = append(*file, 0, 1);
  ASSERT_TRUE(places);
  EXPECT_EQ(places->front(), (KvPlace{6, 0}));
}

TEST_F(KvFileTest, AShortSegmentIsCorruptAndTheMessageTellsWhatToDo) {
  ASSERT_TRUE(append(*open({}), 0, 3));
  std::filesystem::resize_file(path(0), 2 * 8192 + 100);
  const auto file = open({0, 3});
  EXPECT_TRUE(holds(*file, {0, 1}, 1));
  const KvPlace place{0, 2};
  std::vector<std::byte> out(kv_bytes);
  const auto read = file->read({&place, 1}, out);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(read.error().message, HasSubstr("000000.seg"));
  EXPECT_THAT(read.error().message, HasSubstr("run `recall verify`"));
}

TEST_F(KvFileTest, ReadsFromMoreSegmentsThanFilesMayBeOpen) {
  constexpr uint32_t segments = io_files_max + 100;
  for (uint32_t segment = 0; segment < segments; ++segment) make_segment(segment);
  const auto file = open({segments, 0});
  std::vector<KvPlace> places;
  for (uint32_t i = 0; i < segments; ++i) places.push_back({i * 7 % segments, 0});
  std::vector<std::byte> out(places.size() * kv_bytes);
  const auto read = file->read(places, out);
  ASSERT_TRUE(read) << read.error().message;
  for (size_t i = 0; i < places.size(); ++i)
    ASSERT_STREQ(reinterpret_cast<const char*>(&out[i * kv_bytes]), std::to_string(places[i].segment).c_str());
}

TEST_F(KvFileTest, ReadersSeeWholeRecordsWhileOthersAreAppended) {
  const auto file = open({});
  std::atomic<uint32_t> written = 0;
  std::atomic<uint32_t> wrong = 0;
  {
    std::vector<std::jthread> readers;
    for (uint32_t reader = 0; reader < 3; ++reader) {
      readers.emplace_back([&, reader](const std::stop_token& stop) {
        for (uint32_t i = reader; !stop.stop_requested(); i += 7) {
          const uint32_t end = written;
          if (end > 0 && !holds(*file, {0, i % end}, i % end)) ++wrong;
        }
      });
    }
    for (uint32_t call = 0; call < 50; ++call) {
      const auto places = append(*file, written, 5);
      ASSERT_TRUE(places) << places.error().message;
      written += 5;
    }
  }
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace recalld
