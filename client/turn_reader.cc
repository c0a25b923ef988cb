#include "client/turn_reader.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "base/shorten.h"
#include "client/text.h"
#include "client/unique_json.h"

namespace recalld::client {

namespace {

constexpr std::array<std::string_view, 4> roles{"user", "assistant", "system", "tool"};
constexpr std::array<std::string_view, 5> turn_keys{"role", "content", "name", "time", "metadata"};

// The shape of RFC 3339 alone; the daemon judges the date. A wrong time is caught here, before the turns behind it are
// on their way.
bool looks_like_time(std::string_view text) {
  constexpr std::string_view shape = "dddd-dd-ddTdd:dd:dd";
  if (text.size() <= shape.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    const bool fits = shape[i] == 'd'   ? std::isdigit(static_cast<unsigned char>(text[i])) != 0
                      : shape[i] == 'T' ? text[i] == 'T' || text[i] == 't' || text[i] == ' '
                                        : text[i] == shape[i];
    if (!fits) return false;
  }
  return true;
}

}  // namespace

Expected<TurnReader> TurnReader::open(const std::string& path, Options options) {
  RECALLD_TRY(LineReader lines, LineReader::open(path, options.lines));
  return TurnReader(std::move(lines), std::move(options));
}

Expected<std::optional<TurnReader::Item>> TurnReader::next() {
  std::string line;
  for (;;) {
    RECALLD_TRY(const bool more, lines_.next(line));
    if (!more) return std::nullopt;
    if (lines_.line() == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // a byte order mark is no text
    if (line.ends_with('\r')) line.pop_back();
    if (is_blank(line)) continue;
    if (const size_t valid = valid_utf8_bytes(line); valid < line.size()) {
      return lines_.refuse("byte " + std::to_string(valid + 1) +
                           " of the line is not valid UTF-8; convert the file first, for example with iconv -t UTF-8");
    }
    if (options_.format == InputFormat::automatic) {
      const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (json.is_array() || line == "[" || line == "{") {
        return lines_.refuse(
            "this looks like one JSON document; make it one object a line, for example with jq -c '.[]', or give "
            "--format text");
      }
      if (json.is_discarded() && line.starts_with("{\"")) {
        return lines_.refuse(
            "this looks like a JSON object that is broken or cut off; mend it, or give --format text if it is text");
      }
      options_.format = json.is_object() ? InputFormat::json_lines : InputFormat::text;
    }
    std::optional<Turn> turn;
    if (options_.format == InputFormat::text) {
      RECALLD_TRY(turn, turn_from_text(line));
    } else {
      RECALLD_TRY(turn, turn_from_json(line));
    }
    if (turn) {
      RECALLD_CHECK(check(*turn));
      return Item{*std::move(turn), {lines_.line(), lines_.end_byte()}};
    }
    if (skipped_++ == 0) first_skipped_line_ = lines_.line();
  }
}

Expected<Turn> TurnReader::turn_from_text(std::string_view line) const {
  Turn turn;
  turn.role = options_.role;
  turn.name = options_.name;
  turn.content = line;
  return turn;
}

Expected<std::optional<Turn>> TurnReader::turn_from_json(std::string_view line) const {
  const UniqueJson parsed = parse_unique(line);
  const Json& object = parsed.value;
  if (!object.is_object()) {
    return lines_.refuse(
        "expected a JSON object with role and content; give --format text if the lines are plain text");
  }
  if (parsed.twice) {
    return lines_.refuse("the key '" + shortened(*parsed.twice) +
                         "' appears twice in one object; leave one of them out");
  }
  Turn turn;
  turn.role = options_.role;
  turn.name = options_.name;
  if (!object.contains("content")) return lines_.refuse("content: expected text, got none");
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(turn_keys, key) == turn_keys.end()) {
      return lines_.refuse("unknown key '" + shortened(key) + "'; a turn has role, content, name, time and metadata");
    }
    if (value.is_null()) continue;
    if (key == "metadata") {
      turn.metadata = value;
    } else if (!value.is_string()) {
      return lines_.refuse(key + ": expected a string, got " + value.type_name());
    } else if (key == "role") {
      value.get_to(turn.role);
    } else if (key == "content") {
      value.get_to(turn.content);
    } else if (key == "name") {
      turn.name = value.get<std::string>();
    } else {
      turn.time = value.get<std::string>();
    }
  }
  if (turn.content.empty()) return std::nullopt;
  return turn;
}

Expected<void> TurnReader::check(const Turn& turn) const {
  if (turn.content.size() > content_bytes_max) {
    return lines_.refuse("content: the turn has " + with_thousands(turn.content.size()) + " bytes, at most " +
                         with_thousands(content_bytes_max) + " are taken; split it into several");
  }
  if (std::ranges::find(roles, turn.role) == roles.end()) {
    return lines_.refuse("role: expected user, assistant, system or tool, got '" + shortened(turn.role) + "'");
  }
  if (turn.time && !looks_like_time(*turn.time)) {
    return lines_.refuse("time: expected RFC 3339 such as 2026-01-31T18:05:00Z, got '" + shortened(*turn.time) + "'");
  }
  if (!turn.metadata.is_null() && !turn.metadata.is_object()) {
    return lines_.refuse(std::string("metadata: expected an object, got ") + turn.metadata.type_name());
  }
  for (const auto& [key, value] : turn.metadata.items()) {
    if (value.is_structured()) return lines_.refuse("metadata." + key + ": expected a string, a number or a boolean");
  }
  return {};
}

}  // namespace recalld::client
