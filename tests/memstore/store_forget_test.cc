// Forgetting, against a store that never saw the forgotten turns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>
#include <string>

#include "memstore/catalog.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "tests/memstore/many_pages_fixture.h"
#include "tests/support/files_with.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class StoreForgetTest : public ManyPagesTest {
 protected:
  Forgotten forget(MemoryId id, std::vector<TurnRange> turns) {
    const auto forgotten = store_->forget(id, turns);
    if (!forgotten) throw std::runtime_error(forgotten.error().message);
    return *forgotten;
  }

  std::vector<std::pair<uint64_t, std::string>> turns(MemoryId id) {
    std::vector<std::pair<uint64_t, std::string>> out;
    const auto listed = store_->turns(id, 0, 10'000, 64 << 20);
    if (!listed) throw std::runtime_error(listed.error().message);
    for (const StoredTurn& turn : *listed) out.emplace_back(turn.turn, turn.value.content);
    return out;
  }
  std::vector<std::filesystem::path> found(const char* words) { return files_with(directory_.path(), words); }

  // Everything that the memory holds is what it would hold in a store that got `kept` alone.
  void expect_as_if_never_seen(MemoryId id, const std::vector<std::pair<uint64_t, std::string>>& kept) {
    EXPECT_EQ(turns(id), kept);
    const TempDir other;
    const auto opened = Model::open(other.path() / "data");
    Store& clean = *opened;
    const auto info = store_->memory(id);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->turns, kept.size());
    if (kept.empty()) {
      EXPECT_EQ(info->tokens, 0u);
      return;
    }
    MemoryId clean_id = 0;
    for (const auto& [number, content] : kept) clean_id = Model::append(clean, "m", {content});
    ASSERT_TRUE(Model::settle(clean, clean_id));
    const auto expected = clean.memory(clean_id);
    ASSERT_TRUE(expected);
    ASSERT_EQ(info->tokens, expected->tokens);
    EXPECT_EQ(info->content_bytes, expected->content_bytes);
    ASSERT_EQ(info->encoded_chunks, expected->encoded_chunks);
    EXPECT_EQ(store_->tokens(id, 0, info->tokens).value(), clean.tokens(clean_id, 0, info->tokens).value());
    EXPECT_EQ(store_->passage(id, 0, info->tokens)->text, clean.passage(clean_id, 0, info->tokens)->text);
    std::vector<std::byte> kv(Model::kv_bytes), clean_kv(Model::kv_bytes);
    for (uint64_t chunk = 0; chunk < info->encoded_chunks; ++chunk) {
      const auto fetched = store_->fetch(id, std::array{chunk}, kv);
      ASSERT_TRUE(fetched) << fetched.error().message;
      ASSERT_TRUE(clean.fetch(clean_id, std::array{chunk}, clean_kv));
      EXPECT_EQ(kv, clean_kv) << chunk;
      const auto landmark = store_->landmark(id, chunk);
      ASSERT_TRUE(landmark) << landmark.error().message;
      const auto clean_landmark = clean.landmark(clean_id, chunk);
      ASSERT_TRUE(clean_landmark);
      EXPECT_EQ(as_text(std::as_bytes(std::span(*landmark))), as_text(std::as_bytes(std::span(*clean_landmark))))
          << chunk;
    }
    const size_t numbers = info->encoded_chunks * Model::dim;
    std::vector<Bf16> landmarks(numbers), clean_landmarks(numbers);
    ASSERT_TRUE(store_->landmarks(id, 0, landmarks));
    ASSERT_TRUE(clean.landmarks(clean_id, 0, clean_landmarks));
    EXPECT_TRUE(std::ranges::equal(landmarks, clean_landmarks, {}, &Bf16::bits, &Bf16::bits));
    for (uint64_t chunks = 1; chunks <= info->encoded_chunks; ++chunks) {
      const auto state = store_->state(id, chunks), clean_state = clean.state(clean_id, chunks);
      ASSERT_TRUE(state && clean_state);
      ASSERT_EQ(state->has_value(), clean_state->has_value()) << chunks;
      if (*state) {
        EXPECT_EQ((*state)->chunks, (*clean_state)->chunks);
        EXPECT_EQ((*state)->bytes, (*clean_state)->bytes);
      }
    }
    WorkerPool pool(2);
    const std::vector<Bf16> query = Model{99}.landmark();
    const auto best = store_->top_k(id, query, 20, pool), clean_best = clean.top_k(clean_id, query, 20, pool);
    ASSERT_TRUE(best) << best.error().message;
    ASSERT_EQ(best->size(), clean_best->size());
    for (size_t i = 0; i < best->size(); ++i) {
      EXPECT_EQ((*best)[i].chunk, (*clean_best)[i].chunk);
      EXPECT_EQ((*best)[i].dot, (*clean_best)[i].dot);
    }
    for (uint64_t tokens = 1; tokens <= info->tokens; tokens += 37) {
      const auto through = store_->last_turn_within(id, tokens);
      ASSERT_TRUE(through) << through.error().message;
      const auto clean_through = clean.last_turn_within(clean_id, tokens).value();
      ASSERT_EQ(through->has_value(), clean_through.has_value());
      if (clean_through) {
        EXPECT_EQ(**through, kept.at(*clean_through).first);
      }
    }
  }

  static std::string said(uint64_t number, size_t bytes = 120) {
    std::string text = "Entry " + std::to_string(number) + " of the lighthouse log:";
    for (uint64_t i = 0; text.size() < bytes; ++i) text += " swell " + std::to_string(number * 31 + i * 7 % 101);
    return text;
  }
};

