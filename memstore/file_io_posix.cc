#include "memstore/file_io_posix.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string_view>
#include <utility>

namespace recalld {
namespace {

constexpr uint64_t zeros_bytes_max = uint64_t{256} << 10;  // written at a time where a file system makes no holes

// Repeats a system call that a signal interrupted.
template <class Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

std::unexpected<Error> failed(std::string_view action, const std::filesystem::path& path) {
  const int cause = errno;
  Error error = system_error(std::string(action) + " " + path.string(), cause);
  if (cause == ENOENT) error.kind = ErrorKind::not_found;
  return std::unexpected(std::move(error));
}

// Makes the entries of the directory durable that `path` lies in.
Expected<void> sync_parent(const std::filesystem::path& path) {
  return sync_directory(path.has_parent_path() ? path.parent_path() : ".");
}

// Reserves the space of a new file; where the file system cannot, or has less room, only its size is set: there may be
// room for what will be written.
bool reserve(int descriptor, uint64_t bytes) {
  const auto length = static_cast<off_t>(bytes);
  if (length == 0 || uninterrupted([&] { return ::fallocate(descriptor, 0, 0, length); }) == 0) return true;
  if (errno != EOPNOTSUPP && errno != ENOSPC) return false;
  const auto resize = [&](off_t to) { return uninterrupted([&] { return ::ftruncate(descriptor, to); }) == 0; };
  return resize(0) && resize(length);  // some of it may have been reserved
}

}  // namespace

Expected<void> sync_directory(const std::filesystem::path& directory) {
  const Descriptor open(uninterrupted([&] { return ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (open.get() == -1) return failed("open directory", directory);
  if (uninterrupted([&] { return ::fsync(open.get()); }) == -1) return failed("sync directory", directory);
  return {};
}

PosixFileIo::PosixFileIo(DirectIo direct) : direct_(direct), files_(io_files_max) {
  for (size_t i = io_files_max; i-- > 0;) free_.push_back(static_cast<int>(i));
}

Expected<void> PosixFileIo::make_directory(const std::filesystem::path& path) {
  if (::mkdir(path.c_str(), 0700) == -1 && errno != EEXIST) return failed("make directory", path);
  return sync_parent(path);
}

Expected<int> PosixFileIo::create(const std::filesystem::path& path, uint64_t bytes) {
  Descriptor descriptor(
      uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600); }));
  if (descriptor.get() == -1) return failed("create", path);
  const auto finish = [&]() -> Expected<int> {
    if (!reserve(descriptor.get(), bytes)) return failed("reserve " + std::to_string(bytes) + " bytes for", path);
    RECALLD_CHECK(sync_parent(path));
    return hold(std::move(descriptor), path);
  };
  Expected<int> handle = finish();
  if (!handle) ::unlink(path.c_str());
  return handle;
}

Expected<int> PosixFileIo::open(const std::filesystem::path& path) {
  Descriptor descriptor(uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CLOEXEC); }));
  if (descriptor.get() == -1) return failed("open", path);
  return hold(std::move(descriptor), path);
}

Expected<int> PosixFileIo::hold(Descriptor descriptor, const std::filesystem::path& path) {
  if (direct_ == DirectIo::where_possible) {
    // Asked for after opening: a file system that refuses it in open() may have made the file all the same.
    const int flags = ::fcntl(descriptor.get(), F_GETFL);
    if (flags == -1 || ::fcntl(descriptor.get(), F_SETFL, flags | O_DIRECT) == -1) direct_refused_ = true;
  }
  const std::lock_guard lock(mutex_);
  if (free_.empty())
    return fail(ErrorKind::full,
                "open " + path.string() + ": " + std::to_string(io_files_max) + " files are open already");
  const int handle = free_.back();
  free_.pop_back();
  files_[static_cast<size_t>(handle)] = {std::move(descriptor), path, ++generation_};
  return handle;
}

void PosixFileIo::close(int handle) {
  const std::lock_guard lock(mutex_);
  files_[static_cast<size_t>(handle)] = {};
  free_.push_back(handle);
}

