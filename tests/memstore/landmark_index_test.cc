#include "memstore/landmark_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <random>

#include "memstore/rows.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t dim = 2048;
constexpr size_t page_landmarks = landmark_page_bytes / (dim * sizeof(Bf16));  // 32

std::vector<Bf16> random_landmarks(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Bf16> landmarks(n * dim);
  for (Bf16& x : landmarks) x = to_bf16(static_cast<float>(random() % 2001) / 1000.0f - 1);
  return landmarks;
}

class LandmarkIndexTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto catalog = Catalog::open({directory_.path() / "catalog", 4 << 20, 1 << 20});
    ASSERT_TRUE(catalog) << catalog.error().message;
    catalog_ = *std::move(catalog);
  }

  // Stores landmarks [n, dim] of a memory, `at_once` a write.
  void store(LandmarkIndex& index, MemoryId id, std::span<const Bf16> landmarks, size_t at_once) {
    const size_t n = landmarks.size() / dim;
    for (size_t first = 0; first < n; first += at_once) {
      const auto part = landmarks.subspan(first * dim, std::min(at_once, n - first) * dim);
      Catalog::Batch batch(*catalog_);
      const auto staged = index.stage(id, first, part, batch);
      ASSERT_TRUE(staged) << staged.error().message;
      ASSERT_TRUE(catalog_->write(batch));
      index.publish(id, first, part);
    }
  }

  std::vector<std::pair<uint64_t, float>> top_k(LandmarkIndex& index, MemoryId id, size_t n, size_t k,
                                                size_t threads = 2) {
    WorkerPool pool(threads);
    std::vector<Unreadable> unreadable;
    const auto best = index.top_k(std::array{Extent{0, id}}, n, query_, k, pool, unreadable);
    EXPECT_TRUE(unreadable.empty());
    if (!best) throw std::runtime_error(best.error().message);
    return pairs(best->front());
  }

  std::vector<std::pair<uint64_t, float>> reference(std::span<const Bf16> landmarks, size_t k) {
    TopK best(k);
    for (size_t i = 0; i < landmarks.size() / dim; ++i) {
      float dot = 0;
      landmark_dots_reference(query_, landmarks.data() + i * dim, 1, &dot);
      best.offer({i, dot});
    }
    return pairs(best.take());
  }

  static std::vector<std::pair<uint64_t, float>> pairs(const std::vector<ScoredChunk>& chunks) {
    std::vector<std::pair<uint64_t, float>> result;
    for (const ScoredChunk& chunk : chunks) result.emplace_back(chunk.chunk, chunk.dot);
    return result;
  }

  void remove_page(MemoryId id, uint64_t page) {
    Catalog::Batch batch(*catalog_);
    batch.remove(Family::landmarks, row_key(id, page));
    ASSERT_TRUE(catalog_->write(batch));
  }

  std::vector<size_t> key_sizes(MemoryId id) {
    std::vector<size_t> sizes;
    Catalog::Cursor rows = catalog_->cursor(Family::landmarks, row_key(id));
    for (auto found = rows.first(); found.value(); found = rows.next()) sizes.push_back(rows.key().size());
    return sizes;
  }

  TempDir directory_;
  std::unique_ptr<Catalog> catalog_;
  const std::vector<Bf16> query_ = random_landmarks(1, 77);
};

TEST_F(LandmarkIndexTest, SmallRowsBecomeOneWhenTheirPageIsFull) {
  LandmarkIndex index(*catalog_, dim, 1 << 20);
  const auto landmarks = random_landmarks(2 * page_landmarks + 3, 1);
  store(index, 1, landmarks, 1);
  EXPECT_EQ(key_sizes(1), (std::vector<size_t>{16, 16, 20, 20, 20}));
  store(index, 2, landmarks, landmarks.size() / dim);
  EXPECT_EQ(key_sizes(2), (std::vector<size_t>{16, 16, 20}));
  EXPECT_EQ(top_k(index, 1, 67, 5), top_k(index, 2, 67, 5));
}

TEST_F(LandmarkIndexTest, TheBestAreTheSameWhateverIsCachedAndHoweverManyThreads) {
  const size_t n = 5 * page_landmarks + 7;
  const auto landmarks = random_landmarks(n, 2);
  {
    LandmarkIndex writer(*catalog_, dim, 0);
    store(writer, 1, landmarks, 13);
    EXPECT_EQ(writer.cached_bytes(), 0u);
  }
  const auto expected = reference(landmarks, 10);
  for (const uint64_t cache_bytes : {uint64_t{0}, uint64_t{2 * landmark_page_bytes}, uint64_t{4 << 20}}) {
    LandmarkIndex index(*catalog_, dim, cache_bytes);
    for (const size_t threads : {1, 2, 3, 2}) {
      EXPECT_EQ(top_k(index, 1, n, 10, threads), expected);
      EXPECT_LE(index.cached_bytes(), cache_bytes);
    }
  }
  LandmarkIndex index(*catalog_, dim, 4 << 20);
  EXPECT_EQ(top_k(index, 1, n, 3 * n).size(), n);
  EXPECT_EQ(top_k(index, 1, 40, 10), reference(std::span(landmarks).first(40 * dim), 10));
  EXPECT_TRUE(top_k(index, 9, 0, 10).empty());
}

