#pragma once

#include <rocksdb/db.h>
#include <rocksdb/listener.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "memstore/catalog_env.h"

namespace recalld {

// Judges what fails in RocksDB's background. A table that cannot be read, and a disk without room for a compaction, do
// not stop writes, as neither loses anything: the family is marked, and no longer compacted. Any thread may call any
// function.
class BackgroundFailures final : public rocksdb::EventListener {
 public:
  enum class Cause { damaged, full };

  explicit BackgroundFailures(CatalogEnv& env) : env_(env) {}  // borrowed

  // The families of which a compaction has failed since the last call, by RocksDB's names.
  std::map<std::string, Cause> take();
  bool any() const { return any_; }

  std::atomic<bool> recovering = false;  // set by Catalog::Database::recover

  // The database, from when it is open until it is closed.
  void watch(rocksdb::DB* db) { db_ = db; }

  // RocksDB calls this in the thread of the compaction, and then, in the same one, OnBackgroundError.
  void OnCompactionCompleted(rocksdb::DB* db, const rocksdb::CompactionJobInfo& info) override;
  // RocksDB calls this, without its mutex, before it stops all work.
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override;
  void OnFlushBegin(rocksdb::DB* db, const rocksdb::FlushJobInfo& info) override;
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason reason, rocksdb::Status error, bool* automatic) override;

 private:
  void let_flushes_begin() const;

  CatalogEnv& env_;
  std::atomic<rocksdb::DB*> db_ = nullptr;
  static thread_local bool flushes_;                // this thread writes memtables out
  static thread_local std::optional<Cause> cause_;  // of the compaction that this thread has just ended
  std::mutex mutex_;
  std::map<std::string, Cause> failed_;  // by RocksDB's name of the family; guarded by mutex_
  std::atomic<bool> any_ = false;
};

}  // namespace recalld
