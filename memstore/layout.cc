#include "memstore/layout.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/bytes.h"

namespace recalld {

// ---- Gaps

Gaps Gaps::of(std::vector<Gap> gaps) {
  std::ranges::sort(gaps, {}, &Gap::position);
  Gaps out;
  for (const Gap& gap : gaps) {
    if (gap.tokens == 0) continue;
    if (out.gaps_.empty() || out.gaps_.back().end() < gap.position)
      out.gaps_.push_back(gap);
    else
      out.gaps_.back().tokens = std::max(out.gaps_.back().end(), gap.end()) - out.gaps_.back().position;
  }
  out.count();
  return out;
}

void Gaps::add(const Gaps& other) {
  if (other.empty()) return;
  std::vector<Gap> all = gaps_;
  all.insert(all.end(), other.gaps_.begin(), other.gaps_.end());
  *this = of(std::move(all));
}

void Gaps::count() {
  before_.clear();
  uint64_t before = 0;
  for (const Gap& gap : gaps_) {
    before_.push_back(before);
    before += gap.tokens;
  }
}

uint64_t Gaps::tokens() const {
  return gaps_.empty() ? 0 : before_.back() + gaps_.back().tokens;
}

uint64_t Gaps::position_of(uint64_t token) const {
  // The gaps that begin at or before the token: those with at most `token` tokens in front of them.
  size_t low = 0, high = gaps_.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (gaps_[middle].position - before_[middle] <= token)
      low = middle + 1;
    else
      high = middle;
  }
  return low == 0 ? token : token + before_[low - 1] + gaps_[low - 1].tokens;
}

uint64_t Gaps::token_of(uint64_t position) const {
  const auto after = std::ranges::upper_bound(gaps_, position, {}, &Gap::position);
  if (after == gaps_.begin()) return position;
  const auto gap = std::prev(after);
  const uint64_t before = before_[static_cast<size_t>(gap - gaps_.begin())];
  return position - before - std::min(gap->tokens, position - gap->position);
}

std::optional<uint64_t> Gaps::first_difference(const Gaps& a, const Gaps& b) {
  const auto [at_a, at_b] = std::ranges::mismatch(a.gaps_, b.gaps_);
  const Gap* of_a = at_a == a.gaps_.end() ? nullptr : &*at_a;
  const Gap* of_b = at_b == b.gaps_.end() ? nullptr : &*at_b;
  if (!of_a && !of_b) return std::nullopt;
  if (!of_a) return of_b->position;
  if (!of_b) return of_a->position;
  if (of_a->position != of_b->position) return std::min(of_a->position, of_b->position);
  return std::min(of_a->end(), of_b->end());
}

// ---- Layout

const Extent& Layout::extent_of(uint64_t chunk) const {
  return *std::prev(std::ranges::upper_bound(extents, chunk, {}, &Extent::first_chunk));
}

uint64_t Layout::end_of(const Extent& extent) const {
  const auto next = std::ranges::upper_bound(extents, extent.first_chunk, {}, &Extent::first_chunk);
  return next == extents.end() ? UINT64_MAX : next->first_chunk;
}

std::string Layout::encode() const {
  std::string bytes;
  ByteWriter out(bytes);
  out.varint(extents.size());
  for (const Extent& extent : extents) {
    out.varint(extent.first_chunk);
    out.varint(extent.stream);
  }
  uint64_t end = 0;
  out.varint(gaps.gaps().size());
  for (const Gaps::Gap& gap : gaps.gaps()) {
    out.varint(gap.position - end);
    out.varint(gap.tokens);
    end = gap.end();
  }
  return bytes;
}

std::optional<Layout> Layout::decode(std::string_view bytes) {
  ByteReader in(bytes);
  Layout layout;
  for (uint64_t left = in.varint(); in.ok() && left > 0; --left) {
    const uint64_t first_chunk = in.varint();
    const Extent extent{first_chunk, in.varint()};
    if (layout.extents.empty() ? first_chunk != 0 : first_chunk <= layout.extents.back().first_chunk)
      return std::nullopt;
    layout.extents.push_back(extent);
  }
  uint64_t end = 0;
  std::vector<Gaps::Gap> found;
  for (uint64_t left = in.varint(); in.ok() && left > 0; --left) {
    const uint64_t position = end + in.varint();
    const Gaps::Gap gap{position, in.varint()};
    if (gap.tokens == 0 || gap.end() < position || (!found.empty() && position == end)) return std::nullopt;
    found.push_back(gap);
    end = gap.end();
  }
  if (!in.done() || layout.extents.empty()) return std::nullopt;
  layout.gaps = Gaps::of(std::move(found));
  return layout;
}

}  // namespace recalld
