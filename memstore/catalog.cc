#include "memstore/catalog.h"

#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/file_checksum.h>
#include <rocksdb/file_system.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/table.h>
#include <rocksdb/table_properties.h>
#include <rocksdb/write_batch.h>
#include <rocksdb/write_buffer_manager.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "memstore/catalog_env.h"
#include "memstore/wal_check.h"

namespace recalld {
namespace {

constexpr std::array family_names{"counters", "memories",  "turns",  "tokens",  "operations",
                                  "chunks",   "landmarks", "states", "postings"};

// Bounds of what RocksDB holds open or keeps beside its tables.
constexpr int open_files_max = 64;
constexpr std::chrono::seconds removals_wait{10};
constexpr size_t file_buffer_bytes_max = size_t{256} << 10;
constexpr uint64_t table_bytes = uint64_t{8} << 20;  // of a file, so that its index and filter stay small
// A walk over landmarks lets the kernel read so far ahead, into the page cache, while it computes.
constexpr size_t ahead_bytes_first = size_t{512} << 10, ahead_bytes_max = size_t{2} << 20;
constexpr uint64_t wal_bytes_max = uint64_t{64} << 20;
constexpr uint64_t manifest_bytes_max = uint64_t{4} << 20;

// The family, known to this file alone, that says under which names RocksDB has the others (Catalog::remake).
constexpr const char* names_family = "families";
// Between the name of a family that was remade and the number of that.
constexpr char remade_separator = '~';
constexpr size_t tables_named_max = 8;  // in one message
constexpr size_t copy_batch_bytes = size_t{1} << 20;
constexpr std::chrono::milliseconds stall_wait{1};
constexpr int quiet_polls = 500;  // at intervals of stall_wait
constexpr int space_waits = 10;   // a compaction without space waits so many times longer than a write

ErrorKind kind_of(const rocksdb::Status& status) {
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit) return ErrorKind::full;
  if (status.IsCorruption()) return ErrorKind::corrupt;
  if (status.IsIOError()) return ErrorKind::io;
  if (status.IsBusy() || status.IsTryAgain()) return ErrorKind::busy;
  return ErrorKind::internal;
}

// `action` says what was done with which object.
Expected<void> checked(const rocksdb::Status& status, std::string_view action) {
  if (status.ok()) return {};
  const ErrorKind kind = kind_of(status);
  std::string message = std::string(action) + ": " + status.ToString();
  if (kind == ErrorKind::corrupt) message += "; run recall verify";
  if (kind == ErrorKind::full) message += "; make room on its disk";
  if (kind == ErrorKind::io) message += "; look after its disk";
  if (kind == ErrorKind::busy) message += "; try again";
  return fail(kind, std::move(message));
}

// The smallest key after all keys that begin with `prefix`; empty when there is none.
std::string end_of(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (!end.empty()) end.back() = static_cast<char>(end.back() + 1);
  return end;
}

// A key for people: its letters as they are, other bytes in hexadecimal.
std::string printable(std::string_view key) {
  std::string text;
  for (const char c : key) {
    constexpr std::string_view digits = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalpha(byte) != 0) {
      text += c;
    } else {
      (text += digits[byte >> 4]) += digits[byte & 15];
    }
  }
  return text;
}

uint32_t checksum(std::string_view key, std::string_view value) {
  return crc32c(as_bytes(value), crc32c(as_bytes(key)));
}

constexpr uint32_t bit(Family family) {
  return uint32_t{1} << static_cast<uint32_t>(family);
}

Expected<std::string_view> opened(Family family, std::string_view key, std::string_view stored) {
  ByteReader in(stored);
  const uint32_t expected = in.u32();
  if (!in.ok() || expected != checksum(key, in.rest()))
    return fail(ErrorKind::corrupt, "read row " + printable(key) + " of " + std::string(name(family)) +
                                        " in the catalog: checksum mismatch; run recall verify");
  return in.rest();
}

// ---- The files, before RocksDB sees them

// Numbers of the files with this beginning or ending, least first.
std::vector<uint64_t> numbers(const std::vector<std::string>& files, std::string_view prefix, std::string_view suffix) {
  std::vector<uint64_t> found;
  for (const std::string& file : files) {
    if (!file.starts_with(prefix) || !file.ends_with(suffix)) continue;
    uint64_t number = 0;
    const char* end = file.data() + file.size() - suffix.size();
    const auto [parsed, error] = std::from_chars(file.data() + prefix.size(), end, number);
    if (error == std::errc() && parsed == end) found.push_back(number);
  }
  std::ranges::sort(found);
  return found;
}

std::string log_name(uint64_t number) {
  std::string digits = std::to_string(number);
  return std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits + ".log";
}

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

Expected<LogCheck::Result> check_log(rocksdb::Env& env, const std::string& path, LogUse use) {
  LogCheck check(use);
  RECALLD_CHECK(
      checked(read_file(env, path, LogCheck::block_bytes, [&](ByteView block) { check.add(block); }), "read " + path));
  return check.result();
}

std::unexpected<Error> damaged_log(const std::string& path, uint64_t offset, std::string_view next_step) {
  return fail(ErrorKind::corrupt, "open the catalog: " + path + " is damaged at byte " + std::to_string(offset) +
                                      ", before its end; " + std::string(next_step));
}

