// Cuts a stream of bytes into lines of bounded length.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace recalld {

class LineFramer {
 public:
  struct Line {
    std::string text;       // without its end ("\n" or "\r\n"), never empty unless overlong
    bool overlong = false;  // longer than the bound; its text is thrown away
  };

  explicit LineFramer(size_t line_bytes_max) : line_bytes_max_(line_bytes_max) {}

  // Takes bytes off the front of `input` until a line is known: a whole one, or one that has just passed the bound (the
  // rest of that one is skipped, unbuffered). Nothing once all of `input` is taken. Empty lines are skipped.
  std::optional<Line> next(std::string_view& input);

  bool amid_line() const { return skipping_ || !partial_.empty(); }
  size_t buffered_bytes() const { return partial_.capacity(); }  // what an unfinished line takes

 private:
  size_t line_bytes_max_;
  std::string partial_;  // at most line_bytes_max_ bytes and a carriage return
  bool skipping_ = false;
};

}  // namespace recalld
