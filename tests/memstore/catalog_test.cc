#include "memstore/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <sstream>

#include "tests/support/files_with.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CatalogTest : public ::testing::Test {
 protected:
  void SetUp() override { open(); }

  void open() {
    catalog_.reset();
    auto catalog = Catalog::open({directory_.path() / "catalog", 4 << 20, 1 << 20});
    ASSERT_TRUE(catalog) << catalog.error().message;
    catalog_ = *std::move(catalog);
  }

  void put(Family family, std::string_view key, std::string_view value) {
    Catalog::Batch batch(*catalog_);
    batch.put(family, key, value);
    const auto written = catalog_->write(batch);
    ASSERT_TRUE(written) << written.error().message;
  }

  std::optional<std::string> get(Family family, std::string_view key) {
    const auto value = catalog_->get(family, key);
    if (!value) throw std::runtime_error(value.error().message);
    return *value;
  }

  std::vector<std::string> keys(Family family, std::string_view prefix) {
    std::vector<std::string> keys;
    Catalog::Cursor rows = catalog_->cursor(family, prefix);
    for (auto found = rows.first(); found.value(); found = rows.next()) keys.emplace_back(rows.key());
    return keys;
  }

  std::vector<std::filesystem::path> files_with(std::string_view words) const {
    return recalld::files_with(directory_.path(), words);
  }

  TempDir directory_;
  std::unique_ptr<Catalog> catalog_;
};

TEST_F(CatalogTest, ABatchIsThereAsAWholeAfterReopening) {
  put(Family::turns, "old", "1");
  Catalog::Batch batch(*catalog_);
  EXPECT_TRUE(batch.empty());
  batch.put(Family::turns, "a", std::string("with\0NUL", 8));
  batch.put(Family::chunks, "a", "");
  batch.remove(Family::turns, "old");
  EXPECT_FALSE(batch.empty());
  ASSERT_TRUE(catalog_->write(batch));
  open();
  EXPECT_EQ(get(Family::turns, "a"), std::string("with\0NUL", 8));
  EXPECT_EQ(get(Family::chunks, "a"), "");
  EXPECT_EQ(get(Family::turns, "old"), std::nullopt);
  EXPECT_EQ(get(Family::states, "a"), std::nullopt);
}

TEST_F(CatalogTest, ACursorWalksItsPrefixAloneInOrderAndSeeksBothWays) {
  for (const char* key : {"a", "b1", "b3", "b5", "c", "\xff\x01", "\xff\xff"}) put(Family::tokens, key, key);
  EXPECT_THAT(keys(Family::tokens, "b"), ElementsAre("b1", "b3", "b5"));
  EXPECT_THAT(keys(Family::tokens, "\xff"), ElementsAre("\xff\x01", "\xff\xff"));
  EXPECT_EQ(keys(Family::tokens, "").size(), 7u);
  EXPECT_THAT(keys(Family::turns, ""), ElementsAre());

  Catalog::Cursor rows = catalog_->cursor(Family::tokens, "b");
  EXPECT_TRUE(rows.seek("b2").value());
  EXPECT_EQ(rows.value(), "b3");
  EXPECT_TRUE(rows.seek_before("b4").value());
  EXPECT_EQ(rows.key(), "b3");
  EXPECT_TRUE(rows.seek_before("b5").value());
  EXPECT_EQ(rows.key(), "b5");
  EXPECT_FALSE(rows.seek_before("b0").value());
  EXPECT_FALSE(rows.seek("b6").value());
}

TEST_F(CatalogTest, ACursorSeesTheRowsOfTheMomentWhenItWasMade) {
  put(Family::tokens, "a", "1");
  Catalog::Cursor rows = catalog_->cursor(Family::tokens, "");
  put(Family::tokens, "b", "2");
  EXPECT_TRUE(rows.first().value());
  EXPECT_FALSE(rows.next().value());
}

