// What the catalog does on a disk that fails, fills up, or gives back other bytes than it was given.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <sys/time.h>

#include <unistd.h>
#include <array>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "memstore/catalog.h"
#include "tests/support/faulty_file_system.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// The rows that are there, and those of the batches refused since: one of them may be there.
struct Model {
  using Rows = std::map<std::string, std::string>;
  Rows rows;
  std::vector<Rows> in_doubt;
};

std::string random_text(std::mt19937_64& random, size_t bytes) {
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>('a' + random() % 26);
  return text;
}

// Syncs are not what is tested here, and there are many thousands of them.
fs::path memory_or_disk() {
  std::error_code unknown;
  return fs::is_directory("/dev/shm", unknown) ? fs::path("/dev/shm") : fs::temp_directory_path();
}

class CatalogFaultsTest : public ::testing::Test {
 protected:
  CatalogFaultsTest() : disk_(std::make_shared<FaultyFileSystem>()), env_(rocksdb::NewCompositeEnv(disk_)) {}

  CatalogOptions options(const fs::path& directory) const {
    return {.directory = directory,
            .cache_bytes = 1 << 20,
            .memtable_bytes = 128 << 10,
            .env = env_.get(),
            .retry_after = std::chrono::milliseconds(0)};
  }

  void open() {
    catalog_.reset();
    auto catalog = Catalog::open(options(path()));
    ASSERT_TRUE(catalog) << catalog.error().message;
    catalog_ = *std::move(catalog);
  }
  Error open_error() {
    catalog_.reset();
    auto catalog = Catalog::open(options(path()));
    if (!catalog) return catalog.error();
    return {ErrorKind::internal, "it opened"};
  }

  // The same rows in two families, and how many there are in a third.
  static Expected<void> write(Catalog& catalog, const Model::Rows& rows) {
    Catalog::Batch batch(catalog);
    for (const auto& [key, value] : rows) {
      batch.put(Family::turns, key, value);
      batch.put(Family::chunks, key, value.substr(0, 20));
    }
    return catalog.write(batch);
  }
  Expected<void> put(const std::string& key, const std::string& value) { return write(*catalog_, {{key, value}}); }

  static Expected<Model::Rows> all(const Catalog& catalog, Family family) {
    Model::Rows rows;
    Catalog::Cursor row = catalog.cursor(family, "");
    RECALLD_TRY(bool found, row.first());
    while (found) {
      rows.emplace(row.key(), row.value());
      RECALLD_TRY(found, row.next());
    }
    return rows;
  }

  // Empty when the catalog is as the model says.
  static std::string difference(const Catalog& catalog, const Model& model) {
    const auto turns = all(catalog, Family::turns), chunks = all(catalog, Family::chunks);
    if (!turns) return turns.error().message;
    if (!chunks) return chunks.error().message;
    const auto equals = [&](const Model::Rows& rows) {
      if (*turns != rows || chunks->size() != rows.size()) return false;
      return std::ranges::all_of(rows, [&](const auto& row) {
        const auto found = chunks->find(row.first);
        return found != chunks->end() && found->second == row.second.substr(0, 20);
      });
    };
    if (equals(model.rows)) return "";
    for (const Model::Rows& batch : model.in_doubt) {
      Model::Rows with = model.rows;
      for (const auto& [key, value] : batch) with[key] = value;
      if (equals(with)) return "";
    }
    size_t lost = 0, wrong = 0, extra = 0;
    for (const auto& [key, value] : model.rows) {
      const auto found = turns->find(key);
      if (found == turns->end()) ++lost;
      if (found != turns->end() && found->second != value) ++wrong;
    }
    for (const auto& row : *turns) extra += model.rows.contains(row.first) ? 0 : 1;
    return std::to_string(lost) + " rows lost, " + std::to_string(wrong) + " wrong, " + std::to_string(extra) +
           " that nobody wrote, in " + std::to_string(turns->size()) + " turns and " + std::to_string(chunks->size()) +
           " chunks";
  }

  // What a healthy disk shows after a crash at this moment: a copy of the files, opened.
  std::string difference_after_crash(const fs::path& directory, const Model& model) const {
    const TempDir copy(memory_or_disk());
    {
      const auto still = disk_->freeze();
      fs::copy(directory, copy.path() / "catalog");
    }
    const auto catalog = Catalog::open({copy.path() / "catalog", 1 << 20, 128 << 10});
    if (!catalog) return catalog.error().message;
    return difference(**catalog, model);
  }

