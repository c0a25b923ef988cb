// The chunks that the shipped model selects, for benchmarks of the attention to them.
#pragma once

#include <cstdint>
#include <vector>

namespace recalld::bench {

struct ModelSelections {
  std::vector<uint32_t> chunks;  // [tokens, k], newest first, that is of descending ids
  std::vector<float> scores;     // [tokens, k]
};

// Lets the model in share/recalld-models/default, beside this program or up to two directories above it, read prose on
// the CPU: a memory of `chunks` chunks and then `tokens` tokens, of which each selects the k chunks of the memory that
// score best, as the tokens of a question or an answer do. k <= chunks, tokens a multiple of 64. Throws GaveUp.
ModelSelections select_by_model(uint32_t chunks, uint32_t tokens, uint32_t k);

}  // namespace recalld::bench