// Room for so many pages, and for what is noted about them.
constexpr uint64_t room_for(uint64_t pages) {
  return pages * landmark_page_bytes + 1024;
}

TEST_F(LandmarkIndexTest, SeveralQueriesOfOneScanGetWhatEachGetsAlone) {
  LandmarkIndex index(*catalog_, dim, 1 << 20);
  const size_t n = 3 * page_landmarks + 5;
  store(index, 1, random_landmarks(n, 1), 16);
  const std::vector<Bf16> queries = random_landmarks(7, 2);
  WorkerPool pool(2);
  std::vector<Unreadable> unreadable;
  const auto best = index.top_k(std::array{Extent{0, 1}}, n, queries, 10, pool, unreadable);
  ASSERT_TRUE(best);
  ASSERT_EQ(best->size(), 7u);
  for (size_t i = 0; i < best->size(); ++i) {
    const auto alone =
        index.top_k(std::array{Extent{0, 1}}, n, std::span(queries).subspan(i * dim, dim), 10, pool, unreadable);
    ASSERT_TRUE(alone);
    EXPECT_EQ(pairs(best->at(i)), pairs(alone->front()));
    EXPECT_EQ(alone->front().size(), 10u);
  }
}

TEST_F(LandmarkIndexTest, AScanOfMoreThanFitsKeepsWhatItHas) {
  LandmarkIndex index(*catalog_, dim, room_for(3));
  const size_t n = 8 * page_landmarks;
  const auto landmarks = random_landmarks(n, 3);
  store(index, 1, landmarks, 32);
  EXPECT_GE(index.cached_bytes(), 3 * landmark_page_bytes);
  for (int search = 0; search < 3; ++search) {
    EXPECT_EQ(top_k(index, 1, n, 4), reference(landmarks, 4));
    EXPECT_GE(index.cached_bytes(), 3 * landmark_page_bytes);
    EXPECT_LE(index.cached_bytes(), room_for(3));
  }

  // Another memory takes the place when it is searched and this one is not.
  const auto other = random_landmarks(2 * page_landmarks, 4);
  store(index, 2, other, 5);
  for (int search = 0; search < 3; ++search) EXPECT_EQ(top_k(index, 2, 2 * page_landmarks, 4), reference(other, 4));
  remove_page(2, 0);
  remove_page(2, 1);
  EXPECT_EQ(top_k(index, 2, 2 * page_landmarks, 4), reference(other, 4));  // from RAM
  EXPECT_LE(index.cached_bytes(), room_for(3));
  EXPECT_EQ(top_k(index, 1, n, 4), reference(landmarks, 4));
}

TEST_F(LandmarkIndexTest, AScanThrowsOutNoPageOfAMemoryThatIsInUse) {
  const auto hot = random_landmarks(2 * page_landmarks, 5);
  const auto large = random_landmarks(9 * page_landmarks + 3, 6);
  const auto small = random_landmarks(1, 7);
  {
    LandmarkIndex writer(*catalog_, dim, 0);
    store(writer, 1, hot, 32);
    store(writer, 2, large, 32);
    for (MemoryId id = 10; id < 30; ++id) store(writer, id, small, 1);
  }
  LandmarkIndex index(*catalog_, dim, room_for(4));
  EXPECT_EQ(top_k(index, 1, 2 * page_landmarks, 4), reference(hot, 4));
  // These pages are in RAM alone from now on, so that a search that succeeds has not read them.
  remove_page(1, 0);
  remove_page(1, 1);
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(top_k(index, 2, large.size() / dim, 4), reference(large, 4));
    for (MemoryId id = 10; id < 30; ++id) EXPECT_EQ(top_k(index, id, 1, 1), reference(small, 1));
    store(index, 40 + static_cast<MemoryId>(round), random_landmarks(5 * page_landmarks, 8), 32);
    EXPECT_EQ(top_k(index, 1, 2 * page_landmarks, 4), reference(hot, 4));
    EXPECT_LE(index.cached_bytes(), room_for(4));
  }
}

TEST_F(LandmarkIndexTest, ManySmallMemoriesStayWithinTheBoundWithWhatIsNotedAboutThem) {
  constexpr uint64_t cache_bytes = 64 << 10;
  LandmarkIndex index(*catalog_, dim, cache_bytes);
  const auto one = random_landmarks(1, 9);
  for (MemoryId id = 1; id <= 40; ++id) {
    store(index, id, one, 1);
    EXPECT_EQ(top_k(index, id, 1, 1), reference(one, 1));
    EXPECT_LE(index.cached_bytes(), cache_bytes);
  }
  EXPECT_GE(index.cached_bytes(), cache_bytes / 2);
  for (MemoryId id = 1; id <= 40; ++id) index.forget(id);
  EXPECT_EQ(index.cached_bytes(), 0u);
}

