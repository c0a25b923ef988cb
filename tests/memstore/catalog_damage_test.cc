// What the catalog does with a disk that gives back other bytes than it was given: damage is named, and mended where
// rows can be made again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/memstore/catalog_faults_fixture.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

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
