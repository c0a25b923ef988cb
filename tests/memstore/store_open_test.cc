// What opening a directory refuses, and what it removes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "memstore/kv_file.h"
#include "memstore/rows.h"
#include "memstore/store_shares.h"
#include "tests/memstore/store_fixture.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

TEST_F(StoreTest, NobodyElseMayLookIntoTheDirectory) {
  EXPECT_EQ(std::filesystem::status(data()).permissions(), std::filesystem::perms::owner_all);
}

TEST_F(StoreTest, ASecondOpenIsRefusedWhileTheFirstHoldsTheDirectory) {
  const auto second = try_open(options());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind, ErrorKind::busy);
  EXPECT_THAT(second.error().message, HasSubstr(data().string()));
  store_.reset();
  EXPECT_TRUE(try_open(options()));
}

TEST_F(StoreTest, AnotherModelIsRefusedWithTheChoice) {
  store_.reset();
  StoreOptions other = options();
  other.shape = shape("another model");
  const auto opened = try_open(other);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(opened.error().message, HasSubstr(hex(shape().model)));
  EXPECT_THAT(opened.error().message, HasSubstr("--model"));
  EXPECT_TRUE(try_open(options()));
}

TEST_F(StoreTest, ADirectoryWithOtherThingsInItIsLeftAlone) {
  const TempDir elsewhere;
  std::ofstream(elsewhere.path() / "thesis.txt") << "not ours";
  const auto foreign = Store::open(elsewhere.path(), options());
  ASSERT_FALSE(foreign);
  EXPECT_EQ(foreign.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(foreign.error().message, HasSubstr("thesis.txt"));
  EXPECT_FALSE(std::filesystem::exists(elsewhere.path() / "LOCK"));
  const auto file = Store::open(elsewhere.path() / "thesis.txt", options());
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, HasSubstr("not a directory"));
  // What a start that was cut short leaves is ours.
  std::filesystem::remove(elsewhere.path() / "thesis.txt");
  std::ofstream(elsewhere.path() / "LOCK").flush();
  std::ofstream(elsewhere.path() / "FORMAT.new") << "recalld";
  EXPECT_TRUE(Store::open(elsewhere.path(), options()));
}

TEST_F(StoreTest, ADirectoryWithoutOurStampIsRefusedClearly) {
  store_.reset();
  const auto stamp = data() / "FORMAT";
  std::ostringstream stamped;
  stamped << std::ifstream(stamp).rdbuf();
  const std::string written = stamped.str();
  const auto error_with = [&](const std::string& text) {
    std::ofstream(stamp, std::ios::trunc | std::ios::binary) << text;
    const auto opened = try_open(options());
    return opened ? Error{ErrorKind::internal, "opened"} : opened.error();
  };
  EXPECT_EQ(error_with("PNG").kind, ErrorKind::corrupt);
  EXPECT_EQ(error_with("").kind, ErrorKind::corrupt);
  std::string flipped = written;
  flipped[written.find("model") + 8] ^= 1;
  EXPECT_EQ(error_with(flipped).kind, ErrorKind::corrupt);
  EXPECT_THAT(error_with(flipped).message, HasSubstr("FORMAT"));
  std::string later = written.substr(0, written.find("crc32c"));
  later.replace(later.find("format 2"), 8, "format 3");
  std::ostringstream crc;
  crc << "crc32c " << std::hex << std::setw(8) << std::setfill('0') << crc32c(as_bytes(later)) << "\n";
  EXPECT_EQ(error_with(later + crc.str()).kind, ErrorKind::invalid_request);
  EXPECT_THAT(error_with(later + crc.str()).message, HasSubstr("format 3"));
  EXPECT_EQ(error_with(written).message, "opened");
  std::filesystem::remove(stamp);
  const auto opened = try_open(options());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::corrupt);
  std::filesystem::create_directory(stamp);  // something that is there and cannot be read
  const auto unread = try_open(options());
  ASSERT_FALSE(unread);
  EXPECT_EQ(unread.error().kind, ErrorKind::io);
  EXPECT_THAT(unread.error().message, HasSubstr("cannot be read"));
}

TEST_F(StoreTest, SegmentsThatNoChunkNamesAreRemovedOnOpening) {
  const MemoryId id = fill("m", 3);
  const auto segment = [&](uint32_t number) { return data() / "kv" / segment_name(number); };
  for (const uint32_t number : {1, 2, 3, 4}) std::ofstream(segment(number)) << "left behind";
  const auto opened = tamper([](auto& rows) {
    rows.put(Family::counters, next_place_key, recalld::encode(KvPlace{.segment = 3, .slot = 2}));
  });
  ASSERT_TRUE(opened) << opened.error().message;
  for (const uint32_t number : {1, 2, 4}) EXPECT_FALSE(std::filesystem::exists(segment(number))) << number;
  EXPECT_TRUE(std::filesystem::exists(segment(3)));  // the next record goes there
  std::vector<std::byte> kv(kv_bytes);
  EXPECT_TRUE(store_->fetch(id, std::vector<uint64_t>{2}, kv));
}

TEST_F(StoreTest, ACatalogThatForgotWhereTheNextRecordGoesCostsNoSegment) {
  fill("m", 3);
  const auto opened = tamper([](auto& rows) { rows.remove(Family::counters, next_place_key); });
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::corrupt);
  EXPECT_TRUE(std::filesystem::exists(data() / "kv" / segment_name(0)));
}

TEST_F(StoreTest, ABudgetUnderEightMiBIsRefused) {
  store_.reset();
  const auto opened = try_open(options((8 << 20) - 1));
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::invalid_request);
}

TEST_F(StoreTest, LandmarksHaveLessRoomWhereStatesAreLarge) {
  constexpr uint64_t budget_bytes = 16 << 20, chunks = 384;
  RecordShape wide{.kv_bytes = kv_bytes, .landmark_dim = 8192, .state_bytes = state_bytes, .model = {}};
  const std::vector<Bf16> landmark(wide.landmark_dim);
  const std::vector<std::byte> kv(kv_bytes);
  const std::vector<EncodedChunkView> views(chunks / 4, {landmark, kv});
  const auto cached_bytes = [&](const std::string& name) {
    auto store =
        Store::open(directory_.path() / name, {.shape = wide, .memory_budget_bytes = budget_bytes, .file_io = {}});
    EXPECT_TRUE(store);
    const AppendBatch turns = batch("m", std::vector(chunks, turn_of_tokens(chunk_tokens)));
    EXPECT_TRUE((*store)->append({&turns, 1}));
    for (int i = 0; i < 4; ++i) EXPECT_TRUE((*store)->put((*store)->memory("m")->serving, views, {}));
    return (*store)->stats()->landmark_cache_bytes;
  };
  const uint64_t with_small = cached_bytes("small");
  EXPECT_LE(with_small, StoreShares::of(budget_bytes, wide).landmark_bytes);
  wide.state_bytes = 7'000'000;
  const uint64_t with_large = cached_bytes("large"), room = StoreShares::of(budget_bytes, wide).landmark_bytes;
  EXPECT_LE(with_large, room);
  EXPECT_GT(with_small, room);
}

}  // namespace
}  // namespace recalld
