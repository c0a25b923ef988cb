// Damage in the catalog's tables: finding it, and making families anew that follow from the journal.

#include <rocksdb/convenience.h>
#include <rocksdb/file_checksum.h>
#include <rocksdb/table_properties.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <utility>

#include "base/crc32c.h"
#include "memstore/catalog_impl.h"

namespace recalld {
namespace {

constexpr size_t copy_batch_bytes = size_t{1} << 20;

}  // namespace

bool can_be_made_again(Family family) {
  switch (family) {
    case Family::chunks:
    case Family::landmarks:
    case Family::states:
    case Family::postings:
    case Family::attributes:
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
  auto status = rocksdb::Status::OK();
  if (family == Family::attributes)
    result.all_dropped = true;  // there, a row that is missing says something
  else
    status = copy(old.get(), fresh.get(), damaged, result.rows_kept);
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
    remade.at(static_cast<size_t>(family)) = ++remakes;
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

}  // namespace recalld