void PosixFileIo::stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) {
  bool has_begun = false;
  while (const std::optional<FileRead> read = next()) {
    if (!std::exchange(has_begun, true) && wait.begun) wait.begun();
    done(read->tag, carry_out({false, read->file, read->offset, read->into.data(), read->into.size()}));
  }
}

Expected<void> PosixFileIo::write(std::span<const FileWrite> writes) {
  for (const FileWrite& write : writes) {
    auto* const data = const_cast<std::byte*>(write.from.data());
    RECALLD_CHECK(carry_out({true, write.file, write.offset, data, write.from.size()}));
  }
  return {};
}

Expected<void> PosixFileIo::carry_out(Transfer transfer) const {
  const int descriptor = file(transfer.file).descriptor.get();
  while (transfer.bytes > 0) {
    const auto offset = static_cast<off_t>(transfer.offset);
    const ssize_t result = transfer.write ? ::pwrite(descriptor, transfer.data, transfer.bytes, offset)
                                          : ::pread(descriptor, transfer.data, transfer.bytes, offset);
    RECALLD_CHECK(advance(transfer, result == -1 ? -errno : result));
  }
  return {};
}

Expected<void> PosixFileIo::advance(Transfer& transfer, int64_t result) const {
  if (result == -EINTR || result == -EAGAIN) return {};
  const File& of = file(transfer.file);
  const auto action = [&] {
    return std::string(transfer.write ? "write " : "read ") + std::to_string(transfer.bytes) + " bytes at " +
           std::to_string(transfer.offset) + " of " + of.path.string();
  };
  if (result < 0) return std::unexpected(system_error(action(), static_cast<int>(-result)));
  if (result == 0) {
    if (transfer.write) return fail(ErrorKind::io, action() + ": nothing was written");
    return fail(ErrorKind::corrupt, action() + ": the file ends before that");
  }
  const auto done = static_cast<size_t>(result);
  transfer.offset += done;
  transfer.data += done;
  transfer.bytes -= done;
  return {};
}

Expected<void> PosixFileIo::sync(int handle) {
  const File& of = file(handle);
  if (uninterrupted([&] { return ::fdatasync(of.descriptor.get()); }) == -1) return failed("sync", of.path);
  return {};
}

Expected<void> PosixFileIo::punch(int handle, uint64_t offset, uint64_t bytes) {
  const File& of = file(handle);
  const int punched = uninterrupted([&] {
    return ::fallocate(of.descriptor.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(bytes));
  });
  if (punched == 0) return {};
  if (errno != EOPNOTSUPP)
    return failed("return " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of", of.path);
  const AlignedBuffer zeros(std::min<uint64_t>(bytes, zeros_bytes_max));
  std::ranges::fill(zeros.bytes(), std::byte{0});
  for (uint64_t done = 0; done < bytes; done += zeros_bytes_max) {
    const FileWrite write{handle, offset + done,
                          zeros.bytes().first(std::min<uint64_t>(bytes - done, zeros_bytes_max))};
    RECALLD_CHECK(this->write({&write, 1}));
  }
  return {};
}

Expected<void> PosixFileIo::remove(const std::filesystem::path& path) {
  // The name goes last. What still has the file open, such as a ring that it is registered with, would keep its blocks
  // until then, so they are given back first.
  if (uninterrupted([&] { return ::truncate(path.c_str(), 0); }) == -1 || ::unlink(path.c_str()) == -1)
    return failed("remove", path);
  return sync_parent(path);
}

std::string PosixFileIo::describe() const {
  return "posix, " + describe_caching();
}

std::string PosixFileIo::describe_caching() const {
  return direct_ == DirectIo::never || direct_refused_ ? "buffered" : "O_DIRECT";
}

std::unique_ptr<FileIo> open_file_io_posix(DirectIo direct) {
  return std::make_unique<PosixFileIo>(direct);
}

}  // namespace recalld
