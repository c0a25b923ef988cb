// What the machine's matrix products alone allow: oneDNN on the shapes of one appended chunk, nothing else.
#pragma once

#include <cstddef>

#include "model/config.h"

namespace recalld::bench {

// Work of one appended token: the products of the lower half and of the chunk encoder.
double product_flop_per_token(const Config& config);

// Runs every product of a chunk in turn, packed weights of their own for each as in the model, one stream of chunks a
// thread. Median of several rounds, all threads together. bf16: inputs in bf16; the results are f32 either way.
double product_tokens_per_s(const Config& config, bool bf16, size_t threads);

}  // namespace recalld::bench
