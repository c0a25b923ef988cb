// The table of methods: how each one's arguments become a call of the engine, and its reply the result.
#pragma once

#include "daemon/connection.h"
#include "daemon/engine.h"
#include "daemon/json_rpc.h"

namespace recalld {

// What serve_line() calls for the lines of one client. Borrows the engine, which must be destroyed (it answers what it
// accepted) before whatever the answers go to.
Call commands_of(Engine& engine, Client client = {});

}  // namespace recalld
