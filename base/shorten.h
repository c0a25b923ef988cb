// Texts of others as messages show them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace recalld {

// At most 64 bytes of a text, whole characters of UTF-8, and "…" where it has more: a message has no place for all.
inline std::string shortened(std::string_view text) {
  constexpr size_t shown_bytes_max = 64;
  if (text.size() <= shown_bytes_max) return std::string(text);
  size_t end = shown_bytes_max;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "…";
}

}  // namespace recalld
