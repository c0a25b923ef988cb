// How the chunks of one generation of a memory's encodings relate to its journal, and in which streams their rows lie.
//
// The journal numbers the tokens of a memory once and for good: these are positions. A forgotten turn leaves a gap in
// them. The tokens of a generation are the positions outside its gaps, counted from 0 without holes: forgetting never
// moves a row of the journal, it only changes the gaps.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memstore/chunk.h"

namespace recalld {

// Runs of positions that do not count, in order and apart from each other.
class Gaps {
 public:
  struct Gap {
    uint64_t position = 0;
    uint64_t tokens = 0;
    uint64_t end() const { return position + tokens; }
    bool operator==(const Gap&) const = default;
  };

  static Gaps of(std::vector<Gap> gaps);  // in any order; joins what overlaps or touches

  void add(const Gaps& other);

  uint64_t tokens() const;                     // in all gaps
  uint64_t position_of(uint64_t token) const;  // of the token with this number
  uint64_t token_of(uint64_t position) const;  // how many positions before this one count
  std::span<const Gap> gaps() const { return gaps_; }
  bool empty() const { return gaps_.empty(); }
  bool operator==(const Gaps&) const = default;

  // The first position that one of both leaves out and the other does not; nothing when they are equal.
  static std::optional<uint64_t> first_difference(const Gaps& a, const Gaps& b);

 private:
  std::vector<Gap> gaps_;
  std::vector<uint64_t> before_;  // tokens in the gaps before each
  void count();
};

// The rows of chunks, landmarks and states from `first_chunk` on, up to the next extent's, lie under `stream`.
struct Extent {
  uint64_t first_chunk = 0;  // a multiple of the chunks of a page of landmarks
  StreamId stream = 0;
  bool operator==(const Extent&) const = default;
};

struct Layout {
  Gaps gaps;
  std::vector<Extent> extents;  // by chunk; the first begins at 0, the last takes what is encoded next

  StreamId stream() const { return extents.back().stream; }
  // The extent that holds this chunk.
  const Extent& extent_of(uint64_t chunk) const;
  // One past the last chunk that an extent can hold.
  uint64_t end_of(const Extent& extent) const;

  std::string encode() const;
  static std::optional<Layout> decode(std::string_view bytes);
};

}  // namespace recalld
