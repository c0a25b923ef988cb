// Lines of a file or a pipe, counted, none of them held beyond its bound. Errors name the file and the line.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "client/client.h"

namespace recalld::client {

class LineReader {
 public:
  static constexpr auto pause = std::chrono::milliseconds(200);

  // Both may be unset.
  struct Options {
    // Once it says true, also while a pipe is waited for, the source counts as ended behind the whole lines that have
    // come by then; of what has not been read yet, at most read_bytes are taken.
    std::function<bool()> stop{};
    // Called while a pipe or a terminal is waited for, once `pause` has passed since the first wait behind what no call
    // has told of yet: what has been read is then never older than that, however slowly more of it comes.
    std::function<void()> on_pause{};
  };
  static constexpr size_t read_bytes = size_t{64} << 10;  // at once

  // Reads from `path`, or from standard input when it is "-".
  static Expected<LineReader> open(const std::string& path, Options options);

  // The next line without its newline; false at the end. A line of more than line_bytes_max is refused.
  Expected<bool> next(std::string& line);

  // What errors call the source: its path, or "standard input".
  const std::string& source() const { return source_; }
  // The size of a regular file; nothing for a pipe.
  std::optional<uint64_t> bytes_total() const { return bytes_total_; }
  uint64_t line() const { return line_; }          // of the line read last, counted from 1
  uint64_t end_byte() const { return end_byte_; }  // bytes up to and with that line
  // The last `bytes` bytes of a regular file, wherever next() stands; nothing for a pipe.
  Expected<std::optional<std::string>> tail(size_t bytes) const;

  std::unexpected<Error> refuse(std::string_view why) const;  // "chat.txt:17: why"

 private:
  using Clock = std::chrono::steady_clock;

  LineReader(Descriptor file, std::string source, Options options);

  int input() const;
  bool wait_until_readable();  // false: stopped, and nothing has come

  Descriptor file_;  // none: standard input
  std::string source_;
  Options options_;
  std::optional<Clock::time_point> pause_end_;  // when on_pause is due
  bool more_since_pause_ = false;
  bool last_read_ = false;  // stopped: what has come is read once more
  std::optional<uint64_t> bytes_total_;
  std::string buffer_;
  size_t buffer_at_ = 0;
  bool at_end_ = false;
  uint64_t line_ = 0;
  uint64_t end_byte_ = 0;
};

// Whether there is nothing on it but blanks.
bool is_blank(std::string_view line);

}  // namespace recalld::client
