// Which tokens the results of a search show, when they are more than chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace recalld {

// Tokens [first, end) of one memory.
struct TokenSpan {
  uint64_t first = 0;
  uint64_t end = 0;
  uint64_t size() const { return end - first; }
  bool operator==(const TokenSpan&) const = default;
};

// As much of `wanted` around `kept`, which lies in it, as has at most `tokens_max` tokens; at least `kept`. What is cut
// is taken evenly from both sides, as far as they reach.
TokenSpan narrowed(TokenSpan wanted, TokenSpan kept, uint64_t tokens_max);

// Passages of some memories, none of which overlap, best first. Added ones are joined with those that they overlap.
class Passages {
 public:
  struct Passage {
    size_t memory = 0;
    TokenSpan tokens;
    size_t best = 0;               // the candidate that it was made for, by its place in the order
    std::vector<uint64_t> chunks;  // that were found in it, by number
    size_t duplicates = 0;
  };

  // `touching`: those that touch are joined too.
  explicit Passages(bool touching) : touching_(touching) {}

  // The passage that has all of these tokens; none: null. Valid until add().
  Passage* that_has(size_t memory, TokenSpan tokens);
  // How many of these tokens no passage has yet.
  uint64_t added_tokens(size_t memory, TokenSpan tokens) const;
  // Adds tokens for a candidate that is no better than those before. The joined passage stands where the best of its
  // members stood.
  void add(size_t memory, TokenSpan tokens, uint64_t chunk, size_t candidate);

  std::vector<Passage>& all() { return passages_; }
  size_t size() const { return passages_.size(); }

 private:
  bool touching_;
  std::vector<Passage> passages_;
};

}  // namespace recalld
