// What the catalog does on a disk that fills up, fails or is slow.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/time.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/memstore/catalog_faults_fixture.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST_F(CatalogFaultsTest, ABatchThatFailedForSpaceNeverComesBackOnceALaterWriteSucceeded) {
  for (const auto failure : {DiskFailure::enospc, DiskFailure::torn_enospc}) {
    for (const auto call : {DiskCall::append, DiskCall::sync}) {
      SCOPED_TRACE(std::string(name(failure)) + " in " + std::string(name(call)));
      catalog_.reset();
      fs::remove_all(path());
      open();  // nothing is in memory: RocksDB has nothing to write out when it resumes
      disk_->plan(DiskPlan{failure, call, DiskFile::log});
      const auto refused = put("turn 1", std::string(3000, 'a'));
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().kind, ErrorKind::full);
      EXPECT_THAT(refused.error().message, HasSubstr("make room"));
      ASSERT_TRUE(catalog_->refuses_writes());
      ASSERT_TRUE(put("turn 1", "another content"));
      EXPECT_FALSE(catalog_->refuses_writes());
      EXPECT_EQ(difference_after_crash(path(), {{{"turn 1", "another content"}}, {}}), "");
      open();
      EXPECT_EQ(difference(*catalog_, {{{"turn 1", "another content"}}, {}}), "");
    }
  }
}

TEST_F(CatalogFaultsTest, ACompactionThatLeavesNothingIsDoneOnceAFullDiskHasRoom) {
  uint64_t from = 1;
  for (bool full = true; full; ++from) {
    SCOPED_TRACE("append " + std::to_string(from) + " to a table fails");
    catalog_.reset();
    fs::remove_all(path());
    open();
    ASSERT_TRUE(write(*catalog_, {{"gone 1", "once"}, {"gone 2", "upon"}, {"gone 3", "a time"}}));
    ASSERT_TRUE(catalog_->reclaim({}));  // now in a table
    Catalog::Batch batch(*catalog_);
    batch.remove_all(Family::turns, "gone");
    batch.remove_all(Family::chunks, "gone");
    ASSERT_TRUE(catalog_->write(batch));
    const std::array ranges{Catalog::all_of(Family::turns, "gone"), Catalog::all_of(Family::chunks, "gone")};
    disk_->plan(DiskPlan{DiskFailure::enospc, DiskCall::append, DiskFile::table, from, 1000});
    const auto refused = catalog_->reclaim(ranges);
    full = !refused;
    if (refused) continue;
    EXPECT_EQ(refused.error().kind, ErrorKind::full) << refused.error().message;
    disk_->plan(std::nullopt);
    const auto reclaimed = catalog_->reclaim(ranges);
    EXPECT_TRUE(reclaimed) << reclaimed.error().message;
    EXPECT_TRUE(put("a", "1"));
  }
  EXPECT_GT(from, 4u) << "the disk was full before anything was compacted only";
}

TEST_F(CatalogFaultsTest, AFullDiskIsTriedAgainByTheFirstWriteAfterTheWait) {
  CatalogOptions patient = options(path());
  patient.retry_after = std::chrono::milliseconds(300);
  catalog_ = Catalog::open(patient).value();
  disk_->plan(DiskPlan{DiskFailure::enospc, DiskCall::append, DiskFile::log});
  EXPECT_FALSE(put("a", "1"));
  const uint64_t calls = disk_->matched();
  EXPECT_EQ(put("a", "1").error().kind, ErrorKind::full);
  EXPECT_EQ(disk_->matched(), calls) << "the disk was asked again at once";
  std::this_thread::sleep_for(std::chrono::milliseconds(350));
  EXPECT_TRUE(put("a", "1"));
}

