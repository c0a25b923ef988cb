// What a question and a chunk have in common by the surroundings that their pieces are used in: a vector a piece, the
// same wherever it stands. A piece matches others than itself, so that paraphrases do, too.
//
// The vectors and how much each piece tells come with a checkpoint as meaning.safetensors; tools/train/meaning.py makes
// it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"

namespace recalld {

// Const functions may be called from any thread.
class Meaning {
 public:
  class Question;

  // What a chunk has of a question.
  struct Chunk {
    std::vector<float> best;  // for each piece of the question the best cosine of a piece of the chunk, at least 0
    double topic = 0;         // the cosine of both texts' vectors, the weighted sums of their pieces'
  };

  // Of DIRECTORY/meaning.safetensors, nothing where there is none. io and corrupt as Weights::open; invalid_request
  // tells what does not fit a tokenizer of so many pieces.
  static Expected<std::optional<Meaning>> of_checkpoint(const std::filesystem::path& directory, size_t pieces);

  size_t pieces() const { return weights_.size(); }

 private:
  Meaning() = default;
  std::span<const float> unit(uint32_t piece) const {
    return std::span(units_).subspan(piece * dimensions_, dimensions_);
  }
  void add(uint32_t piece, std::vector<float>& sum) const;

  size_t dimensions_ = 0;
  std::vector<float> weights_;  // [pieces] 0 to 1; 0: the piece tells nothing
  std::vector<float> lengths_;  // [pieces] of the vectors
  std::vector<float> units_;    // [pieces, dimensions], each of length 1, or 0
};

// A question that many chunks are compared with, on one thread. `meaning` must outlive it.
class Meaning::Question {
 public:
  // Tokens beyond the vocabulary, and pieces that tell nothing, are passed over; so is what comes behind
  // `distinct_max` different pieces.
  Question(const Meaning& meaning, std::span<const uint32_t> tokens);

  bool empty() const { return asked_.empty(); }  // nothing in it tells anything
  Chunk look(std::span<const uint32_t> tokens);

  // 0 to 1: the weighted share of the question that the chunk has, or, for a part of it, a chunk beside it; null: none.
  double share(const Chunk& chunk, const Chunk* before, const Chunk* after) const;

  static constexpr size_t distinct_max = 128;

 private:
  const Meaning& meaning_;
  std::vector<uint32_t> asked_;   // different pieces
  std::vector<float> weights_;    // of these, with the sum 1
  std::vector<float> sum_;        // the text's vector
  std::vector<uint32_t> row_of_;  // [pieces] 1 + where its cosines stand in rows_, 0: not computed yet
  std::vector<float> rows_;       // [met, asked]
};

}  // namespace recalld
