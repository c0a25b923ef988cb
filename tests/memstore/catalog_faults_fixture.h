// A catalog on a disk that does what a test says, and the rows that it must have.
#pragma once

#include <gtest/gtest.h>
#include <rocksdb/env.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "memstore/catalog.h"
#include "tests/support/faulty_file_system.h"
#include "tests/support/temp_dir.h"

namespace recalld {

class CatalogFaultsTest : public ::testing::Test {
 protected:
  // The rows that are there, and those of the batches refused since: one of them may be there.
  struct Model {
    using Rows = std::map<std::string, std::string>;
    Rows rows;
    std::vector<Rows> in_doubt;
  };

  static std::string random_text(std::mt19937_64& random, size_t bytes) {
    std::string text(bytes, '\0');
    for (char& c : text) c = static_cast<char>('a' + random() % 26);
    return text;
  }

  // Syncs are not what is tested here, and there are many thousands of them.
  static std::filesystem::path memory_or_disk() {
    std::error_code unknown;
    return std::filesystem::is_directory("/dev/shm", unknown) ? std::filesystem::path("/dev/shm")
                                                              : std::filesystem::temp_directory_path();
  }

  CatalogFaultsTest() : disk_(std::make_shared<FaultyFileSystem>()), env_(rocksdb::NewCompositeEnv(disk_)) {}

  CatalogOptions options(const std::filesystem::path& directory) const {
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
  std::string difference_after_crash(const std::filesystem::path& directory, const Model& model) const {
    const TempDir copy(memory_or_disk());
    {
      const auto still = disk_->freeze();
      std::filesystem::copy(directory, copy.path() / "catalog");
    }
    const auto catalog = Catalog::open({copy.path() / "catalog", 1 << 20, 128 << 10});
    if (!catalog) return catalog.error().message;
    return difference(**catalog, model);
  }

  std::filesystem::path path() const { return directory_.path() / "catalog"; }

  TempDir directory_{memory_or_disk()};
  std::shared_ptr<FaultyFileSystem> disk_;
  std::unique_ptr<rocksdb::Env> env_;
  std::unique_ptr<Catalog> catalog_;
};

}  // namespace recalld
