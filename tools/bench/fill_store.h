// A store that is filled without a model, as a daemon would have filled it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "memstore/store.h"

namespace recalld::bench {

// Of stores whose K/V and states do not matter.
inline constexpr RecordShape made_up_shape{.kv_bytes = 64, .landmark_dim = 256, .state_bytes = 64, .model = {}};

std::unique_ptr<Store> open_made_up(const std::filesystem::path& directory, StoreOptions options = {});

// Adds chunks to the memory, up to `chunks`: turns of random words and random encodings. `describe` may give each turn,
// of which it gets the number, what filters ask for.
void fill_made_up(Store& store, const std::string& memory_name, const RecordShape& shape, uint64_t chunks,
                  const std::function<void(uint64_t number, Turn& turn)>& describe = {});

}  // namespace recalld::bench
