// 128-bit content hash (XXH3), for identity, never for secrets.
#pragma once

#include <array>
#include <string>

#include "base/bytes.h"

namespace recalld {

// 16 bytes in the library's canonical (big-endian) order, the same on every machine.
using Hash128 = std::array<std::byte, 16>;

Hash128 hash128(ByteView bytes);
std::string hex(const Hash128& hash);

}  // namespace recalld
