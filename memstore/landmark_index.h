// The landmarks of all memories: on disk in pages of the catalog, in RAM as many of these pages as a budget allows, and
// the scan for the k best over both.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "kernels/landmark_topk.h"
#include "kernels/worker_pool.h"
#include "memstore/catalog.h"
#include "memstore/chunk.h"
#include "memstore/file_io.h"
#include "memstore/layout.h"

namespace recalld {

inline constexpr size_t landmark_page_bytes = size_t{128} << 10;

// Any thread may call any function; stage() and publish() of one stream come from one thread at a time.
class LandmarkIndex {
 public:
  // `catalog` outlives the index. Pages in RAM take at most cache_bytes.
  LandmarkIndex(const Catalog& catalog, uint32_t dim, uint64_t cache_bytes);

  size_t page_chunks() const { return page_landmarks_; }  // chunks of a page

  // Adds the rows of landmarks [n, dim], those of chunks first, first + 1, ..., to a batch. `first` is the number of
  // landmarks that there are.
  Expected<void> stage(StreamId id, uint64_t first, std::span<const Bf16> landmarks, Catalog::Batch& batch) const;

  // Tells the cache of landmarks that have been staged and written.
  void publish(StreamId id, uint64_t first, std::span<const Bf16> landmarks);

  // The k best of the first n landmarks that lie in these extents, best first. The result does not depend on what is
  // cached, nor on the number of threads.
  Expected<std::vector<ScoredChunk>> top_k(std::span<const Extent> extents, uint64_t n, std::span<const Bf16> query,
                                           size_t k, WorkerPool& pool);

  Expected<std::vector<Bf16>> landmark(StreamId id, uint64_t chunk) const;

  void forget(StreamId id);  // drops its pages from RAM
  uint64_t cached_bytes() const;

 private:
  // Landmarks of one page, from its first on. What lies below `filled` never changes, so scans read it without a lock.
  struct Page {
    std::shared_ptr<AlignedBuffer> data;  // shared with the scans that are reading it
    size_t filled = 0;                    // landmarks
  };
  struct CachedStream {
    std::vector<Page> pages;  // by number; no data: not in RAM
    uint64_t bytes = 0;
    uint64_t last_use = 0;
  };

  size_t landmark_bytes() const { return size_t{dim_} * sizeof(Bf16); }
  Expected<Page> load(StreamId id, uint64_t page) const;
  void keep(StreamId id, uint64_t number, Page page);
  bool make_room(StreamId id, uint64_t bytes);

  const Catalog& catalog_;
  const uint32_t dim_;
  const size_t page_landmarks_;
  const uint64_t cache_bytes_max_;

  mutable std::mutex mutex_;  // guards what follows, and `filled` of cached pages
  std::unordered_map<StreamId, CachedStream> cached_;
  uint64_t cached_bytes_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace recalld
