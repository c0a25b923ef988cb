// Filters before top-k, against what is computed from the turns themselves.
#include "memstore/turn_selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <set>
#include <string>

#include "memstore/catalog.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "tests/support/fake_model.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

TEST(ChunkSet, HoldsWhatWasAddedAndFindsItsEnds) {
  std::mt19937_64 random(3);
  for (const uint64_t chunks : {1, 63, 64, 65, 200, 1000}) {
    ChunkSet set(chunks);
    std::vector<bool> expected(chunks + 70);
    for (int i = 0; i < 6; ++i) {
      const uint64_t first = random() % chunks, end = first + random() % (chunks - first + 1);
      set.add(first, end);
      for (uint64_t chunk = first; chunk < end; ++chunk) expected[chunk] = true;
      for (uint64_t from = 0; from < chunks + 70; ++from) {
        EXPECT_EQ(set.contains(from), expected[from]);
        uint64_t in = from, out = from;
        while (in < chunks + 70 && !expected[in]) ++in;
        while (out < chunks + 70 && expected[out]) ++out;
        ASSERT_EQ(set.first_in(from, chunks + 70), in) << from;
        ASSERT_EQ(set.first_out(from, chunks + 70), out) << from;
      }
    }
    EXPECT_EQ(set.size(), static_cast<uint64_t>(std::ranges::count(expected, true)));
  }
}

// Two landmarks fit on a page, so that few chunks make many pages.
using Model = FakeModelOf<32768>;

class TurnSelectionTest : public ::testing::Test {
 protected:
  // Turns of random lengths; every word of some stands in many of them.
  MemoryId append(size_t count) {
    AppendBatch batch{.memory = "m", .turns = {}, .operation_id = {}, .operation_digest = {}, .now_us = 9};
    for (size_t i = 0; i < count; ++i) {
      std::string content = "herring";
      for (uint64_t words = random_() % 60; words > 0; --words) content += " w" + std::to_string(random_() % 40);
      batch.turns.push_back(Model::user_turn(content));
    }
    return store_->append({&batch, 1}).value().at(0).value().id;
  }

  static TurnQuery only(std::set<uint64_t> numbers, uint8_t key) {
    TurnQuery query;
    query.key.fill(std::byte{key});
    query.matches = [numbers = std::move(numbers)](uint64_t number, const Turn&) { return numbers.contains(number); };
    return query;
  }

