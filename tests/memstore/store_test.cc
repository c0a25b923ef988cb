// The journal: turns, their tokens and passages, operations and the list of memories, also with everything else going
// on beside it.
#include "memstore/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "memstore/rows.h"
#include "tests/memstore/store_fixture.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

TEST_F(StoreTest, TurnsComeBackAsTheyWereAppendedAfterReopening) {
  NewTurn first = new_turn("The lock gates close at six.");
  first.turn.name = "Mara";
  first.turn.role = Role::assistant;
  first.turn.metadata = R"({"channel":"harbour"})";
  first = [&] {
    NewTurn again = new_turn("");
    again.turn = first.turn;
    again.ids = {1, 2};
    again.ends = {5, static_cast<uint32_t>(stream_text(first.turn).size())};
    return again;
  }();
  const Appended appended = append(batch("port/log", {first, new_turn(std::string("with\0NUL", 8), 3)}));
  EXPECT_EQ(appended.first_turn, 0u);
  EXPECT_EQ(appended.last_turn, 1u);
  EXPECT_EQ(appended.end_token, appended.tokens);
  open();

  const auto info = store_->memory("port/log");
  ASSERT_TRUE(info) << info.error().message;
  EXPECT_EQ(info->id, appended.id);
  EXPECT_EQ(info->turns, 2u);
  EXPECT_EQ(info->tokens, appended.tokens);
  EXPECT_EQ(info->created_us, 1000);
  const auto turns = store_->turns(info->id, 0, 10, 1 << 20);
  ASSERT_TRUE(turns) << turns.error().message;
  ASSERT_EQ(turns->size(), 2u);
  EXPECT_EQ(turns->at(0).value.content, first.turn.content);
  EXPECT_EQ(turns->at(0).value.name, "Mara");
  EXPECT_EQ(turns->at(0).value.role, Role::assistant);
  EXPECT_EQ(turns->at(0).value.metadata, first.turn.metadata);
  EXPECT_EQ(turns->at(0).value.time_us, 5);
  EXPECT_EQ(turns->at(1).value.content, std::string("with\0NUL", 8));
  EXPECT_EQ(turns->at(1).first_token, 2u);
  EXPECT_EQ(turns->at(1).tokens, info->tokens - 2);
}

