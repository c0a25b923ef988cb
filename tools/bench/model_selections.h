// What the shipped model makes of prose, for benchmarks whose figures depend on it: its landmarks and queries, and the
// chunks that it selects.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/bf16.h"

namespace recalld::bench {

struct ModelSelections {
  std::vector<uint32_t> chunks;  // [tokens, k], newest first, that is of descending ids
  std::vector<float> scores;     // [tokens, k]
};

// Lets the model in share/recalld-models/default, beside this program or up to two directories above it, read prose on
// the CPU: a memory of `chunks` chunks and then `tokens` tokens, of which each selects the k chunks of the memory that
// score best, as the tokens of a question or an answer do. k <= chunks, tokens a multiple of 64. Throws GaveUp.
ModelSelections select_by_model(uint32_t chunks, uint32_t tokens, uint32_t k);

struct ModelLandmarks {
  uint32_t dim = 0;
  std::vector<Bf16> landmarks;  // [chunks, dim] as stored
  std::vector<Bf16> queries;    // [questions, dim] as searches ask with
};

// The landmarks of a memory of so many chunks of prose, and the queries of so many other sentences, by the same model
// on the GPU. Throws GaveUp.
ModelLandmarks landmarks_by_model(uint32_t chunks, uint32_t questions);

}  // namespace recalld::bench
