#include "memstore/backup.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "base/descriptor.h"
#include "memstore/file_io_posix.h"

namespace recalld {
namespace {

constexpr size_t copy_bytes = size_t{1} << 20;       // through RAM at a time, where the kernel does not copy by itself
constexpr uint64_t spare_bytes = uint64_t{1} << 20;  // for directories and what the file system keeps of files

std::unexpected<Error> refuse(const std::filesystem::path& directory, const std::string& why) {
  return fail(ErrorKind::invalid_request, "back up to " + directory.string() + ": " + why);
}

struct Run {
  uint64_t from = 0;
  uint64_t to = 0;
};

// The runs of data in the first `bytes` of a file; what lies between them reads as zeros.
Expected<std::vector<Run>> data_runs(int file, const std::string& action, uint64_t bytes) {
  // Reserved space that the page cache has read ahead counts as data, so all of it goes first.
  ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  std::vector<Run> runs;
  for (uint64_t at = 0; at < bytes;) {
    const off_t from = ::lseek(file, static_cast<off_t>(at), SEEK_DATA);
    if (from == -1 && errno == ENXIO) break;  // nothing but a hole follows
    if (from == -1 && errno == EINVAL) {      // holes cannot be told here: all is data
      runs.push_back({at, bytes});
      break;
    }
    const off_t to = from == -1 ? -1 : ::lseek(file, from, SEEK_HOLE);
    if (to == -1) return std::unexpected(system_error(action, errno));
    const Run run{static_cast<uint64_t>(from), std::min(bytes, static_cast<uint64_t>(to))};
    if (run.from >= run.to) break;
    runs.push_back(run);
    at = run.to;
  }
  return runs;
}

uint64_t sum(std::span<const Run> runs) {
  uint64_t bytes = 0;
  for (const Run& run : runs) bytes += run.to - run.from;
  return bytes;
}

// Copies [from, to) of one file to the same place of another.
Expected<void> copy_range(int in, int out, const std::string& action, uint64_t from, uint64_t to) {
  auto in_at = static_cast<off64_t>(from), out_at = in_at;
  const auto end = static_cast<off64_t>(to);
  while (in_at < end) {
    const ssize_t copied = ::copy_file_range(in, &in_at, out, &out_at, static_cast<size_t>(end - in_at), 0);
    if (copied > 0) continue;
    if (copied == 0) return fail(ErrorKind::corrupt, action + ": the file has become shorter; run recall verify");
    if (errno == EINTR) continue;
    // These say that the kernel does not copy between these two by itself.
    if (errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM) break;
    return std::unexpected(system_error(action, errno));
  }
  std::vector<char> buffer(in_at < end ? copy_bytes : 0);
  while (in_at < end) {
    const size_t wanted = std::min<size_t>(buffer.size(), static_cast<size_t>(end - in_at));
    const ssize_t read = ::pread(in, buffer.data(), wanted, in_at);
    if (read == 0) return fail(ErrorKind::corrupt, action + ": the file has become shorter; run recall verify");
    if (read < 0 && errno == EINTR) continue;
    if (read < 0) return std::unexpected(system_error(action, errno));
    for (ssize_t done = 0; done < read;) {
      const ssize_t written = ::pwrite(out, buffer.data() + done, static_cast<size_t>(read - done), in_at + done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return std::unexpected(system_error(action, errno));
      done += written;
    }
    in_at += read;
  }
  return {};
}

// Removes what an earlier backup left behind under this name; nothing that a backup does not make.
Expected<void> remove_leftover(const std::filesystem::path& directory, const std::filesystem::path& part) {
  std::error_code problem;
  if (!std::filesystem::exists(std::filesystem::symlink_status(part, problem))) return {};
  for (std::filesystem::directory_iterator entry(part, problem), end; !problem && entry != end;
       entry.increment(problem)) {
    const std::string name = entry->path().filename().string();
    if (name != "catalog" && name != "kv" && name != "FORMAT")
      return refuse(directory, part.string() + " is in the way and holds " + name +
                                   ", which no backup made; move it away, or give another directory");
  }
  if (!problem) std::filesystem::remove_all(part, problem);
  if (problem) return std::unexpected(system_error("remove " + part.string(), problem.value()));
  return {};
}

}  // namespace

Expected<BackupDirectory> BackupDirectory::begin(const std::filesystem::path& directory,
                                                 const std::filesystem::path& data, const BackupOptions& options) {
  if (!directory.is_absolute()) return refuse(directory, "give an absolute path");
  const std::filesystem::path name = (directory / "").lexically_normal().parent_path();  // without slashes at its end
  std::error_code problem;
  const std::filesystem::path parent = std::filesystem::canonical(name.parent_path(), problem);
  if (problem) return refuse(directory, "its parent directory is not there; make it first");
  const std::filesystem::path whole = parent / name.filename();
  if (std::filesystem::exists(std::filesystem::symlink_status(whole, problem)))
    return refuse(directory, "it exists already; give a new directory");
  const std::filesystem::path store = std::filesystem::canonical(data, problem);
  if (problem) return std::unexpected(system_error("find " + data.string(), problem.value()));
  if (std::ranges::mismatch(store, whole).in1 == store.end())
    return refuse(directory, "it lies inside the store itself; give a directory elsewhere");

  const std::filesystem::path part = whole.string() + ".part";
  RECALLD_CHECK(remove_leftover(directory, part));
  if (::mkdir(part.c_str(), 0700) != 0) return std::unexpected(system_error("make " + part.string(), errno));
  BackupDirectory made(whole, part, options);
  RECALLD_CHECK(sync_directory(parent));
  return made;
}

BackupDirectory::BackupDirectory(BackupDirectory&& other) noexcept
    : directory_(std::move(other.directory_)),
      part_(std::exchange(other.part_, {})),
      options_(std::move(other.options_)),
      directories_(std::move(other.directories_)),
      no_sharing_(other.no_sharing_),
      summary_(other.summary_) {}

BackupDirectory::~BackupDirectory() {
  std::error_code ignored;  // what stays goes with the next attempt
  if (!part_.empty()) std::filesystem::remove_all(part_, ignored);
}

Expected<void> BackupDirectory::make(const std::filesystem::path& name) {
  const std::filesystem::path path = part_ / name;
  if (::mkdir(path.c_str(), 0700) != 0) return std::unexpected(system_error("make " + path.string(), errno));
  directories_.insert(path);
  return {};
}

// What copying these files takes, once it is known whether blocks can be shared.
Expected<uint64_t> BackupDirectory::needed_bytes(std::span<const File> files) const {
  uint64_t bytes = 0;
  for (const File& file : files) {
    if (shares(file)) continue;
    const std::string action = "read " + file.from.string();
    const Descriptor in(::open(file.from.c_str(), O_RDONLY | O_CLOEXEC));
    if (in.get() == -1) return std::unexpected(system_error(action, errno));
    RECALLD_TRY(const std::vector<Run> runs, data_runs(in.get(), action, file.bytes));
    bytes += sum(runs);
  }
  return bytes;
}

Expected<void> BackupDirectory::check_space(uint64_t bytes) const {
  uint64_t free = 0;
  if (options_.free_bytes) {
    RECALLD_TRY(free, options_.free_bytes(part_));
  } else {
    struct statvfs status {};
    if (::statvfs(part_.c_str(), &status) != 0)
      return std::unexpected(system_error("measure the free space at " + part_.string(), errno));
    free = uint64_t{status.f_bavail} * status.f_frsize;
  }
  if (free >= bytes + spare_bytes) return {};
  return fail(ErrorKind::full, "back up to " + directory_.string() + ": " + std::to_string(bytes >> 20) +
                                   " MiB are to be copied, and " + std::to_string(free >> 20) +
                                   " MiB are free there; make room, or give a directory on another disk");
}

// One file and its copy, open.
class BackupDirectory::Copy {
 public:
  static Expected<Copy> open(const File& file, const std::filesystem::path& to) {
    Copy copy{.action = "copy " + file.from.string() + " to " + to.string()};
    copy.in = Descriptor(::open(file.from.c_str(), O_RDONLY | O_CLOEXEC));
    if (copy.in.get() == -1) return std::unexpected(system_error(copy.action, errno));
    struct stat status {};
    if (::fstat(copy.in.get(), &status) != 0) return std::unexpected(system_error(copy.action, errno));
    const auto there = static_cast<uint64_t>(status.st_size);
    copy.bytes = file.whole ? there : file.bytes;
    if (there < file.bytes)
      return fail(ErrorKind::corrupt, copy.action + ": it has " + std::to_string(there) + " bytes, not " +
                                          std::to_string(file.bytes) + "; run recall verify");
    copy.out = Descriptor(::open(to.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (copy.out.get() == -1) return std::unexpected(system_error(copy.action, errno));
    return copy;
  }

  // Whether the file system lets the copy have the blocks of the original.
  bool share() const { return ::ioctl(out.get(), FICLONE, in.get()) == 0; }

  // Copies data, or counts what is shared, and makes it durable. Returns the bytes of data.
  Expected<uint64_t> finish(bool shared) const {
    if (!shared && ::ftruncate(out.get(), static_cast<off_t>(bytes)) != 0)
      return std::unexpected(system_error(action, errno));
    RECALLD_TRY(const std::vector<Run> runs, data_runs(in.get(), action, bytes));
    if (!shared) {
      for (const Run& run : runs) RECALLD_CHECK(copy_range(in.get(), out.get(), action, run.from, run.to));
    }
    if (::fsync(out.get()) != 0) return std::unexpected(system_error(action, errno));
    // Neither is read again soon; the store has caches of its own.
    ::posix_fadvise(in.get(), 0, 0, POSIX_FADV_DONTNEED);
    ::posix_fadvise(out.get(), 0, 0, POSIX_FADV_DONTNEED);
    return sum(runs);
  }

  std::string action;
  uint64_t bytes = 0;  // to be copied
  Descriptor in{};
  Descriptor out{};
};

Expected<void> BackupDirectory::copy(std::vector<File> files, const std::vector<File>& more) {
  // Files that are whole come first, since these alone can tell whether blocks are shared.
  std::ranges::stable_partition(files, &File::whole);
  bool checked = false;
  for (size_t i = 0; i < files.size(); ++i) {
    const File& file = files[i];
    if (options_.proceed) RECALLD_CHECK(options_.proceed(file.name));
    RECALLD_TRY(const Copy copy, Copy::open(file, part_ / file.name));
    const bool shared = shares(file) && copy.share();
    if (!shared && shares(file)) no_sharing_ = true;
    if (!shared && !checked) {
      RECALLD_TRY(const uint64_t bytes, needed_bytes(std::span(files).subspan(i)));
      RECALLD_TRY(const uint64_t more_bytes, needed_bytes(more));
      RECALLD_CHECK(check_space(bytes + more_bytes));
      checked = true;
    }
    RECALLD_TRY(const uint64_t data, copy.finish(shared));
    ++summary_.files;
    summary_.bytes += data;
    if (shared) summary_.shared_bytes += data;
  }
  return {};
}

Expected<void> BackupDirectory::write(const std::filesystem::path& name, std::string_view content) {
  if (options_.proceed) RECALLD_CHECK(options_.proceed(name));
  const std::filesystem::path path = part_ / name;
  const std::string action = "write " + path.string();
  const Descriptor out(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (out.get() == -1) return std::unexpected(system_error(action, errno));
  for (size_t done = 0; done < content.size();) {
    const ssize_t written = ::write(out.get(), content.data() + done, content.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return std::unexpected(system_error(action, errno));
    done += static_cast<size_t>(written);
  }
  if (::fsync(out.get()) != 0) return std::unexpected(system_error(action, errno));
  ++summary_.files;
  summary_.bytes += content.size();
  return {};
}

Expected<BackupSummary> BackupDirectory::finish() {
  assert(!part_.empty());
  for (const std::filesystem::path& directory : directories_) RECALLD_CHECK(sync_directory(directory));
  RECALLD_CHECK(sync_directory(part_));
  if (::renameat2(AT_FDCWD, part_.c_str(), AT_FDCWD, directory_.c_str(), RENAME_NOREPLACE) != 0) {
    if (errno == EEXIST) return refuse(directory_, "it has come to exist meanwhile; give a new directory");
    // Not every file system knows the flag; an empty directory may then be replaced, and nothing else.
    if (errno != EINVAL || ::rename(part_.c_str(), directory_.c_str()) != 0)
      return std::unexpected(system_error("rename " + part_.string() + " to " + directory_.string(), errno));
  }
  part_.clear();
  RECALLD_CHECK(sync_directory(directory_.parent_path()));
  return summary_;
}

}  // namespace recalld
