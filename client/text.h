// Text for people: making stored text harmless on a terminal, wrapping it, and writing numbers readably.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace recalld::client {

// The bytes at the front of `text` that are well-formed UTF-8 (no overlong forms, no surrogates, up to U+10FFFF).
size_t valid_utf8_bytes(std::string_view text);

// The text with everything that could steer a terminal spelled out: control characters other than newline and tab,
// and the invisible characters that reorder text, as \x1b or \u202e; bytes that are not UTF-8 as \xff.
std::string printable(std::string_view text);
// The same of JSON in one line, as \u001b and so on: to who parses it, it says what it said before.
std::string printable_json(std::string_view json);

// Lines of at most `columns` characters, broken at spaces where there are some; 0 breaks at newlines only.
std::vector<std::string> wrap(std::string_view text, size_t columns);

// The first `columns` characters on one line, newlines as spaces, with "…" where something was left out.
std::string shorten(std::string_view text, size_t columns);

// The words with a space between each two.
std::string joined(const std::vector<std::string>& words);

// How many characters a text has (not how many columns wide characters take).
size_t characters(std::string_view text);

std::string with_thousands(uint64_t number);                  // 1,234,567
std::string counted(uint64_t number, std::string_view noun);  // 1 turn; 1,234 turns
std::string readable_bytes(uint64_t bytes);                   // 12.3 MiB
std::string fixed(double value, int digits);                  // 3.142

}  // namespace recalld::client
