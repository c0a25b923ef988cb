#include "client/explain.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "client/report_parts.h"
#include "client/text.h"

namespace recalld::client {
namespace {

// Where painting begins, by level; level 0 is plain.
constexpr std::array<std::string_view, 6> coloured{"",           "48;5;22",     "48;5;28",
                                                   "48;5;34;30", "48;5;178;30", "48;5;214;30;1"};
constexpr std::array<std::string_view, 6> marked{"", "", "4", "4", "1;4", "1;4"};

// Scores that the parts tell too, and what the score was computed from, which --json shows.
constexpr std::array<std::string_view, 5> told_elsewhere{"landmark_score", "bm25", "context_bm25", "token_score",
                                                         "features"};

// A printable text, and the level of each of its bytes.
struct Levels {
  std::string text;
  std::vector<size_t> of_byte;

  void add(std::string_view stored, size_t level) {
    text += printable(stored);
    of_byte.resize(text.size(), level);
  }
};

// The weights come from a daemon: those that do not fit the text are left out.
Levels levels_of(const SearchReply::Result& result) {
  Levels levels;
  if (begins_cut(result.turns)) levels.add(ellipsis, 0);
  const std::string_view text = result.text;
  const auto tokens = result.why.find("tokens");
  double most = 0;
  if (tokens != result.why.end() && tokens->is_array())
    for (const Json& token : *tokens) {
      const Json weight = token.is_object() ? token.value("weight", Json()) : Json();
      if (weight.is_number()) most = std::max(most, weight.get<double>());
    }
  size_t at = 0;
  if (most > 0)
    for (const Json& token : *tokens) {
      if (!token.is_object()) continue;
      const Json byte = token.value("byte", Json()), piece = token.value("text", Json()),
                 weight = token.value("weight", Json());
      if (!byte.is_number_integer() || byte < 0 || !piece.is_string() || !weight.is_number()) continue;
      const size_t from = byte.get<size_t>();
      const std::string& shown = piece.get_ref<const std::string&>();
      if (from < at || from > text.size() || !text.substr(from).starts_with(shown)) continue;
      const double share = std::clamp(weight.get<double>() / most, 0.0, 1.0);
      levels.add(text.substr(at, from - at), 0);
      levels.add(shown, static_cast<size_t>(std::lround(share * static_cast<double>(coloured.size() - 1))));
      at = from + shown.size();
    }
  levels.add(text.substr(std::min(at, text.size())), 0);
  if (ends_cut(result.turns)) levels.add(ellipsis, 0);
  return levels;
}

std::string bar(double share) {
  constexpr size_t cells = 10;
  const auto full = static_cast<size_t>(std::lround(std::clamp(share, 0.0, 1.0) * cells));
  std::string out;
  for (size_t i = 0; i < cells; ++i) out += i < full ? "█" : "░";
  return out;
}

// The best score that any chunk has in this part: as the part tells, or else of the results.
double best_of(const Json& part, const SearchReply& reply) {
  if (const Json told = part.value("best", Json()); told.is_number()) return told.get<double>();
  double best = 0;
  for (const SearchReply::Result& result : reply.results) {
    const Json parts = result.why.is_object() ? result.why.value("parts", Json()) : Json();
    if (!parts.is_array()) continue;
    for (const Json& each : parts)
      if (each.is_object() && each.value("part", Json()) == part.value("part", Json()) &&
          each.value("score", Json()).is_number())
        best = std::max(best, each["score"].get<double>());
  }
  return best;
}

std::string parts_text(const Json& parts, const SearchReply& reply, const Style& style) {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const Json& part : parts) {
    if (!part.is_object()) continue;
    const Json name = part.value("part", Json()), score = part.value("score", Json());
    std::string drawn;
    const double best = best_of(part, reply);
    if (style.columns > 0 && score.is_number())
      drawn = painted(bar(best > 0 ? score.get<double>() / best : 0), cyan, style) + " ";
    rows.emplace_back(value_text("part", name), drawn + padded(value_text("score", score), 8, true) + "  rank " +
                                                    value_text("rank", part.value("rank", Json())));
  }
  return rows_text(rows, style, 6);
}

// The members of an object on one line.
std::string fields_text(const Json& object) {
  std::string out;
  for (const auto& [key, value] : object.items())
    out += (out.empty() ? "" : " · ") + printable(key) + " " + value_text(key, value);
  return out;
}

// A line for each of what looks at what.
std::string looks_text(const Json& looks) {
  std::string out;
  for (const Json& look : looks) {
    if (!look.is_object()) continue;
    const auto field = [&look](const char* name) { return value_text(name, look.value(name, Json())); };
    const auto text = [&](const char* name) {
      const Json member = look.value(name, Json());
      return member.is_string() ? member.get<std::string>() : std::string();
    };
    const std::string read = token_text(text("text"), text("piece"));
    out += "      ";
    if (look.contains("query"))
      out += token_text(text("query"), "") + " reads " + read + " through head " + field("head");
    else
      out += "head " + field("head") + " reads " + read;
    if (look.contains("layer")) out += " of layer " + field("layer");
    out += " (token " + field("token") + ", weight " + field("weight") + ")\n";
  }
  return out;
}

}  // namespace

std::string weighed_text(const SearchReply::Result& result, size_t indent, const Style& style) {
  if ((!style.colour && !style.marks) || !result.why.is_object())
    return indented(with_ellipses(result.text, result.turns), indent, style);
  const auto& codes = style.colour ? coloured : marked;
  const Levels levels = levels_of(result);
  const size_t columns = style.columns > indent + 20 ? style.columns - indent : 0;
  std::string out;
  size_t at = 0;
  for (const std::string& line : wrap(levels.text, columns)) {
    // Between lines, wrapping takes away spaces and the newline.
    while (at < levels.text.size() && levels.text.compare(at, line.size(), line) != 0) ++at;
    out += std::string(indent, ' ');
    for (size_t from = 0; from < line.size();) {
      const std::string_view code = codes[levels.of_byte[at + from]];
      size_t to = from;
      while (to < line.size() && codes[levels.of_byte[at + to]] == code) ++to;
      const std::string piece = line.substr(from, to - from);
      out += code.empty() ? piece : "\x1b[" + std::string(code) + "m" + piece + "\x1b[0m";
      from = to;
    }
    out += "\n";
    at += line.size();
  }
  return out;
}

std::string why_text(const Json& why, const SearchReply& reply, const Style& style) {
  std::vector<std::pair<std::string, std::string>> rows;
  std::string parts, looks;
  for (const auto& [key, value] : why.items()) {
    if (key == "parts" && value.is_array())
      parts = parts_text(value, reply, style);
    else if ((key == "matches" || key == "pairs") && value.is_array())
      looks += looks_text(value);
    else if (key == "tokens" && value.is_array())
      continue;  // they are in the text
    else if (key == "took" && value.is_object())
      continue;  // took_text() tells it once
    else if (!why.contains("parts") || std::ranges::find(told_elsewhere, key) == told_elsewhere.end())
      rows.emplace_back(printable(key), value.is_object() ? fields_text(value) : value_text(key, value));
  }
  return rows_text(rows, style, 6) + parts + painted(looks, dim, style);
}

std::string took_text(const SearchReply& reply, const Style& style) {
  for (const SearchReply::Result& result : reply.results) {
    const Json took = result.why.is_object() ? result.why.value("took", Json()) : Json();
    if (took.is_object()) return rows_text({{"took", fields_text(took)}}, style);
  }
  return "";
}

}  // namespace recalld::client
