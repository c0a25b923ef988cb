#include "memstore/wal_check.h"

#include <algorithm>
#include <string_view>

#include "base/crc32c.h"

namespace recalld {
namespace {

constexpr size_t header_bytes = 7;
constexpr size_t sector_bytes = 512;
constexpr size_t batch_header_bytes = 12;  // u64 sequence, u32 count
// A search for records behind a damaged place tries every offset, and users' text may look like a record. One whose
// sequence is not near the last one's is none.
constexpr uint64_t sequence_step_max = uint64_t{1} << 32;

// What a manifest's records that are synced together come to, at most.
constexpr uint64_t manifest_sync_bytes_max = 4096;

enum Type : uint8_t { zero = 0, full = 1, first = 2, middle = 3, last = 4 };

bool all_zeros(ByteView bytes) {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

struct Header {
  uint32_t crc = 0;
  uint16_t length = 0;
  uint8_t type = 0;
};

Header header_at(ByteView block, size_t at) {
  ByteReader in(as_text(block.subspan(at, header_bytes)));
  Header header;
  header.crc = in.u32();
  header.length = in.u8();
  header.length = static_cast<uint16_t>(header.length | in.u8() << 8);
  header.type = in.u8();
  return header;
}

// The checksum as RocksDB stores it: so that one over bytes that hold a checksum stays a good one.
uint32_t masked_crc(ByteView type_and_payload) {
  const uint32_t crc = crc32c(type_and_payload);
  return (crc >> 15 | crc << 17) + 0xa282ead8U;
}

}  // namespace

struct LogCheck::Record {
  uint8_t type = 0;
  ByteView payload;
  size_t bytes() const { return header_bytes + payload.size(); }
  bool begins() const { return type == full || type == first; }
  uint64_t sequence() const { return ByteReader(as_text(payload)).u64(); }
};

// The whole record, or fragment of one, that begins there.
std::optional<LogCheck::Record> LogCheck::record_at(ByteView block, size_t at) {
  if (at + header_bytes > block.size()) return std::nullopt;
  const Header header = header_at(block, at);
  if (header.type < full || header.type > last || at + header_bytes + header.length > block.size()) return std::nullopt;
  if (masked_crc(block.subspan(at + header_bytes - 1, 1 + size_t{header.length})) != header.crc) return std::nullopt;
  return Record{header.type, block.subspan(at + header_bytes, header.length)};
}

// Whether a crash while the record there was written can have left it like this.
bool LogCheck::could_be_torn(ByteView block, size_t at) {
  const bool file_ends = block.size() < block_bytes;
  if (at + header_bytes > block.size()) return file_ends;
  const Header header = header_at(block, at);
  const size_t end = at + header_bytes + header.length;
  if (end > block.size() && file_ends) {
    // Unless all of it is there, and it is the length that is wrong.
    return masked_crc(block.subspan(at + header_bytes - 1)) != header.crc;
  }
  // A length that leads out of the block is none.
  const size_t until = end > block.size() ? block.size() : end;
  for (size_t from = at; from < until;) {
    const size_t to = std::min(until, (from / sector_bytes + 1) * sector_bytes);  // a block begins with a sector
    if (all_zeros(block.subspan(from, to - from))) return true;
    from = to;
  }
  return false;
}

void LogCheck::note_bad(uint64_t offset, bool damaged) {
  if (!bad_) bad_ = unfinished_ && !damaged ? *unfinished_ : offset;
  damaged_ = damaged_ || damaged;
}

bool LogCheck::proves_damage(const Record& record, uint64_t offset) const {
  if (use_ == LogUse::manifest) return record.begins() && offset - *bad_ >= manifest_sync_bytes_max;
  if (!record.begins() || record.payload.size() < batch_header_bytes) return false;
  return records_ == 0 || (record.sequence() >= sequence_ && record.sequence() - sequence_ < sequence_step_max);
}

// Looks from `at` on for a record that begins behind what is not whole.
void LogCheck::search(ByteView block, uint64_t block_at, size_t at) {
  for (; !damaged_ && at < block.size(); ++at) {
    if (const auto record = record_at(block, at)) damaged_ = proves_damage(*record, block_at + at);
  }
}

// RocksDB begins a log behind a torn one with a batch of no changes, before the torn one is removed.
bool LogCheck::counts(const Record& record) const {
  if (use_ == LogUse::manifest || record.type != full || record.payload.size() != batch_header_bytes) return true;
  return !all_zeros(record.payload.subspan(sizeof(uint64_t)));
}

void LogCheck::take(const Record& record, uint64_t offset) {
  // The end of one record, or the beginning of another, is missing, with nothing in its place: no crash does that.
  if (record.begins() == unfinished_.has_value()) {
    note_bad(unfinished_.value_or(offset), true);
    return;
  }
  if (record.begins()) {
    if (record.payload.size() >= batch_header_bytes) sequence_ = record.sequence();
    unfinished_ = offset;
  }
  if (record.type == full || record.type == last) {
    unfinished_.reset();
    if (counts(record)) ++records_;
  }
  end_ = offset + record.bytes();
}

void LogCheck::add(ByteView block) {
  const uint64_t block_at = block_at_;
  block_at_ += block.size();
  for (size_t at = 0; at < block.size() && !damaged_;) {
    if (at + header_bytes > block_bytes) return;  // a block ends in zeros when no header fits
    if (const auto record = record_at(block, at)) {
      if (!bad_) {
        take(*record, block_at + at);
      } else {
        zeros_ = false;
        damaged_ = proves_damage(*record, block_at + at);
      }
      at += record->bytes();
      continue;
    }
    if (!bad_ && all_zeros(block.subspan(at)) && !unfinished_) {
      // Space that was prepared and not used, unless a record follows.
      bad_ = block_at + at;
      zeros_ = true;
      return;
    }
    if (!bad_) note_bad(block_at + at, !could_be_torn(block, at));
    if (!all_zeros(block.subspan(at))) zeros_ = false;
    search(block, block_at, at + 1);
    return;
  }
}

LogCheck::Result LogCheck::result() const {
  if (damaged_) return {Verdict::damaged, *bad_, records_};
  if (bad_ && !zeros_) return {Verdict::torn, *bad_, records_};
  if (unfinished_) return {Verdict::torn, *unfinished_, records_};
  return {Verdict::whole, end_, records_};
}

}  // namespace recalld
