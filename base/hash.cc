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

std::optional<Hash128> hash_from_hex(std::string_view text) {
  Hash128 hash;
  if (text.size() != 2 * hash.size()) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    unsigned value = 0;
    if (c >= '0' && c <= '9') {
      value = static_cast<unsigned>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      value = static_cast<unsigned>(c - 'a') + 10;
    } else {
      return std::nullopt;
    }
    hash[i / 2] = i % 2 == 0 ? std::byte(value << 4) : hash[i / 2] | std::byte(value);
  }
  return hash;
}

}  // namespace recalld
