#include "memstore/catalog.h"

#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <rocksdb/write_buffer_manager.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/crc32c.h"

namespace recalld {
namespace {

constexpr std::array family_names{"counters", "memories",  "turns",  "tokens",  "operations",
                                  "chunks",   "landmarks", "states", "postings"};

// Bounds of what RocksDB holds open or keeps beside its tables.
constexpr int open_files_max = 64;
constexpr size_t file_buffer_bytes_max = size_t{256} << 10;
constexpr uint64_t table_bytes = uint64_t{8} << 20;  // of a file, so that its index and filter stay small
// A walk over landmarks lets the kernel read so far ahead, into the page cache, while it computes.
constexpr size_t ahead_bytes_first = size_t{512} << 10, ahead_bytes_max = size_t{2} << 20;
constexpr uint64_t wal_bytes_max = uint64_t{64} << 20;
constexpr size_t log_file_bytes_max = size_t{1} << 20;
constexpr uint64_t manifest_bytes_max = uint64_t{4} << 20;

Expected<void> checked(const rocksdb::Status& status, std::string_view action) {
  if (status.ok()) return {};
  const std::string message = std::string(action) + " the catalog: " + status.ToString();
  if (status.IsCorruption()) return fail(ErrorKind::corrupt, message + "; run recall verify");
  if (status.IsNoSpace()) return fail(ErrorKind::full, message + "; make room on its disk");
  // RocksDB takes no more writes after one that failed, until it is opened again.
  if (status.IsIOError()) return fail(ErrorKind::io, message + "; look after its disk and restart recalld");
  if (status.IsBusy() || status.IsTryAgain()) return fail(ErrorKind::busy, message + "; try again");
  return fail(ErrorKind::internal, message);
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

Expected<std::string_view> opened(Family family, std::string_view key, std::string_view stored) {
  ByteReader in(stored);
  const uint32_t expected = in.u32();
  if (!in.ok() || expected != checksum(key, in.rest()))
    return fail(ErrorKind::corrupt, "read row " + printable(key) + " of " + std::string(name(family)) +
                                        " in the catalog: checksum mismatch; run recall verify");
  return in.rest();
}

}  // namespace

std::string_view name(Family family) {
  return family_names.at(static_cast<size_t>(family));
}

struct Catalog::Database {
  std::filesystem::path directory;
  std::shared_ptr<rocksdb::Cache> cache;
  std::shared_ptr<rocksdb::WriteBufferManager> memtables;
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> families;  // by Family; owned, and freed before `db`

