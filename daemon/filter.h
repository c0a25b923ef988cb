// Filters of turns (docs/protocol.md): a JSON object of conditions into a function that says which turns are meant, and
// into the same demand of an index.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "daemon/json_rpc.h"
#include "daemon/requests.h"
#include "memstore/attribute.h"
#include "memstore/store.h"

namespace recalld {

// `value` should be an object of conditions; its values are moved out. `path` is where it stands ("filter"). An object
// without conditions is refused at any depth: it would mean every turn.
Expected<TurnQuery> read_query(Json& value, std::string path);

// The members of a turn's metadata as the filters of a search know them (StoreOptions::read_metadata).
std::vector<Attribute> metadata_attributes(std::string_view metadata);

}  // namespace recalld
