// Every call of the disk fails in turn: the catalog loses nothing that was acknowledged.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <string_view>

#include "tests/memstore/catalog_faults_fixture.h"

namespace recalld {
namespace {

namespace fs = std::filesystem;

// One run of the sweep: a catalog with a log to replay is opened on a disk that fails once (or goes on failing for a
// while), and then written to. What was acknowledged must be there at the end, after a crash at any failure as well,
// and nothing else but, at most, the batch that failed last.
struct SweepCounts {
  uint64_t runs = 0;
  uint64_t faults = 0;
  uint64_t refused_full = 0;
  uint64_t refused_io = 0;
  uint64_t not_opened = 0;
  uint64_t crashes_checked = 0;
};

class CatalogSweepTest : public CatalogFaultsTest {
 protected:
  void SetUp() override {
    // Rows in tables, and rows in the log.
    std::mt19937_64 random(3);
    auto catalog = Catalog::open({path(), 1 << 20, 128 << 10});
    ASSERT_TRUE(catalog) << catalog.error().message;
    for (int i = 0; i < 8; ++i) {
      const Model::Rows rows{{"base" + std::to_string(i), random_text(random, 6000)}};
      ASSERT_TRUE(write(**catalog, rows));
      base_.rows.insert(rows.begin(), rows.end());
    }
    fs::copy(path(), directory_.path() / "base");
  }

  void run(const DiskPlan& plan, SweepCounts& counts) {
    const fs::path directory = directory_.path() / "run";
    fs::remove_all(directory);
    fs::copy(directory_.path() / "base", directory);
    Model model = base_;
    std::mt19937_64 random(plan.from);
    disk_->plan(plan);
    const bool full = plan.failure == DiskFailure::enospc || plan.failure == DiskFailure::torn_enospc;
    ++counts.runs;
    const auto crash = [&] {
      const std::string difference = difference_after_crash(directory, model);
      ASSERT_EQ(difference, "") << "after a crash";
      ++counts.crashes_checked;
    };

    uint64_t failed = 0;
    auto catalog = Catalog::open(options(directory));
    if (!catalog) {
      ++counts.not_opened;
      EXPECT_EQ(catalog.error().kind, full ? ErrorKind::full : ErrorKind::io) << catalog.error().message;
      ASSERT_NO_FATAL_FAILURE(crash());
      failed = disk_->failed();
      disk_->plan(std::nullopt);
      catalog = Catalog::open(options(directory));
      ASSERT_TRUE(catalog) << catalog.error().message;
    }
    bool latched = false;
    for (int step = 0; step < 24; ++step) {
      if (step == 14 && !latched)
        (void)(*catalog)->reclaim(std::array{Catalog::Range{Family::turns, "base1", "base2"}});
      const std::string key = "row" + std::to_string(model.rows.size() - base_.rows.size());
      const Model::Rows rows{{key, random_text(random, 4000)}, {key + "x", random_text(random, step % 5 * 100)}};
      const auto written = write(**catalog, rows);
      if (written) {
        ASSERT_FALSE(latched) << "a write after one that failed with io";
        model.rows.insert(rows.begin(), rows.end());
        model.in_doubt.clear();
      } else {
        EXPECT_EQ(written.error().kind, full ? ErrorKind::full : ErrorKind::io) << written.error().message;
        if (!latched) model.in_doubt.push_back(rows);  // later ones are not even tried
        latched = !full;
        ++(full ? counts.refused_full : counts.refused_io);
        const auto read = (*catalog)->get(Family::turns, "base0");
        ASSERT_TRUE(read) << read.error().message;
        EXPECT_EQ(*read, model.rows["base0"]);
        if (step % 3 == 0) {
          ASSERT_NO_FATAL_FAILURE(crash());
        }
      }
    }
    failed += disk_->failed();
    counts.faults += failed;
    ASSERT_NO_FATAL_FAILURE(crash());
    if (!latched) {
      // Space is there again.
      disk_->plan(std::nullopt);
      const Model::Rows rows{{"last", "written when there was space"}};
      auto written = write(**catalog, rows);
      if (!written) written = write(**catalog, rows);  // the first may find out that writing out had failed
      ASSERT_TRUE(written) << written.error().message;
      model.rows.insert(rows.begin(), rows.end());
      model.in_doubt.clear();
      EXPECT_EQ(difference(**catalog, model), "");
      const auto reclaimed = (*catalog)->reclaim(std::array{Catalog::Range{Family::turns, "base2", "base3"}});
      EXPECT_TRUE(reclaimed) << reclaimed.error().message;
      ASSERT_NO_FATAL_FAILURE(crash());
    }
    disk_->plan(std::nullopt);
    catalog->reset();
    catalog = Catalog::open(options(directory));
    ASSERT_TRUE(catalog) << catalog.error().message;
    EXPECT_EQ(difference(**catalog, model), "") << "after reopening";
    EXPECT_TRUE(write(**catalog, {{"after", "reopening"}}));
    done_ = failed == 0;
  }

