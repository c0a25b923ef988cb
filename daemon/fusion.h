// One order out of what the landmarks and the words of a question say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace recalld {

// A chunk that may answer a search.
struct Candidate {
  uint64_t chunk = 0;
  double landmark = 0;                  // its landmark score
  double bm25 = 0;                      // of its words
  double context = 0;                   // of its words and its neighbours'
  std::optional<size_t> landmark_rank;  // from 1; none: it was not among the first by its landmark
  std::optional<size_t> lexical_rank;   // likewise, by words
  double score = 0;
  size_t memory = 0;  // which of those that are searched together
};

// Scores each candidate by how far it stands above the mean of all of them, in standard deviations (0 where all are
// equal): that of bm25, plus that of context, plus 0.3 times that of landmark. Puts the best first; of equals, the
// chunk of the earlier memory, and of one memory the lower chunk.
void fuse(std::vector<Candidate>& candidates);

}  // namespace recalld
