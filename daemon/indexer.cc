#include "daemon/indexer.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include <boost/asio/post.hpp>

namespace recalld {

Indexer::Indexer(Store& store, boost::asio::thread_pool& upkeep) : store_(store), upkeep_(upkeep), retry_(upkeep) {}

void Indexer::start() {
  const std::lock_guard lock(mutex_);
  if (stopped_ || std::exchange(running_, true)) return;
  boost::asio::post(upkeep_, [this] { step(); });
}

void Indexer::index(MemoryId id) {
  {
    const std::lock_guard lock(mutex_);
    asked_.insert(id);
  }
  start();
}

void Indexer::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  retry_.cancel();
}

void Indexer::step_soon() {
  const std::lock_guard lock(mutex_);
  if (!stopped_) boost::asio::post(upkeep_, [this] { step(); });
}

// One that was asked for, or else the next of all; nothing when there is none.
std::optional<MemoryId> Indexer::next_memory() {
  {
    const std::lock_guard lock(mutex_);
    if (!asked_.empty()) return asked_.extract(asked_.begin()).value();
  }
  if (sweeping_) {
    const auto ids = store_.memory_ids(swept_, 1);
    if (ids && !ids->empty()) return swept_ = ids->front();
    sweeping_ = false;
    if (!ids) spdlog::error("index memories: {}; the next start tries again", ids.error().message);
    if (pages_ > 0) spdlog::info("indexed the words of {} pages of chunks that an earlier version encoded", pages_);
    if (blocks_ > 0) spdlog::info("indexed the attributes of {} blocks of turns that had no index", blocks_);
  }
  const std::lock_guard lock(mutex_);
  if (!asked_.empty()) return asked_.extract(asked_.begin()).value();
  running_ = false;
  return std::nullopt;
}

void Indexer::step() {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return;
  }
  if (!left_) {
    const auto memory = next_memory();
    if (!memory) return;
    memory_ = *memory;
    part_ = Part::turns;
    left_ = true;
    place_ = 0;
  }
  const auto more = index_piece();
  const auto kind = more ? ErrorKind::internal : more.error().kind;
  if (more) left_ = *more;
  if (!more && kind != ErrorKind::busy && kind != ErrorKind::full) {
    if (kind != ErrorKind::not_found)  // it was deleted meanwhile
      spdlog::error("index memory {}: {}; the next start tries again", memory_, more.error().message);
    left_ = false;
  }
  if (more || !left_) return step_soon();
  constexpr std::chrono::seconds retry_pause{2};
  const std::lock_guard lock(mutex_);
  if (stopped_) return;
  retry_.expires_after(retry_pause);
  retry_.async_wait([this](const boost::system::error_code& cancelled) {
    if (!cancelled) step();
  });
}

Expected<bool> Indexer::index_piece() {
  std::optional<uint64_t> next;
  if (part_ == Part::turns) {
    RECALLD_TRY(next, store_.index_turns(memory_, place_));
    blocks_ += next ? 1 : 0;
  } else {
    RECALLD_TRY(const MemoryInfo memory, store_.memory(memory_));
    if (part_ == Part::next_words && !memory.next) return false;
    RECALLD_TRY(next, store_.index_words(part_ == Part::words ? memory.serving : *memory.next, place_));
    pages_ += next ? 1 : 0;
  }
  place_ = next.value_or(0);
  if (next) return true;
  if (part_ == Part::next_words) return false;
  part_ = part_ == Part::turns ? Part::words : Part::next_words;
  return true;
}

}  // namespace recalld
