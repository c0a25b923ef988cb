// What fetches keep of where chunks lie, against a catalog that is changed beside them.
#include "memstore/encodings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "memstore/rows.h"
#include "memstore/store.h"
#include "tests/support/fake_model.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t dim = 64, kv_bytes = 1000;
constexpr MemoryId memory = 5;
constexpr StreamId stream = 9;

std::vector<std::byte> kv_of(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> kv(kv_bytes);
  for (std::byte& b : kv) b = static_cast<std::byte>(random());
  return kv;
}

class EncodingsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto catalog = Catalog::open({directory_.path() / "catalog", 4 << 20, 1 << 20});
    ASSERT_TRUE(catalog) << catalog.error().message;
    catalog_ = *std::move(catalog);
    const RecordShape shape{.kv_bytes = kv_bytes, .landmark_dim = dim, .state_bytes = 64};
    encodings_ = std::make_unique<Encodings>(*catalog_, shape, 1 << 20, 64 << 10);
    const auto opened =
        encodings_->open(directory_.path() / "kv", open_file_io_posix(DirectIo::never), kv_segment_bytes);
    ASSERT_TRUE(opened) << opened.error().message;
    generation_.layout.extents = {{0, stream}};
  }

  // Adds chunks whose K/V their numbers decide.
  void put(uint64_t count) {
    std::vector<std::vector<std::byte>> records;
    for (uint64_t i = 0; i < count; ++i) records.push_back(kv_of(generation_.encoding.chunks + i));
    std::vector<EncodedChunkView> views;
    for (const auto& record : records) views.push_back({landmark_, record});
    Catalog::Batch rows(*catalog_);
    auto written = encodings_->write(generation_, views, rows);
    ASSERT_TRUE(written) << written.error().message;
    encodings_->stage(memory, generation_, *written, {}, rows);
    ASSERT_TRUE(catalog_->write(rows));
    encodings_->written(*written);
  }

  // Writes a chunk again, with the K/V of another, up to where encodings are told of it.
  Encodings::Mended write_again(uint64_t chunk, uint64_t seed) {
    const auto kv = kv_of(seed);
    const MendedChunk again{.chunk = chunk, .encoded = {landmark_, kv}, .kv = true, .landmark = false};
    auto mended = encodings_->write_again({&again, 1});
    if (!mended) throw std::runtime_error(mended.error().message);
    Catalog::Batch rows(*catalog_);
    EXPECT_TRUE(encodings_->stage_again(memory, generation_, {&again, 1}, {}, *mended, rows));
    EXPECT_TRUE(catalog_->write(rows));
    return *std::move(mended);
  }

  // Takes the rows of all chunks out of the catalog, unnoticed.
  void remove_rows() {
    Catalog::Batch rows(*catalog_);
    rows.remove_all(Family::chunks, row_key(stream));
    ASSERT_TRUE(catalog_->write(rows));
  }

  Expected<std::vector<std::byte>> fetch(uint64_t chunk, uint64_t version) {
    std::vector<std::byte> kv(kv_bytes);
    std::vector<Unreadable> unreadable;
    RECALLD_CHECK(encodings_->fetch(memory, generation_, version, {&chunk, 1}, kv, unreadable));
    if (!unreadable.empty()) return fail(ErrorKind::corrupt, unreadable.front().message);
    return kv;
  }
  Expected<std::vector<std::byte>> fetch(uint64_t chunk) { return fetch(chunk, encodings_->entries_version()); }

  const TempDir directory_;
  const std::vector<Bf16> landmark_{dim};
  std::unique_ptr<Catalog> catalog_;
  std::unique_ptr<Encodings> encodings_;
  Generation generation_;
};

TEST_F(EncodingsTest, ChunksThatWereFetchedAndTheirNeighboursNeedNoRowAgain) {
  put(70);
  ASSERT_TRUE(fetch(3));
  ASSERT_TRUE(fetch(69));
  remove_rows();
  for (const uint64_t chunk : {3, 0, 31, 64, 69}) EXPECT_EQ(fetch(chunk), kv_of(chunk)) << chunk;
  const auto other = fetch(32);
  ASSERT_FALSE(other);
  EXPECT_THAT(other.error().message, HasSubstr("its row is missing"));
  encodings_->forget(stream);
  EXPECT_FALSE(fetch(3));
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);
}

TEST_F(EncodingsTest, ChunksAreFoundThatWereAddedToABlockWhichWasKept) {
  put(5);
  ASSERT_TRUE(fetch(3));
  put(5);
  EXPECT_EQ(fetch(9), kv_of(9));
  remove_rows();
  EXPECT_EQ(fetch(7), kv_of(7));
  EXPECT_EQ(fetch(3), kv_of(3));
  EXPECT_EQ(fetch(10).error().kind, ErrorKind::not_found);
}

