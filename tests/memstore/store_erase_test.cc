// An erased memory is gone: from every answer, from the directory and from what the store takes of the disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <vector>

#include "memstore/kv_file.h"
#include "tests/memstore/store_fixture.h"
#include "tests/support/files_with.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;

TEST_F(StoreTest, AnErasedMemoryIsGoneAndItsNameBeginsAfresh) {
  const MemoryId kept = fill("kept", 20);
  const MemoryId id = fill("m", 600, 16, 64);
  append(batch("m", {new_turn("an operation")}, "op", "what"));
  const auto best = top_k(kept, 5);
  ASSERT_TRUE(store_->erase("m"));
  EXPECT_EQ(store_->memory("m").error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->erase("m").error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->turns(id, 0, 1, 1).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->tokens(id, 0, 1).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->chunk(id, 0).error().kind, ErrorKind::not_found);
  EXPECT_EQ(encode(id).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->put_state(id, 1, as_bytes(state_of(1))).error().kind, ErrorKind::not_found);

  const Appended again = append(batch("m", {turn_of_tokens(70)}, "op", "other"));
  EXPECT_FALSE(again.repeated);
  EXPECT_EQ(again.first_turn, 0u);
  EXPECT_NE(again.id, id);
  ASSERT_TRUE(encode(again.id));
  EXPECT_EQ(top_k(again.id, 9).size(), 1u);
  EXPECT_EQ(store_->state(again.id, 1).value(), std::nullopt);
  open();
  EXPECT_EQ(store_->memory("m")->id, again.id);
  EXPECT_EQ(top_k(kept, 5), best);
  ASSERT_TRUE(store_->erase("m"));
  open();
  EXPECT_GT(append(batch("new", {new_turn("t")})).id, again.id);
}

TEST_F(StoreTest, NoByteOfAnErasedMemoryIsLeftInTheDirectory) {
  append(batch("kept", {new_turn("the kept ferry timetable")}));
  append(batch("secret-harbour", {new_turn("the pilot's passphrase is gannet-41")}, "op-plover", "what"));
  ASSERT_TRUE(encode(store_->memory("kept")->id));
  ASSERT_FALSE(files_with(data(), "gannet-41").empty());
  ASSERT_TRUE(store_->erase("secret-harbour"));
  for (const char* words : {"gannet-41", "passphrase", "secret-harbour", "op-plover"})
    EXPECT_THAT(files_with(data(), words), ElementsAre()) << words;
  EXPECT_EQ(passage(store_->memory("kept")->id, 0, 2), "User: th");
}

TEST_F(StoreTest, ErasingReturnsTheSpaceOfItsChunks) {
  fill("kept", 3);
  fill("m", 300);
  const uint64_t live = store_->stats()->kv_bytes_on_disk;
  ASSERT_TRUE(store_->erase("m"));
  EXPECT_LE(store_->stats()->kv_bytes_on_disk + 300 * 4096, live);
  std::vector<std::byte> kv(kv_bytes);
  EXPECT_TRUE(store_->fetch(store_->memory("kept")->id, std::vector<uint64_t>{2}, kv));
}

TEST_F(StoreTest, AnErasureThatCannotBeFinishedKeepsNoOtherMemoryFromBeingOpened) {
  const MemoryId id = fill("m", 3);
  append(batch("kept", {new_turn("the ferry leaves at nine")}));
  ASSERT_TRUE(store_->remove("m"));
  store_.reset();
  const auto segment = data() / "kv" / segment_name(0);
  std::filesystem::rename(segment, directory_.path() / "aside");
  std::filesystem::create_directory(segment);  // cannot be opened as a file
  open();
  EXPECT_FALSE(store_->erase_forgotten(id));
  EXPECT_EQ(passage(store_->memory("kept")->id, 0, 2), "User: th");
  EXPECT_EQ(store_->memory("m").error().kind, ErrorKind::not_found);
  store_.reset();
  std::filesystem::remove(segment);
  std::filesystem::rename(directory_.path() / "aside", segment);
  open();
  ASSERT_TRUE(store_->erase_forgotten(id));
  EXPECT_LE(store_->stats()->kv_bytes_on_disk, kv_segment_bytes - 3 * 4096);
}

}  // namespace
}  // namespace recalld
