#include "memstore/chunk_cache.h"

#include <algorithm>
#include <cassert>

namespace recalld {

ChunkCache::ChunkCache(uint32_t slots) : slots_(slots) {
  for (uint32_t slot = 0; slot < slots; ++slot) slots_[slot].place = by_use_.insert(by_use_.end(), slot);
}

std::optional<uint32_t> ChunkCache::find(Owner owner, uint64_t chunk) {
  const auto chunks = of_owner_.find(owner);
  if (chunks == of_owner_.end()) return std::nullopt;
  const auto found = chunks->second.find(chunk);
  if (found == chunks->second.end()) return std::nullopt;
  by_use_.splice(by_use_.end(), by_use_, slots_[found->second].place);
  return found->second;
}

void ChunkCache::hold(uint32_t slot) {
  ++slots_[slot].holds;
}

void ChunkCache::let_go(uint32_t slot) {
  assert(slots_[slot].holds > 0);
  --slots_[slot].holds;
}

std::optional<ChunkCache::Taken> ChunkCache::take(Owner owner, uint64_t chunk) {
  const auto free = std::ranges::find_if(by_use_, [this](uint32_t slot) { return slots_[slot].holds == 0; });
  if (free == by_use_.end()) return std::nullopt;
  Taken taken{.slot = *free, .evicted = slots_[*free].chunk};
  if (taken.evicted) empty(taken.slot);
  Slot& slot = slots_[taken.slot];
  slot.chunk = {owner, chunk};
  slot.holds = 1;
  by_use_.splice(by_use_.end(), by_use_, slot.place);
  of_owner_[owner][chunk] = taken.slot;
  return taken;
}

void ChunkCache::drop(Owner owner, uint64_t chunk) {
  const auto chunks = of_owner_.find(owner);
  if (chunks == of_owner_.end()) return;
  if (const auto found = chunks->second.find(chunk); found != chunks->second.end()) empty(found->second);
}

std::vector<uint32_t> ChunkCache::forget(Owner owner) {
  std::vector<uint32_t> forgotten;
  if (const auto chunks = of_owner_.find(owner); chunks != of_owner_.end())
    for (const auto& [chunk, slot] : chunks->second) forgotten.push_back(slot);
  for (const uint32_t slot : forgotten) empty(slot);
  return forgotten;
}

// An empty slot is the first to be taken.
void ChunkCache::empty(uint32_t slot) {
  const auto [owner, chunk] = *slots_[slot].chunk;
  const auto chunks = of_owner_.find(owner);
  chunks->second.erase(chunk);
  if (chunks->second.empty()) of_owner_.erase(chunks);
  slots_[slot].chunk.reset();
  by_use_.splice(by_use_.begin(), by_use_, slots_[slot].place);
}

uint32_t ChunkCache::used() const {
  return static_cast<uint32_t>(std::ranges::count_if(slots_, [](const Slot& slot) { return slot.chunk.has_value(); }));
}

}  // namespace recalld
