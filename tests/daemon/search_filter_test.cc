// Searches with filters through the engine, in every mode, against the turns that the filters mean.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <ranges>
#include <set>
#include <string>

#include "daemon/filter.h"
#include "tests/daemon/engine_fixture.h"

namespace recalld {
namespace {

AppendRequest said(std::mt19937_64& random, size_t count, const std::string& memory = "m") {
  AppendRequest request;
  request.memory = memory;
  for (size_t i = 0; i < count; ++i) {
    Turn turn;
    turn.role = static_cast<Role>(random() % 4);
    if (random() % 3 != 0) turn.name = random() % 2 == 0 ? "Ana" : "Bo";
    turn.time_us = static_cast<int64_t>(random() % 50) * 1'000'000;
    if (random() % 3 != 0)
      turn.metadata =
          R"({"n":)" + std::to_string(random() % 9) + R"(,"mood":)" + (random() % 2 == 0 ? R"("calm")" : "true") + "}";
    turn.content = "herring";
    for (uint64_t words = random() % 40; words > 0; --words) turn.content += " rope" + std::to_string(random() % 30);
    request.turns.push_back({std::move(turn), true});
  }
  request.wait_searchable = true;
  return request;
}

TEST(SearchFilter, EveryModeFindsTheChunksOfTheTurnsThatAreMeantAndNoOthers) {
  const TempDir directory;
  EngineDriver engine(directory.path() / "data");
  engine.open();
  std::mt19937_64 random(7);
  ASSERT_TRUE(engine.append(said(random, 90)));
  for (const bool forgotten : {false, true}) {
    if (forgotten) {
      engine.forget("m", {{4, 9}, {40, 41}});
      ASSERT_TRUE(engine.append(said(random, 15)));  // which end in an open chunk
    }
    const std::vector<StoredTurn> turns = engine.turns("m");
    for (const std::string json : {
             R"({"role":"tool"})",
             R"({"role":{"nin":["tool","user"]}})",
             R"({"name":null})",
             R"({"name":{"ne":"Ana"},"metadata.n":{"in":[1,2]}})",
             R"({"time":{"gte":"1970-01-01T00:00:10Z","lt":"1970-01-01T00:00:20Z"}})",
             R"({"turn":{"gt":20,"lte":33}})",
             R"({"turn":{"in":[3,60]}})",
             R"({"metadata.n":{"gt":2,"lte":5}})",
             R"({"metadata.n":{"lt":2}})",
             R"({"metadata.mood":{"gte":"calm"}})",
             R"({"metadata.mood":true})",
             R"({"or":[{"role":"system"},{"and":[{"name":"Bo"},{"not":{"metadata.mood":"calm"}}]}]})",
             R"({"not":{"or":[{"turn":{"lt":80}},{"role":"user"}]}})",
             R"({"metadata.nothing":1})",
             R"({"turn":{"gte":100000}})",
         }) {
      Json value = Json::parse(json);
      const auto meant = read_query(value, "filter").value().matches;
      std::set<uint64_t> chunks, beginnings;  // those in which one begins have its word, or the one behind does
      for (const StoredTurn& turn : turns) {
        if (!meant(turn.turn, turn.value)) continue;
        beginnings.insert(turn.first_token / chunk_tokens);
        for (uint64_t token = turn.first_token; token < turn.first_token + turn.tokens; ++token)
          chunks.insert(token / chunk_tokens);
      }
      ASSERT_LT(chunks.size(), search_limit_max);
      value = Json::parse(json);
      const Receipt dry = must(engine.try_forget(
          {.memory = "m", .turns = {}, .filter = read_query(value, "filter").value(), .dry_run = true}));
      std::vector<uint64_t> walked, to_forget;
      for (const StoredTurn& turn : turns)
        if (meant(turn.turn, turn.value)) walked.push_back(turn.turn);
      for (const TurnRange& range : dry.turns)
        for (uint64_t turn = range.first; turn <= range.last; ++turn) to_forget.push_back(turn);
      EXPECT_EQ(to_forget, walked) << json;
      for (const SearchMode mode : {SearchMode::hybrid, SearchMode::landmark, SearchMode::lexical}) {
        value = Json::parse(json);
        SearchRequest request{.memory = "m",
                              .query = "herring",
                              .mode = mode,
                              .limit = search_limit_max,
                              .max_tokens = {},
                              .min_score = {}};
        request.filter = read_query(value, "filter").value();
        const auto reply = answer<SearchReply>([&](auto done) { engine->search(std::move(request), std::move(done)); });
        ASSERT_TRUE(reply) << reply.error().message;
        std::set<uint64_t> found;
        for (const auto& result : reply->results) {
          found.insert(result.chunk);
          EXPECT_TRUE(std::ranges::any_of(result.passage.turns, [&](const Passage::Source& source) {
            const auto turn = std::ranges::find(turns, source.turn, &StoredTurn::turn);
            return turn != turns.end() && meant(turn->turn, turn->value);
          }));
        }
        EXPECT_TRUE(std::ranges::includes(chunks, found)) << json;
        EXPECT_TRUE(std::ranges::includes(found, beginnings)) << json;
        if (mode != SearchMode::lexical) {
          EXPECT_EQ(found, chunks) << json;
        }
        EXPECT_TRUE(reply->unreadable.empty());
        ASSERT_TRUE(reply->searchable_through);
        EXPECT_EQ(*reply->searchable_through, turns.back().turn);
      }
    }
  }
}

TEST(SearchFilter, AChunkHasTheSameScoreWithAndWithoutAFilter) {
  const TempDir directory, with_meaning;
  copy_starter_with_meaning(with_meaning.path());
  EngineDriver engine(directory.path() / "data", with_meaning.path());
  engine.open();
  std::mt19937_64 random(11);
  ASSERT_TRUE(engine.append(said(random, 200)));
  AppendRequest told = EngineDriver::request("m", {fact});
  told.turns[0].turn.name = "Runa";
  told.wait_searchable = true;
  ASSERT_TRUE(engine.append(std::move(told)));
  ASSERT_TRUE(engine.append(said(random, 200)));
  ASSERT_GT(engine.info("m").encoded_chunks, 2 * Fusion::depth);  // so that a filter brings in further ones

  const auto search = [&](const std::string& json) {
    SearchRequest request{
        .memory = "m", .query = question, .limit = Fusion::depth, .max_tokens = {}, .min_score = {}, .explain = true};
    Json value = Json::parse(json);
    if (!value.is_null()) request.filter = read_query(value, "filter").value();
    return must(answer<SearchReply>([&](auto done) { engine->search(std::move(request), std::move(done)); })).results;
  };
  std::map<uint64_t, SearchReply::Result> without;
  for (auto& result : search("null")) without.emplace(result.chunk, std::move(result));
  const auto has_part = [](const SearchReply::Result& result, std::string_view name) {
    return std::ranges::count(result.why->parts, name, &SearchReply::Why::Part::name) == 1;
  };
  const double of_fact = std::ranges::max(without | std::views::values, {}, &SearchReply::Result::score).score;
  for (const std::string json : {R"({"name":"Runa"})", R"({"name":"Bo"})", R"({"role":{"in":["tool","user"]}})",
                                 R"({"turn":{"gte":100}})", R"({"turn":{"gte":0}})"}) {
    size_t same = 0, further = 0;
    for (const auto& result : search(json)) {
      const auto known = without.find(result.chunk);
      further += known == without.end();
      if (known == without.end()) continue;
      ++same;
      EXPECT_EQ(result.score, known->second.score) << json << ", chunk " << result.chunk;
      EXPECT_EQ(*result.why->features, *known->second.why->features) << json << ", chunk " << result.chunk;
      EXPECT_TRUE(has_part(result, "meaning") && has_part(result, "topic")) << json;
      // What the filter leaves out has its place; what it brings in may take some.
      const auto &parts = result.why->parts, &before = known->second.why->parts;
      ASSERT_EQ(parts.size(), before.size());
      for (size_t i = 0; i < parts.size(); ++i) {
        EXPECT_EQ(parts[i].name, before[i].name);
        EXPECT_EQ(parts[i].score, before[i].score);
        EXPECT_GE(parts[i].rank, before[i].rank) << json << ", " << parts[i].name << ", chunk " << result.chunk;
        if (json.contains(R"("turn":{"gte":0})")) {
          EXPECT_EQ(parts[i].rank, before[i].rank);
        }
      }
    }
    EXPECT_GT(same, 0u) << json;
    if (json.contains("Bo")) {
      EXPECT_GT(further, 0u);
    }
  }
  const auto right = search(R"({"name":"Runa"})");
  ASSERT_FALSE(right.empty());
  EXPECT_EQ(right.front().score, of_fact);
}

TEST(SearchFilter, OfSeveralMemoriesFindsTheChunksOfTheTurnsThatAreMeantInEach) {
  const TempDir directory;
  EngineDriver engine(directory.path() / "data");
  engine.open();
  std::mt19937_64 random(13);
  const std::vector<std::string> names = {"m/a", "m/b", "m/c"};
  for (const std::string& name : names) ASSERT_TRUE(engine.append(said(random, 60, name)));
  for (const std::string json :
       {R"({"role":"tool"})", R"({"name":"Ana","metadata.n":{"lt":6}})", R"({"metadata.nothing":1})"}) {
    Json value = Json::parse(json);
    const TurnQuery filter = read_query(value, "filter").value();
    std::set<std::pair<std::string, uint64_t>> chunks, beginnings;
    for (const std::string& name : names) {
      for (const StoredTurn& turn : engine.turns(name)) {
        if (!filter.matches(turn.turn, turn.value)) continue;
        beginnings.emplace(name, turn.first_token / chunk_tokens);
        for (uint64_t token = turn.first_token; token < turn.first_token + turn.tokens; ++token)
          chunks.emplace(name, token / chunk_tokens);
      }
    }
    ASSERT_LT(chunks.size(), search_limit_max);
    for (const SearchMode mode : {SearchMode::hybrid, SearchMode::landmark, SearchMode::lexical}) {
      SearchRequest request{.memory = "",
                            .query = "herring",
                            .mode = mode,
                            .limit = search_limit_max,
                            .max_tokens = {},
                            .min_score = {},
                            .explain = true};
      request.prefix = "m/";
      request.filter = filter;
      const auto reply =
          must(answer<SearchReply>([&](auto done) { engine->search(std::move(request), std::move(done)); }));
      std::set<std::pair<std::string, uint64_t>> found;
      size_t last = 0;
      for (const auto& result : reply.results) {
        found.emplace(result.memory, result.chunk);
        for (const auto& part : result.why->parts) last = std::max(last, part.rank);
      }
      EXPECT_EQ(found.size(), reply.results.size());
      EXPECT_TRUE(std::ranges::includes(chunks, found)) << json;
      EXPECT_TRUE(std::ranges::includes(found, beginnings)) << json;
      if (mode != SearchMode::lexical) {
        EXPECT_EQ(found, chunks) << json;
      }
      if (mode == SearchMode::hybrid && !found.empty()) {
        EXPECT_GT(last, found.size()) << "those that the filter leaves out have places, too";
      }
      EXPECT_EQ(reply.memories->size(), names.size());
    }
  }
}

}  // namespace
}  // namespace recalld
