#include "base/hash.h"

#include <xxhash.h>

#include <cstring>

namespace recalld {

Hash128 hash128(ByteView bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Hash128 hash;
  std::memcpy(hash.data(), canonical.digest, hash.size());
  return hash;
}

std::string hex(const Hash128& hash) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte b : hash) {
    text += digits[std::to_integer<unsigned>(b) >> 4];
    text += digits[std::to_integer<unsigned>(b) & 15];
  }
  return text;
}

}  // namespace recalld