TEST_F(LandmarkIndexTest, ASmallMemoryTakesLittleOfTheCache) {
  LandmarkIndex index(*catalog_, dim, 4 << 20);
  store(index, 1, random_landmarks(1, 5), 1);
  EXPECT_GE(index.cached_bytes(), dim * sizeof(Bf16));
  EXPECT_LE(index.cached_bytes(), dim * sizeof(Bf16) + 512);
  index.forget(1);
  EXPECT_EQ(index.cached_bytes(), 0u);
}

TEST_F(LandmarkIndexTest, AMissingPageIsNamedAndTheOthersAreScanned) {
  LandmarkIndex index(*catalog_, dim, 0);
  store(index, 4, random_landmarks(3 * page_landmarks, 6), 32);
  remove_page(4, 1);
  WorkerPool pool(2);
  std::vector<Unreadable> unreadable;
  const auto best = index.top_k(std::array{Extent{0, 4}}, 3 * page_landmarks, query_, 5, pool, unreadable);
  ASSERT_TRUE(best);
  EXPECT_EQ(best->front().size(), 5u);
  ASSERT_EQ(unreadable.size(), 1u);
  EXPECT_EQ(unreadable[0].first, page_landmarks);
  EXPECT_EQ(unreadable[0].last, 2 * page_landmarks - 1);
  EXPECT_THAT(unreadable[0].message, HasSubstr("stream 4"));
  EXPECT_THAT(unreadable[0].message, HasSubstr("page 1"));
  EXPECT_EQ(index.landmark(4, page_landmarks).error().kind, ErrorKind::corrupt);
  EXPECT_TRUE(index.landmark(4, page_landmarks - 1));
}

TEST_F(LandmarkIndexTest, LandmarksOfManyChunksAreThoseOfEachOverExtentsAndPagesCachedOrNot) {
  constexpr size_t shared = 2 * page_landmarks, n = 5 * page_landmarks + 7;
  const auto before = random_landmarks(3 * page_landmarks, 1), after = random_landmarks(n, 2);
  LandmarkIndex writer(*catalog_, dim, 0);
  store(writer, 1, before, 32);
  store(writer, 2, after, 13);  // of which the first pages are not looked at
  const std::array extents{Extent{0, 1}, Extent{shared, 2}};
  std::vector<Bf16> expected(before.begin(), before.begin() + shared * dim);
  expected.insert(expected.end(), after.begin() + shared * dim, after.end());
  WorkerPool pool(2);
  for (const uint64_t cache_bytes : {uint64_t{0}, room_for(3), uint64_t{4 << 20}}) {
    LandmarkIndex index(*catalog_, dim, cache_bytes);
    for (int round = 0; round < 2; ++round) {
      for (const auto& [first, end] :
           {std::pair<size_t, size_t>{0, n}, {shared - 1, shared + 1}, {3, 4}, {page_landmarks, n - 1}, {n, n}}) {
        std::vector<Bf16> out((end - first) * dim);
        std::vector<Unreadable> unreadable;
        const uint64_t cached_bytes = index.cached_bytes();
        index.landmarks(extents, n, first, out, unreadable);
        EXPECT_TRUE(unreadable.empty());
        EXPECT_EQ(index.cached_bytes(), cached_bytes);
        EXPECT_TRUE(
            std::ranges::equal(out, std::span(expected).subspan(first * dim, out.size()), {}, &Bf16::bits, &Bf16::bits))
            << first << " to " << end << ", " << cached_bytes << " bytes cached";
      }
      std::vector<Unreadable> unreadable;
      ASSERT_TRUE(index.top_k(extents, n, query_, 5, pool, unreadable));  // which fills the cache
      EXPECT_EQ(index.cached_bytes() > 0, cache_bytes > 0);
    }
  }
}

TEST_F(LandmarkIndexTest, LandmarksOfAMissingPageAreNotNumbersAndTold) {
  const auto landmarks = random_landmarks(3 * page_landmarks + 2, 6);
  LandmarkIndex index(*catalog_, dim, 0);
  store(index, 4, landmarks, 1);
  remove_page(4, 1);
  Catalog::Batch batch(*catalog_);
  batch.remove(Family::landmarks, row_key(4, 3, 0));  // what is left of the last page stands in its place
  ASSERT_TRUE(catalog_->write(batch));
  std::vector<Unreadable> unreadable;
  const size_t first = page_landmarks + 5, n = landmarks.size() / dim;
  std::vector<Bf16> out((n - first) * dim);
  index.landmarks(std::array{Extent{0, 4}}, n, first, out, unreadable);
  ASSERT_EQ(unreadable.size(), 2u);
  EXPECT_EQ(unreadable[0].first, first);
  EXPECT_EQ(unreadable[0].last, 2 * page_landmarks - 1);
  EXPECT_THAT(unreadable[0].message, HasSubstr("stream 4"));
  EXPECT_THAT(unreadable[0].message, HasSubstr("page 1"));
  EXPECT_EQ(unreadable[1].first, 3 * page_landmarks);
  EXPECT_EQ(unreadable[1].last, n - 1);
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t page = (first + i / dim) / page_landmarks;
    ASSERT_EQ(out[i].bits, page == 2 ? landmarks[first * dim + i].bits : 0x7fc0) << i;
  }
}

}  // namespace
}  // namespace recalld
