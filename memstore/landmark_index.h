// The landmarks of all memories: on disk in pages of the catalog, in RAM as many of these pages as a budget allows, and
// the scan for the k best over both.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "kernels/landmark_topk.h"
#include "kernels/worker_pool.h"
#include "memstore/catalog.h"
#include "memstore/chunk.h"
#include "memstore/file_io.h"
#include "memstore/layout.h"
#include "memstore/store.h"

namespace recalld {

inline constexpr size_t landmark_page_bytes = size_t{128} << 10;

// Threads that read pages from disk for one search: each holds one page, and a disk has enough to do with them.
inline constexpr size_t scan_readers_max = 8;

// Any thread may call any function; stage() and publish() of one stream come from one thread at a time.
//
// The cache belongs to the streams that are searched again and again. Pages that a search read, or that were just
// written, take free room; for more room, a stream's pages make way for those of another only when this one has been
// searched twice since. So neither a scan of a cold memory nor the encoding of a new one throws out a hot one, and a
// stream that does not fit keeps the pages it has and reads the others from disk each time.
class LandmarkIndex {
 public:
  // `catalog` outlives the index. Pages in RAM, and what is noted about them, take at most cache_bytes.
  LandmarkIndex(const Catalog& catalog, uint32_t dim, uint64_t cache_bytes);

  size_t page_chunks() const { return page_landmarks_; }  // chunks of a page

  // Adds the rows of landmarks [n, dim], those of chunks first, first + 1, ..., to a batch. `first` is the number of
  // landmarks that there are.
  Expected<void> stage(StreamId id, uint64_t first, std::span<const Bf16> landmarks, Catalog::Batch& batch) const;

  // Tells the cache of landmarks that have been staged and written.
  void publish(StreamId id, uint64_t first, std::span<const Bf16> landmarks);

  // For each query the k best of the first n landmarks that lie in these extents, best first, in one scan. The result
  // does not depend on what is cached, nor on the number of threads. Chunks whose page cannot be read are left out and
  // added to `unreadable`. With `only`, other chunks are left out; pages without any of it are not read.
  // queries: [count, dim]
  Expected<std::vector<std::vector<ScoredChunk>>> top_k(std::span<const Extent> extents, uint64_t n,
                                                        std::span<const Bf16> queries, size_t k, WorkerPool& pool,
                                                        std::vector<Unreadable>& unreadable,
                                                        const ChunkSet* only = nullptr);

  Expected<std::vector<Bf16>> landmark(StreamId id, uint64_t chunk) const;

  // The landmarks of chunks first, first + 1, ..., of the first n that lie in these extents. Those whose page cannot be
  // read become not-a-numbers and are added to `unreadable`. What is cached stays as it is. out: [chunks, dim]
  void landmarks(std::span<const Extent> extents, uint64_t n, uint64_t first, std::span<Bf16> out,
                 std::vector<Unreadable>& unreadable) const;

  // ---- Verifying and mending
  // The chunks of [first, end) whose landmark cannot be read from the disk, in order, with why. `first` begins a page.
  // `last_page` asks whether there is more than that, too: then the last chunk is among them.
  struct Lost {
    uint64_t chunk = 0;
    std::string cause;
  };
  std::vector<Lost> check(StreamId id, uint64_t first, uint64_t end, bool last_page, uint64_t& bytes) const;

  // Adds what makes the page of these chunks whole again to the batch: `made` has the landmarks of all chunks of it, of
  // n in the stream, that cannot be read.
  Expected<void> stage_again(StreamId id, uint64_t page, uint64_t n,
                             const std::map<uint64_t, std::span<const Bf16>>& made, Catalog::Batch& batch) const;

  void forget(StreamId id);  // drops its pages from RAM
  uint64_t cached_bytes() const;

 private:
  class PageReader;

  // Landmarks of one page, from its first on. What lies below `filled` never changes, so scans read it without a lock.
  struct Page {
    std::shared_ptr<AlignedBuffer> data;  // shared with the scans that are reading it
    size_t filled = 0;                    // landmarks
  };
  // A stream of which there is a page in RAM.
  struct CachedStream {
    StreamId id = 0;
    std::vector<Page> pages;   // by number; no data: not in RAM
    uint64_t bytes = 0;        // of the pages and of what is noted about them
    uint64_t last_search = 0;  // its number; 0: none since its first page came
  };
  // Searches count from 1.
  struct Search {
    uint64_t number = 0;
    uint64_t before = 0;  // the search of the same stream before this one; 0: none of the last 64 was
  };

  size_t landmark_bytes() const { return size_t{dim_} * sizeof(Bf16); }
  Error incomplete(std::string_view action, StreamId id, uint64_t page) const;
  Page cached(StreamId id, uint64_t page) const;
  Search note_search(StreamId id);
  bool make_room(StreamId id, Search search, uint64_t bytes);
  bool replace(StreamId id, Search search, uint64_t number, Page page);
  void keep(StreamId id, Search search, uint64_t number, std::string_view landmarks);
  void drop(std::list<CachedStream>::iterator stream);
  // The landmarks of pages [first, end) that can be read, by chunk; what is wrong with others.
  struct Read {
    std::vector<char> there;          // by chunk, from that of page `first` on
    std::vector<std::string> causes;  // by page
    std::vector<uint64_t> filled;     // landmarks of each page
    std::string bytes;                // of the landmarks when asked for, by chunk
    uint64_t read_bytes = 0;
  };
  Read read(StreamId id, uint64_t first, uint64_t end, bool keep_bytes) const;

  const Catalog& catalog_;
  const uint32_t dim_;
  const size_t page_landmarks_;
  const uint64_t cache_bytes_max_;

  mutable std::mutex mutex_;        // guards what follows, and `filled` of cached pages
  std::list<CachedStream> cached_;  // searched most recently first, those never searched last
  std::unordered_map<StreamId, std::list<CachedStream>::iterator> by_id_;
  uint64_t cached_bytes_ = 0;
  uint64_t searches_ = 0;
  std::array<StreamId, 64> searched_{};  // by the last searches; number s stands at s % 64
};

}  // namespace recalld
