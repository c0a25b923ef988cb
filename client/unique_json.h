// JSON in which no object has a key twice. A parser would take the last of the two, and nobody would see that the other
// is lost.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "client/messages.h"

namespace recalld::client {

struct UniqueJson {
  Json value;                        // discarded where the text is no JSON
  std::optional<std::string> twice;  // the first key that one object has twice
};

UniqueJson parse_unique(std::string_view text);

}  // namespace recalld::client