TEST_F(StoreForgetTest, ForgottenTurnsVanishAtOnceAndTheirNumbersStay) {
  const MemoryId id = append("m", {said(0), said(1), said(2), said(3)});
  settle(id);
  const Forgotten forgotten = forget(id, {{1, 1}, {7, 9}});
  EXPECT_THAT(forgotten.turns, ElementsAre(TurnRange{1, 1}));
  EXPECT_EQ(forgotten.turn_count, 1u);
  EXPECT_EQ(forgotten.content_bytes, said(1).size());
  EXPECT_TRUE(forgotten.rebuilding);
  EXPECT_THAT(turns(id), ElementsAre(std::pair(0, said(0)), std::pair(2, said(2)), std::pair(3, said(3))));
  EXPECT_EQ(store_->memory(id)->turns, 3u);
  EXPECT_EQ(store_->memory(id)->next_turn, 4u);
  // The old chunks serve on, without the words.
  const auto passage = store_->passage(id, 0, store_->memory(id)->tokens);
  ASSERT_TRUE(passage) << passage.error().message;
  EXPECT_EQ(passage->text, "User: " + said(0) + "\nUser: " + said(2) + "\nUser: " + said(3) + "\n");
  EXPECT_EQ(store_->tokens(id, 0, 64).error().kind, ErrorKind::busy);
  EXPECT_EQ(store_->turns(id, 1, 1, 1 << 20)->at(0).turn, 2u);

  const Forgotten again = forget(id, {{1, 1}});
  EXPECT_EQ(again.turn_count, 0u);
  settle(id);
  EXPECT_EQ(append("m", {said(4)}), id);
  settle(id);
  expect_as_if_never_seen(id, {{0, said(0)}, {2, said(2)}, {3, said(3)}, {4, said(4)}});
}

TEST_F(StoreForgetTest, WhatIsNotEncodedYetIsForgottenWithoutANewGeneration) {
  const MemoryId id = append("m", {said(0, 400)});
  settle(id);
  append("m", {said(1), said(2), said(3)});
  const Forgotten forgotten = forget(id, {{2, 2}});
  EXPECT_FALSE(forgotten.rebuilding);
  EXPECT_EQ(forgotten.chunks, 0u);
  EXPECT_FALSE(store_->memory(id)->next);
  settle(id);
  expect_as_if_never_seen(id, {{0, said(0, 400)}, {1, said(1)}, {3, said(3)}});
}

