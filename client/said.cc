#include "client/said.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace recalld::client {
namespace {

constexpr size_t shown_bytes_least = 600;  // of a turn that has as many

// A turn as the daemon reads it, and results show it.
std::string line_of(const Turn& turn) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> labels{
      {{"user", "User"}, {"assistant", "Assistant"}, {"system", "System"}, {"tool", "Tool"}}};
  const auto label = std::ranges::find(labels, turn.role, &std::pair<std::string_view, std::string_view>::first);
  return turn.name.value_or(std::string(label == labels.end() ? turn.role : label->second)) + ": " + turn.content +
         "\n";
}

// `byte`, or the end of the character that it lies in.
size_t end_of_character(std::string_view text, size_t byte) {
  while (byte < text.size() && (static_cast<unsigned char>(text[byte]) & 0xC0) == 0x80) ++byte;
  return byte;
}

// What is shown of a line of which [from, to) lies in the result.
std::string excerpt(std::string_view line, size_t from, size_t to) {
  line.remove_suffix(1);  // the newline
  if (line.size() <= shown_bytes_least) return std::string(line);
  to = end_of_character(line, std::min(line.size(), std::max(to, from + shown_bytes_least)));
  return (from > 0 ? "…" : "") + std::string(line.substr(from, to - from)) + (to < line.size() ? "…" : "");
}

}  // namespace

bool Speaker::said(const SearchReply::Source& turn) const {
  return (role.empty() || turn.role == role) && (name.empty() || turn.name == name);
}

void keep_said(SearchReply::Result& result, const Speaker& speaker, std::span<const StoredTurn> turns) {
  if (turns.empty() || !std::ranges::equal(result.turns, turns, {}, &SearchReply::Source::turn, &StoredTurn::number))
    return;
  std::string all;
  std::vector<size_t> begins;  // of each turn's line
  for (const StoredTurn& each : turns) {
    begins.push_back(all.size());
    all += line_of(each.turn);
  }
  begins.push_back(all.size());
  // The result begins in the first of its turns and ends in the last.
  const size_t first = all.find(result.text);
  const size_t end = first + result.text.size();
  if (first == std::string::npos || first >= begins[1] || end <= begins[turns.size() - 1]) return;

  std::vector<SearchReply::Source> kept;
  std::string text;
  for (size_t i = 0; i < turns.size(); ++i) {
    if (!speaker.said(result.turns[i])) continue;
    const std::string_view line = std::string_view(all).substr(begins[i], begins[i + 1] - begins[i]);
    const size_t from = std::max(first, begins[i]) - begins[i], to = std::min(end, begins[i + 1]) - begins[i];
    text += (kept.empty() ? "" : "\n") + excerpt(line, from, to);
    kept.push_back(result.turns[i]);
    kept.back().cut_before = kept.back().cut_after = false;  // the excerpt shows it
  }
  if (kept.empty()) return;
  result.turns = std::move(kept);
  result.text = std::move(text);
}

}  // namespace recalld::client
