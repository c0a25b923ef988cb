// The command line itself, as a process, against a daemon that answers what the test says: its help, exit codes,
// options and listings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/request_defaults.h"
#include "client/client.h"
#include "fake_daemon.h"
#include "recall_fixture.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Recall, HelpNamesCommandsExitCodesAndExamples) {
  const Outcome outcome = shell("$RECALL --help");
  EXPECT_EQ(outcome.code, 0);
  for (const char* word : {"append", "search", "ask", "memories", "turns", "chunks", "forget", "export", "import",
                           "verify", "backup", "reencode", "stats", "health", "Exit codes", "Examples"}) {
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

TEST(Recall, WrongUsageSaysWhatWasExpectedInTheSameWordsEverywhere) {
  const auto told = [](const std::string& arguments) {
    const Outcome outcome = shell("$RECALL " + arguments + " </dev/null");
    EXPECT_EQ(outcome.code, 2) << arguments;
    return outcome.output.substr(0, outcome.output.find("; see "));
  };
  EXPECT_EQ(told(""), "recall: expected a command, got none");
  EXPECT_EQ(told("--frob"), "recall: there is no option '--frob'");
  EXPECT_EQ(told("turns m --frob"), "recall: there is no option '--frob'");
  EXPECT_EQ(told("turns m here text"), "recall: expected nothing more, got 'here' 'text'");
  EXPECT_EQ(told("turns m --limit 3 --limit 4"), "recall: --limit: expected once, given more than once");
  EXPECT_EQ(told("turns m --limit"), "recall: --limit: expected a value, got none");
  EXPECT_EQ(told("search m q --min-score 2"), "recall: --min-score: expected a number from 0 to 1, got '2'");
  EXPECT_EQ(told("search m q --min-score nan"), "recall: --min-score: expected a number from 0 to 1, got 'nan'");
  EXPECT_EQ(told("health --timeout abc"), "recall: --timeout: expected a number from 0 to 1000000, got 'abc'");
  EXPECT_EQ(told("append m --role boss"), "recall: --role: expected user, assistant, system or tool, got 'boss'");
  EXPECT_EQ(told("append m --format csv"), "recall: --format: expected auto, text or jsonl, got 'csv'");
  EXPECT_EQ(told("health --socket ''"), "recall: --socket: expected the path of a socket, not an empty text");
  EXPECT_EQ(told("append m ''"), "recall: FILE: expected a file to read, or - for standard input, got an empty name\n");
}

TEST(Recall, AShortTimeoutIsNotTakenForNone) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  const Outcome outcome = shell("timeout 5 $RECALL " + at(daemon) + "health --timeout 0.00001");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("within 1 ms"));
}

TEST(Recall, MemoriesAreListedByAPrefixThatIsNamedAsInTheProtocol) {
  const FakeDaemon daemon(always({{"memories", Json::array()}, {"next_cursor", nullptr}}));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "memories list --prefix chat").code, 0);
  EXPECT_EQ(sent(daemon)["params"]["prefix"], "chat");
}

TEST(Recall, AnOverlongValueIsShownShortened) {
  const std::string value(3000, 'x');
  const std::string brief = value.substr(0, 64) + "…";
  for (const std::string& arguments :
       {value, "search m q --limit " + value, "search m q --limit=" + value, "append m --format " + value,
        "chunks m " + value, "forget m " + value, "search m q --where " + value, "search m q --filter " + value,
        "ask m q --temperature " + value, "health --socket " + value}) {
    const Outcome outcome = shell("$RECALL " + arguments + " </dev/null");
    EXPECT_NE(outcome.code, 0) << arguments;
    EXPECT_THAT(outcome.output, HasSubstr(brief)) << arguments;
    EXPECT_LT(outcome.output.size(), 400u) << arguments;
  }
}

TEST(Recall, NoDaemonIsExitCodeThreeAndSaysHowToStartOne) {
  const Outcome outcome = shell("$RECALL health --socket /nonexistent/s");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.output, HasSubstr("recalld --socket /nonexistent/s"));
  const TempDir directory;
  EXPECT_EQ(shell("$RECALL health --socket '" + directory.path().string() + "/missing/s'").code, 3);
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "missing")) << "a client makes nothing";
}

TEST(Recall, UnknownMemoryIsExitCodeFourARefusedValueTwoAndOtherErrorsOne) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json method = Json::parse(line)["method"];
    return refuse(line, "no memory\x1b[2J",
                  method == "search"   ? "not_found"
                  : method == "health" ? "invalid_request"
                                       : "corrupt");
  });
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "health").code, 2);
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

