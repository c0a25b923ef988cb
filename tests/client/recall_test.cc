// The command line itself, as a process, against a daemon that answers what the test says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

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
  EXPECT_EQ(daemon.lines().size(), 5u) << "nothing more is asked for where all that was found is shown";
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
    return answer(line, {{"memory", memory},
                         {"turns", 4},
                         {"next_turn", 4},
                         {"tokens", 100},
                         {"chunks", memory == "large" ? 50 : 1},
                         {"encoded_chunks", 1},
                         {"content_bytes", 9},
                         {"created", "T"},
                         {"updated", "T"}});
  });
  const auto shown = [&](const std::string& arguments) {
    return shell("$RECALL " + at(daemon) + "search " + arguments).output;
  };
  EXPECT_THAT(shown("small q"), HasSubstr("Scores are low in a memory of a few chunks"));
  for (const std::string quiet : {"large q", "clear q", "small q --mode landmark", "small q --json"})
    EXPECT_THAT(shown(quiet), Not(HasSubstr("Scores are low"))) << quiet;
}

// The reply to a generation, after what was told before it.
FakeDaemon::Answer told(const std::string& line, const std::vector<std::string>& pieces, const Json& result) {
  const Json id = Json::parse(line)["id"];
  std::string bytes;
  for (const std::string& text : pieces)
    bytes +=
        Json{{"jsonrpc", "2.0"}, {"method", "generate.text"}, {"params", {{"id", id}, {"text", text}}}}.dump() + "\n";
  return {bytes + answer(line, result).bytes};
}

Json generated(const std::string& text, const std::string& finish) {
  return {{"text", text},
          {"tokens", 3},
          {"finish", finish},
          {"chunks",
           {{{"chunk", 4},
             {"weight", 0.75},
             {"text", "the code is 60417"},
             {"tokens", {256, 320}},
             {"turns", {{{"turn", 9}, {"role", "user"}, {"time", "2026-01-02T02:04:05Z"}}}}}}},
          {"searchable_through", 3},
          {"took_ms", 0.5}};
}

TEST(Recall, AskWritesTheAnswerAsItComesAndItsSourcesWhenAsked) {
  const FakeDaemon daemon([](const std::string& line) {
    return told(line, {"604", "1\x1b"},
                generated("6041\x1b"
                          "7",
                          "newline"));
  });
  const Outcome outcome =
      shell("$RECALL " + at(daemon) + "ask a/b what is the code --max-tokens 9 --temperature 0.5 --seed 4");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output, "6041\\x1b7\n");
  const Json expected{{"memory", "a/b"}, {"prompt", "what is the code"},
                      {"max_tokens", 9}, {"temperature", 0.5},
                      {"seed", 4},       {"stream", true}};
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"], expected);
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "ask m q --sources").output,
              AllOf(HasSubstr("weight 0.750"), HasSubstr("chunk 4 · tokens 256-320"), HasSubstr("the code is 60417")));
}

TEST(Recall, AskPrintsTheReplyAsItIsWithJsonAndTellsOfACutOrEmptyAnswer) {
  const Json cut = generated("one", "max_tokens");
  Json unread = generated("made up", "newline");
  unread["chunks"] = Json::array();
  const FakeDaemon daemon([&](const std::string& line) {
    const std::string memory = Json::parse(line)["params"]["memory"];
    return told(line, {}, memory == "cut" ? cut : memory == "short" ? unread : generated("", "newline"));
  });
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "ask cut q --json").output, cut.dump() + "\n");
  EXPECT_FALSE(Json::parse(daemon.lines().at(0))["params"].contains("stream"));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "ask cut q").output, HasSubstr("cut after 3 tokens; --max-tokens"));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "ask empty q").output,
              AllOf(HasSubstr("the model wrote nothing"), Not(HasSubstr("read from no chunk"))));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "ask short q").output,
              AllOf(HasSubstr("made up"), HasSubstr("read from no chunk of the memory")));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "ask m q --temperature 3").output,
            "recall: --temperature: expected a number from 0 to 2, got '3'; see recall ask --help\n");
}

