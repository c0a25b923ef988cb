// recall search, as a process: what is asked, with which filters, and what is shown and warned of.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "client/client.h"
#include "fake_daemon.h"
#include "recall_fixture.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Recall, SearchTakesCommandNamesForWordsOfTheQuestion) {
  const FakeDaemon daemon([](const std::string& line) {
    return answer(line, {{"results", Json::array()}, {"searchable_through", 3}, {"took_ms", 0.5}});
  });
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "search m what do the stats say about health").code, 0);
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"]["query"], "what do the stats say about health");
}

TEST(Recall, SearchJoinsWordsAndPassesItsOptions) {
  const Json result{{"results", Json::array()}, {"searchable_through", 3}, {"took_ms", 0.5}};
  const FakeDaemon daemon([&](const std::string& line) { return answer(line, result); });
  const Outcome outcome = shell("$RECALL " + at(daemon) +
                                "search a/b where is it --limit 3 --max-tokens 100 --mode landmark --explain --json");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output, result.dump() + "\n") << "exactly the reply's result, on one line";
  const Json expected{{"memory", "a/b"},   {"query", "where is it"}, {"limit", 3},
                      {"max_tokens", 100}, {"mode", "landmark"},     {"explain", true}};
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"], expected);
}

TEST(Recall, SearchPassesTheLeastScoreAndRefusesOneThatIsNone) {
  const Json result{{"results", Json::array()}, {"searchable_through", 3}, {"took_ms", 0.5}};
  const FakeDaemon daemon([&](const std::string& line) { return answer(line, result); });
  const Outcome found = shell("$RECALL " + at(daemon) + "search m where --min-score 0.25 --max-tokens 9");
  EXPECT_EQ(found.code, 0);
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"]["min_score"], 0.25);
  EXPECT_EQ(found.output.find("--max-tokens"), std::string::npos) << "nothing was likely enough, whatever fits";
  EXPECT_THAT(found.output, HasSubstr("warning: nothing scores as much as --min-score"));
  const Outcome refused = shell("$RECALL " + at(daemon) + "search m where --min-score 2 2>&1");
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.output.find("--min-score"), std::string::npos);
}

TEST(Recall, SearchNamesTheOptionThatTheDaemonRefuses) {
  const FakeDaemon daemon(
      [](const std::string& line) { return refuse(line, "max_tokens: expected an integer", "invalid_request"); });
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "search m where --max-tokens 7").output,
              HasSubstr("recall: --max-tokens: expected an integer"));
}

TEST(Recall, SearchTakesTheBeginningOfNamesAndWhatToShow) {
  const Json result{{"results", Json::array()}, {"searchable_through", Json::object()}, {"took_ms", 0.5}};
  const FakeDaemon daemon([&](const std::string& line) { return answer(line, result); });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "search 'user/alice/*' where is it --expand turns");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output, "Nothing found in 0 memories, in 0.5 ms\n");
  const Json expected{{"memory", "user/alice/*"}, {"query", "where is it"}, {"expand", "turns"}};
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"], expected);
}

TEST(Recall, SearchTakesSeveralMemoriesByName) {
  const Json result{{"results", Json::array()}, {"searchable_through", {{"a", 3}, {"b", 4}}}, {"took_ms", 0.5}};
  const FakeDaemon daemon([&](const std::string& line) { return answer(line, result); });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "search a --also b where is --also user/c it");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output, "Nothing found in 2 memories, in 0.5 ms\n");
  const Json expected{{"memory", {"a", "b", "user/c"}}, {"query", "where is it"}};
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"], expected);
}

TEST(Recall, SearchTellsThatTheBeginningOfNamesStandsAlone) {
  const FakeDaemon daemon([](const std::string& line) { return answer(line, Json::object()); });
  for (const std::string memories : {"'user/a/*' --also b", "b --also 'user/a/*'"}) {
    const Outcome refused = shell("$RECALL " + at(daemon) + "search " + memories + " word");
    EXPECT_EQ(refused.code, 2);
    EXPECT_THAT(refused.output, HasSubstr("--also: 'user/a/*' is the beginning of names, which stands alone"));
  }
  EXPECT_TRUE(daemon.lines().empty());
}

