// The catalog: rows by key in column families, over RocksDB. The only part that knows RocksDB.
//
// Each value is stored behind the CRC32C of its key and itself (docs/disk-format.md), checked whenever it is read.
// Keys must hold no text of users: RocksDB repeats keys in files where they outlive a deletion.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace rocksdb {
class Env;
class Iterator;
class WriteBatch;
}  // namespace rocksdb

namespace recalld {

enum class Family { counters, memories, turns, tokens, operations, chunks, landmarks, states, postings, attributes };

std::string_view name(Family family);

// Whether all rows of the family can be made again from the journal.
bool can_be_made_again(Family family);

struct CatalogOptions {
  std::filesystem::path directory;
  uint64_t cache_bytes = 0;                     // blocks, indexes, filters and memtables together
  uint64_t memtable_bytes = 0;                  // of these, at most this much for memtables
  rocksdb::Env* env = nullptr;                  // the operating system's when null; borrowed
  std::chrono::milliseconds retry_after{1000};  // after a write found the disk full, so long until one tries again
};

// CatalogOptions::env, for headers that do not name RocksDB.
struct CatalogFiles {
  rocksdb::Env* env = nullptr;
};

// A table file that cannot be read whole, or is missing.
struct DamagedTable {
  std::string file;
  Family family = Family::counters;
  int level = 0;
  std::string first_key;  // of its rows, at the least
  std::string last_key;   // of its rows, at the most
  std::string cause;
  std::string text() const;  // for people
};

// Any thread may call any function; a batch and a cursor belong to one thread at a time and must not outlive it.
class Catalog {
 public:
  // Opens the database, making it when it is not there. Fails with corrupt when bytes are damaged or missing that were
  // durable, as far as they are needed to open: logs, manifest and CURRENT in any case.
  static Expected<std::unique_ptr<Catalog>> open(const CatalogOptions& options);
  ~Catalog();  // writes out the memtables, so that the next open has nothing to replay

  // Changes to be made together.
  class Batch {
   public:
    explicit Batch(const Catalog& catalog);
    ~Batch();
    Batch(Batch&&) noexcept;
    void put(Family family, std::string_view key, std::string_view value);
    void remove(Family family, std::string_view key);
    void remove_all(Family family, std::string_view prefix);                       // every key that begins so
    void remove_range(Family family, std::string_view from, std::string_view to);  // keys from `from` to before `to`
    bool empty() const;

   private:
    friend Catalog;
    const Catalog* catalog_;
    uint64_t remakes_ = 0;   // before the batch was begun
    uint32_t families_ = 0;  // that it changes: a bit each
    std::unique_ptr<rocksdb::WriteBatch> changes_;
  };

  // Applies the whole batch or nothing of it; durable on return.
  //
  // full: there is no space. Nothing of the batch is there, nor will be once a later write succeeds; until then an open
  // may find it, as a whole. Writes go on when there is space: `retry_after` later, the next one tries.
  // io, corrupt: a write failed in another way, and this and every later one is refused until the catalog is opened
  // again, since what reached the disk is not known. Everything that was acknowledged is there then, and this batch
  // wholly or not at all. Reading goes on.
  // busy: the batch is of a family that remake() has exchanged, or is exchanging; make it anew.
  Expected<void> write(const Batch& batch);

  // Whether a write may go on now, after trying to recover from a full disk as write() does.
  Expected<void> ready();

  // Why writes are refused now; nothing when they are not.
  std::optional<Error> refuses_writes() const;

  // Another number after every change. Rows that were read after it was asked for are still the same while it is.
  uint64_t version() const;

  // The value of a key; nothing when there is none.
  Expected<std::optional<std::string>> get(Family family, std::string_view key) const;

  // Walks the rows whose keys begin with one prefix, as they were when the cursor was made.
  class Cursor {
   public:
    ~Cursor();
    Cursor(Cursor&&) noexcept;

    // Each goes to a row and says whether there is one.
    Expected<bool> first();
    Expected<bool> seek(std::string_view key);         // the first row at or after the key
    Expected<bool> seek_before(std::string_view key);  // the last row at or before the key
    Expected<bool> next();

    // After an error: whether it stands on a row all the same. That row is damaged: key() tells which, and next() goes
    // on behind it. Else what follows cannot be read, and only a seek to another key may go on.
    bool on_row() const;

    // Of the row; valid until the cursor moves.
    std::string_view key() const;
    std::string_view value() const { return value_; }

   private:
    friend Catalog;
    struct Bounds;
    Cursor(Family family, std::unique_ptr<Bounds> bounds, std::unique_ptr<rocksdb::Iterator> rows);
    Expected<bool> check();
    Family family_;
    std::unique_ptr<Bounds> bounds_;  // the iterator borrows them
    std::unique_ptr<rocksdb::Iterator> rows_;
    std::string_view value_;
  };
  Cursor cursor(Family family, std::string_view prefix) const;

  // Keys of one family, from `from` to before `to`.
  struct Range {
    Family family = Family::counters;
    std::string from;
    std::string to;
  };
  static Range all_of(Family family, std::string_view prefix);  // every key that begins so

  // Rewrites what still holds removed rows of these ranges: their bytes are gone from the tables and from the
  // write-ahead log on return. Returns how many bytes of tables were rewritten or dropped.
  Expected<uint64_t> reclaim(std::span<const Range> ranges);

  // A file of a copy of the catalog.
  struct File {
    std::string name;                     // in the catalog's directory
    uint64_t bytes = 0;                   // from its beginning
    bool whole = false;                   // they are all of it, and stay so
    std::optional<std::string> contents;  // to be written instead of copied
  };
  // Calls use() with the files that together are a catalog that holds all that was written before, each batch whole or
  // not at all. They stay as they are until it returns.
  Expected<void> with_files(const std::function<Expected<void>(std::span<const File>)>& use) const;

  // ---- Damage
  // A damaged table does not stop writes: its family is no longer compacted, until the next open tries again.

  // Reads every table file whole and compares it with the checksum that it was written with. Files that come and go
  // meanwhile are left out. Fails when the checking itself does, not because of damage.
  Expected<std::vector<DamagedTable>> verify() const;

  // Families that are not compacted since a table of theirs could not be read.
  std::vector<Family> uncompacted() const;

  // Makes a family that can_be_made_again() anew without these tables of it, and without any row of which the key lies
  // within the keys of one: an older value of a row must not come back because the newer one is lost. Rows elsewhere
  // are kept, unless the other tables cannot be read without the damaged ones, or a row that is missing would say
  // something: then none is. Damaged rows are left out. Durable on return, and a crash before that leaves the family as
  // it was. Cursors made before go on reading the old tables; batches of the family fail with busy while it lasts.
  struct Remade {
    uint64_t rows_kept = 0;
    bool all_dropped = false;  // the rest could not be read either, or says nothing without them
  };
  Expected<Remade> remake(Family family, std::span<const DamagedTable> damaged);

  // For a catalog that open() refuses because of its tables: remakes the families of the damaged ones, and returns
  // these. Fails with corrupt, and changes nothing, when a table of another family is damaged.
  static Expected<std::vector<DamagedTable>> mend(const CatalogOptions& options);

  struct Usage {
    uint64_t bytes_on_disk = 0;
    uint64_t block_cache_bytes = 0;  // without memtables
    uint64_t memtable_bytes = 0;
  };
  Usage usage() const;

 private:
  struct Database;
  static Expected<std::unique_ptr<Catalog>> open(const CatalogOptions& options, bool although_damaged);
  explicit Catalog(std::unique_ptr<Database> database);
  std::unique_ptr<Database> database_;
};

}  // namespace recalld
