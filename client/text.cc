#include "client/text.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace recalld::client {

namespace {

struct Character {
  uint32_t code = 0;
  size_t bytes = 0;  // 0: not well-formed
};

Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (text.empty()) return {};
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {};
  uint32_t code = lead & (0x7fU >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3fU);
  }
  constexpr std::array<uint32_t, 5> least{0, 0, 0x80, 0x800, 0x10000};
  if (code < least[bytes] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return {};
  return {code, bytes};
}

bool steers_terminal(uint32_t code) {
  if (code == '\n' || code == '\t') return false;
  return code < 0x20 || (code >= 0x7f && code < 0xa0) ||        // C0, DEL and C1 controls
         code == 0x200e || code == 0x200f || code == 0x061c ||  // direction marks
         (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

template <class... Values>
std::string formatted(const char* format, Values... values) {
  std::array<char, 64> buffer{};
  const int length = std::snprintf(buffer.data(), buffer.size(), format, values...);
  return {buffer.data(), static_cast<size_t>(length)};
}

size_t character_bytes(std::string_view text) {
  return std::max<size_t>(first_character(text).bytes, 1);
}

// The bytes that the first `count` characters take.
size_t bytes_of_characters(std::string_view text, size_t count) {
  size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += character_bytes(text.substr(at));
  return at;
}

}  // namespace

size_t valid_utf8_bytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t bytes = first_character(text.substr(at)).bytes;
    if (bytes == 0) break;
    at += bytes;
  }
  return at;
}

namespace {

// `ascii` is the format of a control character that ASCII has.
std::string spelled_out(std::string_view text, const char* ascii) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character character = first_character(text.substr(at));
    if (character.bytes == 0) {
      out += formatted("\\x%02x", static_cast<unsigned>(static_cast<uint8_t>(text[at])));
      ++at;
      continue;
    }
    if (!steers_terminal(character.code)) {
      out += text.substr(at, character.bytes);
    } else {
      out += formatted(character.code < 0x80 ? ascii : "\\u%04x", character.code);
    }
    at += character.bytes;
  }
  return out;
}

}  // namespace

std::string printable(std::string_view text) {
  return spelled_out(text, "\\x%02x");
}

std::string printable_json(std::string_view json) {
  return spelled_out(json, "\\u%04x");
}

std::vector<std::string> wrap(std::string_view text, size_t columns) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text = newline == std::string_view::npos ? std::string_view() : text.substr(newline + 1);
    while (columns > 0) {
      const size_t bytes = bytes_of_characters(line, columns);
      if (bytes >= line.size()) break;
      size_t cut = line[bytes] == ' ' ? bytes : line.rfind(' ', bytes - 1);
      if (cut == std::string_view::npos || cut == 0) cut = bytes;
      lines.emplace_back(line.substr(0, cut));
      line.remove_prefix(cut);
      while (line.starts_with(' ')) line.remove_prefix(1);
    }
    lines.emplace_back(line);
  }
  return lines;
}

std::string shorten(std::string_view text, size_t columns) {
  std::string line(text.substr(0, bytes_of_characters(text, columns)));
  if (line.size() < text.size() && columns > 0) {
    line.resize(bytes_of_characters(line, columns - 1));
    line += "…";
  }
  for (char& c : line) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  return line;
}

size_t characters(std::string_view text) {
  size_t count = 0;
  for (size_t at = 0; at < text.size(); at += character_bytes(text.substr(at))) ++count;
  return count;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) {
    if (!out.empty()) out += ' ';
    out += word;
  }
  return out;
}

std::string with_thousands(uint64_t number) {
  const std::string digits = std::to_string(number);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string counted(uint64_t number, std::string_view noun) {
  return with_thousands(number) + " " + std::string(noun) + (number == 1 ? "" : "s");
}

std::string readable_bytes(uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  constexpr std::array units{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  for (; value >= 1024 && unit + 1 < units.size(); ++unit) value /= 1024;
  return fixed(value, 1) + " " + units[unit];
}

std::string fixed(double value, int digits) {
  return formatted("%.*f", digits, value);
}

}  // namespace recalld::client
