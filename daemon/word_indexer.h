// Indexes the words of chunks that an earlier version encoded without them, page by page behind the replies.
#pragma once

#include <cstdint>
#include <mutex>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>

#include "memstore/store.h"

namespace recalld {

class WordIndexer {
 public:
  // Both are borrowed; `upkeep` runs a page at a time, so that erasures come in between.
  WordIndexer(Store& store, boost::asio::thread_pool& upkeep);

  void start();  // goes through all memories once
  void stop();   // begins no further page

 private:
  void step_soon();
  void step();
  // One page of the memory; false when it has none left.
  Expected<bool> index_page();

  Store& store_;
  boost::asio::thread_pool& upkeep_;
  // Used by one step after the other.
  MemoryId memory_ = 0;  // 0: none yet
  bool next_ = false;    // of its generations, the one that is being made
  bool left_ = false;    // it has something to index still
  uint64_t page_ = 0;
  uint64_t pages_ = 0;  // indexed so far

  std::mutex mutex_;  // guards what follows
  bool stopped_ = false;
  boost::asio::steady_timer retry_;
};

}  // namespace recalld
