// Chunks come back as they were put: landmarks, K/V and states, each damaged one told alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memstore/rows.h"
#include "tests/memstore/store_fixture.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(StoreTest, EncodingsComeBackAfterReopeningAndWithAnyCacheAndThreadCount) {
  const MemoryId id = fill("m", 3000, 16);  // three pages of landmarks, the last one begun
  const auto best = top_k(id, 40);
  ASSERT_EQ(best.size(), 40u);
  TopK expected(40);
  const Encoded query(99, 7);
  for (uint64_t chunk = 0; chunk < 3000; ++chunk) {
    float dot = 0;
    landmark_dots_reference(query.landmark, Encoded(id, chunk).landmark.data(), 1, &dot);
    expected.offer({chunk, dot});
  }
  const auto reference = expected.take();
  for (size_t i = 0; i < best.size(); ++i) EXPECT_EQ(best[i], std::pair(reference[i].chunk, reference[i].dot));
  EXPECT_EQ(top_k(id, 40, 1), best);
  EXPECT_EQ(top_k(id, 5000).size(), 3000u);

  const uint64_t other = fill("other", 10);
  open(8 << 20);
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 3000u);
  EXPECT_EQ(top_k(id, 40, 3), best);
  EXPECT_EQ(top_k(id, 40, 3), best);
  std::vector<std::byte> kv(3 * kv_bytes);
  const std::vector<uint64_t> chunks{2999, 0, 511};
  const auto fetched = store_->fetch(id, chunks, kv);
  ASSERT_TRUE(fetched) << fetched.error().message;
  for (size_t i = 0; i < chunks.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(std::span(kv).subspan(i * kv_bytes, kv_bytes), Encoded(id, chunks[i]).kv));
    const auto landmark = store_->landmark(id, chunks[i]);
    ASSERT_TRUE(landmark) << landmark.error().message;
    EXPECT_TRUE(std::ranges::equal(*landmark, Encoded(id, chunks[i]).landmark, {}, &Bf16::bits, &Bf16::bits));
  }
  EXPECT_EQ(top_k(other, 40).size(), 10u);
  EXPECT_EQ(store_->chunk(id, 3000).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->landmark(id, 3000).error().kind, ErrorKind::not_found);
}

TEST_F(StoreTest, TheLandmarksOfManyChunksAreReadAtOnce) {
  const MemoryId id = fill("m", 2500, 16);
  for (const uint64_t first : {0, 1000, 2499}) {
    std::vector<Bf16> landmarks((2500 - first) * dim);
    const auto read = store_->landmarks(id, first, landmarks);
    ASSERT_TRUE(read) << read.error().message;
    for (uint64_t chunk = first; chunk < 2500; ++chunk)
      ASSERT_TRUE(std::ranges::equal(std::span(landmarks).subspan((chunk - first) * dim, dim),
                                     *store_->landmark(id, chunk), {}, &Bf16::bits, &Bf16::bits))
          << chunk;
  }
  std::vector<Bf16> two(2 * dim);
  const auto fewer = store_->landmarks(id, 2499, two);
  ASSERT_FALSE(fewer);
  EXPECT_EQ(fewer.error().kind, ErrorKind::busy);
  EXPECT_THAT(fewer.error().message, HasSubstr("2500 chunks"));
  EXPECT_EQ(store_->landmarks(id, UINT64_MAX, two).error().kind, ErrorKind::busy);
  ASSERT_TRUE(store_->remove("m"));
  EXPECT_EQ(store_->landmarks(id, 0, two).error().kind, ErrorKind::not_found);
}

TEST_F(StoreTest, LandmarksThatCannotBeReadAreToldOrAnError) {
  const MemoryId id = fill("m", 2500, 16);
  const auto is_nan = [](Bf16 value) { return value.bits == 0x7fc0; };
  const uint64_t page = store_->page_chunks();
  ASSERT_LT(2 * page, 2500u);
  ASSERT_TRUE(tamper([&](Catalog::Batch& rows) { rows.remove(Family::landmarks, row_key(id, 1)); }));
  std::vector<Bf16> landmarks(2500 * dim);
  const auto refused = store_->landmarks(id, 0, landmarks);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(refused.error().message, HasSubstr("page 1"));
  std::vector<Unreadable> unreadable;
  ASSERT_TRUE(store_->landmarks(id, 0, landmarks, &unreadable));
  ASSERT_EQ(unreadable.size(), 1u);
  EXPECT_EQ(unreadable[0].first, page);
  EXPECT_EQ(unreadable[0].last, 2 * page - 1);
  EXPECT_EQ(std::ranges::count_if(landmarks, is_nan), static_cast<ptrdiff_t>(page * dim));
  EXPECT_EQ(std::ranges::find_if(landmarks, is_nan) - landmarks.begin(), static_cast<ptrdiff_t>(page * dim));
}

