#include "tests/support/faulty_file_system.h"

#include <algorithm>
#include <array>
#include <thread>

namespace recalld {
namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

constexpr std::array call_names{"create", "append", "sync", "close", "rename", "remove", "sync directory", "read"};
constexpr std::array file_names{"log", "table", "manifest", "other"};
constexpr std::array failure_names{"EIO", "ENOSPC", "torn EIO", "torn ENOSPC"};

bool torn(DiskFailure failure) {
  return failure == DiskFailure::torn_eio || failure == DiskFailure::torn_enospc;
}

}  // namespace

std::string_view name(DiskCall call) {
  return call_names.at(static_cast<size_t>(call));
}
std::string_view name(DiskFile file) {
  return file_names.at(static_cast<size_t>(file));
}
std::string_view name(DiskFailure failure) {
  return failure_names.at(static_cast<size_t>(failure));
}

class FaultyFileSystem::Writable final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  Writable(FaultyFileSystem& disk, std::string path, std::unique_ptr<rocksdb::FSWritableFile>&& file)
      : FSWritableFileOwnerWrapper(std::move(file)), disk_(disk), path_(std::move(path)) {}

  using FSWritableFileOwnerWrapper::Append;
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options, IODebugContext* debug) override {
    disk_.wait(10);
    const std::shared_lock changing(disk_.still_);
    const auto failure = disk_.judge(DiskCall::append, path_);
    if (!failure) return FSWritableFileOwnerWrapper::Append(data, options, debug);
    if (torn(*failure)) {
      const auto part =
          FSWritableFileOwnerWrapper::Append(rocksdb::Slice(data.data(), data.size() / 2), options, debug);
      if (!part.ok()) return part;
    }
    return status(*failure, DiskCall::append, path_);
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo&,
                  IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    disk_.wait(1);
    const std::shared_lock changing(disk_.still_);
    const auto answer = disk_.answer(DiskCall::sync, path_);
    return answer.ok() ? FSWritableFileOwnerWrapper::Sync(options, debug) : answer;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    disk_.wait(1);
    const std::shared_lock changing(disk_.still_);
    const auto answer = disk_.answer(DiskCall::sync, path_);
    return answer.ok() ? FSWritableFileOwnerWrapper::Fsync(options, debug) : answer;
  }
  IOStatus Close(const IOOptions& options, IODebugContext* debug) override {
    const std::shared_lock changing(disk_.still_);
    const auto closed = FSWritableFileOwnerWrapper::Close(options, debug);
    const auto answer = disk_.answer(DiskCall::close, path_);
    return answer.ok() ? closed : answer;
  }

 private:
  FaultyFileSystem& disk_;
  const std::string path_;
};

class FaultyFileSystem::Random final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  Random(FaultyFileSystem& disk, std::string path, std::unique_ptr<rocksdb::FSRandomAccessFile>&& file)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), disk_(disk), path_(std::move(path)) {}

  IOStatus Read(uint64_t offset, size_t bytes, const IOOptions& options, rocksdb::Slice* result, char* scratch,
                IODebugContext* debug) const override {
    const auto answer = disk_.answer_read(path_, offset, bytes);
    return answer.ok() ? FSRandomAccessFileOwnerWrapper::Read(offset, bytes, options, result, scratch, debug) : answer;
  }
  IOStatus MultiRead(rocksdb::FSReadRequest* reads, size_t count, const IOOptions& options,
                     IODebugContext* debug) override {
    for (size_t i = 0; i < count; ++i)
      reads[i].status = Read(reads[i].offset, reads[i].len, options, &reads[i].result, reads[i].scratch, debug);
    return IOStatus::OK();
  }
  IOStatus Prefetch(uint64_t offset, size_t bytes, const IOOptions& options, IODebugContext* debug) override {
    const auto answer = disk_.answer_read(path_, offset, bytes);
    return answer.ok() ? FSRandomAccessFileOwnerWrapper::Prefetch(offset, bytes, options, debug) : answer;
  }

 private:
  FaultyFileSystem& disk_;
  const std::string path_;
};

class FaultyFileSystem::Sequential final : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  Sequential(FaultyFileSystem& disk, std::string path, std::unique_ptr<rocksdb::FSSequentialFile>&& file)
      : FSSequentialFileOwnerWrapper(std::move(file)), disk_(disk), path_(std::move(path)) {}

  IOStatus Read(size_t bytes, const IOOptions& options, rocksdb::Slice* result, char* scratch,
                IODebugContext* debug) override {
    const auto answer = disk_.answer_read(path_, offset_, bytes);
    if (!answer.ok()) return answer;
    const auto read = FSSequentialFileOwnerWrapper::Read(bytes, options, result, scratch, debug);
    if (read.ok()) offset_ += result->size();
    return read;
  }

 private:
  FaultyFileSystem& disk_;
  const std::string path_;
  uint64_t offset_ = 0;
};

class FaultyFileSystem::Directory final : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(FaultyFileSystem& disk, std::string path, std::unique_ptr<rocksdb::FSDirectory>&& directory)
      : FSDirectoryWrapper(std::move(directory)), disk_(disk), path_(std::move(path)) {}

  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    const std::shared_lock changing(disk_.still_);
    const auto answer = disk_.answer(DiskCall::sync_directory, path_);
    return answer.ok() ? FSDirectoryWrapper::Fsync(options, debug) : answer;
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& which) override {
    const std::shared_lock changing(disk_.still_);
    const auto answer = disk_.answer(DiskCall::sync_directory, path_);
    return answer.ok() ? FSDirectoryWrapper::FsyncWithDirOptions(options, debug, which) : answer;
  }

 private:
  FaultyFileSystem& disk_;
  const std::string path_;
};