TEST_F(StoreTest, AGroupCommitsAllBatchesButTheRefusedOne) {
  append(batch("a", {new_turn("before")}, "op", "what"));
  const std::vector<AppendBatch> group{batch("a", {new_turn("one")}), batch("a", {new_turn("other")}, "op", "changed"),
                                       batch("b", {new_turn("two"), new_turn("three")}),
                                       batch("a", {new_turn("four")})};
  const auto replies = store_->append(group);
  ASSERT_TRUE(replies) << replies.error().message;
  ASSERT_EQ(replies->size(), 4u);
  EXPECT_EQ(replies->at(0)->first_turn, 1u);
  ASSERT_FALSE(replies->at(1));
  EXPECT_EQ(replies->at(1).error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(replies->at(1).error().message, HasSubstr("operation_id"));
  EXPECT_EQ(replies->at(2)->last_turn, 1u);
  EXPECT_EQ(replies->at(3)->first_turn, 2u);
  EXPECT_NE(replies->at(2)->id, replies->at(3)->id);
  const auto turns = store_->turns(replies->at(0)->id, 0, 10, 1 << 20);
  ASSERT_TRUE(turns);
  std::vector<std::string> contents;
  for (const StoredTurn& turn : *turns) contents.push_back(turn.value.content);
  EXPECT_THAT(contents, ElementsAre("before", "one", "four"));
}

TEST_F(StoreTest, AnOperationSentTwiceIsCarriedOutOnceAlsoWithinOneGroupAndAfterReopening) {
  const std::vector<AppendBatch> group{batch("m", {new_turn("once")}, "id 1", "what"),
                                       batch("m", {new_turn("once")}, "id 1", "what")};
  const auto replies = store_->append(group);
  ASSERT_TRUE(replies);
  EXPECT_FALSE(replies->at(0)->repeated);
  EXPECT_TRUE(replies->at(1)->repeated);
  append(batch("m", {new_turn("more")}));
  open();
  const Appended again = append(batch("m", {new_turn("once")}, "id 1", "what"));
  EXPECT_TRUE(again.repeated);
  EXPECT_EQ(again.id, replies->at(0)->id);
  EXPECT_EQ(again.last_turn, 0u);
  EXPECT_EQ(again.end_token, replies->at(0)->end_token);
  EXPECT_EQ(store_->memory("m")->turns, 2u);
  EXPECT_FALSE(append(batch("other", {new_turn("once")}, "id 1", "what")).repeated);
}

TEST_F(StoreTest, AnOperationThatCannotBeReadFailsItsOwnBatchAlone) {
  const MemoryId id = append(batch("a", {new_turn("first")}, "op", "what")).id;
  const auto opened = tamper([&](auto& rows) { rows.put(Family::operations, operation_key(id, "op"), "damaged"); });
  ASSERT_TRUE(opened) << opened.error().message;
  const std::vector<AppendBatch> group{batch("b", {new_turn("other")}), batch("a", {new_turn("again")}, "op", "what"),
                                       batch("a", {new_turn("second")})};
  const auto replies = store_->append(group);
  ASSERT_TRUE(replies) << replies.error().message;
  EXPECT_TRUE(replies->at(0));
  ASSERT_FALSE(replies->at(1));
  EXPECT_EQ(replies->at(1).error().kind, ErrorKind::corrupt);
  ASSERT_TRUE(replies->at(2));
  EXPECT_EQ(replies->at(2)->first_turn, 1u);
  EXPECT_EQ(store_->memory("a")->turns, 2u);
}

TEST_F(StoreTest, MemoriesAreListedByNameInPages) {
  for (const char* name : {"b", "team/x", "a", "team/y", "team/z", "teams"}) append(batch(name, {new_turn("t")}));
  const auto names = [&](std::string_view prefix, std::string_view after, size_t limit) {
    std::vector<std::string> found;
    const auto page = *store_->memories(prefix, after, limit);
    for (const MemoryInfo& memory : page.memories) found.push_back(memory.name);
    found.push_back("next " + page.next);
    return found;
  };
  EXPECT_THAT(names("", "", 10), ElementsAre("a", "b", "team/x", "team/y", "team/z", "teams", "next "));
  EXPECT_THAT(names("team/", "", 2), ElementsAre("team/x", "team/y", "next team/y"));
  EXPECT_THAT(names("team/", "team/y", 2), ElementsAre("team/z", "next "));
  EXPECT_THAT(names("none", "", 2), ElementsAre("next "));
}

TEST_F(StoreTest, TokensAreFoundAtEveryPlaceOfTheStream) {
  std::vector<uint32_t> expected;
  for (const uint32_t count : {3u, 64u, 9000u, 4096u, 1000u}) {
    const NewTurn turn = turn_of_tokens(count, static_cast<uint32_t>(expected.size()));
    expected.insert(expected.end(), turn.ids.begin(), turn.ids.end());
    append(batch("m", {turn}));
  }
  const MemoryId id = store_->memory("m")->id;
  for (const auto& [first, count] : std::vector<std::pair<size_t, size_t>>{
           {0, 1}, {2, 2}, {0, 20000}, {66, 1}, {67, 9000}, {4000, 500}, {14162, 100}, {9066, 2}}) {
    const auto tokens = store_->tokens(id, first, count);
    ASSERT_TRUE(tokens) << tokens.error().message;
    const auto end = std::min(first + count, expected.size());
    EXPECT_EQ(*tokens, std::vector(expected.begin() + static_cast<ptrdiff_t>(first),
                                   expected.begin() + static_cast<ptrdiff_t>(end)))
        << first;
  }
  EXPECT_TRUE(store_->tokens(id, expected.size(), 5)->empty());
  EXPECT_TRUE(store_->tokens(id, expected.size() + 10, SIZE_MAX)->empty());
}

TEST_F(StoreTest, AChunkOfTextGivesACharacterToTheTokenThatHoldsItsFirstByte) {
  // Two-byte and four-byte characters and a NUL, in tokens of every width.
  const std::string content = std::string("g\u00e5\u00e5s\0\U0001F41F\U0001F41Fz", 17);
  for (size_t width = 1; width <= 7; ++width) {
    const NewTurn turn = new_turn(content, width);
    const MemoryId id = append(batch("w" + std::to_string(width), {turn, turn})).id;
    const std::string text = stream_text(turn.turn) + stream_text(turn.turn);
    const uint64_t tokens = turn.ids.size() * 2;
    for (uint64_t first = 0; first < tokens; ++first) {
      std::vector<size_t> ends;
      const auto whole = store_->passage(id, first, tokens, &ends);
      ASSERT_TRUE(whole);
      ASSERT_EQ(ends.size(), tokens - first);
      std::string joined;
      for (uint64_t i = first; i < tokens; ++i) {
        joined += passage(id, i, i + 1);
        EXPECT_EQ(joined, whole->text.substr(0, ends[i - first]));
      }
      EXPECT_EQ(joined, whole->text);
    }
    EXPECT_EQ(passage(id, 0, tokens), text);
  }
  const MemoryId one = store_->memory("w1")->id;
  EXPECT_EQ(passage(one, 7, 8), "\u00e5");
  EXPECT_EQ(passage(one, 8, 9), "");
  EXPECT_EQ(passage(one, 12, 13), std::string(1, '\0'));
}

TEST_F(StoreTest, APassageNamesTheTurnsThatItsTokensComeFrom) {
  const MemoryId id = append(batch("m", {turn_of_tokens(10), turn_of_tokens(5), turn_of_tokens(20)})).id;
  const auto turns = [&](uint64_t first, uint64_t end) {
    std::vector<uint64_t> numbers;
    const auto passage = store_->passage(id, first, end);
    for (const auto& source : passage->turns) numbers.push_back(source.turn);
    return numbers;
  };
  EXPECT_THAT(turns(0, 10), ElementsAre(0));
  EXPECT_THAT(turns(9, 16), ElementsAre(0, 1, 2));
  EXPECT_THAT(turns(10, 15), ElementsAre(1));
  EXPECT_FALSE(store_->passage(id, 0, 36));
  EXPECT_FALSE(store_->passage(id, 3, 3));
}

TEST_F(StoreTest, APassageTellsWhichTurnsItCuts) {
  const NewTurn turn = new_turn("The code is 4718.", 3);  // a token has 3 bytes of "User: The code is 4718.\n"
  const MemoryId id = append(batch("m", {turn, turn})).id;
  const uint64_t tokens = turn.ids.size();
  ASSERT_EQ(tokens, 8u);
  const auto cuts = [&](uint64_t first, uint64_t end) {
    std::vector<std::pair<bool, bool>> of_turns;
    const auto passage = store_->passage(id, first, end);
    for (const auto& source : passage->turns) of_turns.emplace_back(source.cut_before, source.cut_after);
    return of_turns;
  };
  EXPECT_THAT(cuts(0, tokens), ElementsAre(Pair(false, false)));
  EXPECT_THAT(cuts(0, 2 * tokens), ElementsAre(Pair(false, false), Pair(false, false)));
  EXPECT_THAT(cuts(0, tokens - 1), ElementsAre(Pair(false, true)));
  EXPECT_THAT(cuts(1, tokens - 1), ElementsAre(Pair(true, true)));
  EXPECT_THAT(cuts(1, tokens), ElementsAre(Pair(true, false)));
  EXPECT_THAT(cuts(tokens - 1, tokens + 1), ElementsAre(Pair(true, false), Pair(false, true)));

  const NewTurn odd = new_turn("The code is 4718", 2);  // its newline is a token
  const auto passage = store_->passage(append(batch("odd", {odd})).id, 0, odd.ids.size() - 1);
  EXPECT_TRUE(passage->text.ends_with("4718"));
  EXPECT_FALSE(passage->turns.at(0).cut_after);
}

TEST_F(StoreTest, ALongTurnIsCutAnywhere) {
  std::string content;
  for (int i = 0; content.size() < 300'000; ++i) content += std::to_string(i) + "\u20ac ";
  const NewTurn turn = new_turn(content, 5);
  const std::string text = stream_text(turn.turn);
  const MemoryId id = append(batch("long", {new_turn("before"), turn, new_turn("after")})).id;
  const uint64_t start = store_->turns(id, 1, 1, 1)->at(0).first_token;
  EXPECT_EQ(store_->turns(id, 1, 1, 1)->at(0).value.content, content);
  const auto cut = [&](uint64_t token) {
    size_t byte = std::min<size_t>(token * 5, text.size());
    while (byte < text.size() && (static_cast<unsigned char>(text[byte]) & 0xc0) == 0x80) ++byte;
    return byte;
  };
  const uint64_t tokens = turn.ids.size();
  for (uint64_t first = 0; first < tokens; first += 997) {
    const uint64_t end = std::min(first + 64, tokens);
    EXPECT_EQ(passage(id, start + first, start + end), text.substr(cut(first), cut(end) - cut(first))) << first;
  }
  EXPECT_EQ(passage(id, start, start + tokens), text);
  EXPECT_EQ(passage(id, start + tokens - 1, start + tokens + 1), text.substr(cut(tokens - 1)) + "User");
}

TEST_F(StoreTest, TheLastWholeTurnWithinSomeTokensIsFound) {
  const MemoryId id = append(batch("m", {turn_of_tokens(10), turn_of_tokens(9000), turn_of_tokens(20)})).id;
  const auto last = [&](uint64_t tokens) { return store_->last_turn_within(id, tokens).value(); };
  EXPECT_EQ(last(0), std::nullopt);
  EXPECT_EQ(last(9), std::nullopt);
  EXPECT_EQ(last(10), 0u);
  EXPECT_EQ(last(4106), 0u);
  EXPECT_EQ(last(9009), 0u);
  EXPECT_EQ(last(9010), 1u);
  EXPECT_EQ(last(9029), 1u);
  EXPECT_EQ(last(9030), 2u);
  EXPECT_EQ(last(100000), 2u);
}

TEST_F(StoreTest, TurnsStopAtTheLimitsOfAPage) {
  const MemoryId id = append(batch("m", std::vector(10, new_turn(std::string(1000, 'y'))))).id;
  EXPECT_EQ(store_->turns(id, 0, 3, 1 << 20)->size(), 3u);
  EXPECT_EQ(store_->turns(id, 8, 5, 1 << 20)->size(), 2u);
  EXPECT_EQ(store_->turns(id, 10, 5, 1 << 20)->size(), 0u);
  EXPECT_EQ(store_->turns(id, 0, 10, 2500)->size(), 3u);
}

TEST_F(StoreTest, AHundredThousandTurnsAreAppendedAndReadBackQuickly) {
  const auto start = std::chrono::steady_clock::now();
  uint64_t tokens = 0;
  for (int group = 0; group < 100; ++group)
    tokens = append(batch("m", std::vector(1000, turn_of_tokens(12)))).end_token;
  EXPECT_EQ(tokens, 1'200'000u);
  const MemoryId id = store_->memory("m")->id;
  EXPECT_EQ(store_->tokens(id, 0, tokens)->size(), tokens);
  for (uint64_t token = 0; token < tokens; token += 3001) EXPECT_EQ(passage(id, token, token + 1).size(), 4u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(1));  // 2 s on an idle machine
}

TEST_F(StoreTest, MemoriesCostTheDiskAndNotTheHeap) {
  open(8 << 20);
  const auto make = [&](int from, int to) {
    for (int first = from; first < to; first += 500) {
      std::vector<AppendBatch> batches;
      for (int i = first; i < first + 500; ++i)
        batches.push_back(batch("users/" + std::to_string(i), {turn_of_tokens(chunk_tokens)}));
      const auto replies = store_->append(batches);
      ASSERT_TRUE(replies) << replies.error().message;
    }
  };
  const auto heap_bytes = [] { return mallinfo2().uordblks; };
  make(0, 5'000);
  const size_t before = heap_bytes();
  make(5'000, 40'000);
  EXPECT_LE(heap_bytes(), before + (4 << 20)) << "35,000 memories would be some 10 MiB in a table";
  EXPECT_EQ(store_->stats()->memories, 40'000u);
  EXPECT_EQ(store_->stats()->waiting_chunks, 40'000u);
  EXPECT_EQ(store_->memories("users/3999", "users/39990", 3)->memories.size(), 3u);
  open(8 << 20);
  EXPECT_EQ(store_->memory("users/20000")->turns, 1u);
  EXPECT_EQ(store_->unencoded(0, 7)->size(), 7u);
}

TEST_F(StoreTest, AppendsPutsSearchesAndErasuresGoOnAtOnce) {
  std::atomic<bool> stop = false;
  const MemoryId steady = fill("steady", 600);
  const auto expected = top_k(steady, 10);
  const uint64_t cached_bytes = store_->stats()->landmark_cache_bytes;
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    for (int i = 0; !stop; ++i) append(batch("m" + std::to_string(i % 3), {turn_of_tokens(150)}));
  });
  threads.emplace_back([&] {
    while (!stop) {
      const auto waiting = store_->unencoded(0, 100);
      for (const MemoryId id : *waiting) {
        const auto encoded = encode(id, 5, 4);
        if (!encoded) {
          EXPECT_EQ(encoded.error().kind, ErrorKind::not_found) << encoded.error().message;
        }
      }
    }
  });
  threads.emplace_back([&] {
    WorkerPool pool(2);
    const Encoded query(99, 7);
    std::vector<std::byte> kv(kv_bytes);
    while (!stop) {
      const auto page = store_->memories("", "", 10);
      for (const MemoryInfo& memory : page->memories) {
        const auto best = store_->top_k(memory.id, query.landmark, 10, pool);
        const auto text = store_->passage(memory.id, 0, std::min<uint64_t>(memory.tokens, 64));
        Expected<void> fetched;
        if (best && !best->empty()) fetched = store_->fetch(memory.id, std::vector<uint64_t>{best->at(0).chunk}, kv);
        const Error* error = !best ? &best.error() : !text ? &text.error() : !fetched ? &fetched.error() : nullptr;
        if (error) {
          EXPECT_EQ(error->kind, ErrorKind::not_found) << error->message;
        }
      }
      EXPECT_EQ(top_k(steady, 10), expected);
      EXPECT_TRUE(store_->stats());
    }
  });
  for (int i = 0; i < 12; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto erased = store_->erase("m" + std::to_string(i % 3));
    if (!erased) {
      EXPECT_EQ(erased.error().kind, ErrorKind::not_found) << erased.error().message;
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const char* name : {"m0", "m1", "m2"}) static_cast<void>(store_->erase(name));
  EXPECT_EQ(store_->stats()->landmark_cache_bytes, cached_bytes);  // nothing of what is gone
  open();
  EXPECT_EQ(top_k(steady, 10), expected);
}

}  // namespace
}  // namespace recalld