TEST_F(EncodingsTest, WhatWasReadBeforeAStreamWasForgottenIsNotKept) {
  put(5);
  const uint64_t before = encodings_->entries_version();
  encodings_->forget(stream);
  EXPECT_TRUE(fetch(3, before));
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);
  EXPECT_TRUE(fetch(3));
  EXPECT_GT(encodings_->entry_cache_bytes(), 0u);
}

TEST_F(EncodingsTest, AChunkThatWasWrittenAgainIsFoundAlsoBeforeItsOldEntryIsDropped) {
  put(5);
  ASSERT_TRUE(fetch(3));
  const Encodings::Mended mended = write_again(3, 1003);
  EXPECT_EQ(fetch(3), kv_of(3));  // its old record is there still
  ASSERT_TRUE(encodings_->release(mended.released));
  EXPECT_EQ(fetch(3), kv_of(1003));
  EXPECT_EQ(fetch(4), kv_of(4));
  remove_rows();
  EXPECT_EQ(fetch(3), kv_of(1003));  // the old entry is not kept
}

TEST_F(EncodingsTest, AChunkThatWasMendedIsReadFromItsNewPlace) {
  put(5);
  ASSERT_TRUE(fetch(3));
  const Encodings::Mended mended = write_again(3, 1003);
  ASSERT_TRUE(encodings_->written_again(generation_, mended));
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);
  EXPECT_EQ(fetch(3), kv_of(1003));
}

// No reader should ask for them, but one that did must not be told of a record that is another chunk's by then.
TEST_F(EncodingsTest, NothingIsKeptOfChunksThatAreErased) {
  put(70);
  for (const uint64_t chunk : {3, 40, 69}) ASSERT_TRUE(fetch(chunk));
  ASSERT_GT(encodings_->entry_cache_bytes(), 0u);
  const uint64_t before = encodings_->entries_version();
  Encodings::Erased erased;
  for (bool more = true; more;) {
    const auto some = encodings_->erase_some(stream, 40, *catalog_, erased);
    ASSERT_TRUE(some) << some.error().message;
    more = *some;
  }
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);
  for (const uint64_t chunk : {40, 69}) {
    const auto gone = fetch(chunk, before);
    ASSERT_FALSE(gone);
    EXPECT_THAT(gone.error().message, HasSubstr("its row is missing"));
  }
  EXPECT_EQ(fetch(3, before), kv_of(3));
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);  // read with what may have been found before
  EXPECT_EQ(fetch(39), kv_of(39));
  EXPECT_GT(encodings_->entry_cache_bytes(), 0u);
}

TEST_F(EncodingsTest, NothingIsKeptOfRowsThatWereDroppedBehindAGeneration) {
  put(40);
  for (const uint64_t chunk : {3, 39}) ASSERT_TRUE(fetch(chunk));
  generation_.encoding.chunks = 20;  // the rows behind are strays
  const uint64_t before = encodings_->entries_version();
  Verification::Lost lost;
  lost.strays = true;
  Catalog::Batch rows(*catalog_);
  const auto places = encodings_->stage_without(generation_, lost, rows);
  EXPECT_EQ(places.size(), 20u);
  ASSERT_TRUE(catalog_->write(rows));
  ASSERT_TRUE(encodings_->written_without(generation_, places));
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);
  EXPECT_EQ(fetch(3, before), kv_of(3));
  EXPECT_EQ(encodings_->entry_cache_bytes(), 0u);
  EXPECT_EQ(fetch(39).error().kind, ErrorKind::not_found);
  put(20);  // in their place
  for (uint64_t chunk = 0; chunk < 40; ++chunk) EXPECT_EQ(fetch(chunk), kv_of(chunk)) << chunk;
}

TEST_F(EncodingsTest, DamageIsToldOnlyOfChunksThatLieWhereTheirRowsSay) {
  put(5);
  ASSERT_TRUE(fetch(3));
  const auto entry = encodings_->chunk(memory, generation_, 3);
  ASSERT_TRUE(entry);
  ASSERT_TRUE(encodings_->release(std::array{KvPlace{entry->segment, entry->slot}}));
  const auto damaged = fetch(3);
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(damaged.error().message, HasSubstr("checksum mismatch"));
  EXPECT_EQ(fetch(4), kv_of(4));
  remove_rows();
  const auto lost = fetch(3);
  ASSERT_FALSE(lost);
  EXPECT_THAT(lost.error().message, HasSubstr("its row is missing"));
}