// Refuses a catalog of which durable bytes are missing or damaged where RocksDB would go on without them: it makes an
// empty database where CURRENT is missing, and ends the replay of the logs at the first record that is not whole.
Expected<void> check_files(rocksdb::Env& env, const std::string& directory) {
  std::vector<std::string> files;
  const rocksdb::Status listed = env.GetChildren(directory, &files);
  if (listed.IsNotFound() || listed.IsPathNotFound()) return {};
  RECALLD_CHECK(checked(listed, "list " + directory));
  const auto logs = numbers(files, "", ".log");
  const auto manifests = numbers(files, "MANIFEST-", "");
  const auto tables = numbers(files, "", ".sst");
  constexpr std::string_view backup = "restore the store from a backup";

  if (std::ranges::find(files, "CURRENT") == files.end()) {
    // MANIFEST-000001 alone is what a crash leaves of a database that was being made.
    if (logs.empty() && tables.empty() && (manifests.empty() || manifests.back() == 1)) return {};
    return fail(ErrorKind::corrupt, "open the catalog: " + directory +
                                        "/CURRENT is missing, which names its manifest; " + std::string(backup));
  }
  std::string current;
  RECALLD_CHECK(
      checked(read_file(env, directory + "/CURRENT", 4096, [&](ByteView bytes) { current += as_text(bytes); }),
              "read " + directory + "/CURRENT"));
  while (current.ends_with('\n')) current.pop_back();
  if (!current.starts_with("MANIFEST-") || std::ranges::find(files, current) == files.end())
    return fail(ErrorKind::corrupt,
                "open the catalog: " + directory + "/CURRENT names no manifest that is there; " + std::string(backup));
  const std::string manifest = directory + "/" + current;
  RECALLD_TRY(const auto checked_manifest, check_log(env, manifest, LogUse::manifest));
  if (checked_manifest.verdict == LogCheck::Verdict::damaged)
    return damaged_log(manifest, checked_manifest.offset, backup);
  if (checked_manifest.records == 0) return damaged_log(manifest, 0, backup);

  // A log is there from before the second manifest on, and is only removed when the next one is.
  if (logs.empty() && current != "MANIFEST-000001")
    return fail(ErrorKind::corrupt, "open the catalog: " + directory +
                                        " has no file *.log, which held the newest appends; " + std::string(backup));

  // The logs are one log that goes on from file to file.
  std::optional<std::pair<std::string, uint64_t>> torn;
  for (const uint64_t number : logs) {
    const std::string path = directory + "/" + log_name(number);
    RECALLD_TRY(const auto log, check_log(env, path, LogUse::write_ahead));
    if (torn && log.records > 0) return damaged_log(torn->first, torn->second, backup);
    if (log.verdict == LogCheck::Verdict::damaged)
      return damaged_log(path, log.offset,
                         number != logs.back()
                             ? std::string(backup)
                             : std::string(backup) + ", or give up every append from there on with truncate -s " +
                                   std::to_string(log.offset) + " " + path);
    if (log.verdict == LogCheck::Verdict::torn) torn = {path, log.offset};
  }
  return {};
}

// Whether every byte of a file can be read, whatever it says.
bool readable(rocksdb::Env& env, const std::string& path) {
  return read_file(env, path, size_t{1} << 18, [](ByteView) {}).ok();
}

// Judges what fails in the background. A table that cannot be read, and a disk without room for a compaction, do not
// stop writes, as neither loses anything: the family is marked, and no longer compacted.
class BackgroundFailures final : public rocksdb::EventListener {
 public:
  explicit BackgroundFailures(CatalogEnv& env) : env_(env) {}

  enum class Cause { damaged, full };
  bool any() const { return any_; }
  std::map<std::string, Cause> take() {
    const std::lock_guard lock(mutex_);
    any_ = false;
    return std::exchange(failed_, {});
  }

  // For Database::recover.
  std::atomic<bool> recovering = false;
  std::atomic<bool> flush_failed = false;  // since the last recovery

  // The database, from when it is open until it is closed.
  void watch(rocksdb::DB* db) { db_ = db; }

  // RocksDB calls this in the thread of the compaction, and then, in the same one, OnBackgroundError.
  void OnCompactionCompleted(rocksdb::DB* /*db*/, const rocksdb::CompactionJobInfo& info) override {
    cause_.reset();
    if (info.status.ok()) return;
    if (kind_of(info.status) == ErrorKind::full) {
      cause_ = Cause::full;
    } else if (info.status.IsCorruption() ||
               (info.status.IsIOError() && !std::ranges::all_of(info.input_files, [&](const std::string& file) {
                  return readable(env_, file);
                }))) {
      cause_ = Cause::damaged;
    }
    if (!cause_) return;
    const std::lock_guard lock(mutex_);
    failed_[info.cf_name] = *cause_;
    any_ = true;
  }

  // RocksDB calls this, without its mutex, before it stops all work.
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    if (reason == rocksdb::BackgroundErrorReason::kCompaction && cause_) {
      *error = rocksdb::Status::OK();
      return;
    }
    // RocksDB fears for records in the buffer of the log that it could not leave, and would never resume. But every
    // acknowledged record has been synced. And what it holds for a lesser error would not stop it.
    if ((reason == rocksdb::BackgroundErrorReason::kMemTable && (recovering || kind_of(*error) == ErrorKind::full)) ||
        error->severity() < rocksdb::Status::kHardError)
      *error = rocksdb::Status(*error, rocksdb::Status::kHardError);
    env_.stopped();
    if (flushes_) {
      flush_failed = true;
    } else {
      let_flush_begin();
    }
  }

  void OnFlushBegin(rocksdb::DB* /*db*/, const rocksdb::FlushJobInfo& /*info*/) override { flushes_ = true; }

  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason /*reason*/, rocksdb::Status /*error*/,
                            bool* automatic) override {
    *automatic = false;
  }

 private:
  CatalogEnv& env_;
  // A flush that is scheduled and has not begun when RocksDB stops would be dropped (see CatalogEnv). So none may be
  // left, which is when no memtable waits for one. But one may also wait for what is not scheduled, or for a flush which
  // runs and itself waits for the write that fails here: then nothing is seen to happen for a while.
  void let_flush_begin() const {
    rocksdb::DB* db = db_;
    if (db == nullptr || recovering) return;
    for (int quiet = 0; quiet < quiet_polls && !flush_failed;) {
      uint64_t waiting = 0;
      if (!db->GetAggregatedIntProperty(rocksdb::DB::Properties::kMemTableFlushPending, &waiting) || waiting == 0) return;
      quiet = env_.GetThreadPoolQueueLen(rocksdb::Env::Priority::HIGH) == 0 ? quiet + 1 : 0;
      std::this_thread::sleep_for(stall_wait);
    }
  }

  std::atomic<rocksdb::DB*> db_ = nullptr;
  static thread_local bool flushes_;                // this thread writes memtables out
  static thread_local std::optional<Cause> cause_;  // of the compaction that this thread has just ended
  std::mutex mutex_;
  std::map<std::string, Cause> failed_;  // by RocksDB's name of the family; guarded by mutex_
  std::atomic<bool> any_ = false;
};