  // Chunks in which tokens of these turns lie, from what turns() says.
  std::set<uint64_t> expected(MemoryId id, const std::set<uint64_t>& numbers) {
    std::set<uint64_t> chunks;
    const auto turns = store_->turns(id, 0, 100'000, 64 << 20);
    for (const StoredTurn& turn : turns.value()) {
      if (!numbers.contains(turn.turn)) continue;
      for (uint64_t token = turn.first_token; token < turn.first_token + turn.tokens; ++token)
        chunks.insert(token / chunk_tokens);
    }
    return chunks;
  }

  void expect_right(MemoryId id, const std::set<uint64_t>& numbers, uint8_t key) {
    const auto selection = store_->select(id, only(numbers, key));
    ASSERT_TRUE(selection) << selection.error().message;
    const auto selected = store_->selected_chunks(id, **selection);
    ASSERT_TRUE(selected) << selected.error().message;
    EXPECT_TRUE(selected->unreadable.empty());
    const MemoryInfo info = store_->memory(id).value();
    EXPECT_EQ(selected->end_token, info.tokens);
    const std::set<uint64_t> chunks = expected(id, numbers);
    for (uint64_t chunk = 0; chunk <= info.tokens / chunk_tokens; ++chunk)
      ASSERT_EQ(selected->chunks.contains(chunk), chunks.contains(chunk)) << chunk;

    // The best of these are the best of all without the others, with the same scores.
    WorkerPool pool(2);
    const std::vector<Bf16> query = Model{99}.landmark();
    const auto all = store_->top_k(id, query, 100'000, pool).value();
    std::vector<std::pair<uint64_t, float>> wanted, got;
    for (const ScoredChunk& chunk : all)
      if (chunks.contains(chunk.chunk) && wanted.size() < 7) wanted.emplace_back(chunk.chunk, chunk.dot);
    const auto best_of_these = store_->top_k(id, query, 7, pool, nullptr, &selected->chunks);
    for (const ScoredChunk& chunk : best_of_these.value()) got.emplace_back(chunk.chunk, chunk.dot);
    EXPECT_EQ(got, wanted);

    for (const std::string text : {"w3 w17", "herring", "w1 w2 w3 w4 w5"}) {
      LexicalQuery words{.text = text, .end_token = info.tokens, .k = 100'000};
      const auto ranked = store_->lexical_top_k(id, words).value().best;
      std::vector<LexicalScore> best;
      for (const LexicalScore& score : ranked)
        if (chunks.contains(score.chunk) && best.size() < 7) best.push_back(score);
      words.k = 7;
      words.only = &selected->chunks;
      EXPECT_EQ(store_->lexical_top_k(id, words).value().best, best) << text;
    }
  }

  std::set<uint64_t> some(uint64_t turns, uint64_t one_in) {
    std::set<uint64_t> numbers;
    for (uint64_t turn = 0; turn < turns; ++turn)
      if (random_() % one_in == 0) numbers.insert(turn);
    return numbers;
  }

  const TempDir directory_;
  std::unique_ptr<Store> store_ = Model::open(directory_.path() / "data");
  std::mt19937_64 random_{5};
};

TEST_F(TurnSelectionTest, OnlyChunksOfTheTurnsAreRankedWhateverIsForgottenOrAppended) {
  MemoryId id = append(120);
  ASSERT_TRUE(Model::settle(*store_, id));
  uint64_t turns = 120;
  const std::array<std::set<uint64_t>, 4> filters{some(400, 1), some(400, 3), some(400, 30), std::set<uint64_t>{}};
  const auto check = [&] {
    for (size_t i = 0; i < filters.size(); ++i) expect_right(id, filters[i], static_cast<uint8_t>(i));
  };
  check();
  append(40);  // the tail waits
  turns += 40;
  check();
  for (int round = 0; round < 4; ++round) {
    const uint64_t first = random_() % (turns - 6);
    ASSERT_TRUE(store_->forget(id, std::array{TurnRange{first, first + random_() % 6}}));
    append(10);
    turns += 10;
    ASSERT_TRUE(Model::settle(*store_, id));
    check();
  }
  store_.reset();
  store_ = Model::open(directory_.path() / "data");
  check();
}

TEST_F(TurnSelectionTest, WhatIsBeingForgottenIsNotSelectedAnyMore) {
  const MemoryId id = append(60);
  ASSERT_TRUE(Model::settle(*store_, id));
  const std::set<uint64_t> one{20};
  const auto before = store_->select(id, only(one, 1)).value();
  EXPECT_GT(store_->selected_chunks(id, *before)->chunks.size(), 0u);
  ASSERT_TRUE(store_->forget(id, std::array{TurnRange{20, 20}}));
  ASSERT_TRUE(store_->memory(id)->next);  // the chunks hold it still
  EXPECT_EQ(store_->selected_chunks(id, *before)->chunks.size(), 0u);
  EXPECT_EQ(store_->selected_chunks(id, *store_->select(id, only(one, 1)).value())->chunks.size(), 0u);
}

TEST_F(TurnSelectionTest, OnlyTurnsBetweenTheBoundsAndThoseAppendedSinceAreRead) {
  const MemoryId id = append(50);
  std::set<uint64_t> asked;
  TurnQuery query;
  query.first_turn = 10;
  query.end_turn = 55;
  query.matches = [&](uint64_t number, const Turn&) { return asked.insert(number).second; };
  ASSERT_TRUE(store_->select(id, query));
  EXPECT_EQ(*asked.begin(), 10u);
  EXPECT_EQ(asked.size(), 40u);
  asked.clear();
  ASSERT_TRUE(store_->select(id, query));
  EXPECT_TRUE(asked.empty());
  append(10);
  ASSERT_TRUE(store_->select(id, query));
  EXPECT_EQ(asked, (std::set<uint64_t>{50, 51, 52, 53, 54}));
}

TEST_F(TurnSelectionTest, ATurnWhoseRowIsMissingIsToldAndNotKept) {
  const MemoryId id = append(50);
  ASSERT_TRUE(Model::settle(*store_, id));
  const StoredTurn lost = store_->turns(id, 30, 1, 1 << 20).value().at(0);
  store_.reset();
  {
    const auto catalog = Catalog::open({directory_.path() / "data" / "catalog", 4 << 20, 1 << 20}).value();
    Catalog::Batch batch(*catalog);
    batch.remove(Family::turns, row_key(id, 30));
    ASSERT_TRUE(catalog->write(batch));
  }
  store_ = Model::open(directory_.path() / "data");
  for (int i = 0; i < 2; ++i) {
    const auto selection = store_->select(id, only({3, 30, 31}, 1));
    ASSERT_TRUE(selection) << selection.error().message;
    const auto selected = store_->selected_chunks(id, **selection).value();
    ASSERT_EQ(selected.unreadable.size(), 1u);
    EXPECT_EQ(selected.unreadable[0].first, lost.first_token / chunk_tokens);
    EXPECT_EQ(selected.unreadable[0].last, (lost.first_token + lost.tokens - 1) / chunk_tokens);
    EXPECT_THAT(selected.unreadable[0].message, HasSubstr("run recall verify"));
    const StoredTurn next = store_->turns(id, 31, 1, 1 << 20).value().at(0);
    EXPECT_TRUE(selected.chunks.contains((next.first_token + next.tokens - 1) / chunk_tokens));
  }
}

}  // namespace
}  // namespace recalld
