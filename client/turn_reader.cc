#include "client/turn_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <utility>

#include "client/text.h"

namespace recalld::client {

namespace {

constexpr size_t read_bytes = size_t{64} << 10;
constexpr std::array<std::string_view, 4> roles{"user", "assistant", "system", "tool"};
constexpr std::array<std::string_view, 5> turn_keys{"role", "content", "name", "time", "metadata"};

bool is_blank(std::string_view line) {
  return std::ranges::all_of(line, [](char c) { return c == ' ' || c == '\t'; });
}

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
  if (path == "-") return TurnReader(Descriptor(), "standard input", std::move(options));
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() == -1) return std::unexpected(system_error("open " + path, errno));
  struct stat status {};
  if (fstat(file.get(), &status) != 0) return std::unexpected(system_error("look at " + path, errno));
  if (S_ISDIR(status.st_mode)) {
    return fail(ErrorKind::invalid_request, "open " + path + ": it is a directory; name a file in it");
  }
  TurnReader reader(std::move(file), path, std::move(options));
  if (S_ISREG(status.st_mode)) reader.bytes_total_ = static_cast<uint64_t>(status.st_size);
  return reader;
}

TurnReader::TurnReader(Descriptor file, std::string source, Options options)
    : file_(std::move(file)), source_(std::move(source)), options_(std::move(options)) {}

Expected<std::optional<TurnReader::Item>> TurnReader::next() {
  std::string line;
  for (;;) {
    RECALLD_TRY(const bool more, next_line(line));
    if (!more) return std::nullopt;
    if (line_ == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // a byte order mark is no text
    if (line.ends_with('\r')) line.pop_back();
    if (!is_blank(line)) break;
  }
  if (const size_t valid = valid_utf8_bytes(line); valid < line.size()) {
    return refuse("byte " + std::to_string(valid + 1) +
                  " of the line is not valid UTF-8; convert the file first, for example with iconv -t UTF-8");
  }
  if (options_.format == InputFormat::automatic) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_array() || line == "[" || line == "{") {
      return refuse(
          "this looks like one JSON document; make it one object a line, for example with jq -c '.[]', or give "
          "--format text");
    }
    options_.format = json.is_object() ? InputFormat::json_lines : InputFormat::text;
  }
  RECALLD_TRY(Turn turn, options_.format == InputFormat::text ? turn_from_text(line) : turn_from_json(line));
  RECALLD_CHECK(check(turn));
  return Item{std::move(turn), {line_, end_byte_}};
}

Expected<bool> TurnReader::next_line(std::string& line) {
  line.clear();
  ++line_;
  for (;;) {
    const std::string_view waiting = std::string_view(buffer_).substr(buffer_at_);
    const size_t newline = waiting.find('\n');
    line.append(waiting.substr(0, newline));
    // Also the bound of plain text: a turn over 1 MiB is refused with its size once its end is known.
    if (line.size() > line_bytes_max) {
      return refuse("the line has more than " + with_thousands(line_bytes_max) + " bytes; split it into several");
    }
    if (newline != std::string_view::npos) {
      buffer_at_ += newline + 1;
      end_byte_ += line.size() + 1;
      return true;
    }
    if (at_end_) {
      buffer_at_ = buffer_.size();
      end_byte_ += line.size();
      return !line.empty();
    }
    buffer_.resize(read_bytes);
    buffer_at_ = 0;
    const int input = file_.get() == -1 ? STDIN_FILENO : file_.get();
    ssize_t got = 0;
    do got = read(input, buffer_.data(), buffer_.size());
    while (got < 0 && errno == EINTR);
    if (got < 0) return std::unexpected(system_error("read " + source_, errno));
    buffer_.resize(static_cast<size_t>(got));
    at_end_ = got == 0;
  }
}

Expected<Turn> TurnReader::turn_from_text(std::string_view line) const {
  Turn turn;
  turn.role = options_.role;
  turn.name = options_.name;
  turn.content = line;
  return turn;
}

Expected<Turn> TurnReader::turn_from_json(std::string_view line) const {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return refuse("expected a JSON object with role and content; give --format text if the lines are plain text");
  }
  Turn turn;
  turn.role = options_.role;
  turn.name = options_.name;
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(turn_keys, key) == turn_keys.end()) {
      return refuse("unknown key '" + key + "'; a turn has role, content, name, time and metadata");
    }
    if (value.is_null()) continue;
    if (key == "metadata") {
      turn.metadata = value;
    } else if (!value.is_string()) {
      return refuse(key + ": expected a string, got " + value.type_name());
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
  return turn;
}

Expected<void> TurnReader::check(const Turn& turn) const {
  if (turn.content.empty()) return refuse("content: expected text, got none");
  if (turn.content.size() > content_bytes_max) {
    return refuse("content: the turn has " + with_thousands(turn.content.size()) + " bytes, at most " +
                  with_thousands(content_bytes_max) + " are taken; split it into several");
  }
  if (std::ranges::find(roles, turn.role) == roles.end()) {
    return refuse("role: expected user, assistant, system or tool, got '" + turn.role + "'");
  }
  if (turn.time && !looks_like_time(*turn.time)) {
    return refuse("time: expected RFC 3339 such as 2026-01-31T18:05:00Z, got '" + *turn.time + "'");
  }
  if (!turn.metadata.is_null() && !turn.metadata.is_object()) {
    return refuse(std::string("metadata: expected an object, got ") + turn.metadata.type_name());
  }
  for (const auto& [key, value] : turn.metadata.items()) {
    if (value.is_structured()) return refuse("metadata." + key + ": expected a string, a number or a boolean");
  }
  return {};
}

std::unexpected<Error> TurnReader::refuse(std::string_view why) const {
  return fail(ErrorKind::invalid_request, source_ + ":" + std::to_string(line_) + ": " + std::string(why));
}

}  // namespace recalld::client