Json turn_of(uint64_t number, const std::string& name, const std::string& content) {
  return {{"turn", number}, {"role", "user"}, {"name", name}, {"content", content}, {"time", "2026-01-02T02:04:05Z"}};
}

TEST(Recall, SearchForASpeakerShowsWhatThatSpeakerSaid) {
  Json sources = Json::array();
  for (const char* name : {"Ana", "Ben", "Ana"})
    sources.push_back(
        {{"turn", 4 + sources.size()}, {"role", "user"}, {"name", name}, {"time", "2026-01-02T02:04:05Z"}});
  const Json found{{"results",
                    {{{"chunk", 1},
                      {"score", 0.5},
                      {"text", "the key?\nBen: In the shed.\nAna: Than"},
                      {"tokens", {64, 128}},
                      {"turns", sources}}}},
                   {"searchable_through", 9},
                   {"took_ms", 1.0}};
  const FakeDaemon daemon([&](const std::string& line) {
    if (Json::parse(line)["method"] == "search") return answer(line, found);
    return answer(
        line,
        {{"turns",
          {turn_of(4, "Ana", "Where is the key?"), turn_of(5, "Ben", "In the shed."), turn_of(6, "Ana", "Thanks.")}},
         {"next_cursor", nullptr}});
  });
  const auto shown = [&](const std::string& options) {
    return shell("$RECALL " + at(daemon) + "search m where " + options).output;
  };
  const std::string said = shown("--name Ben");
  EXPECT_THAT(said, HasSubstr("turn 5 · Ben (user)"));
  EXPECT_THAT(said, HasSubstr("      Ben: In the shed.\n\n"));
  EXPECT_EQ(said.find("Ana"), std::string::npos) << said;
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"memory", "m"}, {"first", 4}, {"limit", 3}}));
  for (const std::string options : {"", "--role user", "--name Ben --json"})
    EXPECT_THAT(shown(options), HasSubstr("Ana: Than")) << options;
  size_t asked = 0;  // for turns
  for (size_t i = 0; i < daemon.lines().size(); ++i) asked += sent(daemon, i)["method"] == "turns.list";
  EXPECT_EQ(asked, 1u) << "nothing more is asked for where all that was found is shown";
}

// The reply to memories.get.
Json memory_of(uint64_t turns, uint64_t chunks, uint64_t encoded_chunks) {
  return {{"memory", "m"},         {"turns", turns},   {"next_turn", turns},
          {"tokens", 64 * chunks}, {"chunks", chunks}, {"encoded_chunks", encoded_chunks},
          {"content_bytes", 9},    {"created", "T"},   {"updated", "T"}};
}

TEST(Recall, SearchWarnsOfTurnsThatItDidNotSearch) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json request = Json::parse(line);
    const std::string memory = request["params"]["memory"];
    Json through = memory == "all" ? Json(9) : memory == "none" ? Json() : memory == "last" ? Json(8) : Json(3);
    if (request["method"] == "search")
      return answer(line, {{"results", Json::array()}, {"searchable_through", through}, {"took_ms", 0.5}});
    const uint64_t encoded = memory == "done" ? 60 : memory == "last" ? 59 : 10;
    return answer(line, memory_of(10, 60, encoded));
  });
  const auto shown = [&](const std::string& arguments) {
    return shell("$RECALL " + at(daemon) + "search " + arguments).output;
  };
  EXPECT_THAT(shown("some q"), HasSubstr("warning: turns 4-9 were not searched: 50 chunks wait to be encoded"));
  EXPECT_THAT(shown("none q"), HasSubstr("warning: turns 0-9 were not searched"));
  EXPECT_THAT(shown("last q"), HasSubstr("warning: turn 9 was not searched: 1 chunk waits to be encoded"));
  for (const std::string quiet : {"all q", "done q", "some q --json"})
    EXPECT_THAT(shown(quiet), Not(HasSubstr("not searched"))) << quiet;
  EXPECT_THAT(shown("done q --min-score 0.5"), HasSubstr("without it the best there is comes first"));
}