  rocksdb::ColumnFamilyHandle* family(Family which) const { return families.at(static_cast<size_t>(which)); }
  ~Database() {
    for (auto* handle : families) db->DestroyColumnFamilyHandle(handle);
  }
};

Catalog::Catalog(std::unique_ptr<Database> database) : database_(std::move(database)) {}

Catalog::~Catalog() {
  // What fails to be written out here is still in the write-ahead log.
  database_->db->Flush(rocksdb::FlushOptions(), database_->families).PermitUncheckedError();
}

Expected<std::unique_ptr<Catalog>> Catalog::open(const CatalogOptions& options) {
  auto database = std::make_unique<Database>();
  database->directory = options.directory;
  rocksdb::LRUCacheOptions cache;
  cache.capacity = options.cache_bytes;
  cache.num_shard_bits = 2;  // few shards, since a shard must hold the largest block: a page of landmarks
  // A read must not fail because the cache is full, so its bound is not strict; iterators that pin blocks are short.
  cache.strict_capacity_limit = false;
  database->cache = rocksdb::NewLRUCache(cache);
  database->memtables = std::make_shared<rocksdb::WriteBufferManager>(options.memtable_bytes, database->cache);

  rocksdb::DBOptions db;
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
  // replay ends there. A mode that refuses a torn tail would refuse to start after every loss of power.
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  db.paranoid_checks = true;
  db.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  db.max_log_file_size = log_file_bytes_max;
  db.keep_log_file_num = 2;

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
  rocksdb::ColumnFamilyOptions family;
  const std::shared_ptr<rocksdb::TableFactory> tables(rocksdb::NewBlockBasedTableFactory(table));
  const std::shared_ptr<rocksdb::TableFactory> scanned_tables(rocksdb::NewBlockBasedTableFactory(scanned_table));
  family.target_file_size_base = table_bytes;
  // The first level is a few times what is merged into it at once, so that little is rewritten for it.
  family.max_bytes_for_level_base = 4 * options.memtable_bytes;
  family.write_buffer_size = options.memtable_bytes / 4;
  family.arena_block_size = size_t{64} << 10;
  const auto compressions = rocksdb::GetSupportedCompressions();
  const bool have_lz4 = std::ranges::find(compressions, rocksdb::kLZ4Compression) != compressions.end();

  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (size_t i = 0; i < family_names.size(); ++i) {
    const auto which = static_cast<Family>(i);
    const bool numbers = which == Family::landmarks || which == Family::states || which == Family::chunks;
    family.table_factory = which == Family::landmarks ? scanned_tables : tables;
    family.compression = have_lz4 && !numbers ? rocksdb::kLZ4Compression : rocksdb::kNoCompression;
    descriptors.emplace_back(i == 0 ? rocksdb::kDefaultColumnFamilyName : family_names[i], family);
  }
  rocksdb::DB* opened_db = nullptr;
  const auto status = rocksdb::DB::Open(db, options.directory.string(), descriptors, &database->families, &opened_db);
  database->db.reset(opened_db);
  RECALLD_CHECK(checked(status, "open"));
  return std::unique_ptr<Catalog>(new Catalog(std::move(database)));
}

// ---- Writing

Catalog::Batch::Batch(const Catalog& catalog) : catalog_(&catalog), changes_(std::make_unique<rocksdb::WriteBatch>()) {}
Catalog::Batch::~Batch() = default;
Catalog::Batch::Batch(Batch&&) noexcept = default;

bool Catalog::Batch::empty() const {
  return changes_->Count() == 0;
}

// Adding to a batch in memory fails only for a family of another kind, which would be our own mistake.
void Catalog::Batch::put(Family family, std::string_view key, std::string_view value) {
  std::string crc;
  ByteWriter(crc).u32(checksum(key, value));
  const rocksdb::Slice key_part(key.data(), key.size());
  const std::array<rocksdb::Slice, 2> parts{rocksdb::Slice(crc), rocksdb::Slice(value.data(), value.size())};
  changes_->Put(catalog_->database_->family(family), {&key_part, 1}, {parts.data(), parts.size()})
      .PermitUncheckedError();
}

void Catalog::Batch::remove(Family family, std::string_view key) {
  changes_->Delete(catalog_->database_->family(family), {key.data(), key.size()}).PermitUncheckedError();
}

void Catalog::Batch::remove_all(Family family, std::string_view prefix) {
  changes_->DeleteRange(catalog_->database_->family(family), {prefix.data(), prefix.size()}, end_of(prefix))
      .PermitUncheckedError();
}

void Catalog::Batch::remove_range(Family family, std::string_view from, std::string_view to) {
  changes_->DeleteRange(catalog_->database_->family(family), {from.data(), from.size()}, {to.data(), to.size()})
      .PermitUncheckedError();
}

Expected<void> Catalog::write(const Batch& batch) {
  rocksdb::WriteOptions options;
  options.sync = true;
  return checked(database_->db->Write(options, batch.changes_.get()), "write to");
}

// ---- Reading

Expected<std::optional<std::string>> Catalog::get(Family family, std::string_view key) const {
  rocksdb::PinnableSlice stored;
  const auto status =
      database_->db->Get(rocksdb::ReadOptions(), database_->family(family), {key.data(), key.size()}, &stored);
  if (status.IsNotFound()) return std::nullopt;
  RECALLD_CHECK(checked(status, "read " + std::string(name(family)) + " from"));
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
  std::unique_ptr<rocksdb::Iterator> rows(database_->db->NewIterator(options, database_->family(family)));
  return {family, std::move(bounds), std::move(rows)};
}

Expected<bool> Catalog::Cursor::check() {
  if (!rows_->Valid()) {
    RECALLD_CHECK(checked(rows_->status(), "read " + std::string(name(family_)) + " from"));
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

std::string_view Catalog::Cursor::key() const {
  return {rows_->key().data(), rows_->key().size()};
}

// ---- Space

Catalog::Range Catalog::all_of(Family family, std::string_view prefix) {
  return {family, std::string(prefix), end_of(prefix), true};
}

Expected<uint64_t> Catalog::reclaim(std::span<const Range> ranges) {
  auto& db = *database_->db;
  RECALLD_CHECK(checked(db.Flush(rocksdb::FlushOptions(), database_->families), "flush"));
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  uint64_t bytes = 0;
  for (const Range& range : ranges) {
    auto* const family = database_->family(range.family);
    const rocksdb::Slice from(range.from), to(range.to);
    rocksdb::ColumnFamilyMetaData tables;
    db.GetColumnFamilyMetaData(family, &tables);
    for (const auto& level : tables.levels) {
      for (const auto& table : level.files)
        if (table.smallestkey < range.to && table.largestkey >= range.from) bytes += table.size;
    }
    // Files that hold nothing else go at once; what is left is rewritten.
    if (range.empty)
      RECALLD_CHECK(checked(rocksdb::DeleteFilesInRange(&db, family, &from, &to, false), "reclaim files of"));
    RECALLD_CHECK(checked(db.CompactRange(options, family, &from, &to), "compact"));
  }
  return bytes;
}

Expected<void> Catalog::with_files(const std::function<Expected<void>(std::span<const File>)>& use) const {
  auto& db = *database_->db;
  RECALLD_CHECK(checked(db.DisableFileDeletions(), "keep the files of"));
  const auto used = [&]() -> Expected<void> {
    // The log is copied as far as it has come, so that nothing is written out for the copy's sake.
    rocksdb::LiveFilesStorageInfoOptions options;
    options.wal_size_for_flush = std::numeric_limits<uint64_t>::max();
    std::vector<rocksdb::LiveFileStorageInfo> live;
    RECALLD_CHECK(checked(db.GetLiveFilesStorageInfo(options, &live), "list the files of"));
    std::vector<File> files;
    for (rocksdb::LiveFileStorageInfo& file : live) {
      File& into = files.emplace_back(file.relative_filename, file.size, !file.trim_to_size);
      if (!file.replacement_contents.empty()) into.contents = std::move(file.replacement_contents);
    }
    return use(files);
  }();
  const auto released = checked(db.EnableFileDeletions(false), "release the files of");
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
