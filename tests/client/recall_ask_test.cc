// recall ask, as a process: the answer as it comes, its sources, and what is warned of.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "client/client.h"
#include "fake_daemon.h"
#include "recall_fixture.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

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

TEST(Recall, AskLeavesSourcesOutThatHadNoWeight) {
  Json reply = generated("60417", "newline");
  for (const double weight : {0.25, 0.0009, 0.0}) {
    Json chunk = reply["chunks"][0];
    chunk["weight"] = weight;
    chunk["text"] = "another of " + std::to_string(weight);
    reply["chunks"].push_back(chunk);
  }
  const FakeDaemon daemon([&](const std::string& line) { return told(line, {}, reply); });
  EXPECT_THAT(shell("$RECALL " + at(daemon) + "ask m q --sources").output,
              AllOf(HasSubstr("weight 0.750"), HasSubstr("weight 0.250"), Not(HasSubstr("another of 0.00")),
                    HasSubstr("but for 2 with a weight of less than 0.001")));
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

}  // namespace
}  // namespace recalld::client