thread_local bool BackgroundFailures::flushes_ = false;
thread_local std::optional<BackgroundFailures::Cause> BackgroundFailures::cause_;

// The family that RocksDB has under this name: as it was made first or remade.
std::optional<Family> family_of(std::string_view rocksdb_name) {
  if (rocksdb_name == rocksdb::kDefaultColumnFamilyName) return Family::counters;
  const auto found = std::ranges::find(family_names, rocksdb_name.substr(0, rocksdb_name.find(remade_separator)));
  if (found == family_names.begin() || found == family_names.end()) return std::nullopt;
  return static_cast<Family>(found - family_names.begin());
}

// Compares every table of the families that `which` knows with the checksum that it was written with.
std::vector<DamagedTable> damaged_tables(
    rocksdb::DB& db, rocksdb::Env& env, const rocksdb::ColumnFamilyOptions& options,
    const std::function<std::optional<Family>(const std::string& rocksdb_name)>& which) {
  std::vector<rocksdb::LiveFileMetaData> tables;
  db.GetLiveFilesMetaData(&tables);
  const auto is_live = [&](const rocksdb::LiveFileMetaData& table) {
    std::vector<rocksdb::LiveFileMetaData> now;
    db.GetLiveFilesMetaData(&now);
    return std::ranges::any_of(now, [&](const auto& each) { return each.name == table.name; });
  };
  std::vector<DamagedTable> damaged;
  for (const auto& table : tables) {
    const auto family = which(table.column_family_name);
    if (!family) continue;
    const std::string path = table.db_path + table.name;
    uint64_t bytes = 0;
    uint32_t crc = 0;
    const auto status = read_file(env, path, size_t{1} << 18, [&](ByteView block) {
      bytes += block.size();
      crc = crc32c(block, crc);
    });
    std::string stored;  // as RocksDB keeps it
    for (int shift = 24; shift >= 0; shift -= 8) stored += static_cast<char>(crc >> shift);
    std::string cause;
    if (!status.ok()) {
      cause = status.ToString();
    } else if (bytes != table.size) {
      cause = "it has " + std::to_string(bytes) + " bytes instead of " + std::to_string(table.size);
    } else if (table.file_checksum_func_name == rocksdb::kStandardDbFileChecksumFuncName) {
      if (table.file_checksum != stored) cause = "checksum mismatch";
    } else {
      // Written before tables had a checksum of the whole file: those of its blocks are what there is.
      rocksdb::Options all(rocksdb::DBOptions(), options);
      all.env = &env;
      const auto blocks = rocksdb::VerifySstFileChecksum(all, rocksdb::EnvOptions(), path);
      if (!blocks.ok()) cause = blocks.ToString();
    }
    if (!cause.empty() && is_live(table))
      damaged.push_back({path, *family, table.level, table.smallestkey, table.largestkey, cause});
  }
  return damaged;
}

}  // namespace

std::string_view name(Family family) {
  return family_names.at(static_cast<size_t>(family));
}

bool can_be_made_again(Family family) {
  switch (family) {
    case Family::chunks:
    case Family::landmarks:
    case Family::states:
    case Family::postings:
      return true;
    case Family::counters:
    case Family::memories:
    case Family::turns:
    case Family::tokens:
    case Family::operations:
      return false;
  }
  return false;
}

std::string DamagedTable::text() const {
  return file + " of " + std::string(name(family)) + ", level " + std::to_string(level) + ", rows " +
         printable(first_key) + " to " + printable(last_key) + ": " + cause;
}

// What RocksDB has to say goes where all messages go: a file of its own in the catalog would end the process when the
// disk is full.
class Messages final : public rocksdb::Logger {
 public:
  Messages() : rocksdb::Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    std::array<char, 1024> text{};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    spdlog::debug("rocksdb: {}", text.data());
  }
};

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

  rocksdb::ColumnFamilyOptions options_of(Family which) const;
  rocksdb::Status flush(rocksdb::ColumnFamilyHandle* another = nullptr) const;
  Expected<void> settle_families(const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors,
                                 const std::vector<rocksdb::ColumnFamilyHandle*>& handles);
  Expected<void> remove_old_logs() const;
  Expected<void> drop_logs();
  Expected<void> wait_for_removals() const;
  Error note_failure(const rocksdb::Status& status);
  Expected<void> recover();
  rocksdb::Status write_nothing(bool logged) const;
  rocksdb::Status begin_new_log() const;
  rocksdb::Status copy(rocksdb::ColumnFamilyHandle* source, rocksdb::ColumnFamilyHandle* target,
                       std::span<const DamagedTable> damaged, uint64_t& rows);
  Expected<Remade> remake(Family family, std::span<const DamagedTable> damaged, const std::string& action);
  void steer_compactions();
};

rocksdb::ColumnFamilyOptions Catalog::Database::options_of(Family which) const {
  static const bool have_lz4 = [] {
    const auto compressions = rocksdb::GetSupportedCompressions();
    return std::ranges::find(compressions, rocksdb::kLZ4Compression) != compressions.end();
  }();
  const bool numbers = which == Family::landmarks || which == Family::states || which == Family::chunks;
  rocksdb::ColumnFamilyOptions options = family_options;
  if (which == Family::landmarks) options.table_factory = scanned_tables;
  options.compression = have_lz4 && !numbers ? rocksdb::kLZ4Compression : rocksdb::kNoCompression;
  return options;
}

