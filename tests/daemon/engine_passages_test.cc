// What searches show beyond chunks, of one memory and of several.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/daemon/engine_fixture.h"

namespace recalld {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

class EnginePassages : public ::testing::Test {
 protected:
  void SetUp() override { engine_.open(); }

  Expected<SearchReply> search(SearchRequest request) {
    return answer<SearchReply>([&](auto done) { engine_->search(std::move(request), std::move(done)); });
  }
  static SearchRequest asking(const std::string& memory, const std::string& query, Expand expand, size_t limit = 8) {
    SearchRequest request{.memory = memory, .query = query, .limit = limit, .max_tokens = {}, .min_score = {}};
    request.expand = expand;
    return request;
  }
  // The text that the turns of a memory make together, which passages are cut from.
  std::string stream_of(const std::string& memory) {
    std::string text;
    for (const StoredTurn& turn : engine_.turns(memory)) text += "User: " + turn.value.content + "\n";
    return text;
  }

  TempDir directory_;
  EngineDriver engine_{directory_.path() / "data"};
};

TEST_F(EnginePassages, ChunksThatTouchBecomeOneVerbatimPassage) {
  auto log = harbour_log(0, 100);
  log[40] = secret;
  engine_.append("m", log, true);
  const auto plain = must(search(asking("m", secret_question, Expand::none)));
  const auto joined = must(search(asking("m", secret_question, Expand::chunks)));
  ASSERT_FALSE(joined.results.empty());
  EXPECT_EQ(joined.results[0].score, plain.results[0].score);
  EXPECT_EQ(joined.results[0].chunk, plain.results[0].chunk);
  const std::string stream = stream_of("m");
  std::set<uint64_t> shown;
  for (size_t i = 0; i < joined.results.size(); ++i) {
    const auto& result = joined.results[i];
    ASSERT_FALSE(result.chunks.empty());
    EXPECT_EQ(result.passage.first_token, result.chunks.front() * chunk_tokens);
    EXPECT_THAT(stream, HasSubstr(result.passage.text));
    if (i > 0) {
      EXPECT_GE(joined.results[i - 1].score, result.score);
    }
    for (const uint64_t chunk : result.chunks) EXPECT_TRUE(shown.insert(chunk).second) << chunk;
    for (const auto& other : joined.results)
      EXPECT_NE(other.passage.first_token, result.passage.end_token) << "they touch, and stand apart";
  }
  // All that is found without it is found with it, until there are enough results.
  for (const auto& result : plain.results) EXPECT_TRUE(shown.contains(result.chunk)) << result.chunk;
}

TEST_F(EnginePassages, AResultIsWidenedToWholeTurnsWhoseSourcesItNames) {
  auto log = harbour_log(0, 60);
  log[30] = secret;
  engine_.append("m", log, true);
  const auto found = must(search(asking("m", secret_question, Expand::turns, 3)));
  ASSERT_EQ(found.results.size(), 3u);
  EXPECT_THAT(found.results[0].passage.text, HasSubstr(std::string("User: ") + secret + "\n"));
  const auto turns = engine_.turns("m");
  for (const auto& result : found.results) {
    EXPECT_THAT(result.passage.text, StartsWith("User: "));
    EXPECT_TRUE(result.passage.text.ends_with("\n"));
    const auto& first = turns[result.passage.turns.front().turn];
    const auto& last = turns[result.passage.turns.back().turn];
    EXPECT_EQ(result.passage.first_token, first.first_token);
    EXPECT_EQ(result.passage.end_token, last.first_token + last.tokens);
    for (const auto& other : found.results)
      EXPECT_TRUE(&other == &result || other.passage.end_token <= result.passage.first_token ||
                  result.passage.end_token <= other.passage.first_token);
  }
}

TEST_F(EnginePassages, ALongTurnIsCutAroundTheChunk) {
  std::string tale;
  for (const std::string& entry : harbour_log(0, 200)) tale += entry + " ";
  tale += secret;
  for (const std::string& entry : harbour_log(200, 400)) tale += " " + entry;
  engine_.append("m", {tale}, true);
  engine_.settle();
  const auto found = must(search(asking("m", secret_question, Expand::turns, 1)));
  ASSERT_EQ(found.results.size(), 1u);
  const auto& result = found.results[0];
  EXPECT_EQ(result.passage.first_token, result.chunk * chunk_tokens - search_widen_max);
  EXPECT_EQ(result.passage.end_token, (result.chunk + 1) * chunk_tokens + search_widen_max);
  EXPECT_THAT(result.passage.text, HasSubstr(secret_words));
  EXPECT_THAT("User: " + tale, HasSubstr(result.passage.text));
}

TEST_F(EnginePassages, WhatWasToldTwiceIsShownOnceAndCounted) {
  std::string told;  // longer than a chunk, so that one lies within it
  for (const std::string& entry : harbour_log(0, 5)) told += entry + " ";
  told += secret;
  engine_.append("a", {told}, true);
  engine_.append("b", {told}, true);  // the same, whichever is found first
  SearchRequest request = asking("", secret_question, Expand::turns);
  request.memories = {"a", "b"};
  const auto found = must(search(request));
  size_t shown = 0, duplicates = 0;
  for (const auto& result : found.results) {
    shown += result.passage.text.find(told) != std::string::npos;
    duplicates += result.duplicates;
  }
  EXPECT_GE(shown, 1u);
  EXPECT_GE(duplicates, 1u);
  for (size_t i = 1; i < found.results.size(); ++i)
    for (size_t k = 0; k < i; ++k)
      EXPECT_EQ(found.results[k].passage.text.find(found.results[i].passage.text), std::string::npos);
}

TEST_F(EnginePassages, NeverPassesTheTokenBoundAndKeepsTheBestWhole) {
  engine_.append("m", harbour_log(0, 200), true);
  for (const Expand expand : {Expand::chunks, Expand::turns}) {
    for (const uint64_t most : {1, 63, 64, 65, 100, 200, 1000}) {
      SearchRequest request = asking("m", "Which boats came in with herring?", expand, 32);
      request.max_tokens = most;
      const auto found = must(search(request));
      uint64_t tokens = 0;
      for (const auto& result : found.results) tokens += result.passage.end_token - result.passage.first_token;
      EXPECT_LE(tokens, most);
      EXPECT_EQ(found.results.empty(), most < chunk_tokens) << most;
      if (most >= chunk_tokens) {
        EXPECT_LE(found.results[0].passage.first_token, found.results[0].chunk * chunk_tokens);
      }
    }
  }
}

TEST_F(EnginePassages, SeveralMemoriesAreRankedAsOneAndNamed) {
  auto one = harbour_log(0, 80), two = harbour_log(100, 180);
  two[20] = secret;
  engine_.append("user/alice/chats", one, true);
  engine_.append("user/alice/notes", two, true);
  engine_.append("user/bob", {secret}, true);
  for (const SearchMode mode : {SearchMode::hybrid, SearchMode::landmark, SearchMode::lexical}) {
    SearchRequest request = asking("", secret_question, Expand::none);
    request.mode = mode;
    request.prefix = "user/alice/";
    request.explain = true;
    const auto found = must(search(request));
    ASSERT_FALSE(found.results.empty());
    if (mode != SearchMode::landmark) {
      EXPECT_THAT(found.results[0].passage.text, HasSubstr(secret_words));
      EXPECT_EQ(found.results[0].memory, "user/alice/notes");
    }
    for (size_t i = 0; i < found.results.size(); ++i) {
      EXPECT_THAT(found.results[i].memory, StartsWith("user/alice/"));
      EXPECT_EQ(found.results[i].why->rank, i + 1);
      if (i > 0) {
        EXPECT_GE(found.results[i - 1].score, found.results[i].score);
      }
    }
    ASSERT_TRUE(found.memories);
    ASSERT_EQ(found.memories->size(), 2u);
    EXPECT_EQ((*found.memories)[0].memory, "user/alice/chats");
    EXPECT_EQ((*found.memories)[1].searchable_through, 79u);

    request.prefix = std::nullopt;
    request.memories = {"user/alice/notes", "user/alice/chats"};
    const auto listed = must(search(request));
    EXPECT_EQ(listed.results[0].memory, found.results[0].memory);
    EXPECT_NEAR(listed.results[0].score, found.results[0].score, 1e-9);  // summed in another order
    EXPECT_EQ((*listed.memories)[0].memory, "user/alice/notes");
  }
}

TEST_F(EnginePassages, AMemoryThatIsMissingIsNamedAndABeginningOfNoneFindsNothing) {
  engine_.append("a", {fact}, true);
  for (const SearchMode mode : {SearchMode::hybrid, SearchMode::lexical}) {
    SearchRequest request = asking("", question, Expand::none);
    request.mode = mode;
    request.memories = {"a", "nobody"};
    const auto missing = search(request);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().kind, ErrorKind::not_found);
    EXPECT_THAT(missing.error().message, HasSubstr("nobody"));
    request.memories.clear();
    request.prefix = "nobody/";
    const auto none = must(search(request));
    EXPECT_THAT(none.results, IsEmpty());
    EXPECT_THAT(none.memories.value(), IsEmpty());
  }
}