TEST(Recall, AskNamesTheTurnsThatWereNotReadAndTellsWhy) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json request = Json::parse(line);
    std::string reason = request["params"]["memory"];
    if (request["method"] == "search") {
      const int turn = reason == "open_chunk" ? 970 : 12;
      return told(line, {},
                  {{"results",
                    {{{"chunk", 1},
                      {"score", 0.9},
                      {"text", "t"},
                      {"tokens", {64, 128}},
                      {"turns", {{{"turn", turn}, {"role", "user"}, {"time", "2026-01-02T03:04:05Z"}}}}}}},
                   {"searchable_through", 970},
                   {"took_ms", 1}});
    }
    if (reason == "about_old_turns") reason = "open_chunk";
    Json result = generated("6041", "newline");
    result["unread"] = {{"turns", {970, reason == "open_chunk" ? 970 : 972}}, {"reason", reason}};
    if (reason == "forgetting") result["chunks"] = Json::array();
    return told(line, {}, result);
  });
  const auto ask = [&](const std::string& memory) {
    const Outcome outcome = shell("$RECALL " + at(daemon) + "ask " + memory + " q 2>&1 >/dev/null");
    EXPECT_EQ(outcome.code, 0);
    return outcome.output;
  };
  EXPECT_EQ(
      ask("open_chunk"),
      "recall: warning: turn 970 was not read in full: ask reads complete chunks of 64 tokens; recall search finds "
      "it\n");
  EXPECT_EQ(ask("about_old_turns"), "");
  EXPECT_THAT(ask("encoding"), AllOf(HasSubstr("turns 970-972 were not read in full: more chunks wait to be encoded"),
                                     Not(HasSubstr("64 tokens"))));
  EXPECT_THAT(ask("forgetting"),
              AllOf(HasSubstr("turns 970-972 were not read in full: turns of forgetting are being forgotten"),
                    HasSubstr("read from no chunk of the memory\n"), Not(HasSubstr("64 tokens"))));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "ask forgetting q --sources").output,
              AllOf(HasSubstr("Read from no chunk; "), Not(HasSubstr("64 tokens"))));
}

TEST(Recall, AskWarnsOfOptionsThatHaveNoEffectWithoutATemperature) {
  const FakeDaemon daemon([](const std::string& line) { return told(line, {}, generated("6041", "newline")); });
  const auto ask = [&](const std::string& options) {
    const Outcome outcome = shell("$RECALL " + at(daemon) + "ask m q " + options);
    EXPECT_EQ(outcome.code, 0) << options;
    EXPECT_THAT(outcome.output, HasSubstr("6041")) << options;
    return outcome.output;
  };
  const std::string reason =
      " no effect without a temperature above 0, such as --temperature 0.7: the likeliest token is always taken\n";
  EXPECT_EQ(ask("--seed 4"), "recall: warning: --seed has" + reason + "6041\n");
  EXPECT_EQ(ask("--top-p 0.9"), "recall: warning: --top-p has" + reason + "6041\n");
  EXPECT_EQ(ask("--top-p 0.9 --seed 4 --temperature 0"),
            "recall: warning: --top-p and --seed have" + reason + "6041\n");
  for (const std::string quiet : {"", "--temperature 0", "--temperature 0.1 --seed 4 --top-p 0.9"})
    EXPECT_EQ(ask(quiet), "6041\n");
  EXPECT_EQ(sent(daemon)["params"]["seed"], 4) << "the daemon is asked all the same";
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

TEST(Recall, CtrlCCancelsAnAnswerAndShowsWhatThereIs) {
  std::string asked;
  const FakeDaemon daemon([&asked](const std::string& line) -> FakeDaemon::Answer {
    const Json request = Json::parse(line);
    if (request["method"] == "generate") {
      asked = line;
      return {
          Json{{"jsonrpc", "2.0"}, {"method", "generate.text"}, {"params", {{"id", request["id"]}, {"text", "so "}}}}
              .dump() +
          "\n"};
    }
    EXPECT_EQ(request["method"], "cancel");
    EXPECT_EQ(request["params"]["id"], Json::parse(asked)["id"]);
    return {answer(line, {{"cancelled", true}}).bytes + answer(asked, generated("so far", "cancelled")).bytes};
  });
  const Outcome outcome =
      shell("timeout --foreground --preserve-status -s INT 1 $RECALL " + at(daemon) + "ask m q; echo \" exit $?\"");
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("so far"), HasSubstr("cancelled: the answer is not complete"), HasSubstr("exit 130")));
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