TEST_F(CatalogFaultsTest, AfterAFailedSyncNothingIsAcknowledgedUntilReopenedAndReadingGoesOn) {
  open();
  ASSERT_TRUE(put("a", "1"));
  disk_->plan(DiskPlan{DiskFailure::eio, DiskCall::sync, DiskFile::log});
  for (int i = 0; i < 3; ++i) {
    const auto refused = put("b", "2");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::io);
    EXPECT_THAT(refused.error().message, AllOf(HasSubstr("made to fail: sync"), HasSubstr("restart recalld")));
    EXPECT_EQ(*catalog_->get(Family::turns, "a"), "1");
  }
  EXPECT_EQ(catalog_->refuses_writes()->kind, ErrorKind::io);
  open();
  EXPECT_EQ(difference(*catalog_, {{{"a", "1"}}, {{{"b", "2"}}}}), "");
  EXPECT_TRUE(put("c", "3"));
}

TEST_F(CatalogFaultsTest, ManyThreadsLoseNothingOnADiskThatIsFullNowAndThen) {
  open();
  constexpr int threads = 4, writes = 60;
  std::vector<Model::Rows> written(threads);
  std::atomic<int> refused = 0;
  std::vector<std::thread> writers;
  for (int t = 0; t < threads; ++t) {
    writers.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<uint64_t>(t));
      for (int i = 0; i < writes; ++i) {
        const std::string key = std::to_string(t) + "-" + std::to_string(written[static_cast<size_t>(t)].size());
        const std::string value = random_text(random, 1500);
        if (put(key, value)) {
          written[static_cast<size_t>(t)][key] = value;
        } else {
          ++refused;
        }
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    disk_->plan(DiskPlan{i % 2 == 0 ? DiskFailure::torn_enospc : DiskFailure::enospc, std::nullopt, std::nullopt,
                         static_cast<uint64_t>(1 + i % 4), 3});
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (auto& writer : writers) writer.join();
  disk_->plan(std::nullopt);
  Model model;
  for (const auto& rows : written) model.rows.insert(rows.begin(), rows.end());
  auto again = put("last", "row");
  if (!again) again = put("last", "row");  // the first may find out that writing out had failed
  ASSERT_TRUE(again) << again.error().message;
  model.rows["last"] = "row";
  std::printf("threads: %zu writes acknowledged, %d refused\n", model.rows.size(), refused.load());
  EXPECT_GT(refused, 0);
  EXPECT_EQ(difference(*catalog_, model), "");
  EXPECT_EQ(difference_after_crash(path(), model), "");
}

TEST_F(CatalogFaultsTest, ASlowDiskOnlyTakesTime) {
  open();
  disk_->slow_down(std::chrono::milliseconds(5));
  Model model;
  std::mt19937_64 random(5);
  for (int i = 0; i < 20; ++i) {
    const Model::Rows rows{{"k" + std::to_string(i), random_text(random, 6000)}};
    ASSERT_TRUE(write(*catalog_, rows));
    model.rows.insert(rows.begin(), rows.end());
  }
  EXPECT_EQ(difference_after_crash(path(), model), "");
  disk_->slow_down(std::chrono::microseconds(0));
}

TEST_F(CatalogFaultsTest, SignalsInTheMidstOfCallsAreNothing) {
  struct sigaction interrupt {};
  interrupt.sa_handler = [](int) {};  // without SA_RESTART: calls that can be interrupted are
  struct sigaction before {};
  ASSERT_EQ(sigaction(SIGALRM, &interrupt, &before), 0);
  const itimerval often{{0, 200}, {0, 200}}, never{};
  ASSERT_EQ(setitimer(ITIMER_REAL, &often, nullptr), 0);
  Model model;
  std::mt19937_64 random(6);
  open();
  for (int i = 0; i < 60; ++i) {
    const Model::Rows rows{{"k" + std::to_string(i), random_text(random, 6000)}};
    const auto written = write(*catalog_, rows);
    EXPECT_TRUE(written) << written.error().message;
    model.rows.insert(rows.begin(), rows.end());
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  EXPECT_EQ(difference(*catalog_, model), "");
  open();
  EXPECT_EQ(difference(*catalog_, model), "");
}

}  // namespace
}  // namespace recalld
