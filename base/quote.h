// A name as messages show it.
#pragma once

#include <string>
#include <string_view>

namespace recalld {

inline std::string in_quotes(std::string_view name) {
  return "\"" + std::string(name) + "\"";
}

}  // namespace recalld