void FaultyFileSystem::plan(std::optional<DiskPlan> plan) {
  const std::lock_guard lock(mutex_);
  plan_ = plan;
  matched_ = 0;
  failed_ = 0;
}

void FaultyFileSystem::bad_sector(std::string table, uint64_t offset) {
  const std::lock_guard lock(mutex_);
  bad_table_ = std::move(table);
  bad_offset_ = offset;
}

DiskFile FaultyFileSystem::kind_of(const std::string& path) {
  const std::string_view file = std::string_view(path).substr(path.rfind('/') + 1);
  if (file.ends_with(".log")) return DiskFile::log;
  if (file.ends_with(".sst")) return DiskFile::table;
  if (file.starts_with("MANIFEST")) return DiskFile::manifest;
  return DiskFile::other;
}

std::optional<DiskFailure> FaultyFileSystem::judge(DiskCall call, const std::string& path) {
  if (path.ends_with("/LOG") || path.ends_with("/LOCK")) return std::nullopt;
  const std::lock_guard lock(mutex_);
  if (!plan_ || (plan_->call ? *plan_->call != call : call == DiskCall::read)) return std::nullopt;
  if (plan_->file && *plan_->file != kind_of(path)) return std::nullopt;
  const uint64_t number = ++matched_;
  if (number < plan_->from || number - plan_->from >= plan_->count) return std::nullopt;
  ++failed_;
  return plan_->failure;
}

IOStatus FaultyFileSystem::answer(DiskCall call, const std::string& path) {
  const auto failure = judge(call, path);
  return failure ? status(*failure, call, path) : IOStatus::OK();
}

IOStatus FaultyFileSystem::answer_read(const std::string& path, uint64_t offset, uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (!bad_table_.empty() && path.ends_with(bad_table_) && offset <= bad_offset_ && bad_offset_ - offset < bytes)
      return status(DiskFailure::eio, DiskCall::read, path);
  }
  return answer(DiskCall::read, path);
}

// As RocksDB's POSIX layer words them: a full disk may be tried again.
IOStatus FaultyFileSystem::status(DiskFailure failure, DiskCall call, const std::string& path) {
  const std::string what = "made to fail: " + std::string(name(call)) + " " + path;
  if (failure == DiskFailure::eio || failure == DiskFailure::torn_eio)
    return IOStatus::IOError(what, "Input/output error");
  IOStatus full = IOStatus::NoSpace(what, "No space left on device");
  full.SetRetryable(true);
  return full;
}

void FaultyFileSystem::wait(int divisor) const {
  if (sync_us_ > 0) std::this_thread::sleep_for(std::chrono::microseconds(sync_us_ / divisor));
}

IOStatus FaultyFileSystem::NewSequentialFile(const std::string& path, const rocksdb::FileOptions& options,
                                             std::unique_ptr<rocksdb::FSSequentialFile>* file, IODebugContext* debug) {
  const auto opened = FileSystemWrapper::NewSequentialFile(path, options, file, debug);
  if (opened.ok()) *file = std::make_unique<Sequential>(*this, path, std::move(*file));
  return opened;
}

IOStatus FaultyFileSystem::NewRandomAccessFile(const std::string& path, const rocksdb::FileOptions& options,
                                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                                               IODebugContext* debug) {
  const auto opened = FileSystemWrapper::NewRandomAccessFile(path, options, file, debug);
  if (opened.ok()) *file = std::make_unique<Random>(*this, path, std::move(*file));
  return opened;
}

IOStatus FaultyFileSystem::NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                                           std::unique_ptr<rocksdb::FSWritableFile>* file, IODebugContext* debug) {
  const std::shared_lock changing(still_);
  const auto answer = this->answer(DiskCall::create, path);
  if (!answer.ok()) return answer;
  const auto made = FileSystemWrapper::NewWritableFile(path, options, file, debug);
  if (made.ok()) *file = std::make_unique<Writable>(*this, path, std::move(*file));
  return made;
}

IOStatus FaultyFileSystem::NewDirectory(const std::string& path, const IOOptions& options,
                                        std::unique_ptr<rocksdb::FSDirectory>* directory, IODebugContext* debug) {
  const auto opened = FileSystemWrapper::NewDirectory(path, options, directory, debug);
  if (opened.ok()) *directory = std::make_unique<Directory>(*this, path, std::move(*directory));
  return opened;
}

IOStatus FaultyFileSystem::DeleteFile(const std::string& path, const IOOptions& options, IODebugContext* debug) {
  const std::shared_lock changing(still_);
  const auto answer = this->answer(DiskCall::remove, path);
  return answer.ok() ? FileSystemWrapper::DeleteFile(path, options, debug) : answer;
}

IOStatus FaultyFileSystem::RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                                      IODebugContext* debug) {
  const std::shared_lock changing(still_);
  const auto answer = this->answer(DiskCall::rename, to);
  return answer.ok() ? FileSystemWrapper::RenameFile(from, to, options, debug) : answer;
}

}  // namespace recalld
