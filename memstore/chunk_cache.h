// Which chunks lie in which slots of a cache of fixed size, least recently used ones leaving first. Knows nothing of
// what a slot is: the slots of a GPU are filled and emptied by who asks here.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace recalld {

class ChunkCache {
 public:
  // Whose chunks they are: a number for each memory and generation, never used again.
  using Owner = uint64_t;

  explicit ChunkCache(uint32_t slots);

  // The slot of a chunk, if it has one. Marks it as used.
  std::optional<uint32_t> find(Owner owner, uint64_t chunk);

  // A slot that is held stays what it is. As often as it was held it must be let go.
  void hold(uint32_t slot);
  void let_go(uint32_t slot);

  struct Taken {
    uint32_t slot = 0;
    std::optional<std::pair<Owner, uint64_t>> evicted;  // the chunk that was there
  };
  // A slot for a chunk that has none, held: a free one, or that of the chunk that was used longest ago. Nothing when
  // all are held.
  std::optional<Taken> take(Owner owner, uint64_t chunk);

  // The chunk has its slot no longer; it is free when it is not held any more.
  void drop(Owner owner, uint64_t chunk);
  // All chunks of an owner, likewise. Returns their slots.
  std::vector<uint32_t> forget(Owner owner);

  uint32_t slots() const { return static_cast<uint32_t>(slots_.size()); }
  uint32_t used() const;

 private:
  struct Slot {
    std::optional<std::pair<Owner, uint64_t>> chunk;
    uint32_t holds = 0;
    std::list<uint32_t>::iterator place;  // in by_use_
  };

  void empty(uint32_t slot);

  std::vector<Slot> slots_;
  std::list<uint32_t> by_use_;  // all slots; those to take first in front
  std::map<Owner, std::unordered_map<uint64_t, uint32_t>> of_owner_;
};

}  // namespace recalld
