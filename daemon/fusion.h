// One order out of what the landmarks, the words and the tokens of a question say, and how likely each chunk answers.
//
// Features tell how a chunk stands among the candidates of its search; a weighted sum of them, no weight below 0,
// orders the chunks, and a logistic function of that sum and of what is the same for all chunks of a search gives the
// score: the probability that the chunk holds evidence. The weights are learned by tools/train/fusion.py, and come with
// a checkpoint as fusion.json.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace recalld {

// Of a chunk. "Standing" is (x - mean) / deviation over the candidates that set it, 0 where all are equal: those that
// are deep without a filter, so that a score means the same with one.
enum class Feature : size_t {
  bm25,           // BM25 over the chunk's words, times 1 - e^-(best_bm25 / 10)^2: common words alone tell little
  context,        // BM25 over its words and its neighbours', likewise
  landmark,       // standing of the landmark score
  tokens,         // standing of the token score; without one, of the lowest there is
  near_landmark,  // the better landmark standing of the two chunks beside it, if they are candidates; else the lowest
  near_tokens,    // likewise of the token score
  landmark_top,   // 1 / (1 + how far the landmark stands below the best)
  lexical_top,    // likewise of bm25 + context
  meaning,        // standing of the share of the question that the chunk and those beside it have by meaning
  topic,          // standing of how near both texts' vectors are, times e^-(best_bm25 / 15)^2: where words tell little
  // Of the search, the same for all its chunks:
  best_bm25,      // the highest BM25
  best_tokens,    // the highest token score
  best_landmark,  // the highest landmark standing
};
inline constexpr size_t feature_count = 13;
inline constexpr size_t order_features = 10;  // so many of the first are of a chunk
inline constexpr std::array<std::string_view, feature_count> feature_names{
    "bm25",        "context_bm25", "landmark", "tokens",    "near_landmark", "near_tokens",  "landmark_top",
    "lexical_top", "meaning",      "topic",    "best_bm25", "best_tokens",   "best_landmark"};
using Features = std::array<double, feature_count>;

// A chunk that may answer a search.
struct Candidate {
  uint64_t chunk = 0;
  double landmark = 0;                   // its landmark score
  double bm25 = 0;                       // of its words
  double context = 0;                    // of its words and its neighbours'
  std::optional<double> tokens;          // its token score; none: its K/V cannot be read, or it is not deep
  std::optional<double> meaning, topic;  // Meaning's share and topic; none: likewise, or the checkpoint has no Meaning
  std::optional<size_t> landmark_rank;   // from 1; none: it was not among the first by its landmark
  std::optional<size_t> lexical_rank;    // likewise, by words
  Features features{};
  double score = 0;
  size_t memory = 0;  // which of those that are searched together
  // With a filter:
  bool meant = true;     // else it sets the standing of others, and is no result; its ranks are those among all chunks
  bool further = false;  // it is deep among what the filter means alone: it sets no standing
  // To explain it: by each part, its place among all that were compared, and the best score of these.
  struct PartPlace {
    size_t rank = 0;  // from 1
    double best = 0;
  };
  std::vector<PartPlace> part_places{};
};

class Fusion {
 public:
  // What learned weights are made for: of each ranking so many chunks are scored by their tokens, and set the standing.
  static constexpr size_t depth = 64;
  static bool is_deep(const Candidate& candidate) {
    return candidate.landmark_rank.value_or(depth + 1) <= depth || candidate.lexical_rank.value_or(depth + 1) <= depth;
  }

  static bool sets_standing(const Candidate& candidate) { return is_deep(candidate) && !candidate.further; }

  Fusion();  // weights that serve a checkpoint without fusion.json

  // Of DIRECTORY/fusion.json, the built-in weights where there is none; invalid_request tells what the file has wrong.
  static Expected<Fusion> of_checkpoint(const std::filesystem::path& directory);
  static Expected<Fusion> parse(std::string_view json);

  // Sets the features and the score of each, and puts the best first; of equals, the lower chunk.
  void rank(std::vector<Candidate>& candidates) const;

 private:
  std::array<double, order_features> order_{};
  // logit = slope · sum + rivals · log Σ e^sum (over all candidates) + Σ search · feature + bias
  double slope_ = 1, rivals_ = 0, bias_ = 0;
  std::array<double, feature_count - order_features> search_{};
};

}  // namespace recalld