  fs::path path() const { return directory_.path() / "catalog"; }

  TempDir directory_{memory_or_disk()};
  std::shared_ptr<FaultyFileSystem> disk_;
  std::unique_ptr<rocksdb::Env> env_;
  std::unique_ptr<Catalog> catalog_;
};

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

// ---- A disk that fills up, fails or is slow, in short

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

// ---- Bytes that changed

// Flips one bit of a file.
void flip(const fs::path& path, uint64_t bit) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(bit / 8));
  const char byte = static_cast<char>(file.get());
  file.seekp(static_cast<std::streamoff>(bit / 8));
  file.put(static_cast<char>(byte ^ 1 << bit % 8));
}

std::vector<fs::path> files_like(const fs::path& directory, std::string_view pattern) {
  std::vector<fs::path> files;
  for (const auto& file : fs::directory_iterator(directory)) {
    if (file.path().filename().string().contains(pattern)) files.push_back(file.path());
  }
  std::ranges::sort(files);
  return files;
}

class CatalogDamageTest : public CatalogFaultsTest {
 protected:
  // As a crash leaves it: `tabled` batches in tables, then `logged` ones in the log alone.
  void make(int tabled, int logged) {
    std::mt19937_64 random(9);
    open();
    const auto add = [&](int count) {
      for (int i = 0; i < count; ++i) {
        const Model::Rows rows{{"k" + std::to_string(1000 + model_.rows.size()), random_text(random, 2500)}};
        ASSERT_TRUE(write(*catalog_, rows));
        model_.rows.insert(rows.begin(), rows.end());
      }
    };
    add(tabled);
    if (tabled > 0) open();
    add(logged);
    {
      const auto still = disk_->freeze();
      fs::copy(path(), directory_.path() / "crashed");
    }
    catalog_.reset();
    restore();
  }
  void restore() {
    catalog_.reset();
    fs::remove_all(path());
    fs::copy(directory_.path() / "crashed", path());
  }
  // In tables only, each family in one of level 0 or more.
  void make_tables(int count) {
    make(count, 0);
    open();
    catalog_.reset();
    fs::remove_all(directory_.path() / "crashed");
    fs::copy(path(), directory_.path() / "crashed");
  }

  Model model_;
};

TEST_F(CatalogDamageTest, EveryFlippedBitOfTheLogIsNamedWithItsFileAndNothingIsDroppedInSilence) {
  make(0, 8);
  size_t flips = 0, named = 0, unharmed = 0;
  const fs::path log = files_like(path(), ".log").back();
  const uint64_t bits = fs::file_size(log) * 8;
  ASSERT_GT(bits, 8 * 2500u * 8);
  std::mt19937_64 random(10);
  for (; flips < 150; ++flips) {
    restore();
    const uint64_t bit = random() % bits;
    flip(log, bit);
    auto catalog = Catalog::open(options(path()));
    if (!catalog) {
      EXPECT_EQ(catalog.error().kind, ErrorKind::corrupt);
      EXPECT_THAT(catalog.error().message, AllOf(HasSubstr(log.string()), HasSubstr("at byte"), HasSubstr("backup")));
      ++named;
    } else {
      EXPECT_EQ(difference(**catalog, model_), "") << "bit " << bit << " of " << log;
      ++unharmed;
    }
  }
  std::printf("log of a catalog: bits flipped %zu, named %zu, without effect %zu\n", flips, named, unharmed);
  EXPECT_EQ(named + unharmed, flips);
  EXPECT_LE(unharmed, flips / 20);
}

TEST_F(CatalogDamageTest, CuttingADamagedLogThereAsTheMessageSaysOpensWhatCameBefore) {
  make(0, 6);
  const fs::path log = files_like(path(), ".log").back();
  flip(log, fs::file_size(log) * 8 / 2);
  const Error error = open_error();
  const std::string_view command = "truncate -s ";
  const size_t at = error.message.find(command);
  ASSERT_NE(at, std::string::npos) << error.message;
  fs::resize_file(log, std::stoull(error.message.substr(at + command.size())));
  open();
  const auto rows = all(*catalog_, Family::turns);
  ASSERT_TRUE(rows);
  EXPECT_GT(rows->size(), 0u);
  EXPECT_LT(rows->size(), model_.rows.size());
  for (const auto& [key, value] : *rows) EXPECT_EQ(value, model_.rows[key]);
}

