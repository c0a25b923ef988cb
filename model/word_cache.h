// The pieces of words that a tokenizer has met, so that it need not cut them again.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace recalld {

// One cache for all threads: any of them may call any function at any time, and none waits for another. Its size is
// fixed (`bytes`); a new word takes the place of an older one. It is exact: words are compared whole, byte by byte.
// It holds words of the texts that were encoded, in RAM alone.
class WordCache {
 public:
  static constexpr size_t word_bytes_max = 40, pieces_max = 20;
  static constexpr uint32_t ids_max = uint32_t{1} << 24;  // ids are below
  static constexpr size_t bytes = size_t{2} << 20;

  // A word of 1 to word_bytes_max bytes.
  class Word {
   public:
    explicit Word(std::string_view text) : Word(text, false) {}
    static Word behind_space(std::string_view text) { return Word(text, true); }  // " " + text

   private:
    friend WordCache;
    Word(std::string_view text, bool space);
    std::array<uint64_t, word_bytes_max / 8> text_{};  // zeros behind it
    size_t size_;
    uint64_t hash_;
  };

  // Pieces of a word: piece i is ids[i] and ends at byte ends[i] of it.
  struct Pieces {
    size_t count = 0;
    std::array<uint32_t, pieces_max> ids;
    std::array<uint8_t, pieces_max> ends;
  };

  WordCache();

  bool find(const Word& word, Pieces& out) const;
  void keep(const Word& word, const Pieces& pieces);

 private:
  // A head and what it counts. A thread that writes makes the head odd first; one that reads and finds another head
  // behind what it read than before has read nothing.
  struct alignas(128) Slot {
    std::atomic<uint64_t> head{0};  // version, bytes of the word, pieces: 48, 8 and 8 bits; 0: empty
    std::array<std::atomic<uint64_t>, word_bytes_max / 8> text{};
    std::array<std::atomic<uint64_t>, pieces_max / 2> pieces{};  // 2 each: id and end, 24 and 8 bits
  };
  static constexpr size_t slots = bytes / sizeof(Slot);

  static bool holds(const Slot& slot, uint64_t head, const Word& word);

  std::unique_ptr<std::array<Slot, slots>> slots_;  // in pairs: a word lies in either slot of its pair
};

}  // namespace recalld
