// 128-bit content hash (XXH3), for identity, never for secrets.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace recalld {

// 16 bytes in the library's canonical (big-endian) order, the same on every machine.
using Hash128 = std::array<std::byte, 16>;

Hash128 hash128(ByteView bytes);
std::string hex(const Hash128& hash);
std::optional<Hash128> hash_from_hex(std::string_view text);  // what hex() writes, and nothing else

}  // namespace recalld