TEST_F(StoreForgetTest, AMemoryOfWhichEverythingIsForgottenIsEmptyAndGoesOn) {
  const MemoryId id = append("m", {said(0), said(1, 500), said(2)});
  settle(id);
  forget(id, {{0, UINT64_MAX >> 11}});
  EXPECT_THAT(turns(id), IsEmpty());
  settle(id);
  expect_as_if_never_seen(id, {});
  append("m", {said(3, 900)});
  settle(id);
  expect_as_if_never_seen(id, {{3, said(3, 900)}});
}

TEST_F(StoreForgetTest, AnEncoderThatWasOvertakenIsToldAndLeavesNothingBehind) {
  const MemoryId id = append("m", {said(0, 400), said(1, 400)});
  const StreamInfo before = store_->memory(id)->serving;
  forget(id, {{1, 1}});
  EXPECT_EQ(Model::encode(*store_, before, 1).error().kind, ErrorKind::busy);
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 0u);
  settle(id);
  expect_as_if_never_seen(id, {{0, said(0, 400)}});
}

TEST_F(StoreForgetTest, TheOldGenerationServesAndGrowsUntilTheNewOneHasCaughtUp) {
  const MemoryId id = append("m", {said(0, 900), said(1, 900)});
  settle(id);
  forget(id, {{0, 0}});
  EXPECT_FALSE(store_->swap(id).value());
  append("m", {said(2, 900)});
  const uint64_t served = store_->memory(id)->encoded_chunks;
  WorkerPool pool(1);
  EXPECT_EQ(store_->top_k(id, Model{3}.landmark(), 100, pool)->size(), served);
  ASSERT_TRUE(Model::encode(*store_, *store_->memory(id)->next, 2));
  EXPECT_FALSE(store_->swap(id).value());
  open();  // a restart goes on where it was
  ASSERT_TRUE(store_->memory(id)->next);
  EXPECT_EQ(store_->memory(id)->next->chunks, 2u);
  EXPECT_THAT(store_->unencoded(0, 10).value(), ElementsAre(id));
  settle(id);
  expect_as_if_never_seen(id, {{1, said(1, 900)}, {2, said(2, 900)}});
}

TEST_F(StoreForgetTest, WithTooLittleSpaceTheOldGenerationGoesFirst) {
  const MemoryId id = append("m", {said(0, 900), said(1, 900), said(2, 900)});
  settle(id);
  const uint64_t before = store_->stats()->encoded_chunks;
  forget(id, {{1, 1}});
  ASSERT_TRUE(store_->swap(id, true).value());
  EXPECT_FALSE(store_->memory(id)->next);
  EXPECT_LT(store_->memory(id)->encoded_chunks, before);
  EXPECT_EQ(store_->stats()->encoded_chunks, store_->memory(id)->encoded_chunks);
  EXPECT_GT(store_->erase_forgotten(id)->segments.size(), 0u);
  settle(id);
  expect_as_if_never_seen(id, {{0, said(0, 900)}, {2, said(2, 900)}});
}

TEST_F(StoreForgetTest, NoByteOfWhatWasForgottenIsLeftInTheDirectory) {
  const MemoryId id =
      append("m", {said(0, 600), "the lifeboat's keypad is curlew-7719 " + said(1, 600), said(2, 600)}, "op");
  settle(id);
  const uint64_t chunk = 4;
  std::vector<std::byte> kv(Model::kv_bytes);
  ASSERT_TRUE(store_->fetch(id, std::array{chunk}, kv));
  const std::string record(as_text(kv).substr(0, 64));
  ASSERT_FALSE(files_with(directory_.path(), record).empty());
  ASSERT_FALSE(found("curlew-7719").empty());
  forget(id, {{1, 1}});
  settle(id);
  EXPECT_THAT(found("curlew-7719"), IsEmpty());
  EXPECT_THAT(files_with(directory_.path(), record), IsEmpty());
  expect_as_if_never_seen(id, {{0, said(0, 600)}, {2, said(2, 600)}});
}

TEST_F(StoreForgetTest, ARepeatedOperationOfAForgottenAppendAddsNothing) {
  const MemoryId id = append("m", {said(0)}, "op-a");
  append("m", {said(1)});
  forget(id, {{0, 0}});
  settle(id);
  append("m", {said(0)}, "op-a");
  EXPECT_THAT(turns(id), ElementsAre(std::pair(1, said(1))));
}

