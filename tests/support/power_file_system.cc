#include "tests/support/power_file_system.h"

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/system_clock.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace recalld {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

IOStatus status_of(const Error& error) {
  return error.kind == ErrorKind::not_found ? IOStatus::PathNotFound(error.message) : IOStatus::IOError(error.message);
}

template <class T>
IOStatus status_of(const Expected<T>& result) {
  return result ? IOStatus::OK() : status_of(result.error());
}

// Reads what there is from `offset` on.
IOStatus read_at(const PowerDisk& disk, const PowerDisk::File& file, uint64_t offset, size_t bytes, Slice* result,
                 char* scratch) {
  const auto got = disk.read(file, offset, {reinterpret_cast<std::byte*>(scratch), bytes});
  *result = Slice(scratch, got ? *got : 0);
  return status_of(got);
}

class SequentialFile final : public rocksdb::FSSequentialFile {
 public:
  SequentialFile(const PowerDisk& disk, PowerDisk::FileRef file) : disk_(disk), file_(std::move(file)) {}

  IOStatus Read(size_t bytes, const IOOptions&, Slice* result, char* scratch, IODebugContext*) override {
    IOStatus status = read_at(disk_, *file_, offset_, bytes, result, scratch);
    offset_ += result->size();
    return status;
  }
  IOStatus Skip(uint64_t bytes) override {
    offset_ += bytes;
    return IOStatus::OK();
  }

 private:
  const PowerDisk& disk_;
  const PowerDisk::FileRef file_;
  uint64_t offset_ = 0;
};

class RandomAccessFile final : public rocksdb::FSRandomAccessFile {
 public:
  RandomAccessFile(const PowerDisk& disk, PowerDisk::FileRef file) : disk_(disk), file_(std::move(file)) {}

  IOStatus Read(uint64_t offset, size_t bytes, const IOOptions&, Slice* result, char* scratch,
                IODebugContext*) const override {
    return read_at(disk_, *file_, offset, bytes, result, scratch);
  }

 private:
  const PowerDisk& disk_;
  const PowerDisk::FileRef file_;
};

// Without power a table takes what is written to it, and loses it. RocksDB 7.8 with its asserts on, as Debian builds
// it, aborts when a table that a compaction found to be empty cannot be finished. Nothing is acknowledged on the
// strength of a table alone: the manifest that would name it is refused.
class WritableFile final : public rocksdb::FSWritableFile {
 public:
  WritableFile(PowerDisk& disk, PowerDisk::FileRef file, uint64_t end, bool is_table)
      : disk_(disk), file_(std::move(file)), end_(end), is_table_(is_table) {}

  using FSWritableFile::Append;
  IOStatus Append(const Slice& data, const IOOptions&, IODebugContext*) override {
    IOStatus status = checked(disk_.write(*file_, end_, as_bytes({data.data(), data.size()})));
    if (status.ok()) end_ += data.size();
    return status;
  }
  IOStatus Truncate(uint64_t bytes, const IOOptions&, IODebugContext*) override {
    if (bytes == end_) return IOStatus::OK();
    end_ = bytes;
    return checked(disk_.resize(*file_, bytes));
  }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Flush(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Sync(const IOOptions&, IODebugContext*) override { return checked(disk_.sync(*file_)); }
  bool IsSyncThreadSafe() const override { return true; }
  uint64_t GetFileSize(const IOOptions&, IODebugContext*) override { return end_; }

 private:
  IOStatus checked(const Expected<void>& result) const { return is_table_ ? IOStatus::OK() : status_of(result); }

  PowerDisk& disk_;
  const PowerDisk::FileRef file_;
  uint64_t end_;
  const bool is_table_;
};

class Directory final : public rocksdb::FSDirectory {
 public:
  Directory(PowerDisk& disk, std::string path) : disk_(disk), path_(std::move(path)) {}

  IOStatus Fsync(const IOOptions&, IODebugContext*) override { return status_of(disk_.sync_directory(path_)); }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }

 private:
  PowerDisk& disk_;
  const std::string path_;
};

class Silence final : public rocksdb::Logger {
 public:
  using Logger::Logv;
  void Logv(const char*, va_list) override {}
  size_t GetLogFileSize() const override { return 0; }
};

class Lock final : public rocksdb::FileLock {};

class PowerFileSystem final : public rocksdb::FileSystem {
 public:
  explicit PowerFileSystem(PowerDisk& disk) : disk_(disk) {}

  const char* Name() const override { return "PowerFileSystem"; }

  IOStatus NewSequentialFile(const std::string& path, const FileOptions&,
                             std::unique_ptr<rocksdb::FSSequentialFile>* result, IODebugContext*) override {
    auto file = disk_.open(path);
    if (file) *result = std::make_unique<SequentialFile>(disk_, *file);
    return status_of(file);
  }
  IOStatus NewRandomAccessFile(const std::string& path, const FileOptions&,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result, IODebugContext*) override {
    auto file = disk_.open(path);
    if (file) *result = std::make_unique<RandomAccessFile>(disk_, *file);
    return status_of(file);
  }
  IOStatus NewWritableFile(const std::string& path, const FileOptions&,
                           std::unique_ptr<rocksdb::FSWritableFile>* result, IODebugContext*) override {
    // The file that tells people of RocksDB's options is not needed to open a catalog, and takes long to write.
    if (path.find("/OPTIONS-") != std::string::npos) return IOStatus::NotSupported("OPTIONS");
    auto file = disk_.create(path, false);
    // RocksDB overlooks a manifest's last record when it is cut off, but opens no catalog with a torn one.
    if (file && path.find("/MANIFEST-") != std::string::npos) disk_.grow_in_order(**file);
    if (file) *result = std::make_unique<WritableFile>(disk_, *file, 0, path.ends_with(".sst"));
    return status_of(file);
  }
  IOStatus ReopenWritableFile(const std::string& path, const FileOptions&,
                              std::unique_ptr<rocksdb::FSWritableFile>* result, IODebugContext*) override {
    auto file = disk_.open(path);
    if (!file && file.error().kind == ErrorKind::not_found) file = disk_.create(path, true);
    if (!file) return status_of(file);
    const auto bytes = disk_.size(**file);
    if (bytes) *result = std::make_unique<WritableFile>(disk_, *file, *bytes, path.ends_with(".sst"));
    return status_of(bytes);
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions&, std::unique_ptr<rocksdb::FSDirectory>* result,
                        IODebugContext*) override {
    const auto found = disk_.is_directory(path);
    if (found && !*found) return IOStatus::IOError(path + " is no directory");
    if (found) *result = std::make_unique<Directory>(disk_, path);
    return status_of(found);
  }
  IOStatus FileExists(const std::string& path, const IOOptions&, IODebugContext*) override {
    const auto found = disk_.is_directory(path);
    return !found && found.error().kind == ErrorKind::not_found ? IOStatus::NotFound() : status_of(found);
  }
  IOStatus GetChildren(const std::string& path, const IOOptions&, std::vector<std::string>* result,
                       IODebugContext*) override {
    auto names = disk_.list(path);
    if (names) *result = *names;
    return status_of(names);
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions&, IODebugContext*) override {
    return status_of(disk_.remove(path));
  }
  IOStatus Truncate(const std::string& path, size_t bytes, const IOOptions&, IODebugContext*) override {
    const auto file = disk_.open(path);
    return file ? status_of(disk_.resize(**file, bytes)) : status_of(file);
  }
  IOStatus CreateDir(const std::string& path, const IOOptions&, IODebugContext*) override {
    if (disk_.is_directory(path)) return IOStatus::IOError(path + " exists");
    return status_of(disk_.make_directory(path));
  }
  IOStatus CreateDirIfMissing(const std::string& path, const IOOptions&, IODebugContext*) override {
    return status_of(disk_.make_directory(path));
  }
  IOStatus DeleteDir(const std::string& path, const IOOptions&, IODebugContext*) override {
    return status_of(disk_.remove(path));
  }
  IOStatus GetFileSize(const std::string& path, const IOOptions&, uint64_t* bytes, IODebugContext*) override {
    const auto file = disk_.open(path);
    if (!file) return status_of(file);
    const auto size = disk_.size(**file);
    if (size) *bytes = *size;
    return status_of(size);
  }
  IOStatus GetFileModificationTime(const std::string&, const IOOptions&, uint64_t* time, IODebugContext*) override {
    *time = 1'700'000'000;
    return IOStatus::OK();
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions&, IODebugContext*) override {
    return status_of(disk_.rename(from, to));
  }
  // The store's own lock keeps other processes away.
  IOStatus LockFile(const std::string&, const IOOptions&, rocksdb::FileLock** lock, IODebugContext*) override {
    *lock = new Lock;
    return IOStatus::OK();
  }
  IOStatus UnlockFile(rocksdb::FileLock* lock, const IOOptions&, IODebugContext*) override {
    delete lock;
    return IOStatus::OK();
  }
  IOStatus GetTestDirectory(const IOOptions&, std::string*, IODebugContext*) override {
    return IOStatus::NotSupported("GetTestDirectory");
  }
  IOStatus NewLogger(const std::string&, const IOOptions&, std::shared_ptr<rocksdb::Logger>* result,
                     IODebugContext*) override {
    *result = std::make_shared<Silence>();
    return IOStatus::OK();
  }
  IOStatus GetAbsolutePath(const std::string& path, const IOOptions&, std::string* absolute, IODebugContext*) override {
    *absolute = path;
    return IOStatus::OK();
  }
  IOStatus IsDirectory(const std::string& path, const IOOptions&, bool* is_directory, IODebugContext*) override {
    const auto found = disk_.is_directory(path);
    if (found) *is_directory = *found;
    return status_of(found);
  }

 private:
  PowerDisk& disk_;
};

// After an error in the background RocksDB waits a second before it tries again: without power there is nothing to wait
// for.
class ImpatientClock final : public rocksdb::SystemClockWrapper {
 public:
  ImpatientClock() : SystemClockWrapper(rocksdb::SystemClock::Default()) {}

  const char* Name() const override { return "ImpatientClock"; }
  void SleepForMicroseconds(int us) override { SystemClockWrapper::SleepForMicroseconds(std::min(us, 1000)); }
};

class PowerEnv final : public rocksdb::EnvWrapper {
 public:
  explicit PowerEnv(PowerDisk& disk) : EnvWrapper(rocksdb::NewCompositeEnv(std::make_shared<PowerFileSystem>(disk))) {
    system_clock_ = std::make_shared<ImpatientClock>();
  }

  const char* Name() const override { return "PowerEnv"; }
};

}  // namespace

std::shared_ptr<rocksdb::Env> power_env(PowerDisk& disk) {
  return std::make_shared<PowerEnv>(disk);
}

}  // namespace recalld
