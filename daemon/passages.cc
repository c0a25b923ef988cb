#include "daemon/passages.h"

#include <algorithm>
#include <utility>

namespace recalld {

TokenSpan narrowed(TokenSpan wanted, TokenSpan kept, uint64_t tokens_max) {
  if (wanted.size() <= tokens_max) return wanted;
  const uint64_t spare = tokens_max - std::min(tokens_max, kept.size());
  const uint64_t before = kept.first - wanted.first, behind = wanted.end - kept.end;
  const uint64_t taken_behind = std::min(behind, spare - std::min(before, spare / 2));
  const uint64_t taken_before = std::min(before, spare - taken_behind);
  return {kept.first - taken_before, kept.end + taken_behind};
}

Passages::Passage* Passages::that_has(size_t memory, TokenSpan tokens) {
  const auto found = std::ranges::find_if(passages_, [&](const Passage& each) {
    return each.memory == memory && each.tokens.first <= tokens.first && tokens.end <= each.tokens.end;
  });
  return found == passages_.end() ? nullptr : &*found;
}

uint64_t Passages::added_tokens(size_t memory, TokenSpan tokens) const {
  uint64_t known = 0;
  for (const Passage& each : passages_) {
    if (each.memory != memory) continue;
    const uint64_t first = std::max(each.tokens.first, tokens.first), end = std::min(each.tokens.end, tokens.end);
    if (first < end) known += end - first;
  }
  return tokens.size() - known;
}

void Passages::add(size_t memory, TokenSpan tokens, uint64_t chunk, size_t candidate) {
  Passage joined{.memory = memory, .tokens = tokens, .best = candidate, .chunks = {chunk}};
  // Members are joined by the tokens that were added: what these do not reach stays apart.
  const auto meets = [&](const Passage& each) {
    if (each.memory != memory) return false;
    return touching_ ? each.tokens.first <= tokens.end && tokens.first <= each.tokens.end
                     : each.tokens.first < tokens.end && tokens.first < each.tokens.end;
  };
  auto place = std::ranges::find_if(passages_, meets);
  const auto at = place - passages_.begin();
  for (auto each = place; each != passages_.end();) {
    if (!meets(*each)) {
      ++each;
      continue;
    }
    joined.tokens = {std::min(joined.tokens.first, each->tokens.first), std::max(joined.tokens.end, each->tokens.end)};
    joined.best = std::min(joined.best, each->best);
    joined.duplicates += each->duplicates;
    joined.chunks.insert(joined.chunks.end(), each->chunks.begin(), each->chunks.end());
    each = passages_.erase(each);
  }
  std::ranges::sort(joined.chunks);
  passages_.insert(passages_.begin() + at, std::move(joined));
}

}  // namespace recalld