TEST_F(StoreForgetTest, ADeletedMemoryGoesWithAllItsGenerations) {
  const MemoryId id = append("m", {said(0, 900), said(1, 900), said(2, 2000)});
  settle(id);
  forget(id, {{2, 2}});
  settle(id);
  append("m", {said(3, 2000)});
  settle(id);
  forget(id, {{1, 1}});
  ASSERT_TRUE(Model::encode(*store_, *store_->memory(id)->next, 3));
  ASSERT_TRUE(store_->erase("m"));
  EXPECT_THAT(store_->to_erase().value(), IsEmpty());
  EXPECT_EQ(store_->stats()->encoded_chunks, 0u);
  EXPECT_EQ(store_->stats()->tokens, 0u);
  EXPECT_THAT(found("lighthouse"), IsEmpty());
  const MemoryId fresh = append("m", {said(4, 900)});
  settle(fresh);
  expect_as_if_never_seen(fresh, {{0, said(4, 900)}});
}

TEST_F(StoreForgetTest, AMissingTurnIsDamageAndNotTakenForForgotten) {
  const MemoryId id = append("m", {said(0), said(1), said(2), said(3)});
  forget(id, {{1, 1}});
  settle(id);
  store_.reset();
  {
    auto catalog = Catalog::open({catalog_data(), 4 << 20, 1 << 20});
    ASSERT_TRUE(catalog);
    Catalog::Batch rows(**catalog);
    rows.remove(Family::turns, row_key(id, 2));
    ASSERT_TRUE((*catalog)->write(rows));
  }
  open();
  const auto listed = store_->turns(id, 0, 10, 1 << 20);
  ASSERT_FALSE(listed);
  EXPECT_EQ(listed.error().kind, ErrorKind::corrupt);
}

// Any order of appends, encodings, forgettings, early swaps and restarts ends as if the turns had never been.
TEST_F(StoreForgetTest, AnythingEndsAsIfTheForgottenTurnsHadNeverBeen) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t bound) { return random() % bound; };
    const std::string name = "m" + std::to_string(seed);
    std::map<uint64_t, std::string> kept;
    uint64_t next = 0;
    MemoryId id = 0;
    for (int step = 0; step < 50; ++step) {
      const uint64_t what = id == 0 ? 0 : below(10);
      if (what < 4) {
        std::vector<std::string> contents;
        for (uint64_t i = 0, count = 1 + below(3); i < count; ++i) {
          contents.push_back(said(seed * 1000 + next, 20 + below(700)));
          kept[next++] = contents.back();
        }
        id = append(name, contents);
      } else if (what < 6) {
        const auto info = store_->memory(id);
        const auto done =
            Model::encode(*store_, info->next && below(2) == 0 ? *info->next : info->serving, 1 + below(6));
        if (!done) {
          EXPECT_EQ(done.error().kind, ErrorKind::busy) << done.error().message;
        }
      } else if (what < 8 && next > 0) {
        const uint64_t first = below(next), last = std::min(next - 1, first + below(4));
        const Forgotten forgotten = forget(id, {{first, last}});
        uint64_t count = 0;
        for (uint64_t turn = first; turn <= last; ++turn) count += kept.erase(turn);
        EXPECT_EQ(forgotten.turn_count, count);
      } else if (what == 8) {
        const auto swapped = store_->swap(id, below(4) == 0);
        ASSERT_TRUE(swapped) << swapped.error().message;
        if (below(2) == 0) {
          const auto erased = store_->erase_forgotten(id);
          ASSERT_TRUE(erased) << erased.error().message;
        }
      } else if (below(3) == 0) {
        open();
      }
      std::vector<std::pair<uint64_t, std::string>> now(kept.begin(), kept.end());
      ASSERT_EQ(turns(id), now) << "step " << step;
    }
    settle(id);
    expect_as_if_never_seen(id, {kept.begin(), kept.end()});
    open();
    expect_as_if_never_seen(id, {kept.begin(), kept.end()});
  }
}

}  // namespace
}  // namespace recalld
