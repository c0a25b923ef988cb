// Filters of turns (docs/protocol.md): a JSON object of conditions into a function that says which turns are meant.
#pragma once

#include <string>

#include "base/error.h"
#include "daemon/json_rpc.h"
#include "daemon/requests.h"
#include "memstore/store.h"

namespace recalld {

// `value` should be an object of conditions; its values are moved out. `path` is where it stands ("filter"). An object
// without conditions is refused at any depth: it would mean every turn.
Expected<TurnFilter> read_filter(Json& value, std::string path);

// The same for a search, which knows a filter again and is told between which turns it can be true.
Expected<TurnQuery> read_query(Json& value, std::string path);

}  // namespace recalld