TEST_F(CatalogDamageTest, FilesThatAreNeededToOpenAreMissedByName) {
  make(30, 5);
  size_t faults = 0, unharmed = 0;
  const auto expect_named = [&](const std::string& what, const std::string& file) {
    ++faults;
    const Error error = open_error();
    EXPECT_EQ(error.kind, ErrorKind::corrupt) << what << ": " << error.message;
    EXPECT_THAT(error.message, AllOf(HasSubstr(file), AnyOf(HasSubstr("backup"), HasSubstr("--repair")))) << what;
    restore();
  };
  const auto write_to = [](const fs::path& file, std::string_view text) {
    std::ofstream(file, std::ios::trunc) << text;
  };
  fs::remove(path() / "CURRENT");
  expect_named("CURRENT removed", "CURRENT");
  write_to(path() / "CURRENT", "");
  expect_named("CURRENT empty", "CURRENT");
  write_to(path() / "CURRENT", "MANIFEST-000777\n");
  expect_named("CURRENT of another", "CURRENT");
  for (uint64_t bit = 0; bit < 80; bit += 7) {
    flip(path() / "CURRENT", bit);
    expect_named("CURRENT flipped", "CURRENT");
  }
  const std::string manifest = files_like(path(), "MANIFEST").back().filename().string();
  fs::remove(path() / manifest);
  expect_named("manifest removed", "manifest");
  write_to(path() / manifest, "");
  expect_named("manifest empty", manifest);
  const uint64_t bits = fs::file_size(path() / manifest) * 8;
  for (uint64_t i = 0; i < 60; ++i) {
    flip(path() / manifest, i * bits / 60 + i % 8);
    // A few bytes, as those at the end of a block, say nothing.
    if (const auto catalog = Catalog::open(options(path()))) {
      EXPECT_EQ(difference(**catalog, model_), "") << "bit " << i * bits / 60 + i % 8;
      ++unharmed;
      continue;
    }
    expect_named("manifest flipped", manifest);
  }
  for (const fs::path& log : files_like(path(), ".log")) {
    fs::remove(log);
    expect_named("log removed", "log");
  }
  for (const fs::path& table : files_like(path(), ".sst")) {
    const std::string file = table.filename().string();
    fs::remove(table);
    expect_named("table removed", file);
    fs::resize_file(table, fs::file_size(table) - 1);
    expect_named("table cut", file);
    fs::resize_file(table, 0);
    expect_named("table empty", file);
  }
  std::printf("files needed to open: %zu faults named, %zu without effect\n", faults, unharmed);
  EXPECT_LE(unharmed, 10u);  // and each opened with every row
  open();
  EXPECT_EQ(difference(*catalog_, model_), "");
}

TEST_F(CatalogDamageTest, AnOpenWithoutPermissionNamesTheFile) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may do anything";
  make(10, 1);
  const fs::path manifest = files_like(path(), "MANIFEST").back();
  fs::permissions(manifest, fs::perms::none);
  const Error error = open_error();
  EXPECT_EQ(error.kind, ErrorKind::io);
  EXPECT_THAT(error.message, AllOf(HasSubstr("MANIFEST"), HasSubstr("ermission")));
}

TEST_F(CatalogDamageTest, EveryFlippedBitOfATableIsFoundByVerifyOrAtOpen) {
  make_tables(20);
  size_t flips = 0, at_open = 0, by_verify = 0;
  std::mt19937_64 random(12);
  for (const fs::path& table : files_like(path(), ".sst")) {
    const uint64_t bits = fs::file_size(table) * 8;
    for (int i = 0; i < 12; ++i, ++flips) {
      restore();
      // Tails of tables, where everything that finds the rest stands, as often as the rest.
      const uint64_t bit = i % 2 == 0 ? random() % bits : bits - 1 - random() % std::min<uint64_t>(bits, 800 * 8);
      flip(table, bit);
      auto catalog = Catalog::open(options(path()));
      if (!catalog) {
        EXPECT_EQ(catalog.error().kind, ErrorKind::corrupt) << catalog.error().message;
        EXPECT_THAT(catalog.error().message, HasSubstr(table.filename().string()));
        ++at_open;
        continue;
      }
      const auto damaged = (*catalog)->verify();
      ASSERT_TRUE(damaged) << damaged.error().message;
      ASSERT_EQ(damaged->size(), 1u) << "bit " << bit << " of " << bits << " of " << table;
      EXPECT_EQ(fs::path(damaged->front().file).filename(), table.filename());
      EXPECT_THAT(damaged->front().text(), HasSubstr(std::string(name(damaged->front().family))));
      ++by_verify;
    }
  }
  std::printf("tables: bits flipped %zu, found at open %zu, by verify %zu\n", flips, at_open, by_verify);
  EXPECT_EQ(at_open + by_verify, flips);
  EXPECT_GT(by_verify, 0u);
}