TEST_F(CatalogTest, RemovingAPrefixTakesEveryKeyThatBeginsSoAndNoOther) {
  for (const char* key : {"a\xff", "b", "b\xff\xff", "c"}) put(Family::turns, key, "v");
  Catalog::Batch batch(*catalog_);
  batch.remove_all(Family::turns, "b");
  ASSERT_TRUE(catalog_->write(batch));
  EXPECT_THAT(keys(Family::turns, ""), ElementsAre("a\xff", "c"));
}

TEST_F(CatalogTest, NoByteOfRemovedRowsIsLeftAfterReclaiming) {
  put(Family::turns, "a1", "the heron's roost");
  put(Family::turns, "b1", "the kept row of a bittern");
  open();                                         // now in a table
  put(Family::states, "a1", "a curlew's state");  // still in the log
  ASSERT_FALSE(files_with("heron").empty());
  ASSERT_FALSE(files_with("curlew").empty());
  Catalog::Batch batch(*catalog_);
  for (const Family family : {Family::turns, Family::states}) batch.remove_all(family, "a");
  ASSERT_TRUE(catalog_->write(batch));
  const auto reclaimed =
      catalog_->reclaim(std::array{Catalog::all_of(Family::turns, "a"), Catalog::all_of(Family::states, "a")});
  ASSERT_TRUE(reclaimed) << reclaimed.error().message;
  EXPECT_THAT(files_with("heron"), ElementsAre());
  EXPECT_THAT(files_with("curlew"), ElementsAre());
  EXPECT_EQ(get(Family::turns, "b1"), "the kept row of a bittern");
}

TEST_F(CatalogTest, NoByteOfRowsRemovedAmongOthersIsLeftAfterReclaiming) {
  for (const char* key : {"a1", "a2", "a3"}) put(Family::turns, key, std::string("the stork of ") + key);
  open();
  put(Family::turns, "a4", "the stork of a4");
  Catalog::Batch batch(*catalog_);
  batch.remove_range(Family::turns, "a2", "a3");
  batch.remove_range(Family::turns, "a4", "a5");
  ASSERT_TRUE(catalog_->write(batch));
  const auto reclaimed = catalog_->reclaim(std::array{Catalog::Range{Family::turns, "a2", "a5"}});
  ASSERT_TRUE(reclaimed) << reclaimed.error().message;
  EXPECT_GT(*reclaimed, 0u);
  EXPECT_THAT(files_with("stork of a2"), ElementsAre());
  EXPECT_THAT(files_with("stork of a4"), ElementsAre());
  EXPECT_EQ(get(Family::turns, "a1"), "the stork of a1");
  EXPECT_EQ(get(Family::turns, "a3"), "the stork of a3");
}

TEST_F(CatalogTest, ADamagedRowIsAnErrorThatSaysSo) {
  put(Family::states, "s", "a state that lies there uncompressed");
  catalog_.reset();
  const auto files = files_with("lies there uncompressed");
  ASSERT_FALSE(files.empty());
  for (const auto& path : files) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    file.seekp(static_cast<std::streamoff>(text.str().find("uncompressed")));
    file.put('U');
  }
  open();
  const auto value = catalog_->get(Family::states, "s");
  ASSERT_FALSE(value);
  EXPECT_EQ(value.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(value.error().message, HasSubstr("states"));
}

TEST_F(CatalogTest, ManySmallWritesStayWithinTheMemoryThatWasGiven) {
  for (int i = 0; i < 300; ++i) {
    put(Family::turns, "k" + std::to_string(i), std::string(50'000, static_cast<char>('a' + i % 26)));
    EXPECT_LE(catalog_->usage().memtable_bytes, 3u << 20);
  }
  EXPECT_EQ(keys(Family::turns, "k").size(), 300u);
  EXPECT_LE(catalog_->usage().block_cache_bytes, 5u << 20);
  EXPECT_GT(catalog_->usage().bytes_on_disk, 0u);
}

}  // namespace
}  // namespace recalld
