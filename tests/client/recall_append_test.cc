// recall append, as a process: what is sent when, what a bad line, a signal or a refusal leaves, and the waiting.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "client/client.h"
#include "fake_daemon.h"
#include "recall_fixture.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

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
      (Json{{"memory", "m"}, {"first_turn", 0}, {"last_turn", 1199}, {"tokens", 15}, {"searchable_through", 1199}}));
  ASSERT_EQ(daemon.lines().size(), 5u) << "what is there, three requests, and whether they are encoded";
  EXPECT_EQ(sent(daemon, 3)["params"]["operation_id"], "load-2");
  EXPECT_FALSE(sent(daemon, 3)["params"].contains("wait")) << "turns are acknowledged before they are encoded";
  EXPECT_EQ(sent(daemon, 4)["method"], "memories.get");
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

TEST(Recall, AppendSendsWhatHasComeWhenThePipePauses) {
  const FakeDaemon daemon(appending());
  const std::string pipe = "{ printf 'one\\ntwo\\nthr'; sleep 1.5; printf 'ee\\n'; sleep 1.5; echo four; }";
  const Outcome outcome = shell(pipe + " | $RECALL " + at(daemon) + "append m");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Appended 4 turns (15 tokens) to m as turns 0-3"));
  ASSERT_EQ(daemon.lines().size(), 3u);
  EXPECT_EQ(sent(daemon)["params"]["turns"].size(), 2u) << "half a line is not sent";
  EXPECT_EQ(sent(daemon, 1)["params"]["turns"], (Json{{{"role", "user"}, {"content", "three"}}}));
  EXPECT_EQ(sent(daemon, 2)["params"]["turns"], (Json{{{"role", "user"}, {"content", "four"}}}));
}

TEST(Recall, AppendSendsInTimeWhatComesSlowlyAndWithoutEnd) {
  const FakeDaemon daemon(appending());
  const Outcome outcome =
      shell("{ for i in $(seq 40); do echo $i; sleep 0.05; done; } | $RECALL " + at(daemon) + "append m");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_GE(daemon.lines().size(), 4u) << "no line is as much as 200 ms behind the one before";
  EXPECT_LT(daemon.lines().size(), 40u) << "nor is every one of them sent alone";
}

TEST(Recall, AppendWithAnOperationIdSendsTheSameRequestsHoweverThePipePauses) {
  const FakeDaemon daemon(appending());
  const auto load = [&](const std::string& pipe) {
    const size_t before = daemon.lines().size();
    EXPECT_EQ(shell(pipe + " | $RECALL " + at(daemon) + "append m --operation-id load").code, 0);
    std::vector<Json> requests;
    for (size_t i = before; i < daemon.lines().size(); ++i)
      if (sent(daemon, i)["method"] == "append") requests.push_back(sent(daemon, i)["params"]);
    return requests;
  };
  const std::vector<Json> paused = load("{ seq 1 300; sleep 0.6; seq 301 700; sleep 0.6; seq 701 720; }");
  EXPECT_EQ(paused.size(), 2u);
  EXPECT_EQ(paused, load("seq 1 720"));
}

TEST(Recall, ADaemonThatRefusesAPausedLoadEndsItAtOnce) {
  const FakeDaemon daemon([](const std::string& line) { return refuse(line, "the disk is full", "full"); });
  const Outcome outcome =
      shell("{ echo one; sleep 4; } | { timeout 3 $RECALL " + at(daemon) + "append m; echo exit $?; }");
  EXPECT_THAT(outcome.output, HasSubstr("the disk is full\nexit 1"));
}

TEST(Recall, ARepeatableLoadThatIsRefusedEndsAtThePauseToo) {
  const FakeDaemon daemon([](const std::string& line) {
    return Json::parse(line)["method"] == "memories.get" ? refuse(line, "there is no memory", "not_found")
                                                         : refuse(line, "the disk is full", "full");
  });
  const Outcome outcome = shell("{ seq 1 700; sleep 4; } | { timeout 3 $RECALL " + at(daemon) +
                                "append m --operation-id load; echo exit $?; }");
  EXPECT_THAT(outcome.output, HasSubstr("the disk is full\nexit 1"));
}

TEST(Recall, WhatIsTypedIsSentLineByLine) {
  const FakeDaemon daemon(appending());
  const Outcome outcome =
      shell("{ sleep 0.5; echo one; sleep 1; echo two; sleep 1; printf '\\004'; } | script -q -e -c \"$RECALL " +
            at(daemon) + "append m\" /dev/null");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_EQ(outcome.output.find("tokens/s"), std::string::npos) << "no progress is drawn into what is typed";
  ASSERT_EQ(daemon.lines().size(), 2u);
  EXPECT_EQ(sent(daemon)["params"]["turns"], (Json{{{"role", "user"}, {"content", "one"}}}));
}