Json receipt(uint64_t turn_count) {
  return {{"memory", "m"},
          {"turns", turn_count == 0 ? Json::array() : Json::array({{4, 4}, {10, 20}})},
          {"turn_count", turn_count},
          {"tokens", 300},
          {"content_bytes", 900},
          {"chunks", 5},
          {"files", {{{"file", "kv/000001.seg"}, {"records", 5}, {"bytes", 81920}}}},
          {"complete", true},
          {"time", "2026-01-02T03:04:05Z"}};
}

// The command with a terminal at standard input, on which `typed` was typed.
Outcome on_terminal(const std::string& typed, const std::string& command) {
  return shell("printf '" + typed + "' | script -q -e -c \"" + command + "\" /dev/null");
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

TEST(Recall, CtrlCAtAQuestionChangesNothing) {
  Json would = receipt(12);
  would["dry_run"] = true;
  const FakeDaemon daemon([&](const std::string& line) {
    return answer(line, Json::parse(line)["method"] == "memories.get" ? memory(12) : would);
  });
  for (const std::string command : {"forget m --role tool", "memories delete m"}) {
    const Outcome outcome = shell("{ sleep 1; printf '\\003'; sleep 1; } | script -q -e -c \"$RECALL " + at(daemon) +
                                  command + "\" /dev/null");
    EXPECT_EQ(outcome.code, 130) << command;
    EXPECT_THAT(outcome.output, HasSubstr("recall: interrupted: nothing was changed")) << command;
  }
  EXPECT_EQ(daemon.lines().size(), 2u);
}

TEST(Recall, DeleteWithoutATerminalWantsYes) {
  Json reply = memory(12);
  reply["receipt"] = receipt(12);
  const FakeDaemon daemon(always(reply));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "memories delete m </dev/null").code, 2);
  EXPECT_TRUE(daemon.lines().empty());
  const Outcome deleted = shell("$RECALL " + at(daemon) + "memories delete m --yes");
  EXPECT_EQ(deleted.code, 0);
  EXPECT_THAT(deleted.output, HasSubstr("Deleted m: 12 turns, 108 tokens, 360 B.\nNothing of it is left on disk"));
  EXPECT_THAT(deleted.output, HasSubstr("kv/000001.seg  5 records"));
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["method"], "memories.delete");
}

TEST(Recall, FullDiskBehindStandardOutputIsReported) {
  const FakeDaemon daemon([](const std::string& line) {
    return answer(line, {{"ready", true}, {"waiting_chunks", 0}});
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "health >/dev/full");
  EXPECT_EQ(outcome.code, 1);
}

TEST(Recall, ExportWritesThroughPipesAndLinksInsteadOfReplacingThem) {
  const Json record{{"type", "end"}, {"turns", 0}, {"chunks", 0}};
  const FakeDaemon daemon([&](const std::string& line) {
    return answer(line, Json::parse(line)["method"] == "memories.get" ? memory(0) : Json{{"records", {record}}});
  });
  const TempDir directory;
  const std::string path = directory.path();
  const Outcome pipe = shell("mkfifo '" + path + "/p' && { timeout 5 cat '" + path + "/p' & } && $RECALL " +
                             at(daemon) + "export m '" + path + "/p' && wait && test -p '" + path + "/p'");
  EXPECT_EQ(pipe.code, 0) << pipe.output;
  EXPECT_THAT(pipe.output, HasSubstr(R"("type":"end")"));
  const Outcome link =
      shell("ln -s target '" + path + "/l' && : > '" + path + "/target' && $RECALL " + at(daemon) +
            "export m --force '" + path + "/l' && test -L '" + path + "/l' && cat '" + path + "/target'");
  EXPECT_EQ(link.code, 0) << link.output;
  EXPECT_THAT(link.output, HasSubstr(R"("type":"end")"));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "export m '" + path + "'").code, 2);
}

TEST(Recall, AListingWithNothingInItSaysSo) {
  const FakeDaemon daemon(always({{"turns", Json::array()}, {"next_cursor", nullptr}}));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "turns m --from 5000");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("m has no turns from 5000 on"));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "turns m").output, HasSubstr("m has no turns\n"));
}

TEST(Recall, SearchSaysWhyATokenLimitLeavesNothing) {
  const FakeDaemon daemon(always({{"results", Json::array()}, {"searchable_through", 3}, {"took_ms", 0.5}}));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "search m q --max-tokens 10").output,
              HasSubstr("The best chunk has more than 10 tokens"));
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "search m q").output, Not(HasSubstr("tokens")));
}