TEST(Recall, SearchSaysWhyScoresAreLowInASmallMemory) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json request = Json::parse(line);
    const std::string memory = request["params"]["memory"];
    if (request["method"] == "search") {
      const Json result{{"chunk", 0},
                        {"score", memory == "clear" ? 0.9 : 0.016},
                        {"text", "t"},
                        {"tokens", {0, 64}},
                        {"turns", Json::array()}};
      return answer(line, {{"results", {result}}, {"searchable_through", 3}, {"took_ms", 0.5}});
    }
    return answer(line, memory_of(4, memory == "large" ? 50 : 1, 1));
  });
  const auto shown = [&](const std::string& arguments) {
    return shell("$RECALL " + at(daemon) + "search " + arguments).output;
  };
  EXPECT_THAT(shown("small q"), HasSubstr("Scores are low in a memory of a few chunks"));
  for (const std::string quiet : {"large q", "clear q", "small q --mode landmark", "small q --json"})
    EXPECT_THAT(shown(quiet), Not(HasSubstr("Scores are low"))) << quiet;
}

TEST(Recall, SearchSaysWhyATokenLimitLeavesNothing) {
  const FakeDaemon daemon(always({{"results", Json::array()}, {"searchable_through", 3}, {"took_ms", 0.5}}));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "search m q --max-tokens 10").output,
              HasSubstr("The best chunk has more than 10 tokens"));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "search m q").output, Not(HasSubstr("tokens")));
}

TEST(Recall, SearchAndForgetTakeTheSameFilters) {
  const FakeDaemon daemon([](const std::string& line) { return refuse(line, "filter.role: no", "invalid_request"); });
  const auto asked = [&](const std::string& options) {
    const Outcome outcome = shell("$RECALL " + at(daemon) + "search m herring " + options);
    EXPECT_NE(outcome.code, 0);
    return outcome.output;
  };
  EXPECT_THAT(asked("--role cook --after 2026-01-01"), HasSubstr("recall: --role: no"));
  EXPECT_EQ(sent(daemon)["params"]["filter"], (Json{{"role", "cook"}, {"time", {{"gte", "2026-01-01T00:00:00Z"}}}}));
  asked("--where mood=calm --where n=2.5 --where 'a.b=\"7\"' --where draft=true --where x=a=b");
  EXPECT_EQ(sent(daemon, 1)["params"]["filter"], (Json{{"metadata.mood", "calm"},
                                                       {"metadata.n", 2.5},
                                                       {"metadata.a.b", "7"},
                                                       {"metadata.draft", true},
                                                       {"metadata.x", "a=b"}}));
  asked("--where k=1 --where k=2");
  EXPECT_EQ(sent(daemon, 2)["params"]["filter"], (Json{{"and", {{{"metadata.k", 1}}, {{"metadata.k", 2}}}}}));
  asked("");
  EXPECT_FALSE(sent(daemon, 3)["params"].contains("filter"));
  EXPECT_THAT(asked("--where mood"), HasSubstr("--where: expected KEY=VALUE"));
  EXPECT_THAT(asked("--filter 7"), HasSubstr("--filter: expected a JSON object"));
  EXPECT_THAT(asked("--filter '{\"and\":[{\"role\":\"user\",\"turn\":1,\"role\":\"tool\"}]}'"),
              HasSubstr("--filter: the key 'role' appears twice in one object"));
  EXPECT_EQ(daemon.lines().size(), 4u);
}

TEST(Recall, SearchWarnsOfChunksThatDamageKeptFromBeingRead) {
  Json reply{{"results", Json::array()},
             {"searchable_through", 9},
             {"took_ms", 1.0},
             {"unreadable", {{{"chunks", {7, 8}}, {"message", "checksum mismatch"}}}}};
  const FakeDaemon one(always(reply));
  EXPECT_THAT(shell("$RECALL " + at(one) + "search m word").output,
              HasSubstr("warning: chunks 7 to 8 are damaged and were not read; run recall verify"));

  reply["searchable_through"] = {{"a", 9}, {"b", nullptr}};
  reply["unreadable"][0]["memory"] = "b";
  const FakeDaemon several(always(reply));
  EXPECT_THAT(shell("$RECALL " + at(several) + "search a word --also b").output,
              HasSubstr("warning: chunks 7 to 8 of b are damaged"));
}

}  // namespace
}  // namespace recalld::client
