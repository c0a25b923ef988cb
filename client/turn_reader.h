// Reads turns from a file or a pipe: plain text, one turn a non-empty line, or JSON lines with the keys of a turn.
// Errors name the file and the line. A line is never held beyond its bound, however long it is.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "client/append_stream.h"
#include "client/client.h"

namespace recalld::client {

enum class InputFormat { automatic, text, json_lines };

class TurnReader {
 public:
  struct Options {
    InputFormat format = InputFormat::automatic;  // automatic: by the first turn's line, see next()
    std::string role = "user";                    // of turns that name none
    std::optional<std::string> name{};
  };

  struct Item {
    Turn turn;
    AppendStream::Origin origin;
  };

  // Reads from `path`, or from standard input when it is "-".
  static Expected<TurnReader> open(const std::string& path, Options options);

  // The next turn; nothing at the end. With the automatic format the first turn's line decides: a JSON object begins
  // JSON lines; a JSON array or a single bracket begins a JSON document, which is refused; anything else is text.
  Expected<std::optional<Item>> next();

  // What errors call the source: its path, or "standard input".
  const std::string& source() const { return source_; }
  // The size of a regular file; nothing for a pipe.
  std::optional<uint64_t> bytes_total() const { return bytes_total_; }

 private:
  TurnReader(Descriptor file, std::string source, Options options);

  Expected<bool> next_line(std::string& line);  // false at the end
  Expected<Turn> turn_from_text(std::string_view line) const;
  Expected<Turn> turn_from_json(std::string_view line) const;
  Expected<void> check(const Turn& turn) const;
  std::unexpected<Error> refuse(std::string_view why) const;  // "chat.txt:17: why"

  Descriptor file_;  // none: standard input
  std::string source_;
  Options options_;
  std::optional<uint64_t> bytes_total_;
  std::string buffer_;
  size_t buffer_at_ = 0;
  bool at_end_ = false;
  uint64_t line_ = 0;
  uint64_t end_byte_ = 0;
};

}  // namespace recalld::client
