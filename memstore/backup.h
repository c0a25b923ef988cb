// Writes a copy of a store into a new directory: under another name until all of it is durable, so that what bears the
// directory's name is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace recalld {

struct BackupOptions {
  // Asked before each file, by its path in the copy; an error ends the backup. Unset: nobody is asked.
  std::function<Expected<void>(const std::filesystem::path& file)> proceed;
  // Bytes that are free where the directory is; unset: what the file system says.
  std::function<Expected<uint64_t>(const std::filesystem::path& directory)> free_bytes;
  bool reflink = true;  // share blocks with the original where the file system can
};

// What a backup wrote.
struct BackupSummary {
  uint64_t files = 0;
  uint64_t bytes = 0;         // with their data; holes do not count
  uint64_t shared_bytes = 0;  // of these, reflinked rather than copied
};

// Used by one thread. The copy shares no inode with the original: it may be deleted, and its holes punched, without
// touching the other.
class BackupDirectory {
 public:
  // Makes DIRECTORY.part, having removed one that an earlier backup left behind. `directory` is absolute, does not
  // exist, and has a parent that does. invalid_request otherwise, or when it lies inside `data`.
  static Expected<BackupDirectory> begin(const std::filesystem::path& directory, const std::filesystem::path& data,
                                         const BackupOptions& options);
  ~BackupDirectory();  // removes what was not finished
  BackupDirectory(BackupDirectory&& other) noexcept;
  BackupDirectory& operator=(BackupDirectory&&) = delete;

  // Makes a directory in it.
  Expected<void> make(const std::filesystem::path& name);

  // A file that is to be copied.
  struct File {
    std::filesystem::path from;
    std::filesystem::path name;  // in the copy
    uint64_t bytes = 0;          // from its beginning, at least
    bool whole = false;          // all of it, if it has grown meanwhile
  };
  // Copies them, holes as holes, durably. Fails with full before it copies anything when there is no room for these
  // files and `more`, which later calls will copy; files that can share their blocks with the original take none.
  Expected<void> copy(std::vector<File> files, const std::vector<File>& more);

  // Writes a file of this content, durably.
  Expected<void> write(const std::filesystem::path& name, std::string_view content);

  // Gives the directory its name, durably.
  Expected<BackupSummary> finish();

 private:
  BackupDirectory(std::filesystem::path directory, std::filesystem::path part, const BackupOptions& options)
      : directory_(std::move(directory)), part_(std::move(part)), options_(options) {}

  class Copy;
  bool shares(const File& file) const { return options_.reflink && !no_sharing_ && file.whole; }
  Expected<uint64_t> needed_bytes(std::span<const File> files) const;
  Expected<void> check_space(uint64_t bytes) const;

  std::filesystem::path directory_;
  std::filesystem::path part_;  // empty: finished, or moved from
  BackupOptions options_;
  std::set<std::filesystem::path> directories_;  // made in part_
  bool no_sharing_ = false;                      // the file system has refused to share blocks
  BackupSummary summary_;
};

}  // namespace recalld
