// The catalog: rows by key in column families, over RocksDB. The only part that knows RocksDB.
//
// Each value is stored behind the CRC32C of its key and itself (docs/disk-format.md), checked whenever it is read.
// Keys must hold no text of users: RocksDB repeats keys in files where they outlive a deletion.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace rocksdb {
class Iterator;
class WriteBatch;
}  // namespace rocksdb

namespace recalld {

enum class Family { counters, memories, turns, tokens, operations, chunks, landmarks, states, postings };

std::string_view name(Family family);

struct CatalogOptions {
  std::filesystem::path directory;
  uint64_t cache_bytes = 0;     // blocks, indexes, filters and memtables together
  uint64_t memtable_bytes = 0;  // of these, at most this much for memtables
};

// Any thread may call any function; a batch and a cursor belong to one thread at a time and must not outlive it.
class Catalog {
 public:
  // Opens the database, making it when it is not there.
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
    std::unique_ptr<rocksdb::WriteBatch> changes_;
  };

  // Applies the whole batch or nothing of it; durable on return.
  Expected<void> write(const Batch& batch);

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
    bool empty = false;  // no row is left in it
  };
  static Range all_of(Family family, std::string_view prefix);  // of which no row is left

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

  struct Usage {
    uint64_t bytes_on_disk = 0;
    uint64_t block_cache_bytes = 0;  // without memtables
    uint64_t memtable_bytes = 0;
  };
  Usage usage() const;

 private:
  struct Database;
  explicit Catalog(std::unique_ptr<Database> database);
  std::unique_ptr<Database> database_;
};

}  // namespace recalld