// Makes a table of a family damaged, in its first block of rows or as a whole.
class CatalogMendTest : public CatalogDamageTest {
 protected:
  // Two tables of each family, of which one is damaged; returns that one. Rows "a..." are in the one, "b..." in the
  // other.
  void make_two_tables() {
    std::mt19937_64 random(21);
    for (const std::string kind : {"a", "b"}) {
      open();
      for (int i = 0; i < 12; ++i) {
        const Model::Rows rows{{kind + std::to_string(10 + i), random_text(random, 1500)}};
        ASSERT_TRUE(write(*catalog_, rows));
        model_.rows.insert(rows.begin(), rows.end());
      }
      catalog_.reset();
    }
    // The two tables are of level 0, since nothing has compacted them yet.
    fs::copy(path(), directory_.path() / "crashed");
  }
  // The file of the family that holds this row.
  std::string table_of(Family family, const std::string& key) {
    open();
    // Every table that is damaged on purpose is named with its family and rows: so damage each and look.
    catalog_.reset();
    for (const fs::path& table : files_like(path(), ".sst")) {
      flip(table, 8 * 20);
      open();
      const auto damaged = catalog_->verify();
      catalog_.reset();
      const bool found = damaged && damaged->size() == 1 && damaged->front().family == family &&
                         damaged->front().first_key <= key && key <= damaged->front().last_key;
      flip(table, 8 * 20);
      if (found) return table;
    }
    return "";
  }
};

