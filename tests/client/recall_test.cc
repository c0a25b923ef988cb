// The command line itself, as a process, against a daemon that answers what the test says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "client/client.h"
#include "fake_daemon.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

FakeDaemon::Answer answer(const std::string& line, const Json& result) {
  return {Json{{"jsonrpc", "2.0"}, {"id", Json::parse(line)["id"]}, {"result", result}}.dump() + "\n"};
}

FakeDaemon::Answer refuse(const std::string& line, const std::string& message, const std::string& kind) {
  const Json error{{"code", -32000}, {"message", message}, {"data", {{"kind", kind}}}};
  return {Json{{"jsonrpc", "2.0"}, {"id", Json::parse(line)["id"]}, {"error", error}}.dump() + "\n"};
}

// Answers appends as the daemon would.
FakeDaemon::Script appending() {
  uint64_t turns = 0;
  return [turns](const std::string& line) mutable {
    const Json params = Json::parse(line)["params"];
    const uint64_t first = turns;
    turns += params["turns"].size();
    return answer(line, {{"memory", params["memory"]},
                         {"first_turn", first},
                         {"last_turn", turns - 1},
                         {"tokens", 5},
                         {"searchable_through", nullptr}});
  };
}

std::string at(const FakeDaemon& daemon) {
  return "--socket '" + daemon.socket().string() + "' ";
}

TEST(Recall, HelpNamesCommandsExitCodesAndExamples) {
  const Outcome outcome = shell("$RECALL --help");
  EXPECT_EQ(outcome.code, 0);
  for (const char* word :
       {"append", "search", "memories", "turns", "chunks", "stats", "health", "Exit codes", "Examples"}) {
    EXPECT_THAT(outcome.output, HasSubstr(word));
  }
}

TEST(Recall, WrongUsageIsExitCodeTwo) {
  EXPECT_EQ(shell("$RECALL").code, 2);
  EXPECT_EQ(shell("$RECALL nonsense").code, 2);
  EXPECT_EQ(shell("$RECALL search onlymemory").code, 2);
  EXPECT_EQ(shell("$RECALL append m --role bot </dev/null").code, 2);
  EXPECT_EQ(shell("$RECALL search m q --limit 0").code, 2);
  EXPECT_EQ(shell("$RECALL append m --operation-id " + std::string(181, 'x') + " </dev/null").code, 2);
}

TEST(Recall, WrongUsageIsToldInOneLineWithTheHelpThatBelongsToIt) {
  EXPECT_EQ(shell("$RECALL serach m q").output, "recall: there is no command 'serach'; see recall --help\n");
  EXPECT_EQ(shell("$RECALL search m").output, "recall: QUERY is required; see recall search --help\n");
  EXPECT_EQ(shell("$RECALL memories get").output, "recall: MEMORY is required; see recall memories get --help\n");
  EXPECT_EQ(shell("$RECALL turns m --limit 0").output,
            "recall: --limit: expected a whole number from 1 on, got '0'; see recall turns --help\n");
  EXPECT_EQ(shell("$RECALL chunks m -1").output,
            "recall: CHUNK: expected a whole number from 0 on, got '-1'; see recall chunks --help\n");
}

TEST(Recall, NoDaemonIsExitCodeThreeAndSaysHowToStartOne) {
  const Outcome outcome = shell("$RECALL health --socket /nonexistent/s");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.output, HasSubstr("recalld --socket /nonexistent/s"));
}

TEST(Recall, UnknownMemoryIsExitCodeFourAndOtherErrorsOne) {
  const FakeDaemon daemon([](const std::string& line) {
    return refuse(line, "no memory\x1b[2J", Json::parse(line)["method"] == "search" ? "not_found" : "corrupt");
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "search m q");
  EXPECT_EQ(outcome.code, 4);
  EXPECT_THAT(outcome.output, HasSubstr("recall: no memory\\x1b[2J")) << "even a daemon's message is made printable";
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "stats").code, 1);
}

TEST(Recall, SocketComesFromTheEnvironmentAndFromEitherSideOfTheCommand) {
  const FakeDaemon daemon([](const std::string& line) {
    return answer(line, {{"ready", true}, {"waiting_chunks", 0}});
  });
  EXPECT_EQ(shell("RECALLD_SOCKET='" + daemon.socket().string() + "' $RECALL health").code, 0);
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "health").code, 0);
  const Outcome outcome = shell("$RECALL health --json " + at(daemon));
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(Json::parse(outcome.output), (Json{{"ready", true}, {"waiting_chunks", 0}}));
}

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

