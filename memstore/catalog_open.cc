// Opening the catalog: what is checked before RocksDB sees the files, how RocksDB is set up, and which of its column
// families is which.

#include <rocksdb/convenience.h>
#include <rocksdb/file_checksum.h>
#include <rocksdb/filter_policy.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <utility>

#include "memstore/catalog_impl.h"
#include "memstore/wal_check.h"

namespace recalld {
namespace {

// Bounds of what RocksDB holds open or keeps beside its tables.
constexpr int open_files_max = 64;
constexpr size_t file_buffer_bytes_max = size_t{256} << 10;
constexpr uint64_t table_bytes = uint64_t{8} << 20;  // of a file, so that its index and filter stay small
// A walk over landmarks lets the kernel read so far ahead, into the page cache, while it computes.
constexpr size_t ahead_bytes_first = size_t{512} << 10, ahead_bytes_max = size_t{1} << 20;
constexpr size_t posting_block_bytes = size_t{8} << 10;
constexpr uint64_t wal_bytes_max = uint64_t{64} << 20;
constexpr uint64_t manifest_bytes_max = uint64_t{4} << 20;
constexpr size_t tables_named_max = 8;  // in one message

// ---- The files, before RocksDB sees them

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

// ---- How RocksDB is set up

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

std::shared_ptr<rocksdb::Cache> cache_of(size_t bytes) {
  rocksdb::LRUCacheOptions cache;
  cache.capacity = bytes;
  cache.num_shard_bits = 2;  // few shards, since a shard must hold the largest block: a page of landmarks
  // A read must not fail because the cache is full, so its bound is not strict; iterators that pin blocks are short.
  cache.strict_capacity_limit = false;
  return rocksdb::NewLRUCache(cache);
}

rocksdb::DBOptions database_options(rocksdb::Env& env, bool although_damaged) {
  rocksdb::DBOptions db;
  db.env = &env;
  db.create_if_missing = true;
  db.create_missing_column_families = true;
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
  db.info_log = std::make_shared<Messages>();
  return db;
}

rocksdb::BlockBasedTableOptions table_options(const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.pin_l0_filter_and_index_blocks_in_cache = false;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  // What RocksDB keeps beside the blocks takes room from them.
  for (const auto role : {rocksdb::CacheEntryRole::kBlockBasedTableReader, rocksdb::CacheEntryRole::kFileMetadata,
                          rocksdb::CacheEntryRole::kFilterConstruction})
    table.cache_usage_options.options_overrides[role] = {.charged = rocksdb::CacheEntryRoleOptions::Decision::kEnabled};
  return table;
}

// What names a database and what was done, with what to do when it failed.
std::unexpected<Error> not_opened(const std::string& action, const rocksdb::Status& status) {
  const std::string message = action + ": " + status.ToString();
  if (status.IsPathNotFound() || status.IsCorruption())
    return fail(ErrorKind::corrupt, message + "; start recalld once with --repair, or restore the store from a backup");
  if (status.IsIOError() && !status.IsNoSpace())
    return fail(ErrorKind::io, message + "; look after its disk and the permissions, and start recalld again");
  return std::unexpected(checked(status, action).error());
}

// The error that names the damaged tables, of which RocksDB does not always say which they are, nor how many.
std::unexpected<Error> damage(const std::string& action, std::span<const DamagedTable> damaged) {
  const bool mendable = std::ranges::all_of(damaged, [](const auto& each) { return can_be_made_again(each.family); });
  std::string message = action + ": " + std::to_string(damaged.size()) + " of its tables damaged: ";
  for (const DamagedTable& table : damaged.first(std::min(damaged.size(), tables_named_max)))
    message += table.text() + "; ";
  return fail(ErrorKind::corrupt, message + (mendable ? "start recalld once with --repair, which makes their rows again"
                                                      : "restore the store from a backup"));
}

}  // namespace

rocksdb::ColumnFamilyOptions Catalog::Database::options_of(Family which) const {
  static const bool have_lz4 = [] {
    const auto compressions = rocksdb::GetSupportedCompressions();
    return std::ranges::find(compressions, rocksdb::kLZ4Compression) != compressions.end();
  }();
  const bool numbers = which == Family::landmarks || which == Family::states || which == Family::chunks;
  rocksdb::ColumnFamilyOptions options = family_options;
  if (which == Family::landmarks) options.table_factory = scanned_tables;
  if (which == Family::postings) options.table_factory = posting_tables;
  options.compression = have_lz4 && !numbers ? rocksdb::kLZ4Compression : rocksdb::kNoCompression;
  return options;
}

// ---- Open

Expected<std::unique_ptr<Catalog>> Catalog::open(const CatalogOptions& options) {
  return open(options, false);
}

Expected<std::unique_ptr<Catalog>> Catalog::open(const CatalogOptions& options, bool although_damaged) {
  auto database = std::make_unique<Database>();
  database->directory = options.directory;
  database->retry_after = options.retry_after;
  database->env = std::make_unique<CatalogEnv>(options.env != nullptr ? *options.env : *rocksdb::Env::Default());
  RECALLD_CHECK(check_files(*database->env, options.directory.string()));

  database->cache = cache_of(options.cache_bytes);
  database->memtables = std::make_shared<rocksdb::WriteBufferManager>(options.memtable_bytes, database->cache);
  database->background_failures = std::make_shared<BackgroundFailures>(*database->env);
  rocksdb::DBOptions db = database_options(*database->env, although_damaged);
  db.write_buffer_manager = database->memtables;
  db.listeners.push_back(database->background_failures);
  database->set_up_families(options.memtable_bytes, although_damaged);

  const std::string directory = options.directory.string();
  const std::string action = "open the catalog in " + directory;
  RECALLD_TRY(const auto descriptors, database->families_to_open(db, action));
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  const auto status = rocksdb::DB::Open(db, directory, descriptors, &handles, &opened);
  database->db.reset(opened);
  if (!status.ok()) {
    auto error = not_opened(action, status);
    if (error.error().kind != ErrorKind::corrupt || although_damaged) return error;
    db.paranoid_checks = false;
    if (!rocksdb::DB::OpenForReadOnly(db, directory, descriptors, &handles, &opened).ok()) return error;
    database->db.reset(opened);
    for (auto* handle : handles) opened->DestroyColumnFamilyHandle(handle).PermitUncheckedError();
    const auto damaged = damaged_tables(*opened, *database->env, database->options_of(Family::counters), family_of);
    return damaged.empty() ? error : damage(action, damaged);
  }
  database->background_failures->watch(opened);
  RECALLD_CHECK(database->settle_families(descriptors, handles));
  RECALLD_CHECK(database->remove_old_logs());
  return std::unique_ptr<Catalog>(new Catalog(std::move(database)));
}

void Catalog::Database::set_up_families(uint64_t memtable_bytes, bool although_damaged) {
  rocksdb::BlockBasedTableOptions table = table_options(cache);
  rocksdb::ColumnFamilyOptions& family = family_options;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  family.target_file_size_base = table_bytes;
  // The first level is a few times what is merged into it at once, so that little is rewritten for it.
  family.max_bytes_for_level_base = 4 * memtable_bytes;
  family.write_buffer_size = memtable_bytes / 4;
  family.arena_block_size = size_t{64} << 10;
  family.disable_auto_compactions = although_damaged;
  table.initial_auto_readahead_size = ahead_bytes_first;
  table.max_auto_readahead_size = ahead_bytes_max;
  scanned_tables.reset(rocksdb::NewBlockBasedTableFactory(table));
  // No filter: one row is never asked for alone. Larger blocks make a smaller index of so many rows.
  rocksdb::BlockBasedTableOptions postings = table_options(cache);
  postings.filter_policy.reset();
  postings.block_size = posting_block_bytes;
  posting_tables.reset(rocksdb::NewBlockBasedTableFactory(postings));
}

// RocksDB opens all families that there are or none: those of the catalog, and what remake() has made.
Expected<std::vector<rocksdb::ColumnFamilyDescriptor>> Catalog::Database::families_to_open(
    const rocksdb::DBOptions& options, const std::string& action) {
  std::vector<std::string> there;
  if (env->FileExists((directory / "CURRENT").string()).ok()) {
    const auto listed = rocksdb::DB::ListColumnFamilies(options, directory.string(), &there);
    if (!listed.ok()) return not_opened(action, listed);
  }
  for (size_t i = 0; i < family_names.size(); ++i) {
    const char* wanted = i == 0 ? rocksdb::kDefaultColumnFamilyName.c_str() : family_names.at(i);
    // A family that was remade goes by another name.
    const bool made = std::ranges::any_of(there, [&](const std::string& name) {
      return name == wanted || name.starts_with(wanted + std::string(1, remade_separator));
    });
    if (!made) there.emplace_back(wanted);
  }
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (const std::string& each : there) {
    const auto which = family_of(each);
    if (!which && each != names_family)
      return fail(ErrorKind::invalid_request,
                  action + ": it has a family " + each + " of a newer version; use the recalld that wrote it");
    uint64_t number = 0;
    if (const size_t at = each.find(remade_separator); at != std::string::npos)
      std::from_chars(each.data() + at + 1, each.data() + each.size(), number);
    last_number = std::max(last_number, number);
    descriptors.emplace_back(each, options_of(which.value_or(Family::counters)));
  }
  return descriptors;
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

}  // namespace recalld
