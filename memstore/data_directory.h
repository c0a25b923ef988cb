// The store's directory: locked against other processes, and stamped with what may be read from it.
#pragma once

#include <filesystem>
#include <utility>

#include "base/descriptor.h"
#include "base/error.h"
#include "memstore/chunk.h"

namespace recalld {

// Holds DATA/LOCK for as long as it lives. Move-only.
class DataDirectory {
 public:
  // Makes the directory, which only its owner may enter, and its stamp (DATA/FORMAT) when they are not there. Fails
  // with busy when another process has the directory, with invalid_request when the stamp is of another format, record
  // shape or model, with corrupt when it is damaged or missing beside a catalog.
  static Expected<DataDirectory> open(const std::filesystem::path& path, const RecordShape& shape);

  std::filesystem::path catalog() const { return path_ / "catalog"; }
  std::filesystem::path kv() const { return path_ / "kv"; }

 private:
  DataDirectory(std::filesystem::path path, Descriptor lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  std::filesystem::path path_;
  Descriptor lock_;  // the lock goes with it
};

}  // namespace recalld