TEST_F(StoreTest, MemoriesThatWaitForEncodingAreListed) {
  const MemoryId a = append(batch("a", {turn_of_tokens(64)})).id;
  const MemoryId b = append(batch("b", {turn_of_tokens(62)})).id;
  const MemoryId c = append(batch("c", {turn_of_tokens(200)})).id;
  EXPECT_THAT(*store_->unencoded(0, 10), ElementsAre(a, c));
  EXPECT_THAT(*store_->unencoded(0, 1), ElementsAre(a));
  EXPECT_THAT(*store_->unencoded(a, 10), ElementsAre(c));
  ASSERT_TRUE(encode(a));
  append(batch("b", {turn_of_tokens(2)}));
  open();
  EXPECT_THAT(*store_->unencoded(0, 10), ElementsAre(b, c));
}

TEST_F(StoreTest, TheNewestStateIsKeptAndOneIn1024ChunksForGood) {
  const MemoryId id = fill("m", 1300, 64, 64);
  const auto covered = [&](uint64_t chunks_max) {
    const auto state = store_->state(id, chunks_max).value();
    if (state) {
      EXPECT_EQ(state->bytes, state_of(state->chunks));
    }
    return state ? state->chunks : 0;
  };
  EXPECT_EQ(covered(1300), 1280u);
  EXPECT_EQ(covered(1279), 1024u);
  EXPECT_EQ(covered(1023), 0u);
  ASSERT_TRUE(store_->put_state(id, 1290, as_bytes(state_of(1290))));
  EXPECT_EQ(covered(1300), 1290u);
  EXPECT_EQ(covered(1289), 1024u);
  ASSERT_TRUE(store_->put_state(id, 1285, as_bytes(state_of(1285))));  // older than the newest
  open();
  EXPECT_EQ(covered(1289), 1024u);
  EXPECT_EQ(covered(1300), 1290u);
}

TEST_F(StoreTest, AFlippedBitInASegmentIsReportedWithMemoryAndChunk) {
  const MemoryId id = fill("m", 5);
  const ChunkEntry entry = *store_->chunk(id, 3);
  store_.reset();
  {
    std::fstream segment(data() / "kv" / "000000.seg", std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(entry.slot) * 4096 + 500;
    segment.seekg(at);
    const char byte = static_cast<char>(segment.get() ^ 4);
    segment.seekp(at);
    segment.put(byte);
    ASSERT_TRUE(segment.good());
  }
  open();
  std::vector<std::byte> kv(kv_bytes);
  const auto fetched = store_->fetch(id, std::vector<uint64_t>{3}, kv);
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(fetched.error().message, HasSubstr("chunk 3 of memory " + std::to_string(id)));
  EXPECT_THAT(fetched.error().message, HasSubstr("000000.seg"));
  EXPECT_TRUE(store_->fetch(id, std::vector<uint64_t>{2}, kv));
}

TEST_F(StoreTest, DamagedChunksOfAFetchAreToldOneByOneAndTheOthersAreWhole) {
  const MemoryId id = fill("m", 9);
  const ChunkEntry rotten = *store_->chunk(id, 3);
  {
    std::fstream segment(data() / "kv" / "000000.seg", std::ios::in | std::ios::out | std::ios::binary);
    segment.seekp(static_cast<std::streamoff>(rotten.slot) * 4096 + 500);
    segment << "rot";
    ASSERT_TRUE(segment.good());
  }
  ASSERT_TRUE(tamper([&](Catalog::Batch& rows) {
    ChunkEntry elsewhere = rotten;
    elsewhere.segment = 77;
    rows.put(Family::chunks, row_key(id, 5), recalld::encode(elsewhere));
    rows.remove(Family::chunks, row_key(id, 6));
  }));
  const std::vector<uint64_t> chunks = {8, 6, 5, 0, 3, 4};
  std::vector<std::byte> kv(chunks.size() * kv_bytes);
  EXPECT_EQ(store_->fetch(id, chunks, kv).error().kind, ErrorKind::corrupt);
  std::vector<Unreadable> unreadable;
  const auto fetched = store_->fetch(id, chunks, kv, &unreadable);
  ASSERT_TRUE(fetched) << fetched.error().message;
  ASSERT_EQ(unreadable.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(unreadable[i].first, (std::array{6, 5, 3}[i]));
  EXPECT_THAT(unreadable[0].message, HasSubstr("its row is missing"));
  EXPECT_THAT(unreadable[1].message, HasSubstr("000077.seg"));
  EXPECT_THAT(unreadable[2].message, HasSubstr("checksum mismatch"));
  for (const size_t i : {0, 3, 5})
    EXPECT_TRUE(std::ranges::equal(std::span(kv).subspan(i * kv_bytes, kv_bytes), Encoded(id, chunks[i]).kv)) << i;
  EXPECT_EQ(store_->fetch(id, std::vector<uint64_t>{3, 9}, std::span(kv).first(2 * kv_bytes), &unreadable).error().kind,
            ErrorKind::not_found);
}

}  // namespace
}  // namespace recalld
