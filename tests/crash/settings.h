// Numbers that the environment may set, for longer runs than those of the test suite.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

namespace recalld::crash {

inline uint64_t setting(const char* name, uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::stoull(value);
}

}  // namespace recalld::crash
