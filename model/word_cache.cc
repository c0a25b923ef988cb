#include "model/word_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace recalld {
namespace {

constexpr uint64_t writing = uint64_t{1} << 16;  // the version's lowest bit

uint64_t version(uint64_t head) {
  return head >> 16;
}

}  // namespace

WordCache::Word::Word(std::string_view text, bool space) : size_(text.size() + (space ? 1 : 0)) {
  assert(size_ > 0 && size_ <= word_bytes_max);
  char* const bytes = reinterpret_cast<char*>(text_.data());
  if (space) bytes[0] = ' ';
  std::memcpy(bytes + (space ? 1 : 0), text.data(), text.size());
  uint64_t hash = size_;
  for (size_t i = 0; 8 * i < size_; ++i) {
    hash = (hash ^ text_[i]) * 0x9e3779b97f4a7c15;  // an odd number without a pattern
    hash ^= hash >> 32;
  }
  hash_ = hash;
}

WordCache::WordCache() : slots_(std::make_unique<std::array<Slot, slots>>()) {
  static_assert(sizeof(Slot) == 128 && sizeof(*slots_) == bytes && (slots & (slots - 1)) == 0);
}

bool WordCache::holds(const Slot& slot, uint64_t head, const Word& word) {
  if ((head & writing) != 0 || ((head >> 8) & 0xff) != word.size_) return false;
  for (size_t i = 0; 8 * i < word.size_; ++i)
    if (slot.text[i].load(std::memory_order_acquire) != word.text_[i]) return false;
  return true;
}

// Every load of what a head counts acquires, and every store of it releases: whoever reads a newer word of it sees the
// newer head as well.
bool WordCache::find(const Word& word, Pieces& out) const {
  const size_t pair = (word.hash_ & (slots - 1)) & ~size_t{1};
  for (const size_t at : {pair, pair + 1}) {
    const Slot& slot = (*slots_)[at];
    const uint64_t head = slot.head.load(std::memory_order_acquire);
    if (!holds(slot, head, word)) continue;
    out.count = std::min<size_t>(head & 0xff, pieces_max);
    for (size_t i = 0; i < out.count; i += 2) {
      const uint64_t two = slot.pieces[i / 2].load(std::memory_order_acquire);
      out.ids[i] = static_cast<uint32_t>(two) >> 8;
      out.ends[i] = static_cast<uint8_t>(two);
      out.ids[i + 1] = static_cast<uint32_t>(two >> 40);
      out.ends[i + 1] = static_cast<uint8_t>(two >> 32);
    }
    return slot.head.load(std::memory_order_relaxed) == head;
  }
  return false;
}

void WordCache::keep(const Word& word, const Pieces& pieces) {
  assert(pieces.count > 0 && pieces.count <= pieces_max);
  const size_t pair = (word.hash_ & (slots - 1)) & ~size_t{1};
  const std::array<uint64_t, 2> heads{(*slots_)[pair].head.load(std::memory_order_acquire),
                                      (*slots_)[pair + 1].head.load(std::memory_order_acquire)};
  for (const size_t i : {0, 1})
    if (holds((*slots_)[pair + i], heads[i], word)) return;
  // They are written in turn.
  const size_t chosen = version(heads[0]) <= version(heads[1]) ? 0 : 1;
  Slot& slot = (*slots_)[pair + chosen];
  uint64_t head = heads[chosen];
  if ((head & writing) != 0 || !slot.head.compare_exchange_strong(head, head | writing, std::memory_order_acquire))
    return;  // another thread writes: this word comes again
  for (size_t i = 0; 8 * i < word.size_; ++i) slot.text[i].store(word.text_[i], std::memory_order_release);
  const auto packed = [&](size_t i) -> uint64_t { return i < pieces.count ? pieces.ids[i] << 8 | pieces.ends[i] : 0; };
  for (size_t i = 0; i < pieces.count; i += 2)
    slot.pieces[i / 2].store(packed(i) | packed(i + 1) << 32, std::memory_order_release);
  slot.head.store((version(head) + 2) << 16 | word.size_ << 8 | pieces.count, std::memory_order_release);
}

}  // namespace recalld
