#include "daemon/stream_cache.h"

#include <algorithm>
#include <utility>

namespace recalld {

StreamCache::StreamCache(size_t streams_max, std::function<void(const Stream&)> evicted)
    : streams_max_(std::max<size_t>(1, streams_max)), evicted_(std::move(evicted)) {}

Stream* StreamCache::find(StreamId id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return nullptr;
  streams_.splice(streams_.begin(), streams_, found->second);
  return &streams_.front();
}

Stream& StreamCache::insert(Stream stream) {
  erase(stream.of.stream);
  while (streams_.size() >= streams_max_) {
    evicted_(streams_.back());
    erase(streams_.back().of.stream);
  }
  streams_.push_front(std::move(stream));
  by_id_[streams_.front().of.stream] = streams_.begin();
  return streams_.front();
}

void StreamCache::erase(StreamId id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  streams_.erase(found->second);
  by_id_.erase(found);
}

void StreamCache::erase_memory(MemoryId id) {
  for (auto stream = streams_.begin(); stream != streams_.end();) {
    const StreamInfo of = (stream++)->of;
    if (of.memory == id) erase(of.stream);
  }
}

void StreamCache::evict_all() {
  for (const Stream& stream : streams_) evicted_(stream);
  streams_.clear();
  by_id_.clear();
}

}  // namespace recalld