TEST(Recall, ABadLineSaysHowToGoOn) {
  const FakeDaemon daemon(appending());
  const TempDir directory;
  const std::string path = directory.path() / "chat.jsonl";
  std::ofstream(path) << "{\"content\":\"one\"}\n\n{\"content\":\"two\",\"role\":\"boss\"}\n";
  const std::string append = "$RECALL " + at(daemon) + "append m ";
  EXPECT_EQ(shell(append + "'" + path + "'").output,
            "recall: " + path +
                ":3: role: expected user, assistant, system or tool, got 'boss' (1 turn was stored); mend the line and "
                "append from line 3 on, for example with tail -n +3 FILE: the whole file again would add those before "
                "it twice, which --operation-id prevents\n");
  EXPECT_THAT(shell(append + "<'" + path + "'").output, HasSubstr("; mend the line and append from line 3 on\n"));
  EXPECT_THAT(shell("{ seq 1 700; printf 'bad \\377\\n'; } | " + append + "--operation-id load").output,
              HasSubstr("; mend the line and give the same command again, which adds only what is missing\n"));
}

TEST(Recall, AppendSkipsJsonLinesWithoutContentAndSaysSo) {
  const FakeDaemon daemon(appending());
  const TempDir directory;
  const std::string path = directory.path() / "chat.jsonl";
  std::ofstream(path) << "{\"content\":\"one\"}\n{\"role\":\"assistant\",\"content\":null}\n{\"content\":\"\"}\n"
                         "{\"content\":\"two\"}\n";
  const Outcome outcome = shell("$RECALL " + at(daemon) + "append m '" + path + "'");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("warning: 2 lines without content skipped, the first is " + path + ":2"));
  EXPECT_THAT(outcome.output, HasSubstr("Appended 2 turns"));
}

TEST(Recall, ARepeatedLoadSaysThatNothingWasAdded) {
  const Json reply{{"memory", "m"}, {"first_turn", 5}, {"last_turn", 6}, {"tokens", 9}, {"searchable_through", 6}};
  const FakeDaemon daemon([&](const std::string& line) {
    return answer(line, Json::parse(line)["method"] == "memories.get" ? memory(7) : reply);
  });
  const std::string load = "printf 'one\\ntwo\\n' | $RECALL " + at(daemon) + "append m --operation-id load";
  const Outcome outcome = shell(load);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Nothing was added: this load is in m already, as turns 5-6"));
  EXPECT_EQ(Json::parse(shell(load + " --json").output), reply);
}

TEST(Recall, AnEmptyOperationIdIsRefusedAndNotDropped) {
  const FakeDaemon daemon(appending());
  EXPECT_EQ(shell("echo one | $RECALL " + at(daemon) + "append m --operation-id ''").code, 2);
  EXPECT_EQ(shell("echo one | $RECALL " + at(daemon) + "append m --name ''").code, 2);
  EXPECT_TRUE(daemon.lines().empty());
}

TEST(Recall, ABadLineOfARepeatableLoadStoresWholeRequestsAlone) {
  const FakeDaemon daemon(appending());
  const std::string input = "{ seq 1 700; printf 'bad \\377\\n'; }";
  const Outcome outcome = shell(input + " | $RECALL " + at(daemon) + "append m --operation-id load");
  EXPECT_EQ(outcome.code, 2);
  ASSERT_EQ(daemon.lines().size(), 2u) << "the rest would be refused under its id once the line is mended";
  EXPECT_THAT(outcome.output,
              HasSubstr("(" + std::to_string(sent(daemon, 1)["params"]["turns"].size()) + " turns were stored)"));
}

TEST(Recall, CtrlCInAppendSaysHowMuchIsStored) {
  const FakeDaemon daemon(appending());
  const Outcome outcome = shell("{ seq 1 700; sleep 3; } | timeout --foreground --preserve-status -s INT 1 $RECALL " +
                                at(daemon) + "append m --operation-id load");
  EXPECT_EQ(outcome.code, 130);
  ASSERT_EQ(daemon.lines().size(), 2u);
  const std::string stored = std::to_string(sent(daemon, 1)["params"]["turns"].size());
  EXPECT_THAT(outcome.output,
              HasSubstr("interrupted: " + stored + " turns were stored in m, up to line " + stored +
                        " of standard input; " + std::to_string(700 - sent(daemon, 1)["params"]["turns"].size()) +
                        " turns behind them were read and not stored; the same command again goes on "
                        "from there"));
}

// What is read and not sent when Ctrl-C comes: the line that comes just before it. The shell inside is the process that
// becomes recall, so that the other side of the pipe knows its number.
TEST(Recall, CtrlCInAppendStoresTheLinesThatHaveCome) {
  const TempDir directory;
  const std::string number = "'" + (directory.path() / "pid").string() + "'";
  const auto interrupted = [&](const std::string& options) {
    return shell("{ seq 1 7; sleep 1; printf 'eight\\nhal'; kill -INT $(cat " + number +
                 "); sleep 1; } | sh -c 'echo $$ >\"" + (directory.path() / "pid").string() + "\"; exec '$RECALL' " +
                 options + "'");
  };
  const FakeDaemon daemon(appending());
  const Outcome outcome = interrupted(at_plain(daemon) + "append m");
  EXPECT_EQ(outcome.code, 130);
  EXPECT_EQ(outcome.output, "recall: interrupted: 8 turns were stored in m, up to line 8 of standard input\n");
  const FakeDaemon other(appending());
  EXPECT_EQ(interrupted(at_plain(other) + "append m --operation-id load").output,
            "recall: interrupted: 0 turns were stored in m; 8 turns behind them were read and not stored; the same "
            "command again goes on from there\n");
}

