// A store that is filled without a model, as a daemon would have filled it.
#pragma once

#include <cstdint>
#include <string>

#include "memstore/store.h"

namespace recalld::bench {

// Adds chunks to the memory, up to `chunks`: turns of random words and random encodings.
void fill_made_up(Store& store, const std::string& memory_name, const RecordShape& shape, uint64_t chunks);

}  // namespace recalld::bench
