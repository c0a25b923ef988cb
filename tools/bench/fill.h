// Fills a memory through the socket with made-up chat.
#pragma once

#include <cstdint>
#include <string>

#include "client/client.h"

namespace recalld::bench {

struct FillReport {
  uint64_t tokens = 0;
  double durable_s = 0;     // until the last append was acknowledged
  double searchable_s = 0;  // until every complete chunk was encoded and stored
};

// Appends whole requests of 64 turns, pipelined, until at least `tokens` tokens are in.
FillReport fill(client::Client& client, const std::string& memory, uint64_t tokens, uint64_t seed);

}  // namespace recalld::bench
