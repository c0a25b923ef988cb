// Bytes as text of A-Z a-z 0-9 + / with = at the end (RFC 4648, section 4): what JSON can hold of them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace recalld {

std::string base64(std::string_view bytes);

// The bytes that base64() turns into `text`; nothing when there are none: every other spelling (line breaks, missing =,
// bits that are set and belong to no byte) is refused, so that equal bytes have equal texts.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace recalld
