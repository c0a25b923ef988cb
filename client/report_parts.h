// What reports are put together from.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/messages.h"
#include "client/report.h"

namespace recalld::client {

// Ways to paint, as the terminal names them.
inline constexpr std::string_view bold = "1";
inline constexpr std::string_view dim = "2";
inline constexpr std::string_view cyan = "36";

std::string painted(std::string_view text, std::string_view code, const Style& style);
// Spaces to `width` characters, behind the text or before it.
std::string padded(std::string text, size_t width, bool right = false);
// Where the first or the last of the turns that a text shows goes on beyond it.
inline constexpr std::string_view ellipsis = "…";
bool begins_cut(const std::vector<SearchReply::Source>& turns);
bool ends_cut(const std::vector<SearchReply::Source>& turns);
// The text with an ellipsis there, so that half a number does not look like a whole one.
std::string with_ellipses(const std::string& text, const std::vector<SearchReply::Source>& turns);
// Stored text, made harmless and wrapped.
std::string indented(std::string_view text, size_t indent, const Style& style);
// A token in quotes, on one line, because most of them begin with a space and some are a newline. One without text, a
// later byte of a character, is its piece, such as <0x9E>.
std::string token_text(std::string_view token, std::string_view piece);
// A member of a reply, as people read it.
std::string value_text(std::string_view key, const Json& value);
// Aligned lines "name  value".
std::string rows_text(const std::vector<std::pair<std::string, std::string>>& rows, const Style& style,
                      size_t indent = 0);

}  // namespace recalld::client
