// Indexes what has no index yet, piece by piece behind the replies: words of chunks and attributes of turns that an
// earlier version stored, and turns of which a neighbour was forgotten.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <set>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>

#include "memstore/store.h"

namespace recalld {

class Indexer {
 public:
  // Both are borrowed; `upkeep` runs a piece at a time, so that erasures come in between.
  Indexer(Store& store, boost::asio::thread_pool& upkeep);

  void start();             // goes through all memories once
  void index(MemoryId id);  // goes through this one, soon; any thread may call it
  void stop();              // begins no further piece

 private:
  enum class Part { turns, words, next_words };  // in this order; the last: of the generation that is being made
  void step_soon();
  void step();
  std::optional<MemoryId> next_memory();
  // One piece of the memory; false when it has none left.
  Expected<bool> index_piece();

  Store& store_;
  boost::asio::thread_pool& upkeep_;
  // Used by one step after the other.
  MemoryId swept_ = 0;  // the last one of all memories that was begun
  bool sweeping_ = true;
  MemoryId memory_ = 0;
  Part part_ = Part::turns;
  bool left_ = false;   // it has something to index still
  uint64_t place_ = 0;  // in the part: turn or page
  uint64_t pages_ = 0;  // indexed so far
  uint64_t blocks_ = 0;

  std::mutex mutex_;  // guards what follows
  std::set<MemoryId> asked_;
  bool running_ = false;
  bool stopped_ = false;
  boost::asio::steady_timer retry_;
};

}  // namespace recalld