TEST_F(EnginePassages, MoreMemoriesThanAreSearchedTogetherAreRefused) {
  for (size_t i = 0; i <= search_memories_max; ++i) engine_.append("many/" + std::to_string(i), {"Ahoy."});
  SearchRequest request = asking("", "ahoy", Expand::none);
  request.prefix = "many/";
  const auto refused = search(request);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refused.error().message, HasSubstr("more than 64 memories begin with \"many/\""));
  request.prefix = "many/1";  // 1, 10 to 19
  EXPECT_EQ(must(search(request)).memories->size(), 11u);
}

TEST_F(EnginePassages, ExplainsPartsAndTheTokensThatTheQueryLooksAt) {
  auto log = harbour_log(0, 60);
  log[30] = fact;
  engine_.append("m", log, true);
  for (const Expand expand : {Expand::none, Expand::turns}) {
    SearchRequest request = asking("m", question, expand, 4);
    request.explain = true;
    const auto found = must(search(request));
    std::set<size_t> best_ranks;
    for (const auto& result : found.results) {
      const auto& why = *result.why;
      ASSERT_EQ(why.parts.size(), why.token_score ? 4u : 3u);
      EXPECT_EQ(why.parts[0].name, "landmark");
      EXPECT_EQ(why.parts[0].score, *why.landmark_score);
      EXPECT_EQ(why.parts[1].score, *why.bm25);
      EXPECT_EQ(why.parts[2].score, *why.context_bm25);
      best_ranks.insert(why.parts[1].rank);
      for (const auto& part : why.parts) EXPECT_EQ(part.rank == 1, part.best == part.score) << part.name;
      EXPECT_GT(why.layer, 0u);
      ASSERT_FALSE(why.pairs.empty());
      EXPECT_LE(why.pairs.size(), search_pairs_max);
      for (size_t i = 0; i < why.pairs.size(); ++i) {
        EXPECT_THAT(std::string(question),
                    HasSubstr(why.pairs[i].query.substr(why.pairs[i].query.find_first_not_of(' '))));
        EXPECT_EQ(why.pairs[i].token / chunk_tokens, result.chunk);
        if (i > 0) {
          EXPECT_GE(why.pairs[i - 1].weight, why.pairs[i].weight);
        }
      }
      double share = 0;
      ASSERT_FALSE(why.tokens.empty());
      for (const auto& each : why.tokens) {
        EXPECT_EQ(result.passage.text.substr(each.byte, each.text.size()), each.text);
        share += each.weight;
      }
      EXPECT_GT(share, 16.0 / 64);  // the heaviest have more than their number would
      EXPECT_LE(share, 1.0001);
    }
    EXPECT_TRUE(best_ranks.contains(1)) << "the best by its words is among the first four";
  }
}

TEST_F(EnginePassages, ExplainsTokensThatAreBytesByThem) {
  engine_.append("m", {"\U0001f60a\U0001f60b\U0001f60c \U0001f980\U0001f981 \U0001f995\U0001f996\U0001f997"}, true);
  SearchRequest request = asking("m", "\U0001f60a\U0001f981?", Expand::none, 1);
  request.explain = true;
  const auto found = must(search(request));
  const auto& why = *found.results.at(0).why;
  size_t bytes = 0;
  for (const auto& pair : why.pairs) {
    EXPECT_THAT(pair.query, AnyOf("?", "▁", MatchesRegex("<0x[0-9A-F]+>")));
    EXPECT_EQ(pair.text.empty(), !pair.piece.empty());
    EXPECT_THAT(pair.piece, AnyOf("", MatchesRegex("<0x[89AB][0-9A-F]>")));
    bytes += pair.text.empty() ? 1 : 0;
  }
  for (const auto& match : why.matches) {
    EXPECT_EQ(match.text.empty(), !match.piece.empty());
    bytes += match.text.empty() ? 1 : 0;
  }
  EXPECT_GT(bytes, 0u) << "three of four tokens are later bytes of a character";
}

}  // namespace
}  // namespace recalld