// Writes all memtables out, and that of a family which is not in use yet. Needs the gate.
rocksdb::Status Catalog::Database::flush(rocksdb::ColumnFamilyHandle* another) const {
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  const auto held = all_families();
  for (const Handle& handle : held) handles.push_back(handle.get());
  if (names) handles.push_back(names.get());
  if (another != nullptr) handles.push_back(another);
  rocksdb::FlushOptions options;
  options.allow_write_stall = true;  // RocksDB would wait for compactions, which a damaged table stops
  const auto status = db->Flush(options, handles);
  // Once RocksDB 7.8 has resumed, its flushes return before they are done. Those of another resume do not, which before
  // the first one is nothing.
  return status.ok() ? env->resume(*db) : status;
}

Catalog::Catalog(std::unique_ptr<Database> database) : database_(std::move(database)) {}

Catalog::~Catalog() {
  // What fails to be written out here is still in the write-ahead log.
  database_->flush().PermitUncheckedError();
  database_->background_failures->watch(nullptr);
}

Expected<std::unique_ptr<Catalog>> Catalog::open(const CatalogOptions& options) {
  return open(options, false);
}

Expected<std::unique_ptr<Catalog>> Catalog::open(const CatalogOptions& options, bool although_damaged) {
  auto database = std::make_unique<Database>();
  database->directory = options.directory;
  database->env = std::make_unique<CatalogEnv>(options.env != nullptr ? *options.env : *rocksdb::Env::Default());
  database->retry_after = options.retry_after;
  RECALLD_CHECK(check_files(*database->env, options.directory.string()));

  rocksdb::LRUCacheOptions cache;
  cache.capacity = options.cache_bytes;
  cache.num_shard_bits = 2;  // few shards, since a shard must hold the largest block: a page of landmarks
  // A read must not fail because the cache is full, so its bound is not strict; iterators that pin blocks are short.
  cache.strict_capacity_limit = false;
  database->cache = rocksdb::NewLRUCache(cache);
  database->memtables = std::make_shared<rocksdb::WriteBufferManager>(options.memtable_bytes, database->cache);
  database->background_failures = std::make_shared<BackgroundFailures>(*database->env);

  rocksdb::DBOptions db;
  db.env = database->env.get();
  db.create_if_missing = true;
  db.create_missing_column_families = true;
  db.write_buffer_manager = database->memtables;
  db.max_open_files = open_files_max;
  db.max_total_wal_size = wal_bytes_max;
  db.max_manifest_file_size = manifest_bytes_max;
  db.max_background_jobs = 2;
  db.writable_file_max_buffer_size = file_buffer_bytes_max;
  db.stats_dump_period_sec = 0;
  // Files that are read at random make the kernel read nothing ahead all the same, and scans need that it does.
  db.advise_random_on_open = false;
  // What was acknowledged has been synced, so only the log's unacknowledged tail can be torn by a crash, in any way:
  // replay ends there. A mode that refuses a torn tail would refuse to start after every loss of power. That nothing
  // but the tail is torn is what check_files has found.
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  // Without these checks RocksDB opens although tables are damaged or missing.
  db.paranoid_checks = !although_damaged;
  db.file_checksum_gen_factory = rocksdb::GetFileChecksumGenCrc32cFactory();
  db.max_bgerror_resume_count = 0;  // Database::recover does it
  db.listeners.push_back(database->background_failures);
  db.info_log = std::make_shared<Messages>();

  rocksdb::BlockBasedTableOptions table;
  table.block_cache = database->cache;
  table.cache_index_and_filter_blocks = true;
  table.pin_l0_filter_and_index_blocks_in_cache = false;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  // What RocksDB keeps beside the blocks takes room from them.
  for (const auto role : {rocksdb::CacheEntryRole::kBlockBasedTableReader, rocksdb::CacheEntryRole::kFileMetadata,
                          rocksdb::CacheEntryRole::kFilterConstruction})
    table.cache_usage_options.options_overrides[role] = {.charged = rocksdb::CacheEntryRoleOptions::Decision::kEnabled};
  rocksdb::BlockBasedTableOptions scanned_table = table;
  scanned_table.initial_auto_readahead_size = ahead_bytes_first;
  scanned_table.max_auto_readahead_size = ahead_bytes_max;
  database->scanned_tables.reset(rocksdb::NewBlockBasedTableFactory(scanned_table));
  rocksdb::ColumnFamilyOptions& family = database->family_options;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  family.target_file_size_base = table_bytes;
  // The first level is a few times what is merged into it at once, so that little is rewritten for it.
  family.max_bytes_for_level_base = 4 * options.memtable_bytes;
  family.write_buffer_size = options.memtable_bytes / 4;
  family.arena_block_size = size_t{64} << 10;
  family.disable_auto_compactions = although_damaged;

  // RocksDB opens all families that there are or none: those of the catalog, and what remake() has made.
  std::vector<std::string> names;
  const std::string directory = options.directory.string();
  const bool is_there = database->env->FileExists(directory + "/CURRENT").ok();
  const std::string action = "open the catalog in " + directory;
  const auto failed = [&](const rocksdb::Status& status) -> std::unexpected<Error> {
    const std::string message = action + ": " + status.ToString();
    if (status.IsPathNotFound() || status.IsCorruption())
      return fail(ErrorKind::corrupt,
                  message + "; start recalld once with --repair, or restore the store from a backup");
    if (status.IsIOError() && !status.IsNoSpace())
      return fail(ErrorKind::io, message + "; look after its disk and the permissions, and start recalld again");
    return std::unexpected(checked(status, action).error());
  };
  if (is_there) {
    if (const auto listed = rocksdb::DB::ListColumnFamilies(db, directory, &names); !listed.ok()) return failed(listed);
  }
  for (size_t i = 0; i < family_names.size(); ++i) {
    const char* wanted = i == 0 ? rocksdb::kDefaultColumnFamilyName.c_str() : family_names.at(i);
    // A family that was remade goes by another name.
    const bool made = std::ranges::any_of(names, [&](const std::string& name) {
      return name == wanted || name.starts_with(wanted + std::string(1, remade_separator));
    });
    if (!made) names.emplace_back(wanted);
  }
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (const std::string& each : names) {
    const auto which = family_of(each);
    if (!which && each != names_family)
      return fail(ErrorKind::invalid_request,
                  action + ": it has a family " + each + " of a newer version; use the recalld that wrote it");
    uint64_t number = 0;
    if (const size_t at = each.find(remade_separator); at != std::string::npos)
      std::from_chars(each.data() + at + 1, each.data() + each.size(), number);
    database->last_number = std::max(database->last_number, number);
    descriptors.emplace_back(each, database->options_of(which.value_or(Family::counters)));
  }
  rocksdb::DB* opened_db = nullptr;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  const auto status = rocksdb::DB::Open(db, directory, descriptors, &handles, &opened_db);
  database->db.reset(opened_db);
  if (!status.ok()) {
    auto error = failed(status);
    if (error.error().kind != ErrorKind::corrupt || although_damaged) return error;
    // RocksDB does not always say which table it is, nor whether others are damaged.
    db.paranoid_checks = false;
    if (!rocksdb::DB::OpenForReadOnly(db, directory, descriptors, &handles, &opened_db).ok()) return error;
    database->db.reset(opened_db);
    for (auto* handle : handles) opened_db->DestroyColumnFamilyHandle(handle).PermitUncheckedError();
    const auto damaged = damaged_tables(*opened_db, *database->env, database->options_of(Family::counters), family_of);
    if (damaged.empty()) return error;
    const bool mendable = std::ranges::all_of(damaged, [](const auto& each) { return can_be_made_again(each.family); });
    std::string message = action + ": " + std::to_string(damaged.size()) + " of its tables damaged: ";
    for (size_t i = 0; i < std::min(damaged.size(), tables_named_max); ++i) message += damaged[i].text() + "; ";
    return fail(ErrorKind::corrupt,
                message + (mendable ? "start recalld once with --repair, which makes their rows again"
                                    : "restore the store from a backup"));
  }
  database->background_failures->watch(opened_db);
  RECALLD_CHECK(database->settle_families(descriptors, handles));
  RECALLD_CHECK(database->remove_old_logs());
  return std::unique_ptr<Catalog>(new Catalog(std::move(database)));
}

