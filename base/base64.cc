#include "base/base64.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace recalld {
namespace {

constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr uint8_t no_digit = 0xff;

constexpr std::array<uint8_t, 256> value_of_digit = [] {
  std::array<uint8_t, 256> values{};
  values.fill(no_digit);
  for (size_t i = 0; i < digits.size(); ++i) values[static_cast<uint8_t>(digits[i])] = static_cast<uint8_t>(i);
  return values;
}();

}  // namespace

std::string base64(std::string_view bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t at = 0; at < bytes.size(); at += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - at);
    uint32_t group = 0;
    for (size_t i = 0; i < 3; ++i) group = group << 8 | (i < count ? static_cast<uint8_t>(bytes[at + i]) : 0U);
    for (size_t i = 0; i < 4; ++i) text.push_back(i <= count ? digits[group >> (18 - 6 * i) & 63] : '=');
  }
  return text;
}

std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  for (size_t at = 0; at < text.size(); at += 4) {
    std::string_view quad = text.substr(at, 4);
    const bool last = at + 4 == text.size();
    if (last && quad.ends_with("==")) {
      quad.remove_suffix(2);
    } else if (last && quad.ends_with('=')) {
      quad.remove_suffix(1);
    }
    uint32_t group = 0;
    for (size_t i = 0; i < 4; ++i) {
      const uint8_t value = i < quad.size() ? value_of_digit[static_cast<uint8_t>(quad[i])] : uint8_t{0};
      if (value == no_digit) return std::nullopt;
      group = group << 6 | value;
    }
    const size_t count = quad.size() - 1;
    if (count < 3 && (group & (0xffffffU >> (8 * count))) != 0) return std::nullopt;
    for (size_t i = 0; i < count; ++i) bytes.push_back(static_cast<char>(group >> (16 - 8 * i) & 0xff));
  }
  return bytes;
}

}  // namespace recalld
