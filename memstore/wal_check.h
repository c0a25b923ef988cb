// Tells a log of the catalog that a crash has torn from one whose durable bytes have been damaged since.
//
// RocksDB's log format (write-ahead logs and manifests): blocks of 32 KiB, filled with records that never cross a
// block; a record is u32 masked CRC32C of its type and payload, u16 length, u8 type (1 whole; 2, 3, 4 first, middle and
// last fragment of one), payload. Logs that are recycled have other types; the catalog does not recycle.
//
// The catalog writes one record (in fragments, when it is long) and syncs it before the next one begins. So a crash can
// tear the last record only, and a torn one is seen in one of these ways: the file ends within it, or a 512-byte sector
// of it is as it was before, that is, all zeros. A record that is not whole and shows neither is damaged, and so is one
// behind which another one begins.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"

namespace recalld {

enum class LogUse {
  write_ahead,  // a record is synced before the next one begins
  manifest,     // a few may be synced together: only a whole one that lies 4 KiB further on proves that one is damaged
};

class LogCheck {
 public:
  static constexpr size_t block_bytes = 32768;

  explicit LogCheck(LogUse use) : use_(use) {}

  // Takes the next block of the file: block_bytes, fewer only at the end of the file.
  void add(ByteView block);

  enum class Verdict {
    whole,    // zeros may follow
    torn,     // the last record is not whole, as a crash may leave it
    damaged,  // bytes that were durable have changed
  };
  struct Result {
    Verdict verdict = Verdict::whole;
    uint64_t offset = 0;   // of the first record that is not whole; the end of the records when all are
    uint64_t records = 0;  // whole ones before it; of a write-ahead log, those that change something
  };
  // Once, after the last block.
  Result result() const;

 private:
  struct Record;
  static std::optional<Record> record_at(ByteView block, size_t at);
  static bool could_be_torn(ByteView block, size_t at);
  void take(const Record& record, uint64_t offset);
  bool counts(const Record& record) const;
  void note_bad(uint64_t offset, bool damaged);
  void search(ByteView block, uint64_t block_at, size_t at);
  bool proves_damage(const Record& record, uint64_t offset) const;

  const LogUse use_;
  uint64_t block_at_ = 0;               // of the next block in the file
  uint64_t records_ = 0;                // whole ones before what is not
  uint64_t end_ = 0;                    // of the last whole record or fragment
  uint64_t sequence_ = 0;               // RocksDB's number of the last record that began
  std::optional<uint64_t> unfinished_;  // where a record began of which the last fragment has not come
  std::optional<uint64_t> bad_;         // the first place that is not whole
  bool zeros_ = false;                  // from bad_ on there are only zeros
  bool damaged_ = false;
};

}  // namespace recalld
