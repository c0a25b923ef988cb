#include "memstore/catalog_env.h"

#include <rocksdb/file_system.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace recalld {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

// The tables that could not be written, and why.
class UnwrittenTables {
 public:
  void add(const std::string& path, const IOStatus& cause) {
    const std::lock_guard lock(mutex_);
    causes_.emplace(path, cause);
  }
  IOStatus cause(const std::string& path) const {
    const std::lock_guard lock(mutex_);
    const auto found = causes_.find(path);
    return found == causes_.end() ? IOStatus::OK() : found->second;
  }
  void remove(const std::string& path) {
    const std::lock_guard lock(mutex_);
    causes_.erase(path);
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, IOStatus> causes_;
};

// A table being written. After the first failure the rest of it is dropped.
class TableFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  TableFile(std::unique_ptr<rocksdb::FSWritableFile> file, std::string path, std::shared_ptr<UnwrittenTables> unwritten)
      : FSWritableFileOwnerWrapper(std::move(file)), path_(std::move(path)), unwritten_(std::move(unwritten)) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::Append(data, options, debug); });
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& verification, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::Append(data, options, verification, debug); });
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::Truncate(size, options, debug); });
  }
  IOStatus Flush(const IOOptions& options, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::Flush(options, debug); });
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::Sync(options, debug); });
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::Fsync(options, debug); });
  }
  IOStatus RangeSync(uint64_t offset, uint64_t bytes, const IOOptions& options, IODebugContext* debug) override {
    return attempt([&] { return FSWritableFileOwnerWrapper::RangeSync(offset, bytes, options, debug); });
  }
  IOStatus Close(const IOOptions& options, IODebugContext* debug) override {
    note(FSWritableFileOwnerWrapper::Close(options, debug));
    return IOStatus::OK();
  }

 private:
  template <class Call>
  IOStatus attempt(Call call) {
    if (!failed_) note(call());
    return IOStatus::OK();
  }
  void note(const IOStatus& status) {
    if (status.ok() || std::exchange(failed_, true)) return;
    unwritten_->add(path_, status);
  }

  const std::string path_;
  const std::shared_ptr<UnwrittenTables> unwritten_;
  bool failed_ = false;  // one thread writes a table
};

class TableFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;
  const char* Name() const override { return "TableFileSystem"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file, IODebugContext* debug) override {
    auto made = FileSystemWrapper::NewWritableFile(path, options, file, debug);
    if (made.ok() && path.ends_with(".sst")) *file = std::make_unique<TableFile>(std::move(*file), path, unwritten_);
    return made;
  }
  IOStatus NewRandomAccessFile(const std::string& path, const FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file, IODebugContext* debug) override {
    const auto cause = unwritten_->cause(path);
    return cause.ok() ? FileSystemWrapper::NewRandomAccessFile(path, options, file, debug) : cause;
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options, IODebugContext* debug) override {
    auto removed = FileSystemWrapper::DeleteFile(path, options, debug);
    if (removed.ok()) unwritten_->remove(path);
    return removed;
  }

 private:
  const std::shared_ptr<UnwrittenTables> unwritten_ = std::make_shared<UnwrittenTables>();
};

}  // namespace

CatalogEnv::CatalogEnv(rocksdb::Env& base) : EnvWrapper(&base) {
  file_system_ = std::make_shared<TableFileSystem>(base.GetFileSystem());
  system_clock_ = base.GetSystemClock();
}

thread_local bool CatalogEnv::resumes_ = false;

void CatalogEnv::stopped() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
}

rocksdb::Status CatalogEnv::resume(rocksdb::DB& db) {
  // A recovery first waits for all that is scheduled, so also for a flush that is held, which must not begin before the
  // recovery has. Of two calls one recovers and the other one is refused as busy, and so knows that.
  const auto resume_or_release = [&] {
    resumes_ = true;
    auto status = db.Resume();
    resumes_ = false;
    if (status.IsBusy()) release();
    return status;
  };
  bool any_held = false;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = false;
    recovering_ = true;
    flushing_ = false;
    any_held = !held_.empty();
  }
  rocksdb::Status beside = rocksdb::Status::Busy();
  std::thread other;
  if (any_held) {
    try {
      other = std::thread([&] { beside = resume_or_release(); });
    } catch (const std::system_error&) {  // alone, the recovery would wait for the flush that is held
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      recovering_ = false;
      return rocksdb::Status::NoSpace("no thread can be started");
    }
  }
  auto status = resume_or_release();
  if (other.joinable()) other.join();
  const std::lock_guard lock(mutex_);
  recovering_ = false;
  return beside.IsBusy() ? status : beside;
}

void CatalogEnv::release() {
  std::vector<Flush> flushes;
  {
    const std::lock_guard lock(mutex_);
    flushes = std::exchange(held_, {});
  }
  for (const Flush& flush : flushes) hand_over(flush);
}

void CatalogEnv::hand_over(const Flush& flush) {
  const auto run = [](void* argument) {
    const std::unique_ptr<Flush> job(static_cast<Flush*>(argument));
    job->function(job->argument);  // the database, and this environment, may be gone then
    --*job->handed_over;
  };
  const auto drop = [](void* argument) {
    const std::unique_ptr<Flush> job(static_cast<Flush*>(argument));
    if (job->unschedule != nullptr) job->unschedule(job->argument);
    --*job->handed_over;
  };
  ++*handed_over_;
  target()->Schedule(run, std::make_unique<Flush>(flush).release(), Priority::HIGH, flush.tag, drop);
}

void CatalogEnv::Schedule(void (*function)(void*), void* argument, Priority priority, void* tag,
                          void (*unschedule)(void*)) {
  // What RocksDB does at this priority without a tag is the removal of files.
  if (priority != Priority::HIGH || tag == nullptr)
    return target()->Schedule(function, argument, priority, tag, unschedule);
  const Flush flush{function, argument, tag, unschedule, handed_over_};
  {
    const std::lock_guard lock(mutex_);
    if (resumes_) flushing_ = true;
    if (stopped_ && (!recovering_ || flushing_)) {
      held_.push_back(flush);
      return;
    }
  }
  hand_over(flush);
}

int CatalogEnv::UnSchedule(void* tag, Priority priority) {
  std::vector<Flush> theirs;
  if (priority == Priority::HIGH) {
    const std::lock_guard lock(mutex_);
    const auto from = std::ranges::stable_partition(held_, [&](const Flush& flush) { return flush.tag != tag; });
    theirs.assign(from.begin(), from.end());
    held_.erase(from.begin(), from.end());
  }
  for (const Flush& flush : theirs) {
    if (flush.unschedule != nullptr) flush.unschedule(flush.argument);
  }
  return static_cast<int>(theirs.size()) + target()->UnSchedule(tag, priority);
}

}  // namespace recalld