TEST_F(EncodingsTest, AFetchTellsOnceThatItsReadsHaveBegunAndOfEachChunkThatIsWhole) {
  put(8);
  ASSERT_TRUE(fetch(3));
  ASSERT_TRUE(encodings_->release(write_again(3, 1003).released));  // looked for where it was, and then where it is
  const auto damaged = encodings_->chunk(memory, generation_, 5);
  ASSERT_TRUE(damaged);
  ASSERT_TRUE(encodings_->release(std::array{KvPlace{damaged->segment, damaged->slot}}));

  const std::array<uint64_t, 4> chunks{7, 3, 5, 0};
  std::vector<std::byte> out(chunks.size() * kv_bytes);
  const auto record = [&](size_t i) { return std::span(out).subspan(i * kv_bytes, kv_bytes); };
  size_t begun = 0;
  std::vector<size_t> told;
  std::vector<Unreadable> unreadable;
  const auto begins = [&] {
    EXPECT_TRUE(told.empty());
    ++begun;
  };
  const auto is_whole = [&](size_t i) {
    EXPECT_TRUE(std::ranges::equal(record(i), kv_of(i == 1 ? 1003 : chunks[i]))) << i;
    told.push_back(i);
  };
  const FetchWait wait{.reads = {.awake = std::chrono::microseconds(100), .begun = begins}, .whole = is_whole};
  ASSERT_TRUE(encodings_->fetch(memory, generation_, encodings_->entries_version(), chunks, out, unreadable, wait));
  EXPECT_EQ(begun, 1u);
  EXPECT_THAT(told, ::testing::UnorderedElementsAre(0, 1, 3));
  ASSERT_EQ(unreadable.size(), 1u);
  EXPECT_EQ(unreadable[0].first, 5u);
}

// ---- In a store that is changed meanwhile

std::string said(uint64_t number) {
  std::mt19937_64 random(number);
  std::string text = "Entry " + std::to_string(number) + ":";
  while (text.size() < 4000) text += " swell " + std::to_string(random() % 100'000);
  return text;
}

TEST(EncodingsOfAStoreTest, FetchesGetTheRightBytesWhileTurnsAreForgottenAndChunksMended) {
  const TempDir directory;
  const auto store = FakeModel::open(directory.path() / "data");
  std::vector<std::string> contents;
  for (uint64_t i = 0; i < 8; ++i) contents.push_back(said(i));
  const MemoryId id = FakeModel::append(*store, "m", contents);
  ASSERT_TRUE(FakeModel::settle(*store, id));
  // Those before the second turn stay as they are, whatever is forgotten behind them.
  const uint64_t steady = store->turns(id, 1, 1, 1 << 20)->front().first_token / chunk_tokens;
  ASSERT_GT(steady, 10u);
  std::vector<uint64_t> chunks;
  for (uint64_t chunk = 0; chunk < steady; ++chunk) chunks.push_back(chunk);
  std::vector<std::byte> expected(steady * FakeModel::kv_bytes);
  ASSERT_TRUE(store->fetch(id, chunks, expected));
  EXPECT_GT(store->stats()->entry_cache_bytes, 0u);

  std::vector<std::jthread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&](const std::stop_token& stop) {
      std::vector<std::byte> kv(expected.size());
      while (!stop.stop_requested()) {
        const auto fetched = store->fetch(id, chunks, kv);
        if (!fetched && fetched.error().kind == ErrorKind::not_found) break;  // removed, at the end
        ASSERT_TRUE(fetched) << fetched.error().message;
        ASSERT_EQ(kv, expected);
      }
    });
  }
  const std::vector<Bf16> landmark(FakeModel::dim);
  for (uint64_t turn = 7; turn > 1; --turn) {
    const MemoryInfo info = store->memory(id).value();
    for (int round = 0; round < 10; ++round) {
      std::vector<MendedChunk> again;
      for (const uint64_t chunk : chunks)
        again.push_back(
            {.chunk = chunk,
             .encoded = {landmark, std::span(expected).subspan(chunk * FakeModel::kv_bytes, FakeModel::kv_bytes)},
             .kv = true,
             .landmark = false});
      const auto mended = store->mend(info.serving, again, {});
      ASSERT_TRUE(mended) << mended.error().message;
    }
    ASSERT_TRUE(store->forget(id, std::array{TurnRange{turn, turn}}));
    const auto settled = FakeModel::settle(*store, id);
    ASSERT_TRUE(settled) << settled.error().message;
  }
  ASSERT_TRUE(store->erase("m"));
  readers.clear();
  EXPECT_EQ(store->stats()->entry_cache_bytes, 0u);  // nothing of what is gone
}

}  // namespace
}  // namespace recalld
