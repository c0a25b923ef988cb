#include "memstore/catalog_failures.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "memstore/catalog_impl.h"

namespace recalld {
namespace {

// Whether every byte of a file can be read, whatever it says.
bool readable(rocksdb::Env& env, const std::string& path) {
  return read_file(env, path, size_t{1} << 18, [](ByteView) {}).ok();
}

}  // namespace

thread_local bool BackgroundFailures::flushes_ = false;
thread_local std::optional<BackgroundFailures::Cause> BackgroundFailures::cause_;

std::map<std::string, BackgroundFailures::Cause> BackgroundFailures::take() {
  const std::lock_guard lock(mutex_);
  any_ = false;
  return std::exchange(failed_, {});
}

void BackgroundFailures::OnCompactionCompleted(rocksdb::DB* /*db*/, const rocksdb::CompactionJobInfo& info) {
  cause_.reset();
  if (info.status.ok()) return;
  if (kind_of(info.status) == ErrorKind::full) {
    cause_ = Cause::full;
  } else if (info.status.IsCorruption() ||
             (info.status.IsIOError() &&
              !std::ranges::all_of(info.input_files, [&](const std::string& file) { return readable(env_, file); }))) {
    cause_ = Cause::damaged;
  }
  if (!cause_) return;
  const std::lock_guard lock(mutex_);
  failed_[info.cf_name] = *cause_;
  any_ = true;
}

void BackgroundFailures::OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) {
  if (reason == rocksdb::BackgroundErrorReason::kCompaction && cause_) {
    *error = rocksdb::Status::OK();
    return;
  }
  // RocksDB fears for records in the buffer of the log that it could not leave, and would never resume. But every
  // acknowledged record has been synced. And with a lesser error it would go on, while its flushes are held.
  if ((reason == rocksdb::BackgroundErrorReason::kMemTable && (recovering || kind_of(*error) == ErrorKind::full)) ||
      error->severity() < rocksdb::Status::kHardError)
    *error = rocksdb::Status(*error, rocksdb::Status::kHardError);
  env_.stopped();
  if (!flushes_) let_flushes_begin();
}

void BackgroundFailures::OnFlushBegin(rocksdb::DB* /*db*/, const rocksdb::FlushJobInfo& /*info*/) {
  flushes_ = true;
}

void BackgroundFailures::OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason /*reason*/, rocksdb::Status /*error*/,
                                              bool* automatic) {
  *automatic = false;
}

// A flush that has been handed to its thread and has not begun when RocksDB stops would be dropped (see CatalogEnv).
void BackgroundFailures::let_flushes_begin() const {
  rocksdb::DB* db = db_;
  uint64_t begun = 0;
  while (db != nullptr && db->GetIntProperty(rocksdb::DB::Properties::kNumRunningFlushes, &begun) &&
         env_.flushes() > begun)
    std::this_thread::sleep_for(stall_wait);
}

}  // namespace recalld
