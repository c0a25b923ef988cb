#include "memstore/chunk_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>

namespace recalld {
namespace {

TEST(ChunkCacheTest, TakesFreeSlotsBeforeItEvicts) {
  ChunkCache cache(3);
  std::set<uint32_t> slots;
  for (uint64_t chunk = 0; chunk < 3; ++chunk) {
    const auto taken = cache.take(1, chunk);
    ASSERT_TRUE(taken);
    EXPECT_FALSE(taken->evicted);
    slots.insert(taken->slot);
    cache.let_go(taken->slot);
  }
  EXPECT_EQ(slots.size(), 3u);
  EXPECT_EQ(cache.used(), 3u);
}

TEST(ChunkCacheTest, EvictsWhatWasUsedLongestAgo) {
  ChunkCache cache(2);
  for (uint64_t chunk : {10, 11}) cache.let_go(cache.take(1, chunk)->slot);
  ASSERT_TRUE(cache.find(1, 10));  // so 11 is the older one
  const auto taken = cache.take(2, 10);
  ASSERT_TRUE(taken && taken->evicted);
  EXPECT_EQ(*taken->evicted, std::make_pair(uint64_t{1}, uint64_t{11}));
  EXPECT_TRUE(cache.find(1, 10));
  EXPECT_FALSE(cache.find(1, 11));
  EXPECT_EQ(cache.find(2, 10), taken->slot);  // another owner's chunk of the same number
}

TEST(ChunkCacheTest, NeverTakesASlotThatIsHeld) {
  ChunkCache cache(2);
  const auto first = cache.take(1, 0), second = cache.take(1, 1);
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(cache.take(1, 2));
  cache.hold(first->slot);
  cache.let_go(first->slot);
  EXPECT_FALSE(cache.take(1, 2)) << "it was held twice";
  cache.let_go(first->slot);
  const auto third = cache.take(1, 2);
  ASSERT_TRUE(third);
  EXPECT_EQ(third->slot, first->slot);
}

TEST(ChunkCacheTest, ForgetsAnOwnersChunksAndNoOthers) {
  ChunkCache cache(4);
  std::set<uint32_t> mine;
  for (uint64_t chunk : {0, 1}) {
    const auto taken = cache.take(1, chunk);
    mine.insert(taken->slot);
    cache.let_go(taken->slot);
    cache.let_go(cache.take(2, chunk)->slot);
  }
  const auto forgotten = cache.forget(1);
  EXPECT_EQ(std::set<uint32_t>(forgotten.begin(), forgotten.end()), mine);
  EXPECT_FALSE(cache.find(1, 0));
  EXPECT_TRUE(cache.find(2, 0) && cache.find(2, 1));
  EXPECT_TRUE(cache.forget(1).empty());
  const auto taken = cache.take(3, 0);
  EXPECT_TRUE(taken && mine.contains(taken->slot)) << "an empty slot goes first";
}

TEST(ChunkCacheTest, ADroppedChunkLeavesAFreeSlot) {
  ChunkCache cache(1);
  const auto taken = cache.take(1, 5);
  cache.drop(1, 5);
  EXPECT_FALSE(cache.find(1, 5));
  EXPECT_FALSE(cache.take(1, 6)) << "it is held still";
  cache.let_go(taken->slot);
  const auto again = cache.take(1, 6);
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->evicted);
}

// Against the plainest possible model: a list of pairs in the order of use.
TEST(ChunkCacheTest, AgreesWithAListOverRandomUse) {
  const uint32_t seed = 20'261'126;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  constexpr uint32_t slots = 7;
  ChunkCache cache(slots);
  using Key = std::pair<uint64_t, uint64_t>;
  std::vector<Key> by_use;  // oldest first
  std::map<Key, uint32_t> where;
  for (int i = 0; i < 20'000; ++i) {
    const Key key{random() % 3, random() % 6};
    if (random() % 50 == 0) {
      cache.forget(key.first);
      std::erase_if(by_use, [&](const Key& each) { return each.first == key.first; });
      std::erase_if(where, [&](const auto& each) { return each.first.first == key.first; });
      continue;
    }
    const auto slot = cache.find(key.first, key.second);
    ASSERT_EQ(slot.has_value(), where.contains(key));
    if (slot) {
      ASSERT_EQ(*slot, where[key]);
      by_use.erase(std::ranges::find(by_use, key));
    } else {
      const auto taken = cache.take(key.first, key.second);
      ASSERT_TRUE(taken);
      ASSERT_EQ(taken->evicted.has_value(), by_use.size() == slots);
      if (taken->evicted) {
        ASSERT_EQ(*taken->evicted, by_use.front());
        where.erase(by_use.front());
        by_use.erase(by_use.begin());
      }
      where[key] = taken->slot;
      cache.let_go(taken->slot);
    }
    by_use.push_back(key);
    ASSERT_EQ(cache.used(), by_use.size());
  }
}

}  // namespace
}  // namespace recalld
