#include "tests/support/power_disk.h"

#include <gtest/gtest.h>

#include <set>

namespace recalld {
namespace {

const std::filesystem::path root = "/disk";
constexpr uint64_t seeds = 200;

template <class T>
T must(Expected<T> value) {
  if (!value) throw std::runtime_error(value.error().message);
  return *std::move(value);
}
void must(const Expected<void>& done) {
  if (!done) throw std::runtime_error(done.error().message);
}

std::string contents(const PowerDisk& disk, const std::filesystem::path& path) {
  const auto file = disk.open(path);
  if (!file) return "missing";
  std::string text(must(disk.size(**file)), '\0');
  must(disk.read(**file, 0, std::as_writable_bytes(std::span(text))));
  return text;
}

// Everything that is found in a file when the power is cut now.
std::set<std::string> survivors(const PowerDisk& disk, const std::filesystem::path& path) {
  std::set<std::string> found;
  for (uint64_t seed = 0; seed < seeds; ++seed) found.insert(contents(*disk.survivor(seed), path));
  return found;
}

// A file with these contents, durably.
PowerDisk::FileRef durable_file(PowerDisk& disk, const std::filesystem::path& path, std::string_view text) {
  const auto file = must(disk.create(path, true));
  must(disk.write(*file, 0, as_bytes(text)));
  must(disk.sync(*file));
  must(disk.sync_directory(path.parent_path()));
  return file;
}

TEST(PowerDisk, WhatWasSyncedSurvives) {
  PowerDisk disk(root);
  durable_file(disk, root / "a", "synced");
  EXPECT_EQ(survivors(disk, root / "a"), std::set<std::string>{"synced"});
}

TEST(PowerDisk, WhatWasOnlyWrittenIsOldNewOrTornAtSectors) {
  PowerDisk disk(root);
  const std::string old(8192, 'o'), fresh(8192, 'n');
  const auto file = durable_file(disk, root / "a", old);
  must(disk.write(*file, 0, as_bytes(fresh)));
  const auto found = survivors(disk, root / "a");
  EXPECT_TRUE(found.contains(old));
  EXPECT_TRUE(found.contains(fresh));
  EXPECT_TRUE(found.contains(old.substr(4096) + fresh.substr(4096))) << "writes are not reordered";
  EXPECT_GT(found.size(), 10u) << "nothing is torn";
  for (const std::string& text : found) {
    for (size_t sector = 0; sector < text.size(); sector += 512)
      ASSERT_EQ(text.substr(sector, 512), std::string(512, text[sector]));
  }
  must(disk.sync(*file));
  EXPECT_EQ(survivors(disk, root / "a"), std::set<std::string>{fresh});
}

TEST(PowerDisk, WhatWasAppendedEndsAnywhere) {
  PowerDisk disk(root);
  const auto file = durable_file(disk, root / "a", "123");
  disk.grow_in_order(*file);
  must(disk.write(*file, 3, as_bytes("456")));
  EXPECT_EQ(survivors(disk, root / "a"), (std::set<std::string>{"123", "1234", "12345", "123456"}));
}

TEST(PowerDisk, AFileWhoseDirectoryWasNotSyncedIsThereOrNot) {
  PowerDisk disk(root);
  const auto file = must(disk.create(root / "a", true));
  must(disk.write(*file, 0, as_bytes("x")));
  must(disk.sync(*file));
  EXPECT_EQ(survivors(disk, root / "a"), (std::set<std::string>{"missing", "x"}));
  must(disk.sync_directory(root));
  must(disk.remove(root / "a"));
  EXPECT_EQ(survivors(disk, root / "a"), (std::set<std::string>{"missing", "x"}));
}

TEST(PowerDisk, ARenameHappensWhollyOrNotAndOnlyAfterWhatWasBeforeIt) {
  PowerDisk disk(root);
  durable_file(disk, root / "current", "old");
  const auto file = must(disk.create(root / "new", true));
  must(disk.write(*file, 0, as_bytes("new")));
  must(disk.sync(*file));
  must(disk.create(root / "before", true));
  must(disk.rename(root / "new", root / "current"));
  EXPECT_EQ(survivors(disk, root / "current"), (std::set<std::string>{"old", "new"}));
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    const auto left = disk.survivor(seed);
    if (contents(*left, root / "current") != "new") continue;
    EXPECT_EQ(contents(*left, root / "before"), "");
    EXPECT_EQ(contents(*left, root / "new"), "missing");
  }
}

TEST(PowerDisk, NothingHappensWithoutPower) {
  PowerDisk disk(root);
  const auto file = durable_file(disk, root / "a", "1");
  disk.cut_power_at(2);
  must(disk.write(*file, 0, as_bytes("2")));
  EXPECT_FALSE(disk.sync(*file));
  EXPECT_FALSE(disk.powered());
  EXPECT_FALSE(disk.write(*file, 0, as_bytes("3")));
  EXPECT_FALSE(disk.create(root / "b", true));
  EXPECT_FALSE(disk.open(root / "a"));
  EXPECT_EQ(disk.points(), 2u);
  EXPECT_EQ(survivors(disk, root / "a"), (std::set<std::string>{"1", "2"}));
}

TEST(PowerDisk, AHoleIsThereAfterASyncAndUntilThenPerhaps) {
  PowerDisk disk(root);
  const auto file = durable_file(disk, root / "a", std::string(4096, 'x'));
  must(disk.punch(*file, 0, 4096));
  EXPECT_TRUE(survivors(disk, root / "a").contains(std::string(4096, 'x')));
  must(disk.sync(*file));
  EXPECT_EQ(survivors(disk, root / "a"), std::set<std::string>{std::string(4096, '\0')});
}

}  // namespace
}  // namespace recalld
