// The K/V of chunks on disk: append-only segment files of fixed-size records, payload only, DATA/kv/NNNNNN.seg.
// Where a record lies, and how to know that it is the right one, is the catalog's business: nothing here is
// checksummed.
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "memstore/file_io.h"

namespace recalld {

// Segments are preallocated: this size, rounded down to whole records (but one record at least).
inline constexpr uint64_t kv_segment_bytes = uint64_t{64} << 20;

// "000003.seg", the file of a segment inside the directory; for messages too.
std::string segment_name(uint32_t segment);

struct KvPlace {
  uint32_t segment = 0;
  uint32_t slot = 0;  // record number inside the segment
  auto operator<=>(const KvPlace&) const = default;
};

struct KvRead {
  KvPlace place;
  ByteSpan into;     // [kv_bytes], alive until the read has ended
  uint64_t tag = 0;  // the caller's, to tell the reads of a stream apart
};

// What a stream of records reads next; nothing when there is nothing to start now.
using NextKvRead = std::function<std::optional<KvRead>()>;

// Any thread may call any function, but only one at a time append(). A segment that is missing or too short for a
// place is Error::corrupt; the message names the file.
class KvFile {
 public:
  // Makes the directory when it is not there. `next` is the first place that the catalog does not name: segments that
  // hold nothing before it are left over from before a crash and are removed, and what follows it in its segment too.
  // A place that is one past the end of a segment means the first of the next one.
  // segment_bytes: of one segment, the same at every open.
  static Expected<std::unique_ptr<KvFile>> open(std::filesystem::path directory, uint32_t kv_bytes,
                                                std::unique_ptr<FileIo> io, KvPlace next,
                                                uint64_t segment_bytes = kv_segment_bytes);

  uint32_t record_bytes() const { return record_bytes_; }  // kv_bytes padded to a multiple of io_alignment
  uint32_t slots_per_segment() const { return slots_per_segment_; }
  KvPlace next() const;  // where the next record goes

  // Writes the records [kv_bytes] one after another from next() on, in new segments as these fill up; all are durable
  // on return. Returns their places, in order. On failure next() has not moved, and the same places are written again
  // by the next call.
  Expected<std::vector<KvPlace>> append(std::span<const ByteView> records);

  // Gives back what an append that failed has left behind next().
  Expected<void> clean_tail();

  // Reads the records that next() gives and calls done() for each as it ends, in no order: with its bytes in `into`, or
  // with the error of this record alone. FileIo::stream tells when next() is asked and what the two may do; they may
  // not call this object either. Records go straight into memory that is aligned to io_alignment, when kv_bytes is a
  // multiple of it; otherwise they are copied, and fewer are in flight at a time.
  void stream(const NextKvRead& next, const ReadDone& done, const ReadWait& wait = {}) const;

  // A stream of places[i] into out[i * kv_bytes]; done() gets i.
  // out: [places.size() * kv_bytes], alive until the call returns
  void read(std::span<const KvPlace> places, ByteSpan out, const ReadDone& done) const;

  // The same for a caller that wants all or nothing: the first failure is reported.
  Expected<void> read(std::span<const KvPlace> places, ByteSpan out) const;

  // Memory that the calling thread reads into fastest (FileIo::buffer). bytes: a multiple of io_alignment
  AlignedBuffer buffer(size_t bytes) const { return io_->buffer(bytes); }

  // Gives the space of records back to the file system, durably: they then read as zeros. What is gone already, with
  // its segment, is skipped, so that a caller can repeat after a crash.
  Expected<void> release(std::span<const KvPlace> places);

  // corrupt when the file of a segment is missing or shorter than it was made.
  Expected<void> check(uint32_t segment) const;
  // Gives a file that is too short its length back; what was lost reads as zeros. One that is missing stays so.
  Expected<void> lengthen(uint32_t segment);

  // The numbers of all segments that there are, in no order.
  Expected<std::vector<uint32_t>> segments() const;

  // Removes whole segments, durably; never the one that next() is in. Missing ones are skipped.
  Expected<void> remove(std::span<const uint32_t> segments);

  struct Usage {
    uint64_t segments = 0;
    uint64_t bytes_on_disk = 0;  // allocated; holes do not count
  };
  Expected<Usage> usage() const;

  std::string describe() const { return io_->describe(); }  // of the file layer: "io_uring, O_DIRECT"

 private:
  class OpenSegment;

  KvFile(std::filesystem::path directory, uint32_t kv_bytes, std::unique_ptr<FileIo> io, KvPlace next,
         uint64_t segment_bytes);

  std::filesystem::path path(uint32_t segment) const { return directory_ / segment_name(segment); }
  uint64_t offset(uint32_t slot) const { return uint64_t{slot} * record_bytes_; }
  Expected<void> punch(const OpenSegment& segment, std::span<const KvPlace> places);
  Expected<void> empty_tail();

  Expected<std::shared_ptr<OpenSegment>> open_segment(uint32_t segment) const;  // not_found
  Expected<std::shared_ptr<OpenSegment>> segment_to_append(KvPlace first);      // made when it begins with `first`
  std::shared_ptr<OpenSegment> keep_open(uint32_t segment, int file) const;     // mutex_ is held

  const std::filesystem::path directory_;
  const uint32_t kv_bytes_;
  const uint32_t record_bytes_;
  const uint32_t slots_per_segment_;
  const size_t slice_records_;  // of one write, and of the reads in flight that are copied
  const std::unique_ptr<FileIo> io_;

  mutable std::mutex mutex_;  // guards what follows
  KvPlace next_;
  bool tail_dirty_ = false;  // an append that failed may have written behind next_
  // Open segments, at most open_segments_max. Shared with the calls that use them: one that is dropped here, for
  // another or because it was removed, is closed when the last of these calls ends.
  mutable std::map<uint32_t, std::shared_ptr<OpenSegment>> open_;
};

}  // namespace recalld
