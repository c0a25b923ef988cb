#pragma once

// What the parts of the catalog share: catalog_open.cc, catalog.cc (writing and reading), catalog_mend.cc (damage) and
// catalog_space.cc.

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/table.h>
#include <rocksdb/write_buffer_manager.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "memstore/catalog.h"
#include "memstore/catalog_env.h"
#include "memstore/catalog_failures.h"

namespace recalld {

inline constexpr std::array family_names{"counters", "memories",  "turns",  "tokens",   "operations",
                                         "chunks",   "landmarks", "states", "postings", "attributes"};
// The family, known to the catalog alone, that says under which names RocksDB has the others (Catalog::remake).
inline constexpr const char* names_family = "families";
// Between the name of a family that was remade and the number of that.
inline constexpr char remade_separator = '~';
inline constexpr std::chrono::milliseconds stall_wait{1};  // until something that RocksDB holds back is tried again

ErrorKind kind_of(const rocksdb::Status& status);
// `action` says what was done with which object.
Expected<void> checked(const rocksdb::Status& status, std::string_view action);

// The smallest key after all keys that begin with `prefix`; empty when there is none.
std::string end_of(std::string_view prefix);
// A key for people: its letters as they are, other bytes in hexadecimal.
std::string printable(std::string_view key);
uint32_t checksum(std::string_view key, std::string_view value);

// Numbers of the files with this beginning or ending, least first.
std::vector<uint64_t> numbers(const std::vector<std::string>& files, std::string_view prefix, std::string_view suffix);
std::string log_name(uint64_t number);

// Gives the whole file to `take`, in blocks of block_bytes.
template <class Take>
rocksdb::Status read_file(rocksdb::Env& env, const std::string& path, size_t block_bytes, Take take) {
  std::unique_ptr<rocksdb::SequentialFile> file;
  rocksdb::Status status = env.NewSequentialFile(path, &file, rocksdb::EnvOptions());
  std::string block(block_bytes, '\0');
  for (bool more = true; status.ok() && more;) {
    rocksdb::Slice read;
    status = file->Read(block.size(), &read, block.data());
    if (status.ok() && !read.empty()) take(as_bytes({read.data(), read.size()}));
    more = read.size() == block.size();
  }
  return status;
}

// The family that RocksDB has under this name: as it was made first or remade.
std::optional<Family> family_of(std::string_view rocksdb_name);

// Compares every table of the families that `which` knows with the checksum that it was written with.
std::vector<DamagedTable> damaged_tables(
    rocksdb::DB& db, rocksdb::Env& env, const rocksdb::ColumnFamilyOptions& options,
    const std::function<std::optional<Family>(const std::string& rocksdb_name)>& which);

struct Catalog::Database {
  using Handle = std::shared_ptr<rocksdb::ColumnFamilyHandle>;
  using Clock = std::chrono::steady_clock;  // intervals only: no clock that is set decides anything

  std::filesystem::path directory;
  std::unique_ptr<CatalogEnv> env;
  std::chrono::milliseconds retry_after{};
  std::shared_ptr<rocksdb::Cache> cache;
  std::shared_ptr<rocksdb::WriteBufferManager> memtables;
  std::shared_ptr<BackgroundFailures> background_failures;
  rocksdb::ColumnFamilyOptions family_options;
  std::shared_ptr<rocksdb::TableFactory> scanned_tables;  // of the family that is read from end to end
  std::shared_ptr<rocksdb::TableFactory> posting_tables;  // of the one with many small rows, read in ranges
  std::unique_ptr<rocksdb::DB> db;
  Handle names;              // the names family; none before the first remake
  uint64_t last_number = 0;  // of a family that was remade

  // One write at a time, or one recovery, or one exchange of a family: no write may follow in the log on one that
  // failed.
  std::mutex gate;
  std::atomic<bool> lacks_space = false;               // a family is not compacted for this reason
  mutable std::mutex state_mutex;                      // guards what follows, and is never held across the disk
  std::optional<Error> failure;                        // of a write; writes are refused while it is set
  Clock::time_point tried;                             // to write to a full disk
  std::vector<Handle> families;                        // by Family
  std::vector<std::string> in_use;                     // RocksDB's name of each
  std::map<Family, BackgroundFailures::Cause> paused;  // not compacted
  Clock::time_point paused_at;
  uint64_t remakes = 0;
  std::array<uint64_t, family_names.size()> remade{};  // of each family, the number of its last one
  std::optional<Family> remaking;

  Handle own(rocksdb::ColumnFamilyHandle* handle) const {
    return {handle, [db = db.get()](auto* gone) { db->DestroyColumnFamilyHandle(gone).PermitUncheckedError(); }};
  }
  Handle family(Family which) const {
    const std::lock_guard lock(state_mutex);
    return families.at(static_cast<size_t>(which));
  }
  std::vector<Handle> all_families() const {
    const std::lock_guard lock(state_mutex);
    return families;
  }
  std::optional<Family> family_named(std::string_view rocksdb_name) const {
    const std::lock_guard lock(state_mutex);
    const auto found = std::ranges::find(in_use, rocksdb_name);
    if (found == in_use.end()) return std::nullopt;
    return static_cast<Family>(found - in_use.begin());
  }

  // catalog_open.cc
  void set_up_families(uint64_t memtable_bytes, bool although_damaged);
  rocksdb::ColumnFamilyOptions options_of(Family which) const;
  Expected<std::vector<rocksdb::ColumnFamilyDescriptor>> families_to_open(const rocksdb::DBOptions& options,
                                                                          const std::string& action);
  Expected<void> settle_families(const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors,
                                 const std::vector<rocksdb::ColumnFamilyHandle*>& handles);

  // catalog.cc
  Error note_failure(const rocksdb::Status& status);
  Expected<void> recover();
  rocksdb::Status flush(rocksdb::ColumnFamilyHandle* another = nullptr) const;
  rocksdb::Status write_nothing(bool logged) const;
  rocksdb::Status begin_new_log() const;
  void steer_compactions();

  // catalog_mend.cc
  rocksdb::Status copy(rocksdb::ColumnFamilyHandle* source, rocksdb::ColumnFamilyHandle* target,
                       std::span<const DamagedTable> damaged, uint64_t& rows);
  Expected<Remade> remake(Family family, std::span<const DamagedTable> damaged, const std::string& action);

  // catalog_space.cc
  Expected<void> drop_logs();
  Expected<void> compact(const Range& range) const;
  Expected<bool> holds_removed_rows(rocksdb::ColumnFamilyHandle& family, const rocksdb::Slice& from,
                                    const rocksdb::Slice& to, const std::string& action) const;
  Expected<void> remove_old_logs() const;
  Expected<void> wait_for_removals() const;
};

}  // namespace recalld
