// Points in time as RFC 3339 text and as microseconds since 1970, UTC.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace recalld {

// "2026-01-02T03:04:05Z", with any offset and any fraction; digits beyond microseconds are cut off. Years 0001 to 9999,
// in UTC too. The separator may be T, t or a space. A leap second (23:59:60 UTC) is the first moment of the next day,
// as in POSIX time. Nothing when the text is no such time.
std::optional<int64_t> parse_rfc3339(std::string_view text);

// In UTC with a Z and as many fraction digits as needed (none, or up to six). `time_us` is one that parse_rfc3339 can
// return.
std::string format_rfc3339(int64_t time_us);

}  // namespace recalld