TEST(Recall, AppendReadsStandardInputAndSumsUpInOneLine) {
  const FakeDaemon daemon(appending());
  const Outcome outcome = shell("printf 'one\\n\\ntwo\\n' | $RECALL " + at(daemon) + "append m --role tool --name Bo");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Appended 2 turns (5 tokens) to m as turns 0-1"));
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"]["turns"],
            (Json{{{"role", "tool"}, {"name", "Bo"}, {"content", "one"}},
                  {{"role", "tool"}, {"name", "Bo"}, {"content", "two"}}}));
}

TEST(Recall, AppendPrintsOneReplyHoweverManyRequestsItTook) {
  const FakeDaemon daemon(appending());
  const Outcome outcome = shell("seq 1 1200 | $RECALL " + at(daemon) + "append m --json --operation-id load --wait");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(
      Json::parse(outcome.output),
      (Json{{"memory", "m"}, {"first_turn", 0}, {"last_turn", 1199}, {"tokens", 15}, {"searchable_through", nullptr}}));
  ASSERT_EQ(daemon.lines().size(), 3u);
  const Json last = Json::parse(daemon.lines()[2])["params"];
  EXPECT_EQ(last["operation_id"], "load-2");
  EXPECT_EQ(last["wait"], "searchable");
}

TEST(Recall, AppendNamesTheBadLineAndKeepsWhatCameBefore) {
  const FakeDaemon daemon(appending());
  const TempDir directory;
  const std::string path = directory.path() / "chat.txt";
  std::ofstream(path) << "good\nbad \xff\n";
  const Outcome outcome = shell("$RECALL " + at(daemon) + "append m '" + path + "'");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr(path + ":2: byte 5"));
  EXPECT_THAT(outcome.output, HasSubstr("(1 turn was stored)"));
}

TEST(Recall, MissingFileIsExitCodeTwo) {
  const FakeDaemon daemon(appending());
  const Outcome outcome = shell("$RECALL " + at(daemon) + "append m /nonexistent/chat.txt");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("/nonexistent/chat.txt"));
}

// Three pages of two turns each.
FakeDaemon::Answer turns_page(const std::string& line) {
  const Json params = Json::parse(line)["params"];
  const uint64_t from =
      params.contains("cursor") ? std::stoull(params["cursor"].get<std::string>()) : params.value("first", 0U);
  Json turns = Json::array();
  for (uint64_t i = from; i < from + std::min<uint64_t>(2, params["limit"].get<uint64_t>()) && i < 6; ++i) {
    turns.push_back(
        {{"turn", i}, {"role", "user"}, {"content", "said " + std::to_string(i)}, {"time", "2026-01-02T03:04:05Z"}});
  }
  const uint64_t next = from + turns.size();
  Json result{{"turns", std::move(turns)}};
  if (next < 6) result["next_cursor"] = std::to_string(next);
  return answer(line, result);
}

TEST(Recall, TurnsGoThroughEveryPage) {
  const FakeDaemon daemon(turns_page);
  const Outcome outcome = shell("$RECALL " + at(daemon) + "turns m");
  EXPECT_EQ(outcome.code, 0);
  for (int i = 0; i < 6; ++i) EXPECT_THAT(outcome.output, HasSubstr("said " + std::to_string(i) + "\n"));
}

TEST(Recall, TurnsBeginAndEndWhereAsked) {
  const FakeDaemon daemon(turns_page);
  const Outcome outcome = shell("$RECALL " + at(daemon) + "turns m --from 1 --limit 3");
  EXPECT_THAT(outcome.output, Not(HasSubstr("said 0")));
  for (int i = 1; i < 4; ++i) EXPECT_THAT(outcome.output, HasSubstr("said " + std::to_string(i) + "\n"));
  EXPECT_THAT(outcome.output, Not(HasSubstr("said 4")));
}

TEST(Recall, ReaderThatStopsEarlyIsNoError) {
  const FakeDaemon daemon([](const std::string& line) {
    Json turns = Json::array();
    for (int i = 0; i < 20; ++i)
      turns.push_back({{"turn", i}, {"role", "user"}, {"content", std::string(20'000, 'x')}});
    return answer(line, {{"turns", std::move(turns)}, {"next_cursor", "more"}});  // without end
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "turns m | head -n 1");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output.find("recall:"), std::string::npos) << outcome.output;
}

TEST(Recall, DeleteWithoutATerminalWantsYes) {
  const FakeDaemon daemon([](const std::string& line) { return answer(line, {{"memory", "m"}}); });
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "memories delete m </dev/null").code, 2);
  EXPECT_TRUE(daemon.lines().empty());
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "memories delete m --yes").code, 0);
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["method"], "memories.delete");
}

TEST(Recall, FullDiskBehindStandardOutputIsReported) {
  const FakeDaemon daemon([](const std::string& line) {
    return answer(line, {{"ready", true}, {"waiting_chunks", 0}});
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "health >/dev/full");
  EXPECT_EQ(outcome.code, 1);
}

}  // namespace
}  // namespace recalld::client
