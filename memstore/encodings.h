// The encodings of all memories: where each chunk lies, its K/V and landmark, and the recurrent states, in streams.
// Which stream holds which chunks of a memory is said by the layout of a generation (layout.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "memstore/catalog.h"
#include "memstore/entry_cache.h"
#include "memstore/kv_file.h"
#include "memstore/landmark_index.h"
#include "memstore/memory_table.h"
#include "memstore/store.h"

namespace recalld {

// Any thread may call the functions that are const and top_k(); the others are called by one thread at a time.
class Encodings {
 public:
  // `catalog` outlives it.
  Encodings(const Catalog& catalog, const RecordShape& shape, uint64_t landmark_cache_bytes,
            uint64_t entry_cache_bytes);

  // Reads which segments are in use and opens them; removes those that the catalog does not name.
  Expected<void> open(const std::filesystem::path& directory, std::unique_ptr<FileIo> io, uint64_t segment_bytes);

  // Chunks of a page of landmarks: extents begin at multiples of it.
  uint64_t page_chunks() const { return landmarks_.page_chunks(); }

  // ---- Reading what a generation holds
  Expected<ChunkEntry> chunk(MemoryId id, const Generation& of, uint64_t chunk) const;  // not_found
  Expected<std::vector<Bf16>> landmark(MemoryId id, const Generation& of, uint64_t chunk) const;
  // busy when fewer chunks are stored.
  Expected<void> landmarks(MemoryId id, const Generation& of, uint64_t first, std::span<Bf16> out,
                           std::vector<Unreadable>& unreadable) const;
  // entries_version: entries_version() before `of` was read: what was dropped since is not kept again.
  Expected<void> fetch(MemoryId id, const Generation& of, uint64_t entries_version, std::span<const uint64_t> chunks,
                       ByteSpan out, std::vector<Unreadable>& unreadable, const FetchWait& wait = {}) const;
  uint64_t entries_version() const { return entries_.version(); }
  // For each of queries [count, landmark_dim] the k best of the first chunks_max chunks; with `only`, of those in it.
  Expected<std::vector<std::vector<ScoredChunk>>> top_k(const Generation& of, uint64_t chunks_max,
                                                        std::span<const Bf16> queries, size_t k, WorkerPool& pool,
                                                        std::vector<Unreadable>& unreadable,
                                                        const ChunkSet* only = nullptr);
  Expected<std::optional<StateCheckpoint>> state(const Generation& of, uint64_t chunks_max, std::string* damage) const;
  // The first one that covers more than `after` chunks and at most chunks_max.
  Expected<std::optional<StateCheckpoint>> next_state(const Generation& of, uint64_t after, uint64_t chunks_max) const;

  // ---- Adding chunks to a generation: write() their K/V, durably, and their landmarks in the caller's batch; stage()
  // everything else that names them; written() once the batch is durable, refused() when it was not written.
  struct Written {
    std::span<const EncodedChunkView> chunks;
    std::vector<KvPlace> places;
    std::map<uint32_t, uint32_t> live;  // of the segments touched
    std::vector<Bf16> landmarks;
    StreamId stream = 0;
    uint64_t first_chunk = 0;
  };
  Expected<Written> write(const Generation& to, std::span<const EncodedChunkView> chunks, Catalog::Batch& rows);
  // Counts the chunks, and the state after them when there is one, in `to`.
  void stage(MemoryId id, Generation& to, Written& written, std::optional<ByteView> state_after,
             Catalog::Batch& rows) const;
  void written(const Written& written);
  void refused(const Written& written);
  // Gives back the records that no chunk names because a batch was refused or a write failed. Only while the catalog is
  // ready for writes: until then a refused batch may be there after a crash.
  Expected<void> release_refused();

  // Makes this the newest state of the generation and drops the one before it, unless that is one of those kept.
  void stage_state(Generation& to, uint64_t chunks, ByteView state, Catalog::Batch& rows) const;

  // Drops a state that was the newest of a generation which serves no more, unless it is one of those kept.
  void stage_old_state(const Generation& of, uint64_t chunks, Catalog::Batch& rows) const;

  // ---- Verifying (encodings_check.cc) and mending
  struct Checked {
    uint64_t chunks = 0;
    uint64_t states = 0;
    uint64_t bytes = 0;  // read
    std::vector<Problem> problems;
    Verification::Lost lost;
    uint64_t unindexed = 0;  // chunks that have no rows of words
  };
  // Reads chunks [first, end) of one extent, `first` beginning a page, with the states that cover one of them last. At
  // the end of the generation it looks for rows behind it too.
  Checked check(MemoryId id, const Generation& of, uint64_t first, uint64_t end) const;

