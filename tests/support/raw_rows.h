// What a closed store holds, read and changed behind its back.
#pragma once

#include <gtest/gtest.h>
#include <rocksdb/db.h>

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "memstore/catalog.h"

namespace recalld {

// The rows of the closed store with the checksums in front of them, as RocksDB has them.
class RawRows {
 public:
  explicit RawRows(const std::filesystem::path& directory) {
    std::vector<std::string> names;
    EXPECT_TRUE(rocksdb::DB::ListColumnFamilies({}, directory.string(), &names).ok());
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const std::string& each : names) families.emplace_back(each, rocksdb::ColumnFamilyOptions());
    rocksdb::DB* db = nullptr;
    const auto status = rocksdb::DB::Open({}, directory.string(), families, &handles_, &db);
    EXPECT_TRUE(status.ok()) << status.ToString();
    db_.reset(db);
  }
  ~RawRows() {
    for (auto* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  }
  RawRows(const RawRows&) = delete;
  RawRows& operator=(const RawRows&) = delete;

  std::vector<std::pair<std::string, std::string>> all(Family family) {
    std::vector<std::pair<std::string, std::string>> rows;
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator({}, handle(family)));
    for (at->SeekToFirst(); at->Valid(); at->Next()) rows.emplace_back(at->key().ToString(), at->value().ToString());
    return rows;
  }
  void put(Family family, const std::string& key, const std::string& value) {
    EXPECT_TRUE(db_->Put({}, handle(family), key, value).ok());
  }
  void remove(Family family, const std::string& key) { EXPECT_TRUE(db_->Delete({}, handle(family), key).ok()); }

 private:
  rocksdb::ColumnFamilyHandle* handle(Family family) {
    const std::string wanted = family == Family::counters ? "default" : std::string(name(family));
    for (auto* handle : handles_)
      if (handle->GetName() == wanted) return handle;
    throw std::runtime_error("no family " + wanted);
  }
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
};

}  // namespace recalld