TEST(Recall, ForgetTakesNumbersAndRanges) {
  const FakeDaemon daemon(always(receipt(12)));
  const Outcome outcome = shell("$RECALL " + at(daemon) + "forget m 4 10-20 1,7-8 --yes");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Forgot 12 turns (300 tokens, 900 B) of m: 4, 10-20.\n"));
  ASSERT_EQ(daemon.lines().size(), 1u);
  EXPECT_EQ(sent(daemon)["method"], "forget");
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"turns", {4, {10, 20}, 1, {7, 8}}}}));
}

TEST(Recall, ForgetTakesConditionsAndJoinsThemWithAFilter) {
  const FakeDaemon daemon(always(receipt(12)));
  EXPECT_EQ(shell("$RECALL " + at(daemon) +
                  "forget m --role tool --name grep --before 2026-02-01 --after "
                  "2026-01-01T12:00:00+01:00 --yes --no-wait")
                .code,
            0);
  const Json conditions{{"role", "tool"},
                        {"name", "grep"},
                        {"time", {{"lt", "2026-02-01T00:00:00Z"}, {"gte", "2026-01-01T12:00:00+01:00"}}}};
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"filter", conditions}, {"wait", "none"}}));
  const std::string filter = " --filter '{\"metadata.draft\":true}'";
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "forget m --yes" + filter).code, 0);
  EXPECT_EQ(sent(daemon, 1)["params"]["filter"], (Json{{"metadata.draft", true}}));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "forget m --yes --role user" + filter).code, 0);
  EXPECT_EQ(sent(daemon, 2)["params"]["filter"], (Json{{"and", {{{"role", "user"}}, {{"metadata.draft", true}}}}}));
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

TEST(Recall, ForgetNamesTheOptionThatTheDaemonRefuses) {
  const FakeDaemon daemon(
      [](const std::string& line) { return refuse(line, "filter.time.lt: expected a time", "invalid_request"); });
  const auto told = [&](const std::string& options) {
    return shell("$RECALL " + at(daemon) + "forget m --yes " + options).output;
  };
  EXPECT_THAT(told("--before noon"), HasSubstr("recall: --before: expected a day, such as 2026-01-31, or a time of"));
  EXPECT_THAT(told("--before noon"), HasSubstr("got 'noon'"));
  EXPECT_THAT(told("--before 2026-99-01"), HasSubstr("got '2026-99-01'")) << "what was typed, not what was sent";
  EXPECT_EQ(sent(daemon, 2)["params"]["filter"]["time"]["lt"], "2026-99-01T00:00:00Z");
  told("--before 1234567890");  // ten characters, but no day
  EXPECT_EQ(sent(daemon, 3)["params"]["filter"]["time"]["lt"], "1234567890");
  EXPECT_THAT(told("--filter '{\"time\":{\"lt\":1}}'"), HasSubstr("recall: filter.time.lt: expected a time"));
}

TEST(Recall, CtrlCInForgetSaysThatTheDaemonGoesOn) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  for (const std::string command : {"forget m 4 --yes", "memories delete m --yes"}) {
    const Outcome outcome = shell("timeout --foreground --preserve-status -s INT 1 $RECALL " + at(daemon) + command);
    EXPECT_EQ(outcome.code, 130) << command;
    EXPECT_THAT(outcome.output, HasSubstr("interrupted: if the daemon had begun, the turns are gone")) << command;
  }
}

TEST(Recall, CtrlCInVerifyAndBackupSaysThatTheDaemonGoesOn) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  const auto interrupted = [&](const std::string& command) {
    const Outcome outcome = shell("timeout --foreground --preserve-status -s INT 1 $RECALL " + at(daemon) + command);
    EXPECT_EQ(outcome.code, 130) << command;
    return outcome.output;
  };
  EXPECT_EQ(interrupted("verify"),
            "recall: interrupted: if the daemon had begun, it goes on; recall stats shows how far it is, and then what "
            "it found\n");
  EXPECT_EQ(interrupted("backup /x/b"),
            "recall: interrupted: if the daemon had begun, it goes on; /x/b is there as soon as it is whole\n");
  EXPECT_EQ(interrupted("forget m 4 --dry-run"), "recall: interrupted: nothing was changed\n");
}

