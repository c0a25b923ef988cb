// What a request means where it leaves an argument out: the daemon takes these, and recall --help names them.
#pragma once

#include <cstddef>

namespace recalld {

inline constexpr size_t search_limit_default = 8;
inline constexpr size_t generate_tokens_default = 128;
inline constexpr double temperature_default = 0;  // always the likeliest token
inline constexpr double top_p_default = 1;

}  // namespace recalld
