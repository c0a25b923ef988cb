// A store that is filled without a model, as a daemon would have filled it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "memstore/store.h"

namespace recalld::bench {

// Of stores whose K/V and states do not matter.
inline constexpr RecordShape made_up_shape{.kv_bytes = 64, .landmark_dim = 256, .state_bytes = 64, .model = {}};

std::unique_ptr<Store> open_made_up(const std::filesystem::path& directory,
                                    uint64_t memory_budget_bytes = StoreOptions().memory_budget_bytes);

// Adds chunks to the memory, up to `chunks`: turns of random words and random encodings.
void fill_made_up(Store& store, const std::string& memory_name, const RecordShape& shape, uint64_t chunks);

}  // namespace recalld::bench