TEST_F(CatalogMendTest, RowsOfOtherBlocksAreReadAndAppendsGoOnWhenATableOfTheJournalIsDamaged) {
  make_two_tables();
  const std::string table = table_of(Family::turns, "a10");
  ASSERT_NE(table, "");
  flip(table, 8 * 20);
  open();
  const auto lost = catalog_->get(Family::turns, "a10");
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(lost.error().message, AllOf(HasSubstr("turns"), HasSubstr("a3130"), HasSubstr("verify")));
  EXPECT_EQ(*catalog_->get(Family::turns, "b10"), model_.rows["b10"]);
  EXPECT_EQ(*catalog_->get(Family::turns, "a21"), model_.rows["a21"]);  // of another block of that table

  // So many tables that RocksDB wants to compact them, and cannot.
  std::mt19937_64 random(22);
  for (int i = 0; i < 300; ++i) {
    const auto written = put("c" + std::to_string(i), random_text(random, 4000));
    ASSERT_TRUE(written) << "write " << i << ": " << written.error().message;
    if (i % 10 == 9) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (int i = 0; i < 100 && catalog_->uncompacted().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_THAT(catalog_->uncompacted(), ::testing::ElementsAre(Family::turns));
  EXPECT_TRUE(put("d", "and still there are writes"));
  const auto damaged = catalog_->verify();
  ASSERT_TRUE(damaged);
  ASSERT_EQ(damaged->size(), 1u);
  EXPECT_EQ(damaged->front().family, Family::turns);
  const auto mended = catalog_->remake(Family::turns, *damaged);
  EXPECT_FALSE(mended) << "the journal must not be thrown away";
  open();
  EXPECT_EQ(*catalog_->get(Family::turns, "d"), "and still there are writes");
}

TEST_F(CatalogMendTest, ADamagedTableThatCanBeMadeAgainGoesAndTheOtherRowsStay) {
  make_two_tables();
  const std::string table = table_of(Family::chunks, "a10");
  ASSERT_NE(table, "");
  flip(table, 8 * 20);
  open();
  const auto damaged = catalog_->verify();
  ASSERT_TRUE(damaged);
  ASSERT_EQ(damaged->size(), 1u);
  EXPECT_EQ(damaged->front().file, table);
  EXPECT_EQ(damaged->front().family, Family::chunks);
  Catalog::Batch stale(*catalog_);
  stale.put(Family::chunks, "b30", "from before");
  Catalog::Batch other(*catalog_);
  other.put(Family::attributes, "b30", "of another family");
  const auto remade = catalog_->remake(Family::chunks, *damaged);
  ASSERT_TRUE(remade) << remade.error().message;
  EXPECT_EQ(remade->rows_kept, 12u);
  EXPECT_FALSE(remade->all_dropped);
  EXPECT_EQ(catalog_->write(stale).error().kind, ErrorKind::busy);
  EXPECT_TRUE(catalog_->write(other));
  // Of this family a row that is missing says something: none is kept.
  const auto dropped = catalog_->remake(Family::attributes, {});
  ASSERT_TRUE(dropped) << dropped.error().message;
  EXPECT_TRUE(dropped->all_dropped);
  for (int round = 0; round < 2; ++round) {
    EXPECT_FALSE(*catalog_->get(Family::attributes, "b30"));
    EXPECT_TRUE(catalog_->verify()->empty());
    EXPECT_FALSE(fs::exists(table));
    const auto chunks = all(*catalog_, Family::chunks);
    ASSERT_TRUE(chunks) << chunks.error().message;
    EXPECT_EQ(chunks->size(), 12u + static_cast<size_t>(round));
    EXPECT_EQ(chunks->at("b10"), model_.rows["b10"].substr(0, 20));
    EXPECT_EQ(all(*catalog_, Family::turns)->size(), model_.rows.size() + static_cast<size_t>(round));
    EXPECT_TRUE(put("e" + std::to_string(round), "more"));
    open();
  }
}

TEST_F(CatalogMendTest, ACatalogThatATableKeepsFromOpeningIsMendedWhenItsRowsCanBeMadeAgain) {
  make_two_tables();
  for (const auto& how : {"missing", "cut", "no footer"}) {
    SCOPED_TRACE(how);
    restore();
    const std::string chunks = table_of(Family::chunks, "a10"), turns = table_of(Family::turns, "a10");
    const auto damage = [&](const std::string& table) {
      if (how == std::string("missing")) fs::remove(table);
      if (how == std::string("cut")) fs::resize_file(table, fs::file_size(table) / 2);
      if (how == std::string("no footer")) flip(table, (fs::file_size(table) - 2) * 8);
    };
    damage(chunks);
    const Error error = open_error();
    EXPECT_EQ(error.kind, ErrorKind::corrupt);
    EXPECT_THAT(error.message,
                AllOf(HasSubstr(fs::path(chunks).filename().string() + " of chunks"), HasSubstr("--repair")));
    const auto mended = Catalog::mend(options(path()));
    ASSERT_TRUE(mended) << mended.error().message;
    EXPECT_EQ(mended->size(), 1u);
    open();
    EXPECT_TRUE(catalog_->verify()->empty());
    EXPECT_EQ(*all(*catalog_, Family::turns), model_.rows);
    const auto kept = all(*catalog_, Family::chunks);
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_FALSE(kept->contains("a10"));
    std::printf("%s: %zu of 24 rows kept\n", how, kept->size());

    restore();
    damage(turns);
    EXPECT_THAT(open_error().message, AllOf(HasSubstr(" of turns"), HasSubstr("backup")));
    const auto refused = Catalog::mend(options(path()));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::corrupt);
    EXPECT_THAT(refused.error().message, AllOf(HasSubstr(fs::path(turns).filename().string()), HasSubstr("backup")));
  }
}

TEST_F(CatalogMendTest, ASectorThatTheDiskRefusesToReadStopsNeitherAppendsNorOtherReads) {
  make_two_tables();
  const std::string table = table_of(Family::turns, "a10");
  ASSERT_NE(table, "");
  disk_->bad_sector(fs::path(table).filename().string(), 20);
  open();
  EXPECT_EQ(catalog_->get(Family::turns, "a10").error().kind, ErrorKind::io);
  EXPECT_EQ(*catalog_->get(Family::turns, "b10"), model_.rows["b10"]);
  std::mt19937_64 random(23);
  for (int i = 0; i < 300; ++i) {
    const auto written = put("c" + std::to_string(i), random_text(random, 4000));
    ASSERT_TRUE(written) << "write " << i << ": " << written.error().message;
    if (i % 10 == 9) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (int i = 0; i < 100 && catalog_->uncompacted().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_THAT(catalog_->uncompacted(), ::testing::ElementsAre(Family::turns));
  EXPECT_TRUE(put("d", "and still there are writes"));
  EXPECT_EQ(catalog_->verify()->size(), 1u);
}

}  // namespace
}  // namespace recalld
