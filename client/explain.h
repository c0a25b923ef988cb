// Draws why a search found what it found.
#pragma once

#include <string>

#include "client/messages.h"
#include "client/report.h"

namespace recalld::client {

// The text of a result, indented and wrapped, with the tokens that the query looks at most: brighter backgrounds, or
// bold and underlined text where there are marks alone; without both, plain.
std::string weighed_text(const SearchReply::Result& result, size_t indent, const Style& style);

// The `why` of a result of this reply: its parts, each with a bar to the best of all chunks that were compared on a
// terminal, and what looks at what. Members that this version does not know are shown as they are.
std::string why_text(const Json& why, const SearchReply& reply, const Style& style);

// Where the time of an explained search went, which all of its results tell alike; nothing when none does.
std::string took_text(const SearchReply& reply, const Style& style);

}  // namespace recalld::client
