// A disk that fails under RocksDB: a file system that makes chosen calls fail, by plan. Everything else passes through.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>

namespace recalld {

enum class DiskCall { create, append, sync, close, rename, remove, sync_directory, read };
enum class DiskFile { log, table, manifest, other };  // other: CURRENT, OPTIONS, IDENTITY, the directory
enum class DiskFailure {
  eio,
  enospc,
  torn_eio,     // of an append: a part of it reaches the file
  torn_enospc,  // likewise
};

std::string_view name(DiskCall call);
std::string_view name(DiskFile file);
std::string_view name(DiskFailure failure);

struct DiskPlan {
  DiskFailure failure = DiskFailure::eio;
  std::optional<DiskCall> call;  // unset: every call that writes
  std::optional<DiskFile> file;  // unset: every file
  uint64_t from = 1;             // the first call that fails, of those that match; they count from 1
  uint64_t count = 1;            // how many fail from there on
};

// Any thread may call any function.
class FaultyFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FaultyFileSystem() : rocksdb::FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultyFileSystem"; }

  // Starts counting afresh; without a plan nothing fails.
  void plan(std::optional<DiskPlan> plan);
  uint64_t matched() const { return matched_; }
  uint64_t failed() const { return failed_; }

  // While this is held nothing on the disk changes: a copy made meanwhile is what a crash leaves.
  std::unique_lock<std::shared_mutex> freeze() { return std::unique_lock(still_); }

  // Each sync takes so long; each append a tenth of it.
  void slow_down(std::chrono::microseconds sync) { sync_us_ = sync.count(); }
  // The disk refuses to read this byte of that table.
  void bad_sector(std::string table, uint64_t offset);

  rocksdb::IOStatus NewSequentialFile(const std::string& path, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                      rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewRandomAccessFile(const std::string& path, const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                        rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewDirectory(const std::string& path, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus DeleteFile(const std::string& path, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;

 private:
  class Writable;
  class Random;
  class Sequential;
  class Directory;

  static DiskFile kind_of(const std::string& path);
  // What the disk answers to this call: nothing when the call is to be made.
  std::optional<DiskFailure> judge(DiskCall call, const std::string& path);
  rocksdb::IOStatus answer(DiskCall call, const std::string& path);
  rocksdb::IOStatus answer_read(const std::string& path, uint64_t offset, uint64_t bytes);
  static rocksdb::IOStatus status(DiskFailure failure, DiskCall call, const std::string& path);
  void wait(int divisor) const;

  std::shared_mutex still_;  // held shared by every call that changes something
  std::mutex mutex_;         // guards the plan and the bad sector
  std::optional<DiskPlan> plan_;
  std::string bad_table_;
  uint64_t bad_offset_ = 0;
  std::atomic<uint64_t> matched_ = 0;
  std::atomic<uint64_t> failed_ = 0;
  std::atomic<int64_t> sync_us_ = 0;
};

}  // namespace recalld
