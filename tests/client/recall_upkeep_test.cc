// recall verify, backup and reencode, as processes: what takes long in the daemon, and what is told of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "client/client.h"
#include "fake_daemon.h"
#include "recall_fixture.h"
#include "tests/support/shell.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;

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

TEST(Recall, LongCallsWaitUnlessATimeoutIsGiven) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  for (const std::string command : {"forget m 4 --yes", "verify", "backup /b", "memories delete m --yes"}) {
    const Outcome outcome = shell("$RECALL " + at(daemon) + command + " --timeout 0.2");
    EXPECT_EQ(outcome.code, 1) << command;
    EXPECT_THAT(outcome.output, HasSubstr("within 200 ms")) << command;
  }
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