TEST(Recall, HelpShowsTheDefaultsThatTheDaemonTakes) {
  const auto help = [](const std::string& command) { return shell("$RECALL " + command + " --help").output; };
  EXPECT_THAT(help("ask"), AllOf(HasSubstr("--max-tokens UINT=" + std::to_string(generate_tokens_default) + " "),
                                 HasSubstr("--temperature FLOAT=0 "), HasSubstr("--top-p FLOAT=1 "),
                                 HasSubstr("another each time")));
  EXPECT_THAT(help("search"), AllOf(HasSubstr("--limit UINT=" + std::to_string(search_limit_default) + " "),
                                    HasSubstr("default: no limit"), HasSubstr("--mode TEXT=hybrid ")));
  for (const std::string command : {"turns", "chunks"})
    EXPECT_THAT(help(command), AllOf(HasSubstr("--from UINT=0 "), HasSubstr("default: all"))) << command;
  EXPECT_THAT(help("append"), AllOf(HasSubstr("=auto"), HasSubstr("=user"), HasSubstr("FILE TEXT=-"),
                                    HasSubstr("waited for 0.2 s"), HasSubstr("whole batches")));
  EXPECT_THAT(help("import"), HasSubstr("default: its own"));
  EXPECT_THAT(help("memories list"), HasSubstr("default: all"));
  EXPECT_THAT(help("verify"), HasSubstr("default: all"));
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

TEST(Recall, JsonOnATerminalHoldsNothingThatSteersIt) {
  const Json result{{"ready", true}, {"waiting_chunks", 0}, {"problem", "a\u009b31m\u202eb"}};
  const FakeDaemon daemon(always(result));
  EXPECT_THAT(on_terminal("", "$RECALL " + at(daemon) + "health --json").output, HasSubstr(R"("a\u009b31m\u202eb")"));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "health --json").output, result.dump() + "\n") << "through a pipe as it is";
  const FakeDaemon exporter([](const std::string& line) {
    const Json record{{"type", "end"}, {"turns", 0}, {"chunks", 0}, {"note", "\u009b31m"}};
    return answer(line, Json::parse(line)["method"] == "memories.get" ? memory(0) : Json{{"records", {record}}});
  });
  EXPECT_THAT(on_terminal("", "$RECALL " + at(exporter) + "export m").output, HasSubstr(R"("note":"\u009b31m")"));
}

TEST(Recall, FullDiskBehindStandardOutputIsReported) {
  const FakeDaemon daemon([](const std::string& line) {
    return answer(line, {{"ready", true}, {"waiting_chunks", 0}});
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "health >/dev/full");
  EXPECT_EQ(outcome.code, 1);
}

TEST(Recall, AListingWithNothingInItSaysSo) {
  const FakeDaemon daemon(always({{"turns", Json::array()}, {"next_cursor", nullptr}}));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "turns m --from 5000");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("m has no turns from 5000 on"));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "turns m").output, HasSubstr("m has no turns\n"));
}

TEST(Recall, AnEmptyValueIsRefusedAndNotTakenForNoCondition) {
  const FakeDaemon daemon(always(receipt(12)));
  for (const std::string option : {"--role", "--name", "--before", "--after", "--where", "--filter"}) {
    for (const std::string command :
         {"forget m --yes ", "forget m --yes --role user ", "forget m --dry-run --role user ", "forget m 3 --yes ",
          "search m herring ", "search m herring --name Ana "}) {
      for (const std::string value : {" ''", "=", "=''"}) {
        const Outcome outcome = shell("$RECALL " + at(daemon) + command + option + value);
        EXPECT_EQ(outcome.code, 2) << command << option << value;
        EXPECT_THAT(outcome.output, HasSubstr(option + ": expected ")) << command << option << value;
      }
    }
  }
  EXPECT_EQ(shell("$RECALL forget m --yes --role user --name ''").output,
            "recall: --name: expected a name, not an empty text; see recall forget --help\n");
  for (const std::string command : {"search m herring --mode ''", "search m herring --expand ''", "verify ''",
                                    "import /dev/null --memory ''", "append m --role ''", "append m ''"})
    EXPECT_EQ(shell("$RECALL " + at(daemon) + command + " </dev/null").code, 2) << command;
  EXPECT_TRUE(daemon.lines().empty());
}

TEST(Recall, AnOptionWithNothingBehindItsEqualsSignDoesNotTakeTheNextArgument) {
  const FakeDaemon daemon(always(receipt(12)));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "forget m --name= --dry-run --yes");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.output, "recall: --name: expected a value behind --name=; see recall forget --help\n");
  EXPECT_TRUE(daemon.lines().empty());
}

TEST(Recall, APrefixThatNoMemoryHasIsNamed) {
  const FakeDaemon daemon(always({{"memories", Json::array()}, {"next_cursor", nullptr}}));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "memories list zz").output, HasSubstr("No memory begins with zz."));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "memories").output, HasSubstr("No memories yet."));
}

TEST(Recall, NamesThatAreEmptyAreRefused) {
  const FakeDaemon daemon(always({}));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "backup ''");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("expected a directory, not an empty text"));
}

}  // namespace
}  // namespace recalld::client
