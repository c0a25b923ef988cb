// What is told of chunks and erasures holds on a disk that fails and loses what was not synced.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tests/memstore/store_fixture.h"
#include "tests/support/faulty_file_io.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;

// A store whose segments lie on a disk that fails when told to.
class StoreOnAFaultyDiskTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreOptions faulty = options();
    faulty.file_io = [this]() -> Expected<std::unique_ptr<FileIo>> {
      auto disk = std::make_unique<FaultyFileIo>(open_file_io_posix(DirectIo::never), 41);
      disk_ = disk.get();
      return disk;
    };
    auto store = try_open(faulty);
    ASSERT_TRUE(store) << store.error().message;
    store_ = *std::move(store);
  }

  FaultyFileIo* disk_ = nullptr;  // of store_
};

TEST_F(StoreOnAFaultyDiskTest, AFailedSyncShowsNoChunkAndTheSamePutWorksAfterwards) {
  SCOPED_TRACE(disk_->describe());
  const MemoryId id = fill("m", 10);
  append(batch("m", {turn_of_tokens(5 * chunk_tokens)}));
  disk_->set({.reads_failed = 0, .reads_flipped = 0, .writes_failed = 0, .syncs_failed = 1});
  ASSERT_FALSE(encode(id));
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 10u);
  EXPECT_EQ(store_->chunk(id, 10).error().kind, ErrorKind::not_found);
  EXPECT_EQ(top_k(id, 50).size(), 10u);
  disk_->set({});
  ASSERT_TRUE(encode(id));
  std::vector<std::byte> kv(kv_bytes);
  for (uint64_t chunk = 0; chunk < 15; ++chunk) {
    ASSERT_TRUE(store_->fetch(id, std::vector<uint64_t>{chunk}, kv));
    EXPECT_EQ(kv, Encoded(id, chunk).kv);
  }
}

TEST_F(StoreOnAFaultyDiskTest, EveryChunkThatIsToldSurvivesALossOfPower) {
  SCOPED_TRACE(disk_->describe());
  const MemoryId id = fill("m", 10);
  append(batch("m", {turn_of_tokens(20 * chunk_tokens)}));
  disk_->set({.reads_failed = 0, .reads_flipped = 0, .writes_failed = 3, .syncs_failed = 3});
  while (!encode(id, 2)) {
  }
  append(batch("m", {turn_of_tokens(3 * chunk_tokens)}));
  disk_->set({.reads_failed = 0, .reads_flipped = 0, .writes_failed = 0, .syncs_failed = 1});
  ASSERT_FALSE(encode(id));  // written, never synced
  ASSERT_TRUE(disk_->cut_power());
  open();
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 30u);
  ASSERT_TRUE(encode(id));
  std::vector<std::byte> kv(kv_bytes);
  for (uint64_t chunk = 0; chunk < 33; ++chunk) {
    const auto fetched = store_->fetch(id, std::vector<uint64_t>{chunk}, kv);
    ASSERT_TRUE(fetched) << fetched.error().message;
    EXPECT_EQ(kv, Encoded(id, chunk).kv);
  }
}

TEST_F(StoreOnAFaultyDiskTest, AnErasureThatWasCutOffIsGoneAtOnceAndCanBeFinishedAfterTheNextOpen) {
  SCOPED_TRACE(disk_->describe());
  const MemoryId kept = fill("kept", 5);
  const MemoryId id = fill("m", 300);
  const uint64_t before = store_->stats()->kv_bytes_on_disk;
  ASSERT_TRUE(disk_->cut_power());
  ASSERT_FALSE(store_->erase("m"));
  EXPECT_EQ(store_->memory("m").error().kind, ErrorKind::not_found);
  open();
  EXPECT_EQ(store_->memory(id).error().kind, ErrorKind::not_found);
  EXPECT_THAT(store_->to_erase().value(), ElementsAre(id));
  const auto erased = store_->erase_forgotten(id);
  ASSERT_TRUE(erased) << erased.error().message;
  ASSERT_EQ(erased->segments.size(), 1u);
  EXPECT_EQ(erased->segments[0].records, 300u);
  EXPECT_EQ(erased->segments[0].bytes, 300u * 4096);
  EXPECT_THAT(store_->to_erase().value(), ElementsAre());
  EXPECT_LE(store_->stats()->kv_bytes_on_disk + 300 * 4096, before);
  EXPECT_EQ(top_k(kept, 9).size(), 5u);
  open();
  EXPECT_EQ(store_->memories("", "", 9)->memories.size(), 1u);
}

}  // namespace
}  // namespace recalld
