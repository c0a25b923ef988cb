// Writing to the catalog, recovering from a write that failed, and reading.

#include "memstore/catalog.h"

#include <rocksdb/write_batch.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <thread>
#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "memstore/catalog_impl.h"

namespace recalld {
namespace {

constexpr int space_waits = 10;  // a compaction without space waits so many times longer than a write

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

}  // namespace

// ---- What the parts share

std::string_view name(Family family) {
  return family_names.at(static_cast<size_t>(family));
}

ErrorKind kind_of(const rocksdb::Status& status) {
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit) return ErrorKind::full;
  if (status.IsCorruption()) return ErrorKind::corrupt;
  if (status.IsIOError()) return ErrorKind::io;
  if (status.IsBusy() || status.IsTryAgain()) return ErrorKind::busy;
  return ErrorKind::internal;
}

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

std::string end_of(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (!end.empty()) end.back() = static_cast<char>(end.back() + 1);
  return end;
}

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

std::optional<Family> family_of(std::string_view rocksdb_name) {
  if (rocksdb_name == rocksdb::kDefaultColumnFamilyName) return Family::counters;
  const auto found = std::ranges::find(family_names, rocksdb_name.substr(0, rocksdb_name.find(remade_separator)));
  if (found == family_names.begin() || found == family_names.end()) return std::nullopt;
  return static_cast<Family>(found - family_names.begin());
}

// ---- Writing

Catalog::Catalog(std::unique_ptr<Database> database) : database_(std::move(database)) {}

Catalog::~Catalog() {
  // What fails to be written out here is still in the write-ahead log.
  database_->flush().PermitUncheckedError();
  database_->background_failures->watch(nullptr);
}

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
    for (size_t i = 0; i < family_names.size(); ++i)
      exchanged =
          exchanged || (batch.remakes_ < database.remade.at(i) && (batch.families_ & bit(static_cast<Family>(i))) != 0);
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

uint64_t Catalog::version() const {
  // Both only grow, so that no two states have the same sum.
  const std::lock_guard lock(database_->state_mutex);
  return database_->db->GetLatestSequenceNumber() + database_->remakes;
}

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

}  // namespace recalld
