// Reads turns from a file or a pipe: plain text, one turn a non-empty line, or JSON lines with the keys of a turn.
// Errors name the file and the line. A line is never held beyond its bound, however long it is.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "client/append_stream.h"
#include "client/client.h"
#include "client/line_reader.h"

namespace recalld::client {

enum class InputFormat { automatic, text, json_lines };

class TurnReader {
 public:
  struct Options {
    InputFormat format = InputFormat::automatic;  // automatic: by the first turn's line, see next()
    std::string role = "user";                    // of turns that name none
    std::optional<std::string> name{};
    LineReader::Options lines{};  // stop and on_pause, which may be unset
  };

  struct Item {
    Turn turn;
    AppendStream::Origin origin;
  };

  // Reads from `path`, or from standard input when it is "-".
  static Expected<TurnReader> open(const std::string& path, Options options);

  // The next turn; nothing at the end. With the automatic format the first turn's line decides: a JSON object begins
  // JSON lines; a JSON array or a single bracket begins a JSON document, which is refused, as is what begins like an
  // object and is none; anything else is text.
  // A JSON line whose content is "" or null holds nothing to remember (exports of agents have them for calls of tools):
  // it is skipped and counted.
  Expected<std::optional<Item>> next();

  const std::string& source() const { return lines_.source(); }
  std::optional<uint64_t> bytes_total() const { return lines_.bytes_total(); }
  uint64_t line() const { return lines_.line(); }  // read last, or refused; counted from 1

  uint64_t skipped() const { return skipped_; }
  uint64_t first_skipped_line() const { return first_skipped_line_; }  // counted from 1

 private:
  TurnReader(LineReader lines, Options options) : lines_(std::move(lines)), options_(std::move(options)) {}

  Expected<Turn> turn_from_text(std::string_view line) const;
  Expected<std::optional<Turn>> turn_from_json(std::string_view line) const;  // nothing: its content is empty
  Expected<void> check(const Turn& turn) const;

  LineReader lines_;
  Options options_;
  uint64_t skipped_ = 0;
  uint64_t first_skipped_line_ = 0;
};

}  // namespace recalld::client
