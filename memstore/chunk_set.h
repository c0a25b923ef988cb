// Which chunks of a generation are meant: one bit each, so that it takes an eighth of a byte a chunk however many are.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace recalld {

class ChunkSet {
 public:
  ChunkSet() = default;
  explicit ChunkSet(uint64_t chunks) : words_((chunks + 63) / 64) {}  // of the chunks before this one, none

  void add(uint64_t first, uint64_t end) {  // end <= chunks
    for (uint64_t word = first / 64; word * 64 < end; ++word) words_[word] |= part(word, first, end);
  }

  bool contains(uint64_t chunk) const { return chunk / 64 < words_.size() && (words_[chunk / 64] >> (chunk % 64) & 1); }

  // The first chunk of [from, end) that is in the set, or not in it; `end` when there is none.
  uint64_t first_in(uint64_t from, uint64_t end) const { return find(from, end, 0); }
  uint64_t first_out(uint64_t from, uint64_t end) const { return find(from, end, ~uint64_t{0}); }

  bool any(uint64_t from, uint64_t end) const { return first_in(from, end) < end; }

  bool operator==(const ChunkSet&) const = default;

  uint64_t size() const {
    uint64_t count = 0;
    for (const uint64_t word : words_) count += static_cast<uint64_t>(std::popcount(word));
    return count;
  }

 private:
  // The bits of a word that stand for [first, end).
  static uint64_t part(uint64_t word, uint64_t first, uint64_t end) {
    const uint64_t begin = word * 64, from = first > begin ? first - begin : 0;
    const uint64_t above = end - begin >= 64 ? ~uint64_t{0} : (uint64_t{1} << (end - begin)) - 1;
    return above & (~uint64_t{0} << from);
  }

  uint64_t find(uint64_t from, uint64_t end, uint64_t flip) const {
    for (uint64_t word = from / 64; word * 64 < end; ++word) {
      const uint64_t bits = ((word < words_.size() ? words_[word] : 0) ^ flip) & part(word, from, end);
      if (bits != 0) return word * 64 + static_cast<uint64_t>(std::countr_zero(bits));
    }
    return end;
  }

  std::vector<uint64_t> words_;
};

}  // namespace recalld
