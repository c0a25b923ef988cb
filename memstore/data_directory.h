// The store's directory: locked against other processes, and stamped with what may be read from it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/descriptor.h"
#include "base/error.h"
#include "memstore/chunk.h"

namespace recalld {

// Writes a file so that after a crash it is there whole, or as it was.
Expected<void> write_durably(const std::filesystem::path& directory, const std::string& file, std::string_view text);

// Holds DATA/LOCK for as long as it lives. Move-only.
class DataDirectory {
 public:
  // Makes the directory, which only its owner may enter, and its stamp (DATA/FORMAT) when they are not there. Fails
  // with busy when another process has the directory, with invalid_request when the stamp is of another format, record
  // shape or model, with corrupt when it is damaged or missing beside a catalog, or the catalog is missing beside kv/.
  static Expected<DataDirectory> open(const std::filesystem::path& path, const RecordShape& shape);

  // What the stamp of the store in `path` says; nothing when there is no store. Fails with corrupt or, for another
  // format, with invalid_request. What adopt_next() began and a crash broke off is finished first.
  static Expected<std::optional<RecordShape>> stamp(const std::filesystem::path& path);

  // Where a store for another model is made beside the one in `path`.
  static std::filesystem::path next(const std::filesystem::path& path) { return path / "next"; }

  // Puts the store in next(path), which nobody has open, in the place of the one in `path`, which goes. A crash in
  // between is made good by the next open() or stamp(). Fails with busy when another process has the directory.
  static Expected<void> adopt_next(const std::filesystem::path& path);

  // Removes next(path), which nobody has open, if it is there. A crash in between leaves none of it that could be
  // opened, and the next open() removes the rest.
  static Expected<void> drop_next(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path format() const { return path_ / "FORMAT"; }
  std::filesystem::path catalog() const { return path_ / "catalog"; }
  std::filesystem::path kv() const { return path_ / "kv"; }

 private:
  DataDirectory(std::filesystem::path path, Descriptor lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  std::filesystem::path path_;
  Descriptor lock_;  // the lock goes with it
};

}  // namespace recalld
