#include "memstore/entry_cache.h"

#include <gtest/gtest.h>

namespace recalld {
namespace {

constexpr uint64_t block_chunks = EntryCache::block_chunks;

// Entries of chunks first, first + 1, ..., `count` of them.
EntryCache::Block block_of(uint32_t segment, uint64_t count = block_chunks) {
  EntryCache::Block block;
  for (uint32_t i = 0; i < count; ++i) {
    block.entries[i] = {.segment = segment, .slot = i, .generation = 0, .crc32c = 7};
    block.there[i] = true;
  }
  return block;
}

TEST(EntryCacheTest, FindsWhatIsKeptAndNothingElse) {
  EntryCache cache(64 << 10);
  cache.keep(5, block_chunks, block_of(3, 4), cache.version());
  const ChunkEntry entry{.segment = 3, .slot = 2, .generation = 0, .crc32c = 7};
  EXPECT_EQ(cache.find(5, block_chunks + 2), entry);
  EXPECT_EQ(cache.find(5, block_chunks + 4), std::nullopt);
  EXPECT_EQ(cache.find(5, 2), std::nullopt);
  EXPECT_EQ(cache.find(6, block_chunks + 2), std::nullopt);
  cache.keep(5, block_chunks, block_of(4), cache.version());
  EXPECT_EQ(cache.find(5, block_chunks + 2)->segment, 4u);
  EXPECT_TRUE(cache.find(5, block_chunks + 4));
}

TEST(EntryCacheTest, KeepsNoMoreThanItsBytesAndDropsWhatWasUsedLeastRecently) {
  constexpr uint64_t bytes_max = 64 << 10;
  EntryCache cache(bytes_max);
  cache.keep(1, 0, block_of(1), cache.version());
  for (uint64_t number = 1; number < 1000; ++number) {
    cache.keep(1, number * block_chunks, block_of(1), cache.version());
    EXPECT_TRUE(cache.find(1, 0));
    EXPECT_TRUE(cache.find(1, number * block_chunks));
    EXPECT_LE(cache.bytes(), bytes_max);
  }
  EXPECT_GT(cache.bytes(), bytes_max / 2);
  EXPECT_FALSE(cache.find(1, block_chunks));
  EntryCache none(100);
  none.keep(1, 0, block_of(1), none.version());
  EXPECT_FALSE(none.find(1, 0));
}

TEST(EntryCacheTest, ForgetsOneStreamOrAll) {
  EntryCache cache(64 << 10);
  for (const StreamId stream : {1, 2, 3})
    for (const uint64_t first : {uint64_t{0}, 9 * block_chunks})
      cache.keep(stream, first, block_of(1), cache.version());
  cache.forget(2);
  EXPECT_TRUE(cache.find(1, 9 * block_chunks));
  EXPECT_FALSE(cache.find(2, 0));
  EXPECT_FALSE(cache.find(2, 9 * block_chunks));
  EXPECT_TRUE(cache.find(3, 0));
  cache.forget_all();
  EXPECT_FALSE(cache.find(1, 0));
  EXPECT_EQ(cache.bytes(), 0u);
}

TEST(EntryCacheTest, WhatWasReadBeforeSomethingWasForgottenIsNotKept) {
  EntryCache cache(64 << 10);
  const uint64_t before = cache.version();
  cache.forget(1);
  cache.keep(1, 0, block_of(1), before);
  EXPECT_FALSE(cache.find(1, 0));
  const uint64_t between = cache.version();
  cache.forget_all();
  cache.keep(1, 0, block_of(1), between);
  EXPECT_FALSE(cache.find(1, 0));
  cache.keep(1, 0, block_of(1), cache.version());
  EXPECT_TRUE(cache.find(1, 0));
}

}  // namespace
}  // namespace recalld
