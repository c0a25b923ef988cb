// Many clients at once on the real daemon: tools/bench/load for a few seconds.
#include <gtest/gtest.h>

#include "tests/support/daemon_process.h"
#include "tests/support/temp_dir.h"
#include "tools/bench/load_run.h"

namespace recalld {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr size_t clients = 8;
#else
constexpr size_t clients = 24;
#endif

bench::LoadReport run(const DaemonProcess& daemon, uint64_t seed) {
  bench::LoadOptions options;
  options.socket = daemon.socket();
  options.clients = clients;
  options.seconds = 4;
  options.seed = seed;
  return bench::run_load(options);
}

void expect_no_violation(const bench::LoadReport& report) {
  EXPECT_EQ(report.violation_count, 0u);
  for (const std::string& violation : report.violations) ADD_FAILURE() << violation;
  EXPECT_GE(report.appends, clients);
  EXPECT_GE(report.searches, clients);
  EXPECT_GE(report.results, report.searches);
}

TEST(Load, ClientsThatShareMemoriesLoseNothingAndSeeOnlyWhatWasWritten) {
  const TempDir directory;
  DaemonProcess daemon(directory.path());
  daemon.connect();
  expect_no_violation(run(daemon, 1));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

TEST(Load, TheSmallestMemoryBudgetChangesNothingOfIt) {
  const TempDir directory;
  DaemonProcess daemon(directory.path(), {"--memory-budget", "16MiB"});
  daemon.connect();
  expect_no_violation(run(daemon, 2));
  EXPECT_EQ(daemon.stop(), 0) << daemon.log();
}

// The checks themselves: somebody else writes into one of the memories under a client's name.
TEST(Load, ATurnThatNobodySentIsNoticed) {
  const TempDir directory;
  DaemonProcess daemon(directory.path());
  client::Client client = daemon.connect();
  client::AppendRequest request;
  request.memory = "load/0";
  client::Turn turn;
  turn.name = "c0-m0-0";
  turn.content = "Note 0 of c0-m0-0: not what was sent. [00000000]";
  request.turns = {turn};
  ASSERT_TRUE(client.append(request));
  EXPECT_GT(run(daemon, 3).violation_count, 0u);
}

}  // namespace
}  // namespace recalld