  struct Mended {
    Written written;
    std::vector<KvPlace> released;  // what the records of these chunks were
  };
  // Like write() and stage(), for chunks that are stored already.
  Expected<Mended> write_again(std::span<const MendedChunk> chunks);
  Expected<void> stage_again(MemoryId id, const Generation& of, std::span<const MendedChunk> chunks,
                             std::span<const StateCheckpoint> states, Mended& mended, Catalog::Batch& rows) const;
  Expected<void> written_again(const Generation& of, const Mended& mended);
  // Adds the removal of rows that nothing needs. Returns the records that they name, which are given back when the
  // removal is written.
  std::vector<KvPlace> stage_without(const Generation& of, const Verification::Lost& lost, Catalog::Batch& rows);
  Expected<void> written_without(const Generation& of, std::span<const KvPlace> places);
  Expected<void> release(std::span<const KvPlace> places) { return kv_->release(places); }

  // Records in each segment that a chunk names.
  const std::map<uint32_t, uint32_t>& live() const { return live_; }
  // Counts them again, and gives back all records that no chunk names: what is left of a chunk whose row was damaged.
  Expected<void> release_unnamed(Catalog& catalog);
  KvPlace next_place() const { return kv_->next(); }
  // What is wrong with the files of segments in use.
  std::vector<Problem> check_segments() const;
  Expected<void> mend_segment(uint32_t segment) { return kv_->lengthen(segment); }

  // ---- Erasing the chunks of a stream from first_chunk on, which no layout names any more.
  struct Erased {
    struct Segment {
      uint64_t records = 0;
      uint64_t bytes = 0;
    };
    std::map<uint32_t, Segment> segments;
    uint64_t catalog_bytes = 0;  // of tables that were rewritten or dropped
  };
  void forget(StreamId stream);                     // drops what is cached of it
  void forget_entries() { entries_.forget_all(); }  // when rows were lost, whose is not known

  // Gives back the K/V of the next chunks and removes their entries; false when there were none left.
  Expected<bool> erase_some(StreamId stream, uint64_t first_chunk, Catalog& catalog, Erased& erased);
  // Adds the removal of the landmarks and states, and the ranges in which rows were removed.
  void stage_erasure(StreamId stream, uint64_t first_chunk, Catalog::Batch& rows,
                     std::vector<Catalog::Range>& ranges) const;
  // Removes segments that no chunk names, but for the one that is being filled.
  Expected<void> remove_empty_segments(Catalog& catalog);

  Expected<KvFile::Usage> kv_usage() const { return kv_->usage(); }
  uint64_t landmark_cache_bytes() const { return landmarks_.cached_bytes(); }
  uint64_t entry_cache_bytes() const { return entries_.bytes(); }
  std::string describe_io() const { return kv_->describe(); }
  const RecordShape& shape() const { return shape_; }

 private:
  static constexpr uint64_t kept_state_chunks = 1024;  // a state at a multiple of it is kept for good

  // A chunk of a fetch.
  struct Fetched {
    uint64_t chunk = 0;
    ByteSpan into;                    // [kv_bytes]
    std::optional<ChunkEntry> entry;  // none: it could not be found
    std::optional<Error> failure;
    bool whole = false;  // it was read, and is what the entry says
  };

  // chunk(), from what is kept in RAM when it is there.
  Expected<ChunkEntry> find(MemoryId id, const Generation& of, uint64_t entries_version, uint64_t chunk) const;
  // The entries of chunks from `first` on, in one range of rows: those below `end` that can be read.
  EntryCache::Block read_entries(StreamId stream, uint64_t first, uint64_t end) const;
  // Reads and checks the records that are neither whole nor have failed.
  void read(MemoryId id, std::span<Fetched> records, const FetchWait& wait) const;
  // Looks for chunks that failed in the catalog: those that lie elsewhere by now have not failed any more. Whether
  // there are any.
  Expected<bool> find_again(MemoryId id, const Generation& of, std::span<Fetched> records) const;

  // The checksum of a chunk's record, bound to what the record is of.
  static uint32_t record_crc(MemoryId id, uint64_t chunk, const Hash128& model, uint64_t generation, ByteView kv);
  Expected<std::optional<StateCheckpoint>> checked_state(StreamId stream, const Catalog::Cursor& row) const;

  const Catalog& catalog_;
  const RecordShape shape_;
  LandmarkIndex landmarks_;
  mutable EntryCache entries_;
  std::unique_ptr<KvFile> kv_;
  std::map<uint32_t, uint32_t> live_;  // records in each segment that a chunk names
  std::vector<KvPlace> refused_;       // records of which the batch was refused
};

}  // namespace recalld
