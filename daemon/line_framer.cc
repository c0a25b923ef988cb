#include "daemon/line_framer.h"

#include <utility>

namespace recalld {

std::optional<LineFramer::Line> LineFramer::next(std::string_view& input) {
  while (!input.empty()) {
    const size_t end = input.find('\n');
    const std::string_view piece = input.substr(0, end);

    if (skipping_) {
      input.remove_prefix(end == input.npos ? input.size() : end + 1);
      skipping_ = end == input.npos;
      continue;
    }

    // A carriage return before the newline is part of the line's end, not of its length.
    const bool ends_in_return = piece.empty() ? partial_.ends_with('\r') : piece.ends_with('\r');
    if (partial_.size() + piece.size() - (ends_in_return ? 1 : 0) > line_bytes_max_) {
      std::string().swap(partial_);  // gives the memory back, as an assignment would not
      skipping_ = true;
      return Line{.text = {}, .overlong = true};
    }
    partial_.append(piece);
    input.remove_prefix(piece.size());
    if (end == input.npos) return std::nullopt;

    input.remove_prefix(1);
    if (ends_in_return) partial_.pop_back();
    if (!partial_.empty()) return Line{.text = std::exchange(partial_, {}), .overlong = false};
  }
  return std::nullopt;
}

}  // namespace recalld
