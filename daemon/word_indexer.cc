#include "daemon/word_indexer.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include <boost/asio/post.hpp>

namespace recalld {

WordIndexer::WordIndexer(Store& store, boost::asio::thread_pool& upkeep)
    : store_(store), upkeep_(upkeep), retry_(upkeep) {}

void WordIndexer::start() {
  step_soon();
}

void WordIndexer::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  retry_.cancel();
}

void WordIndexer::step_soon() {
  const std::lock_guard lock(mutex_);
  if (!stopped_) boost::asio::post(upkeep_, [this] { step(); });
}

void WordIndexer::step() {
  if (!left_) {
    const auto ids = store_.memory_ids(memory_, 1);
    if (!ids || ids->empty()) {
      if (!ids) spdlog::error("index words: {}; the next start tries again", ids.error().message);
      if (pages_ > 0) spdlog::info("indexed the words of {} pages of chunks that an earlier version encoded", pages_);
      return;
    }
    memory_ = ids->front();
    next_ = false;
    left_ = true;
    page_ = 0;
  }
  const auto more = index_page();
  const auto kind = more ? ErrorKind::internal : more.error().kind;
  if (more) left_ = *more;
  if (!more && kind != ErrorKind::busy && kind != ErrorKind::full) {
    if (kind != ErrorKind::not_found)  // it was deleted meanwhile
      spdlog::error("index the words of memory {}: {}; the next start tries again", memory_, more.error().message);
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

Expected<bool> WordIndexer::index_page() {
  RECALLD_TRY(const MemoryInfo memory, store_.memory(memory_));
  if (next_ && !memory.next) return false;
  RECALLD_TRY(const auto page, store_.index_words(next_ ? *memory.next : memory.serving, page_));
  if (page) {
    page_ = *page;
    ++pages_;
    return true;
  }
  page_ = 0;
  return !std::exchange(next_, true);
}

}  // namespace recalld