TEST(Recall, ForgetRefusesWhatItCannotMean) {
  const FakeDaemon daemon(always(receipt(12)));
  const auto refused = [&](const std::string& arguments) {
    const Outcome outcome = shell("$RECALL " + at(daemon) + "forget m --yes " + arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    return outcome.output;
  };
  EXPECT_THAT(refused(""), HasSubstr("say which turns"));
  EXPECT_THAT(refused("4 --role tool"), HasSubstr("not both"));
  EXPECT_THAT(refused("'' --role tool"), HasSubstr("expected numbers of turns"));
  for (const std::string turns : {"x", "4-", "-4", "9-4", "4,", ",4", "4-5-6", "18446744073709551616", "4.5"})
    EXPECT_THAT(refused("-- " + turns), HasSubstr("expected numbers of turns")) << turns;
  EXPECT_THAT(refused("--filter '[1]'"), HasSubstr("--filter: expected a JSON object"));
  const Outcome several = shell("$RECALL " + at(daemon) + "forget 'user/a/*' 4 </dev/null");
  EXPECT_EQ(several.code, 2);
  EXPECT_THAT(several.output, HasSubstr("'user/a/*' is the beginning of names, which search alone takes"));
  EXPECT_TRUE(daemon.lines().empty());
}

TEST(Recall, ForgetWithoutATerminalWantsYesOrADryRun) {
  Json would = receipt(12);
  would["dry_run"] = true;
  const FakeDaemon daemon(always(would));
  const Outcome refused = shell("$RECALL " + at(daemon) + "forget m 4 </dev/null");
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.output, HasSubstr("nobody to ask; give --dry-run"));
  EXPECT_TRUE(daemon.lines().empty());
  const Outcome outcome = shell("$RECALL " + at(daemon) + "forget m 4 --dry-run </dev/null");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Would forget 12 turns"));
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"turns", {4}}, {"dry_run", true}}));
}

TEST(Recall, ForgetOnATerminalShowsHowMuchAndForgetsExactlyThat) {
  const FakeDaemon daemon([](const std::string& line) {
    Json result = receipt(12);
    if (Json::parse(line)["params"].contains("dry_run")) result["dry_run"] = true;
    return answer(line, result);
  });
  const Outcome kept = on_terminal("n\\n", "$RECALL " + at(daemon) + "forget m --role tool");
  EXPECT_EQ(kept.code, 1);
  EXPECT_THAT(kept.output, HasSubstr("Would forget 12 turns"));
  EXPECT_THAT(kept.output, HasSubstr("Kept."));
  ASSERT_EQ(daemon.lines().size(), 1u);
  const Outcome forgotten = on_terminal("y\\n", "$RECALL " + at(daemon) + "forget m --role tool");
  EXPECT_EQ(forgotten.code, 0) << forgotten.output;
  ASSERT_EQ(daemon.lines().size(), 3u);
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"memory", "m"}, {"filter", {{"role", "tool"}}}, {"dry_run", true}}));
  EXPECT_EQ(sent(daemon, 2)["params"], (Json{{"memory", "m"}, {"turns", {4, {10, 20}}}}));
}

TEST(Recall, ForgetOnATerminalAsksNothingWhenThereIsNothing) {
  const FakeDaemon daemon(always(receipt(0)));
  const Outcome outcome = on_terminal("", "$RECALL " + at(daemon) + "forget m 99");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("Nothing to forget"));
  EXPECT_EQ(daemon.lines().size(), 1u);
}

TEST(Recall, LongCallsWaitUnlessATimeoutIsGiven) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  for (const std::string command : {"forget m 4 --yes", "verify", "backup /b", "memories delete m --yes"}) {
    const Outcome outcome = shell("$RECALL " + at(daemon) + command + " --timeout 0.2");
    EXPECT_EQ(outcome.code, 1) << command;
    EXPECT_THAT(outcome.output, HasSubstr("within 200 ms")) << command;
  }
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

