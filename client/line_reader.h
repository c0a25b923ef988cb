// Lines of a file or a pipe, counted, none of them held beyond its bound. Errors name the file and the line.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "client/client.h"

namespace recalld::client {

class LineReader {
 public:
  // Reads from `path`, or from standard input when it is "-". `stop` may be unset; once it says true, also while a read
  // waits and a signal comes, the source counts as ended.
  static Expected<LineReader> open(const std::string& path, std::function<bool()> stop = {});

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
  LineReader(Descriptor file, std::string source, std::function<bool()> stop);

  Descriptor file_;  // none: standard input
  std::string source_;
  std::function<bool()> stop_;
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
