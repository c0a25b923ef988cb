// recall forget and recall memories delete, as processes: what is asked for, and what they ask first.
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

}  // namespace
}  // namespace recalld::client