TEST(Recall, CtrlCWhileTheDaemonIsSilentTellsWhatIsUncertain) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  const Outcome outcome =
      shell("seq 1 700 | timeout --foreground --preserve-status -s INT 1 $RECALL " + at(daemon) + "append m --wait");
  EXPECT_EQ(outcome.code, 130);
  EXPECT_THAT(outcome.output, HasSubstr("interrupted: 0 turns were stored in m; 700 turns more may have been"));
}

TEST(Recall, CtrlCWhileAppendWaitsSaysThatTheTurnsAreKept) {
  const auto interrupted = [](const FakeDaemon& daemon, const std::string& input) {
    return shell(input + " | timeout --foreground --preserve-status -s INT 1 $RECALL " + at(daemon) +
                 "append m --wait");
  };
  const FakeDaemon many(appending(3));
  const Outcome outcome = interrupted(many, "seq 1 700");
  EXPECT_EQ(outcome.code, 130);
  EXPECT_EQ(outcome.output,
            "recall: interrupted: all 700 turns were acknowledged and are kept in m; only the waiting was given up, "
            "not the encoding: recall memories get m tells how far it is\n");
  const FakeDaemon one(appending(0));
  EXPECT_THAT(interrupted(one, "echo hello").output,
              HasSubstr("interrupted: the 1 turn was acknowledged and is kept in m; only the waiting was given up"));
}

TEST(Recall, AppendWaitsUntilEverythingIsEncoded) {
  const FakeDaemon daemon([asked = 0, script = appending(5), done = appending()](const std::string& line) mutable {
    const bool asks = Json::parse(line)["method"] == "memories.get";
    const FakeDaemon::Answer before = script(line);
    const FakeDaemon::Answer after = done(line);
    return asks && ++asked >= 3 ? after : before;
  });
  const Outcome outcome = shell("seq 1 9 | $RECALL " + at(daemon) + "append m --wait");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Appended 9 turns (5 tokens) to m as turns 0-8"));
  EXPECT_THAT(outcome.output, HasSubstr("searchable through turn 8"));
}

TEST(Recall, AppendTellsWhyNothingIsEncodedAndWaitsOn) {
  const FakeDaemon daemon(appending(3, "no space is left"));
  const Outcome outcome = shell("seq 1 9 | $RECALL " + at(daemon) + "append m --wait --timeout 6");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("nothing of m was encoded for 5 s, and recalld says: no space is left."));
  EXPECT_THAT(outcome.output, HasSubstr("not everything was encoded within 6.00 s: all 9 turns were acknowledged"));
}

TEST(Recall, AppendSaysWhereTheMemoryThatItWaitsForIsDeleted) {
  const FakeDaemon daemon([append = appending(3)](const std::string& line) mutable -> FakeDaemon::Answer {
    const Json request = Json::parse(line);
    if (request.at("method") != "memories.get") return append(line);
    const Json error{{"code", -32001}, {"message", "there is no memory m"}, {"data", {{"kind", "not_found"}}}};
    return {.bytes = Json{{"jsonrpc", "2.0"}, {"id", request.at("id")}, {"error", error}}.dump() + "\n"};
  });
  const Outcome outcome = shell("seq 1 9 | $RECALL " + at(daemon) + "append m --wait");
  EXPECT_THAT(outcome.output,
              HasSubstr("there is no memory m: all 9 turns were acknowledged, and the memory was deleted"));
}

TEST(Recall, AppendStopsWaitingAfterTheTimeout) {
  const FakeDaemon slow(appending(3));
  const Outcome late = shell("seq 1 9 | $RECALL " + at(slow) + "append m --wait --timeout 0.3");
  EXPECT_EQ(late.code, 1);
  EXPECT_THAT(late.output, HasSubstr("not everything was encoded within 0.30 s: all 9 turns were acknowledged"));
}

TEST(Recall, ADaemonThatDiesDuringALoadLeavesSomeUncertain) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{.bytes = "", .hang_up = true}; });
  const Outcome outcome = shell("seq 1 700 | $RECALL " + at(daemon) + "append m");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("closed the connection"));
  EXPECT_THAT(outcome.output,
              ContainsRegex("0 turns were stored, [0-9]+ turns more may have been; recall memories get m"));
}

TEST(Recall, AnAppendThatIsRefusedAsAWholeNamesNoLine) {
  const FakeDaemon daemon(
      [](const std::string& line) { return refuse(line, "memory: expected a name", "invalid_request"); });
  EXPECT_THAT(shell("echo hello | $RECALL " + at(daemon) + "append 'a b'").output,
              HasSubstr("recall: memory: expected a name"));
}

}  // namespace
}  // namespace recalld::client