// Finds the family that each Family is, and drops those that a crash has left of a remake.
Expected<void> Catalog::Database::settle_families(const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors,
                                                  const std::vector<rocksdb::ColumnFamilyHandle*>& handles) {
  std::map<std::string, Handle, std::less<>> open;
  for (size_t i = 0; i < handles.size(); ++i) open[descriptors[i].name] = own(handles[i]);
  if (const auto found = open.find(names_family); found != open.end()) {
    names = found->second;
    open.erase(found);
  }
  for (size_t i = 0; i < family_names.size(); ++i) {
    std::string used = i == 0 ? rocksdb::kDefaultColumnFamilyName : family_names.at(i);
    if (names) {
      std::string row;
      const auto status = db->Get(rocksdb::ReadOptions(), names.get(), family_names.at(i), &row);
      if (!status.IsNotFound()) {
        RECALLD_CHECK(checked(status, "read the names of families from the catalog"));
        ByteReader in(row);
        const uint32_t expected = in.u32();
        if (expected != checksum(family_names.at(i), in.rest()))
          return fail(ErrorKind::corrupt, "read row " + std::string(family_names.at(i)) +
                                              " of families in the catalog: checksum mismatch; restore the store from "
                                              "a backup");
        used = in.rest();
      }
    }
    const auto found = open.find(used);
    if (found == open.end())
      return fail(ErrorKind::corrupt, "open the catalog in " + directory.string() + ": the family " + used +
                                          " is missing; restore the store from a backup");
    families.push_back(std::move(found->second));
    in_use.push_back(used);
    open.erase(found);
  }
  for (const auto& [each, handle] : open)
    RECALLD_CHECK(checked(db->DropColumnFamily(handle.get()), "drop family " + each + " of the catalog"));
  return {};
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

// ---- Writing

Catalog::Batch::Batch(const Catalog& catalog) : catalog_(&catalog), changes_(std::make_unique<rocksdb::WriteBatch>()) {
  const std::lock_guard lock(catalog.database_->state_mutex);
  remakes_ = catalog.database_->remakes;
}
Catalog::Batch::~Batch() = default;
Catalog::Batch::Batch(Batch&&) noexcept = default;

bool Catalog::Batch::empty() const {
  return changes_->Count() == 0;
}

// Adding to a batch in memory fails only for a family of another kind, which would be our own mistake.
void Catalog::Batch::put(Family family, std::string_view key, std::string_view value) {
  families_ |= bit(family);
  std::string crc;
  ByteWriter(crc).u32(checksum(key, value));
  const rocksdb::Slice key_part(key.data(), key.size());
  const std::array<rocksdb::Slice, 2> parts{rocksdb::Slice(crc), rocksdb::Slice(value.data(), value.size())};
  changes_->Put(catalog_->database_->family(family).get(), {&key_part, 1}, {parts.data(), parts.size()})
      .PermitUncheckedError();
}

void Catalog::Batch::remove(Family family, std::string_view key) {
  families_ |= bit(family);
  changes_->Delete(catalog_->database_->family(family).get(), {key.data(), key.size()}).PermitUncheckedError();
}

void Catalog::Batch::remove_all(Family family, std::string_view prefix) {
  families_ |= bit(family);
  changes_->DeleteRange(catalog_->database_->family(family).get(), {prefix.data(), prefix.size()}, end_of(prefix))
      .PermitUncheckedError();
}

void Catalog::Batch::remove_range(Family family, std::string_view from, std::string_view to) {
  families_ |= bit(family);
  changes_->DeleteRange(catalog_->database_->family(family).get(), {from.data(), from.size()}, {to.data(), to.size()})
      .PermitUncheckedError();
}

Expected<void> Catalog::write(const Batch& batch) {
  Database& database = *database_;
  const std::lock_guard gate(database.gate);
  if (database.background_failures->any() || database.lacks_space) database.steer_compactions();
  RECALLD_CHECK(database.recover());
  {
    const std::lock_guard lock(database.state_mutex);
    bool exchanged = database.remaking && (batch.families_ & bit(*database.remaking)) != 0;
    for (size_t i = 0; batch.remakes_ != database.remakes && i < family_names.size(); ++i) {
      const auto family = static_cast<Family>(i);
      exchanged = exchanged || (can_be_made_again(family) && (batch.families_ & bit(family)) != 0);
    }
    if (exchanged) return fail(ErrorKind::busy, "write to the catalog: a family is being made anew; try again");
  }
  rocksdb::WriteOptions options;
  options.sync = true;
  options.no_slowdown = true;
  for (;;) {
    const auto status = database.db->Write(options, batch.changes_.get());
    if (status.ok()) return {};
    // RocksDB would wait by itself until it has written out or compacted enough, and not be told when to give up.
    if (!status.IsIncomplete()) return std::unexpected(database.note_failure(status));
    std::this_thread::sleep_for(stall_wait);
    database.steer_compactions();
  }
}

Expected<void> Catalog::ready() {
  const std::lock_guard gate(database_->gate);
  return database_->recover();
}

std::optional<Error> Catalog::refuses_writes() const {
  const std::lock_guard lock(database_->state_mutex);
  return database_->failure;
}

// Keeps what failed, so that no write goes on before it is known to be safe.
Error Catalog::Database::note_failure(const rocksdb::Status& status) {
  Error error{kind_of(status), "write to the catalog: " + status.ToString()};
  error.message += error.kind == ErrorKind::full
                       ? "; make room on its disk: writing goes on then"
                       : "; nothing more is written until it is opened again: look after its disk and restart recalld";
  const std::lock_guard lock(state_mutex);
  if (failure && failure->kind != ErrorKind::full) return *failure;
  // A full disk is the lesser failure: it ends.
  if (!failure) tried = Clock::now();
  failure = error;
  return error;
}

// Whether a write may go on. After the disk was full it may when, now, all that is acknowledged can be written to
// tables: the log may end in a record that failed, torn or whole, which must neither be replayed nor stand before
// others. So a new log begins, and the old one is removed before the next write. Needs the gate.
Expected<void> Catalog::Database::recover() {
  {
    const std::lock_guard lock(state_mutex);
    if (!failure) return {};
    if (failure->kind != ErrorKind::full || Clock::now() - tried < retry_after) return std::unexpected(*failure);
    tried = Clock::now();
  }
  background_failures->flush_failed = false;
  background_failures->recovering = true;
  const auto status = begin_new_log();
  background_failures->recovering = false;
  if (!status.ok()) return std::unexpected(note_failure(status));
  const auto removed = remove_old_logs();
  const std::lock_guard lock(state_mutex);
  if (!removed) {
    if (removed.error().kind != ErrorKind::full) failure = removed.error();
    return removed;
  }
  failure.reset();
  return {};
}

// Removes a row that never is: so that there is something to write out, and a new log begins.
rocksdb::Status Catalog::Database::write_nothing(bool logged) const {
  rocksdb::WriteOptions options;
  options.disableWAL = !logged;
  options.sync = logged;
  return db->Delete(options, family(Family::counters).get(), rocksdb::Slice());
}

// Resumes, with everything written out and a new log begun.
rocksdb::Status Catalog::Database::begin_new_log() const {
  std::unique_ptr<rocksdb::LogFile> before, after;
  rocksdb::Status status = db->GetCurrentWalFile(&before);
  if (status.ok()) status = env->resume(*db);
  if (status.ok()) status = db->GetCurrentWalFile(&after);
  if (!status.ok() || after->LogNumber() != before->LogNumber()) return status;
  // There was nothing to write out, and so there is no new log.
  status = write_nothing(false);
  if (!status.ok()) return status;
  // The writer of the failed log refuses to let go of it; resuming overrules that.
  status = flush();
  return status.ok() ? status : env->resume(*db);
}

// Stops compacting the families of which a compaction has failed, so that RocksDB neither tries without end nor holds
// writes back until it succeeds. Those that lacked space are tried again after a while.
void Catalog::Database::steer_compactions() {
  std::vector<std::pair<Handle, bool>> changes;
  {
    const auto failures = background_failures->take();
    const std::lock_guard lock(state_mutex);
    if (lacks_space && Clock::now() - paused_at >= retry_after * space_waits) {
      lacks_space = false;
      std::erase_if(paused, [&](const auto& each) {
        if (each.second != BackgroundFailures::Cause::full) return false;
        changes.emplace_back(families.at(static_cast<size_t>(each.first)), false);
        return true;
      });
    }
    for (const auto& [rocksdb_name, cause] : failures) {
      const auto found = std::ranges::find(in_use, rocksdb_name);
      if (found == in_use.end()) continue;
      const auto which = static_cast<Family>(found - in_use.begin());
      paused[which] = cause;
      if (cause == BackgroundFailures::Cause::full) {
        lacks_space = true;
        paused_at = Clock::now();
      }
      changes.emplace_back(families.at(static_cast<size_t>(which)), true);
    }
  }
  for (const auto& [handle, pause] : changes)
    db->SetOptions(handle.get(), {{"disable_auto_compactions", pause ? "true" : "false"}}).PermitUncheckedError();
}

// ---- Reading

Expected<std::optional<std::string>> Catalog::get(Family family, std::string_view key) const {
  rocksdb::PinnableSlice stored;
  const auto handle = database_->family(family);
  const auto status = database_->db->Get(rocksdb::ReadOptions(), handle.get(), {key.data(), key.size()}, &stored);
  if (status.IsNotFound()) return std::nullopt;
  if (!status.ok())
    RECALLD_CHECK(
        checked(status, "read row " + printable(key) + " of " + std::string(name(family)) + " in the catalog"));
  RECALLD_TRY(const std::string_view value, opened(family, key, {stored.data(), stored.size()}));
  return std::string(value);
}

struct Catalog::Cursor::Bounds {
  std::string from;
  std::string to;
  rocksdb::Slice from_slice;
  rocksdb::Slice to_slice;
};

Catalog::Cursor::Cursor(Family family, std::unique_ptr<Bounds> bounds, std::unique_ptr<rocksdb::Iterator> rows)
    : family_(family), bounds_(std::move(bounds)), rows_(std::move(rows)) {}
Catalog::Cursor::~Cursor() = default;
Catalog::Cursor::Cursor(Cursor&&) noexcept = default;

Catalog::Cursor Catalog::cursor(Family family, std::string_view prefix) const {
  auto bounds = std::make_unique<Cursor::Bounds>();
  bounds->from = prefix;
  bounds->to = end_of(prefix);
  bounds->from_slice = bounds->from;
  bounds->to_slice = bounds->to;
  rocksdb::ReadOptions options;
  options.iterate_lower_bound = &bounds->from_slice;
  if (!bounds->to.empty()) options.iterate_upper_bound = &bounds->to_slice;
  // Landmarks have a cache of their own, and a state is read once.
  options.fill_cache = family != Family::landmarks && family != Family::states;
  // Rows have a checksum of their own: of a block that holds but one large row, one is enough.
  options.verify_checksums = family != Family::landmarks;
  std::unique_ptr<rocksdb::Iterator> rows(database_->db->NewIterator(options, database_->family(family).get()));
  return {family, std::move(bounds), std::move(rows)};
}

Expected<bool> Catalog::Cursor::check() {
  if (!rows_->Valid()) {
    // RocksDB does not say which row it could not read.
    if (!rows_->status().ok())
      RECALLD_CHECK(checked(rows_->status(), "read rows " + printable(bounds_->from) + " of " +
                                                 std::string(name(family_)) + " in the catalog"));
    return false;
  }
  RECALLD_TRY(value_, opened(family_, key(), {rows_->value().data(), rows_->value().size()}));
  return true;
}

Expected<bool> Catalog::Cursor::first() {
  rows_->SeekToFirst();
  return check();
}

Expected<bool> Catalog::Cursor::seek(std::string_view key) {
  rows_->Seek({key.data(), key.size()});
  return check();
}

Expected<bool> Catalog::Cursor::seek_before(std::string_view key) {
  rows_->SeekForPrev({key.data(), key.size()});
  return check();
}

Expected<bool> Catalog::Cursor::next() {
  rows_->Next();
  return check();
}

bool Catalog::Cursor::on_row() const {
  return rows_->Valid();
}

std::string_view Catalog::Cursor::key() const {
  return {rows_->key().data(), rows_->key().size()};
}

// ---- Damage

Expected<std::vector<DamagedTable>> Catalog::verify() const {
  const Database& database = *database_;
  return damaged_tables(*database.db, *database.env, database.options_of(Family::counters),
                        [&](const std::string& rocksdb_name) { return database.family_named(rocksdb_name); });
}

std::vector<Family> Catalog::uncompacted() const {
  database_->steer_compactions();
  const std::lock_guard lock(database_->state_mutex);
  std::vector<Family> families;
  for (const auto& [family, cause] : database_->paused) {
    if (cause == BackgroundFailures::Cause::damaged) families.push_back(family);
  }
  return families;
}

namespace {

// Keys from the first to the last one, both included.
struct KeyRange {
  std::string first;
  std::string last;
};

// What lies between the ranges: from a key, to before another; an empty `to` is the end.
std::vector<std::pair<std::string, std::string>> outside(std::vector<KeyRange> ranges) {
  std::ranges::sort(ranges, {}, &KeyRange::first);
  std::vector<std::pair<std::string, std::string>> gaps;
  std::string from;
  for (const KeyRange& range : ranges) {
    if (from < range.first) gaps.emplace_back(from, range.first);
    from = std::max(from, range.last + '\0');  // the next key there can be
  }
  gaps.emplace_back(from, "");
  return gaps;
}

}  // namespace

// Copies the rows outside the damaged tables' keys from one family to another, which is in no log: it counts once it
// is written out.
rocksdb::Status Catalog::Database::copy(rocksdb::ColumnFamilyHandle* source, rocksdb::ColumnFamilyHandle* target,
                                        std::span<const DamagedTable> damaged, uint64_t& rows) {
  std::vector<KeyRange> ranges;
  std::vector<std::string> files;
  for (const DamagedTable& table : damaged) {
    ranges.push_back({table.first_key, table.last_key});
    files.push_back(std::filesystem::path(table.file).filename());
  }
  const std::vector<uint64_t> skipped = numbers(files, "", ".sst");
  rocksdb::WriteOptions unlogged;
  unlogged.disableWAL = true;
  rocksdb::WriteBatch batch;
  for (const auto& [from, to] : outside(ranges)) {
    const rocksdb::Slice lower(from), upper(to);
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    options.table_filter = [&](const rocksdb::TableProperties& table) {
      return !std::ranges::binary_search(skipped, table.orig_file_number);
    };
    options.iterate_lower_bound = &lower;
    if (!to.empty()) options.iterate_upper_bound = &upper;
    const std::unique_ptr<rocksdb::Iterator> row(db->NewIterator(options, source));
    for (row->SeekToFirst(); row->Valid(); row->Next()) {
      const std::string_view key(row->key().data(), row->key().size());
      ByteReader value({row->value().data(), row->value().size()});
      const uint32_t expected = value.u32();
      if (!value.ok() || expected != checksum(key, value.rest())) continue;
      auto status = batch.Put(target, row->key(), row->value());
      ++rows;
      if (status.ok() && batch.GetDataSize() >= copy_batch_bytes) {
        status = db->Write(unlogged, &batch);
        batch.Clear();
      }
      if (!status.ok()) return status;
    }
    if (!row->status().ok()) return row->status();
  }
  const auto status = db->Write(unlogged, &batch);
  if (!status.ok()) return status;
  const std::lock_guard alone(gate);
  return flush(target);
}

Expected<Catalog::Remade> Catalog::remake(Family family, std::span<const DamagedTable> damaged) {
  Database& database = *database_;
  const std::string action = "remake " + std::string(recalld::name(family)) + " of the catalog";
  if (!can_be_made_again(family)) return fail(ErrorKind::internal, action + ": it is the journal's");
  {
    const std::lock_guard alone(database.gate);
    const std::lock_guard lock(database.state_mutex);
    if (database.failure) return std::unexpected(*database.failure);
    if (database.remaking) return fail(ErrorKind::busy, action + ": another one is at work; try again");
    database.remaking = family;
  }
  auto remade = database.remake(family, damaged, action);
  const std::lock_guard lock(database.state_mutex);
  database.remaking.reset();
  return remade;
}

Expected<Catalog::Remade> Catalog::Database::remake(Family family, std::span<const DamagedTable> damaged,
                                                    const std::string& action) {
  const Handle old = this->family(family);
  const std::string plain(recalld::name(family));
  const auto make = [&](const std::string& name, const rocksdb::ColumnFamilyOptions& options) -> Expected<Handle> {
    rocksdb::ColumnFamilyHandle* made = nullptr;
    const auto status = db->CreateColumnFamily(options, name, &made);
    if (!status.ok()) return std::unexpected(note_failure(status).within(action));
    return own(made);
  };
  const auto drop = [&](Handle& handle) {
    // What cannot be dropped now is dropped by the next open.
    db->DropColumnFamily(handle.get()).PermitUncheckedError();
    handle.reset();
  };
  const auto make_next = [&] {
    return make(plain + remade_separator + std::to_string(++last_number), options_of(family));
  };
  if (!names) {
    RECALLD_TRY(names, make(names_family, family_options));
  }

  Remade result;
  RECALLD_TRY(Handle fresh, make_next());
  auto status = copy(old.get(), fresh.get(), damaged, result.rows_kept);
  if (status.IsCorruption() || (status.IsIOError() && !status.IsNoSpace())) {
    drop(fresh);
    RECALLD_TRY(fresh, make_next());
    result = {.rows_kept = 0, .all_dropped = true};
    status = rocksdb::Status::OK();
  }
  if (!status.ok()) {
    drop(fresh);
    return std::unexpected(checked(status, action).error());
  }

  // From this row on the new family is the one. When it fails it may be in the log all the same, so both families stay
  // until an open has seen which one it names.
  const std::string new_name = fresh->GetName();
  std::string row;
  ByteWriter(row).u32(checksum(plain, new_name));
  row += new_name;
  rocksdb::WriteOptions synced;
  synced.sync = true;
  {
    const std::lock_guard alone(gate);
    status = db->Put(synced, names.get(), plain, row);
    if (!status.ok()) return std::unexpected(note_failure(status).within(action));
    const std::lock_guard lock(state_mutex);
    families.at(static_cast<size_t>(family)) = fresh;
    in_use.at(static_cast<size_t>(family)) = new_name;
    paused.erase(family);
    ++remakes;
  }
  db->DropColumnFamily(old.get()).PermitUncheckedError();
  return result;
}

Expected<std::vector<DamagedTable>> Catalog::mend(const CatalogOptions& options) {
  RECALLD_TRY(const auto catalog, open(options, true));
  RECALLD_TRY(auto damaged, catalog->verify());
  for (const DamagedTable& table : damaged) {
    if (!can_be_made_again(table.family))
      return fail(ErrorKind::corrupt,
                  "mend the catalog: " + table.text() + "; it cannot be made again: restore the store from a backup");
  }
  for (size_t i = 0; i < family_names.size(); ++i) {
    const auto family = static_cast<Family>(i);
    std::vector<DamagedTable> tables;
    std::ranges::copy_if(damaged, std::back_inserter(tables), [&](const auto& each) { return each.family == family; });
    if (!tables.empty()) RECALLD_CHECK(catalog->remake(family, tables));
  }
  return damaged;
}

// ---- Space

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
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  uint64_t bytes = 0;
  for (const Range& range : ranges) {
    const auto family = database_->family(range.family);
    const std::string which = std::string(name(range.family)) + " of the catalog";
    const rocksdb::Slice from(range.from), to(range.to);
    rocksdb::ColumnFamilyMetaData tables;
    db.GetColumnFamilyMetaData(family.get(), &tables);
    for (const auto& level : tables.levels) {
      for (const auto& table : level.files)
        if (table.smallestkey < range.to && table.largestkey >= range.from) bytes += table.size;
    }
    RECALLD_CHECK(checked(db.CompactRange(options, family.get(), &from, &to), "compact " + which));
  }
  RECALLD_CHECK(database_->wait_for_removals());
  return bytes;
}

// Writes everything out and removes the logs before the current one. Needs the gate.
Expected<void> Catalog::Database::drop_logs() {
  const std::string action = "reclaim the logs of the catalog";
  // Families of which nothing is to be written out let go of an old log only when a new one begins, which it does only
  // when something stands in the current one.
  if (const auto status = write_nothing(true); !status.ok()) return std::unexpected(note_failure(status));
  if (const auto status = flush(); !status.ok()) return std::unexpected(note_failure(status));
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

}  // namespace recalld
