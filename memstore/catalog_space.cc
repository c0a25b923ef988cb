// Giving back the space of removed rows, and the files of the catalog as a backup sees them.

#include <algorithm>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

#include "memstore/catalog_impl.h"

namespace recalld {
namespace {

constexpr std::chrono::seconds removals_wait{10};
constexpr int compactions_max = 5;  // of one range

}  // namespace

Catalog::Range Catalog::all_of(Family family, std::string_view prefix) {
  return {family, std::string(prefix), end_of(prefix)};
}

Expected<uint64_t> Catalog::reclaim(std::span<const Range> ranges) {
  auto& db = *database_->db;
  {
    // No write may begin another log in between: then all logs before this one are of no more use, those that a crash
    // left behind too.
    const std::lock_guard gate(database_->gate);
    RECALLD_CHECK(database_->recover());
    RECALLD_CHECK(database_->drop_logs());
  }
  uint64_t bytes = 0;
  for (const Range& range : ranges) {
    rocksdb::ColumnFamilyMetaData tables;
    db.GetColumnFamilyMetaData(database_->family(range.family).get(), &tables);
    for (const auto& level : tables.levels) {
      for (const auto& table : level.files)
        if ((range.to.empty() || table.smallestkey < range.to) && table.largestkey >= range.from) bytes += table.size;
    }
    RECALLD_CHECK(database_->compact(range));
  }
  RECALLD_CHECK(database_->wait_for_removals());
  return bytes;
}

// Rewrites the tables that hold rows which were removed from the range. RocksDB finds out once at which levels these
// stand, and a compaction of its own may meanwhile carry some to a level below.
Expected<void> Catalog::Database::compact(const Range& range) const {
  const auto family = this->family(range.family);
  const std::string action = "compact " + std::string(name(range.family)) + " of the catalog";
  const rocksdb::Slice from(range.from), to(range.to);
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  for (int attempt = 0; attempt < compactions_max; ++attempt) {
    RECALLD_CHECK(checked(db->CompactRange(options, family.get(), &from, range.to.empty() ? nullptr : &to), action));
    RECALLD_TRY(const bool left, holds_removed_rows(*family, from, to, action));
    if (!left) return {};
  }
  return fail(ErrorKind::busy, action + ": rows that were removed are still being moved; try again");
}

// Whether rows lie in tables that only a removal of their range hides.
Expected<bool> Catalog::Database::holds_removed_rows(rocksdb::ColumnFamilyHandle& family, const rocksdb::Slice& from,
                                                     const rocksdb::Slice& to, const std::string& action) const {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  options.iterate_lower_bound = &from;
  if (!to.empty()) options.iterate_upper_bound = &to;
  options.ignore_range_deletions = true;
  // In this order: a row that is written in between is seen among those that there are.
  const std::unique_ptr<rocksdb::Iterator> stored(db->NewIterator(options, &family));
  options.ignore_range_deletions = false;
  const std::unique_ptr<rocksdb::Iterator> there(db->NewIterator(options, &family));
  there->SeekToFirst();
  for (stored->SeekToFirst(); stored->Valid(); stored->Next()) {
    while (there->Valid() && there->key().compare(stored->key()) < 0) there->Next();
    if (!there->Valid() || there->key() != stored->key()) break;
  }
  RECALLD_CHECK(checked(there->status(), action));
  RECALLD_CHECK(checked(stored->status(), action));
  return stored->Valid();
}

// Writes everything out and removes the logs before the current one. Needs the gate.
Expected<void> Catalog::Database::drop_logs() {
  const std::string action = "reclaim the logs of the catalog";
  // Families of which nothing is to be written out, nor is being written, let go of an old log when a new one begins,
  // which it does only when something stands in the current one.
  auto status = flush();
  if (status.ok()) status = write_nothing(true);
  if (status.ok()) status = flush();
  if (!status.ok()) return std::unexpected(note_failure(status));
  std::unique_ptr<rocksdb::LogFile> current;
  RECALLD_CHECK(checked(db->GetCurrentWalFile(&current), action));
  uint64_t needed = 0;
  db->GetIntProperty(rocksdb::DB::Properties::kMinLogNumberToKeep, &needed);
  if (needed < current->LogNumber())
    return fail(ErrorKind::busy, action + ": some are needed until all is written out; try again");
  return remove_old_logs();
}

// Waits until the tables that are of no more use are gone: RocksDB removes them in the background, and not before the
// last cursor that reads them.
Expected<void> Catalog::Database::wait_for_removals() const {
  const auto left_over = [&]() -> Expected<std::vector<uint64_t>> {
    std::vector<std::string> files;
    RECALLD_CHECK(checked(env->GetChildren(directory.string(), &files), "list the catalog"));
    std::vector<uint64_t> tables = numbers(files, "", ".sst");
    std::vector<rocksdb::LiveFileMetaData> live;
    db->GetLiveFilesMetaData(&live);
    for (const auto& table : live) std::erase(tables, table.file_number);
    return tables;
  };
  RECALLD_TRY(const std::vector<uint64_t> begun, left_over());
  for (const auto deadline = Clock::now() + removals_wait;;) {
    RECALLD_TRY(const std::vector<uint64_t> now, left_over());
    const bool gone =
        std::ranges::none_of(begun, [&](uint64_t table) { return std::ranges::find(now, table) != now.end(); });
    if (gone) return {};
    if (Clock::now() > deadline)
      return fail(ErrorKind::busy,
                  "reclaim the tables of the catalog: some that held removed rows are still being read");
    std::this_thread::sleep_for(stall_wait);
  }
}

Expected<void> Catalog::with_files(const std::function<Expected<void>(std::span<const File>)>& use) const {
  auto& db = *database_->db;
  RECALLD_CHECK(checked(db.DisableFileDeletions(), "keep the files of the catalog"));
  const auto used = [&]() -> Expected<void> {
    // The log is copied as far as it has come, so that nothing is written out for the copy's sake.
    rocksdb::LiveFilesStorageInfoOptions options;
    options.wal_size_for_flush = std::numeric_limits<uint64_t>::max();
    std::vector<rocksdb::LiveFileStorageInfo> live;
    RECALLD_CHECK(checked(db.GetLiveFilesStorageInfo(options, &live), "list the files of the catalog"));
    std::vector<File> files;
    for (rocksdb::LiveFileStorageInfo& file : live) {
      File& into = files.emplace_back(file.relative_filename, file.size, !file.trim_to_size);
      if (!file.replacement_contents.empty()) into.contents = std::move(file.replacement_contents);
    }
    return use(files);
  }();
  const auto released = checked(db.EnableFileDeletions(false), "release the files of the catalog");
  return used ? released : used;
}

Catalog::Usage Catalog::usage() const {
  Usage usage;
  std::error_code listing, gone;  // files come and go while we count
  for (std::filesystem::directory_iterator file(database_->directory, listing), end; !listing && file != end;
       file.increment(listing)) {
    const auto bytes = file->file_size(gone);
    if (!gone) usage.bytes_on_disk += bytes;
  }
  usage.memtable_bytes = database_->memtables->memory_usage();
  const size_t cached = database_->cache->GetUsage();
  usage.block_cache_bytes = cached - std::min(cached, database_->memtables->dummy_entries_in_cache_usage());
  return usage;
}

// Removes logs of which the tables hold everything, before anything is written to the log that follows them: a torn
// one must not seem to be in the midst of others when it is found at the next open. RocksDB removes them too, but does
// not wait, and goes on when it fails.
Expected<void> Catalog::Database::remove_old_logs() const {
  const std::string action = "remove old logs in " + directory.string();
  std::unique_ptr<rocksdb::LogFile> current;
  RECALLD_CHECK(checked(db->GetCurrentWalFile(&current), action));
  std::vector<std::string> files;
  RECALLD_CHECK(checked(env->GetChildren(directory.string(), &files), action));
  for (const uint64_t number : numbers(files, "", ".log")) {
    if (number >= current->LogNumber()) continue;
    const auto removed = env->DeleteFile(directory.string() + "/" + log_name(number));
    if (!removed.IsNotFound() && !removed.IsPathNotFound()) RECALLD_CHECK(checked(removed, action));
  }
  std::unique_ptr<rocksdb::Directory> entries;
  RECALLD_CHECK(checked(env->NewDirectory(directory.string(), &entries), action));
  return checked(entries->Fsync(), action);
}

}  // namespace recalld