TEST(Recall, VerifyFailsWhenProblemsAreLeft) {
  Json reply{{"memories", 1},      {"turns", 9},         {"chunks", 1},
             {"states", 1},        {"bytes", 500},       {"problems", Json::array()},
             {"problem_count", 0}, {"repaired_count", 0}};
  const FakeDaemon whole(always(reply));
  EXPECT_EQ(shell("$RECALL " + at(whole) + "verify").code, 0);
  EXPECT_EQ(sent(whole)["params"], Json::object());

  reply["problems"] = {{{"memory", "m"},
                        {"part", "kv"},
                        {"first", 0},
                        {"last", 0},
                        {"message", "checksum mismatch"},
                        {"repairable", true},
                        {"repaired", false}}};
  reply["problem_count"] = 1;
  const FakeDaemon damaged(always(reply));
  const Outcome found = shell("$RECALL " + at(damaged) + "verify m --json");
  EXPECT_EQ(found.code, 1);
  EXPECT_EQ(Json::parse(found.output), reply);

  reply["repaired_count"] = 1;
  const FakeDaemon repaired(always(reply));
  EXPECT_EQ(shell("$RECALL " + at(repaired) + "verify m --repair").code, 0);
  EXPECT_EQ(sent(repaired)["params"], (Json{{"memory", "m"}, {"repair", true}}));
}

TEST(Recall, BackupSendsAnAbsoluteDirectory) {
  const FakeDaemon daemon(
      always({{"directory", "/x/b"}, {"files", 3}, {"bytes", 5000}, {"shared_bytes", 4000}, {"took_ms", 1500.0}}));
  const Outcome outcome = shell("cd /tmp && $RECALL " + at(daemon) + "backup ./b");
  EXPECT_EQ(outcome.output,
            "Backed up to /x/b: 3 files, 4.9 KiB, 3.9 KiB of them shared with the store's files in "
            "1.50 s.\n");
  EXPECT_EQ(sent(daemon)["params"], (Json{{"directory", "/tmp/b"}}));
}

Json reencode_job(uint64_t done, const std::string& state) {
  return {{"job", 3},
          {"kind", "reencode"},
          {"state", state},
          {"done", done},
          {"total", 4},
          {"started", "s"},
          {"message", "restart recalld with --model /m"}};
}

TEST(Recall, ReencodeStartsAndLeavesAJobBehind) {
  const FakeDaemon daemon(always(reencode_job(0, "running")));
  const Outcome outcome = shell("cd /tmp && $RECALL " + at(daemon) + "reencode m2");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("job 3  reencode  running  0 of 4"));
  EXPECT_EQ(sent(daemon)["params"], (Json{{"model", "/tmp/m2"}}));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "reencode --cancel").code, 0);
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"cancel", true}}));
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "reencode").code, 2);
  EXPECT_EQ(shell("$RECALL " + at(daemon) + "reencode m2 --cancel").code, 2);
}

TEST(Recall, ReencodeIsFollowedToTheNextStep) {
  const FakeDaemon daemon([asked = uint64_t{0}](const std::string& line) mutable {
    if (Json::parse(line)["method"] == "reencode") return answer(line, reencode_job(0, "running"));
    ++asked;
    return answer(line, {{"jobs", {reencode_job(2 * asked, asked < 2 ? "running" : "done")}}});
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "reencode /m --wait");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("done  4 of 4"));
  EXPECT_THAT(outcome.output, HasSubstr("restart recalld with --model /m"));
  EXPECT_EQ(daemon.lines().size(), 3u);
}

TEST(Recall, AReencodingThatFailsSaysWhy) {
  const FakeDaemon daemon([](const std::string& line) {
    Json job = reencode_job(1, Json::parse(line)["method"] == "reencode" ? "running" : "failed");
    job["message"] = "no space is left";
    return answer(line, Json::parse(line)["method"] == "reencode" ? job : Json{{"jobs", {job}}});
  });
  const Outcome outcome = shell("$RECALL " + at(daemon) + "reencode /m --wait");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("reencode failed: no space is left"));
}

TEST(Recall, CtrlCLeavesAReencodingRunning) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json job = reencode_job(1, "running");
    return answer(line, Json::parse(line)["method"] == "reencode" ? job : Json{{"jobs", {job}}});
  });
  const Outcome outcome =
      shell("timeout --foreground --preserve-status -s INT 1 $RECALL " + at(daemon) + "reencode /m --wait");
  EXPECT_EQ(outcome.code, 130);
  EXPECT_THAT(outcome.output, HasSubstr("job 3 goes on in the daemon; recall stats shows how far it is"));
}

}  // namespace
}  // namespace recalld::client
