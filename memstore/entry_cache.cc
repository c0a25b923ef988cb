#include "memstore/entry_cache.h"

#include <cassert>

namespace recalld {

EntryCache::EntryCache(uint64_t bytes_max) : blocks_max_(bytes_max / block_bytes) {}

uint64_t EntryCache::version() const {
  const std::lock_guard lock(mutex_);
  return version_;
}

std::optional<ChunkEntry> EntryCache::find(StreamId stream, uint64_t chunk) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find({stream, chunk / block_chunks});
  if (found == by_key_.end()) return std::nullopt;
  blocks_.splice(blocks_.end(), blocks_, found->second);
  const Block& block = found->second->second;
  const size_t place = chunk % block_chunks;
  if (!block.there[place]) return std::nullopt;
  return block.entries[place];
}

void EntryCache::keep(StreamId stream, uint64_t first, const Block& block, uint64_t version) {
  assert(first % block_chunks == 0);
  const std::lock_guard lock(mutex_);
  if (version != version_ || blocks_max_ == 0) return;
  const Key key{stream, first / block_chunks};
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    found->second->second = block;
    return;
  }
  if (blocks_.size() == blocks_max_) {
    by_key_.erase(blocks_.front().first);
    blocks_.pop_front();
  }
  by_key_.emplace(key, blocks_.emplace(blocks_.end(), key, block));
}

void EntryCache::forget(StreamId stream) {
  const std::lock_guard lock(mutex_);
  ++version_;
  const auto end = by_key_.lower_bound({stream + 1, 0});
  for (auto of = by_key_.lower_bound({stream, 0}); of != end; of = by_key_.erase(of)) blocks_.erase(of->second);
}

void EntryCache::forget_all() {
  const std::lock_guard lock(mutex_);
  ++version_;
  by_key_.clear();
  blocks_.clear();
}

uint64_t EntryCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return blocks_.size() * block_bytes;
}

}  // namespace recalld