  // Every call in turn takes minutes, as RocksDB waits a second after what fails in the background: so one in a few,
  // unless RECALLD_FAULTS_EVERY says another number. 1 is each.
  static uint64_t every() {
    const char* set = std::getenv("RECALLD_FAULTS_EVERY");
    return set != nullptr ? std::stoull(set) : 9;
  }

  void sweep(DiskFailure failure, uint64_t count, SweepCounts& counts) {
    for (const auto call : {DiskCall::create, DiskCall::append, DiskCall::sync, DiskCall::close, DiskCall::rename,
                            DiskCall::remove, DiskCall::sync_directory}) {
      if (call != DiskCall::append && failure != DiskFailure::eio && failure != DiskFailure::enospc) continue;
      done_ = false;
      for (uint64_t from = 1; !done_; from += every()) {
        SCOPED_TRACE("call " + std::to_string(from) + " of " + std::string(name(call)) + " fails with " +
                     std::string(name(failure)) + ", " + std::to_string(count) + " times");
        ASSERT_NO_FATAL_FAILURE(run({failure, call, std::nullopt, from, count}, counts));
        if (HasFailure()) return;
      }
    }
  }

  static void print(std::string_view what, const SweepCounts& counts) {
    std::printf(
        "%s: %lu runs, %lu faults; writes refused: %lu full, %lu io; opens refused: %lu; crashes checked: %lu\n",
        std::string(what).c_str(), counts.runs, counts.faults, counts.refused_full, counts.refused_io,
        counts.not_opened, counts.crashes_checked);
  }

  Model base_;
  bool done_ = false;
};

TEST_F(CatalogSweepTest, AFullDiskAtAnyCallLosesNothingAndWritingGoesOnWhenThereIsSpace) {
  SweepCounts counts;
  for (const auto failure : {DiskFailure::enospc, DiskFailure::torn_enospc}) {
    for (const uint64_t count : {uint64_t{1}, uint64_t{4}}) ASSERT_NO_FATAL_FAILURE(sweep(failure, count, counts));
  }
  print("full disk", counts);
  EXPECT_GT(counts.refused_full, 10u);
}

TEST_F(CatalogSweepTest, AnErrorAtAnyCallIsSurvivedOrRefusesEveryLaterWriteUntilReopened) {
  SweepCounts counts;
  for (const auto failure : {DiskFailure::eio, DiskFailure::torn_eio})
    ASSERT_NO_FATAL_FAILURE(sweep(failure, 1, counts));
  print("failing disk", counts);
  EXPECT_GT(counts.refused_io, 10u);
}

// Making a family anew while the disk fails: at any moment it is either the old one or the new one.
TEST_F(CatalogSweepTest, AFailureWhileAFamilyIsMadeAnewLeavesItAsItWas) {
  SweepCounts counts;
  for (const auto failure : {DiskFailure::eio, DiskFailure::enospc}) {
    bool done = false;
    for (uint64_t from = 1; !done; from += std::min<uint64_t>(every(), 2)) {
      SCOPED_TRACE("call " + std::to_string(from) + " fails with " + std::string(name(failure)));
      const fs::path directory = directory_.path() / "run";
      fs::remove_all(directory);
      fs::copy(directory_.path() / "base", directory);
      auto catalog = Catalog::open(options(directory));
      ASSERT_TRUE(catalog) << catalog.error().message;
      disk_->plan(DiskPlan{failure, std::nullopt, std::nullopt, from, 1});
      const auto remade = (*catalog)->remake(Family::chunks, {});
      ++counts.runs;
      counts.faults += disk_->failed();
      if (remade) {
        EXPECT_EQ(remade->rows_kept, base_.rows.size());
      } else {
        ++(failure == DiskFailure::eio ? counts.refused_io : counts.refused_full);
      }
      done = disk_->failed() == 0;
      disk_->plan(std::nullopt);
      EXPECT_EQ(difference(**catalog, base_), "");
      ASSERT_EQ(difference_after_crash(directory, base_), "");
      ++counts.crashes_checked;
      Model model = base_;
      const Model::Rows rows{{"next", "row"}};
      if (write(**catalog, rows)) model.rows.insert(rows.begin(), rows.end());
      model.in_doubt = {rows};
      catalog->reset();
      catalog = Catalog::open(options(directory));
      ASSERT_TRUE(catalog) << catalog.error().message;
      EXPECT_EQ(difference(**catalog, model), "");
      EXPECT_TRUE((*catalog)->remake(Family::chunks, {}));
      EXPECT_EQ(difference(**catalog, model), "");
      if (HasFailure()) return;
    }
  }
  print("making a family anew", counts);
  EXPECT_GT(counts.refused_io, 2u);
}

}  // namespace
}  // namespace recalld
