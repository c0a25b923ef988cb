#include "client/report.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "client/explain.h"
#include "client/report_parts.h"
#include "client/text.h"

namespace recalld::client {

std::string painted(std::string_view text, std::string_view code, const Style& style) {
  if (!style.colour || text.empty()) return std::string(text);
  return "\x1b[" + std::string(code) + "m" + std::string(text) + "\x1b[0m";
}

std::string padded(std::string text, size_t width, bool right) {
  const size_t length = characters(text);
  if (length >= width) return text;
  return right ? std::string(width - length, ' ') + text : text + std::string(width - length, ' ');
}

bool begins_cut(const std::vector<SearchReply::Source>& turns) {
  return !turns.empty() && turns.front().cut_before;
}

bool ends_cut(const std::vector<SearchReply::Source>& turns) {
  return !turns.empty() && turns.back().cut_after;
}

std::string with_ellipses(const std::string& text, const std::vector<SearchReply::Source>& turns) {
  std::string out(begins_cut(turns) ? ellipsis : "");
  out += text;
  if (ends_cut(turns)) out += ellipsis;
  return out;
}

std::string indented(std::string_view text, size_t indent, const Style& style) {
  const size_t columns = style.columns > indent + 20 ? style.columns - indent : 0;
  std::string out;
  for (const std::string& line : wrap(printable(text), columns)) out += std::string(indent, ' ') + line + "\n";
  return out;
}

std::string token_text(std::string_view token, std::string_view piece) {
  if (token.empty() && !piece.empty()) return printable(piece);
  std::string text = printable(token);
  for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) text.replace(at, 1, "\\n");
  return "'" + text + "'";
}

std::string value_text(std::string_view key, const Json& value) {
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_number_integer() && value >= 0) {
    const auto number = value.get<uint64_t>();
    const bool identifies = key == "token" || key == "generation";
    std::string text = identifies ? std::to_string(number) : with_thousands(number);
    if (key.ends_with("bytes") || key.find("bytes_on_disk") != std::string_view::npos) {
      if (number >= 1024) text += " (" + readable_bytes(number) + ")";
    }
    return text;
  }
  if (value.is_number_float()) return fixed(value.get<double>(), 3);
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_null()) return "-";
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string rows_text(const std::vector<std::pair<std::string, std::string>>& rows, const Style& style, size_t indent) {
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, characters(row.first));
  std::string out;
  for (const auto& [key, value] : rows) {
    out += std::string(indent, ' ') + painted(padded(key, width), dim, style) + "  " + value + "\n";
  }
  return out;
}

std::string turn_range(uint64_t first, uint64_t last) {
  if (first == last) return "turn " + std::to_string(first);
  return "turns " + std::to_string(first) + "-" + std::to_string(last);
}

namespace {

std::string speaker(std::string_view role, const std::optional<std::string>& name) {
  return name ? printable(*name) + " (" + std::string(role) + ")" : std::string(role);
}

// 2026-01-31T18:05:09.25Z → 2026-01-31 18:05, which is enough to read; --json has the whole of it.
std::string readable_time(std::string_view rfc3339) {
  std::string text = printable(rfc3339.substr(0, 16));
  if (text.size() == 16) text[10] = ' ';
  return text;
}

// Where a result comes from: its turns, who spoke, and when.
std::string provenance(const std::vector<SearchReply::Source>& turns) {
  if (turns.empty()) return "no turn";
  std::string out = turn_range(turns.front().turn, turns.back().turn);
  std::vector<std::string> speakers;
  for (const auto& source : turns) {
    std::string who = speaker(source.role, source.name);
    if (std::ranges::find(speakers, who) == speakers.end()) speakers.push_back(std::move(who));
  }
  constexpr size_t speakers_max = 4;
  for (size_t i = 0; i < std::min(speakers.size(), speakers_max); ++i) out += (i == 0 ? " · " : ", ") + speakers[i];
  if (speakers.size() > speakers_max) out += ", …";
  // A turn may tell of an earlier time than the one before it. Times in UTC sort as text.
  const auto [earliest, latest] = std::ranges::minmax(turns, {}, &SearchReply::Source::time);
  const std::string from = readable_time(earliest.time);
  const std::string to = readable_time(latest.time);
  return out + " · " + (from == to ? from : from + " to " + to);
}

void flatten(const Json& object, const std::string& prefix, std::vector<std::pair<std::string, std::string>>& rows) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      flatten(value, prefix + key + ".", rows);
    } else {
      rows.emplace_back(printable(prefix + key), value_text(key, value));
    }
  }
}

std::string token_range(const TokenRange& tokens) {
  return "tokens " + std::to_string(tokens.first) + "-" + std::to_string(tokens.end);
}

// What was found: why, from whom, where and what. `text` as it is to be shown.
template <class Found>
std::string found_text(size_t number, const std::string& why, const Found& found, const std::string& where,
                       const std::string& text, const Style& style) {
  return painted(padded(std::to_string(number) + ".", 4), bold, style) + painted(why, cyan, style) + "  " +
         provenance(found.turns) + "\n    " + painted(where + " · " + token_range(found.tokens), dim, style) + "\n" +
         text;
}

// The chunks that a result shows, and the memory where there are several.
std::string place(const SearchReply::Result& result) {
  std::string out = result.memory.empty() ? "" : printable(result.memory) + " · ";
  if (result.chunks.size() <= 1) return out + "chunk " + std::to_string(result.chunk);
  out += "chunks ";
  constexpr size_t chunks_max = 8;
  for (size_t i = 0; i < std::min(result.chunks.size(), chunks_max); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(result.chunks[i]);
  if (result.chunks.size() > chunks_max) out += ", …";
  return out + " (best: " + std::to_string(result.chunk) + ")";
}

}  // namespace

Style Style::of_standard_output() {
  Style style;
  if (isatty(STDOUT_FILENO) == 0) return style;
  const char* no_color = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool refused = no_color != nullptr && no_color[0] != '\0';
  const bool dumb = terminal != nullptr && std::string_view(terminal) == "dumb";
  style.colour = !refused && !dumb;
  style.marks = refused && !dumb;
  winsize size{};
  style.columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  return style;
}

std::string report(const SearchReply& reply, const Style& style, std::optional<uint64_t> max_tokens) {
  std::string out;
  for (size_t i = 0; i < reply.results.size(); ++i) {
    const auto& result = reply.results[i];
    const bool explained = result.why.is_object();
    const std::string text =
        explained ? weighed_text(result, 6, style) : indented(with_ellipses(result.text, result.turns), 6, style);
    out += found_text(i + 1, "score " + fixed(result.score, 3), result, place(result), text, style);
    if (result.duplicates > 0)
      out += painted("      the same text was found " + counted(result.duplicates, "more time") + "\n", dim, style);
    if (explained) out += why_text(result.why, reply, style);
    out += "\n";
  }
  out += took_text(reply, style);
  const bool passages = std::ranges::any_of(reply.results, [](const auto& each) { return !each.chunks.empty(); });
  std::string end =
      reply.results.empty() ? "Nothing found" : counted(reply.results.size(), passages ? "passage" : "chunk");
  if (reply.memories)
    end += " in " + std::to_string(reply.memories->size()) + (reply.memories->size() == 1 ? " memory," : " memories,");
  end += " in " + fixed(reply.took_ms, 1) + " ms";
  if (reply.searchable_through) end += ", searchable through turn " + std::to_string(*reply.searchable_through);
  out += painted(end, dim, style) + "\n";
  if (reply.unindexed_chunks)
    out += with_thousands(*reply.unindexed_chunks) +
           " chunks are not indexed by their words yet: an earlier version of "
           "recalld stored them, and they follow in a while.\n";
  // Every chunk has a score, so that a memory with turns always has a best one: it did not fit.
  if (reply.results.empty() && reply.searchable_through && max_tokens) {
    out += "The best chunk has more than " + with_thousands(*max_tokens) +
           " tokens; a chunk has up to 64: give --max-tokens 64 or more, or leave it out.\n";
  }
  return out;
}

std::string report(const GenerateReply& reply, const Style& style) {
  constexpr double least = 0.001;
  std::string out;
  size_t slight = 0;
  for (size_t i = 0; i < reply.chunks.size(); ++i) {
    const auto& chunk = reply.chunks[i];
    if (i > 0 && chunk.weight < least) {
      ++slight;
      continue;
    }
    out += found_text(i + 1, "weight " + fixed(chunk.weight, 3), chunk, "chunk " + std::to_string(chunk.chunk),
                      indented(with_ellipses(chunk.text, chunk.turns), 6, style), style) +
           "\n";
  }
  std::string end = reply.chunks.empty() ? "Read from no chunk" : "The chunks that the answer was read from";
  if (slight > 0) end += ", but for " + std::to_string(slight) + " with a weight of less than 0.001";
  end += "; " + std::to_string(reply.tokens) + (reply.tokens == 1 ? " token" : " tokens") + " in " +
         fixed(reply.took_ms, 1) + " ms";
  if (reply.seed) end += ", seed " + std::to_string(*reply.seed);
  return out + painted(end, dim, style) + "\n";
}

std::string report(const MemoriesReply& reply, const Style& style, bool first_page) {
  if (reply.memories.empty()) return first_page ? "No memories yet. Make one: recall append NAME FILE\n" : "";
  size_t width = 6;
  for (const Memory& memory : reply.memories) width = std::max(width, characters(memory.memory));
  std::string out;
  if (first_page) {
    out += painted(padded("MEMORY", width) + padded("TURNS", 11, true) + padded("TOKENS", 14, true) +
                       padded("CHUNKS", 11, true) + padded("ENCODED", 11, true) + "  UPDATED",
                   dim, style) +
           "\n";
  }
  for (const Memory& memory : reply.memories) {
    out += padded(printable(memory.memory), width) + padded(with_thousands(memory.turns), 11, true) +
           padded(with_thousands(memory.tokens), 14, true) + padded(with_thousands(memory.chunks), 11, true) +
           padded(with_thousands(memory.encoded_chunks), 11, true) + "  " + readable_time(memory.updated) + "\n";
  }
  return out;
}

std::string report(const Memory& memory, const Style& style) {
  std::vector<std::pair<std::string, std::string>> rows{
      {"memory", printable(memory.memory)},
      {"turns",
       with_thousands(memory.turns) + (memory.next_turn > memory.turns
                                           ? ", " + with_thousands(memory.next_turn - memory.turns) + " forgotten"
                                           : "")},
      {"tokens", with_thousands(memory.tokens)},
      {"chunks", with_thousands(memory.chunks) + ", " + with_thousands(memory.encoded_chunks) + " of them encoded"},
      {"content", readable_bytes(memory.content_bytes)},
      {"created", printable(memory.created)},
      {"updated", printable(memory.updated)}};
  if (memory.searchable_through) {
    rows.emplace_back("searchable", "through turn " + std::to_string(*memory.searchable_through));
  }
  return rows_text(rows, style);
}

std::string report(const TurnsReply& reply, const Style& style) {
  std::string out;
  for (const StoredTurn& stored : reply.turns) {
    const Turn& turn = stored.turn;
    out += painted(std::to_string(stored.number), bold, style) + "  " +
           painted(speaker(turn.role, turn.name), cyan, style);
    if (turn.time) out += "  " + painted(readable_time(*turn.time), dim, style);
    if (turn.metadata.is_object() && !turn.metadata.empty()) {
      out += "  " + painted(value_text("metadata", turn.metadata), dim, style);
    }
    out += "\n" + indented(turn.content, 4, style);
  }
  return out;
}

std::string report(const ChunksReply& reply, const Style& style) {
  std::string out;
  for (const Chunk& chunk : reply.chunks) {
    const size_t preview = style.columns > 40 ? style.columns - 4 : 100;
    out += painted(padded(std::to_string(chunk.chunk), 6), bold, style) + " " +
           painted(token_range(chunk.tokens) + " · " + turn_range(chunk.first_turn, chunk.last_turn) + " · segment " +
                       std::to_string(chunk.kv_segment) + " slot " + std::to_string(chunk.kv_slot) +
                       " · landmark norm " + fixed(chunk.landmark_norm, 3),
                   dim, style) +
           "\n    " + shorten(printable(chunk.text), preview) + "\n";
  }
  return out;
}

std::string report(const Chunk& chunk, const Style& style) {
  std::string out =
      rows_text({{"chunk", std::to_string(chunk.chunk)},
                 {"tokens", token_range(chunk.tokens).substr(7)},
                 {"turns", std::to_string(chunk.first_turn) + "-" + std::to_string(chunk.last_turn)},
                 {"KV", "segment " + std::to_string(chunk.kv_segment) + ", slot " + std::to_string(chunk.kv_slot) +
                            (chunk.kv_bytes ? ", " + readable_bytes(*chunk.kv_bytes) + " verified" : "")},
                 {"CRC32C", printable(chunk.kv_crc32c)},
                 {"generation", std::to_string(chunk.generation)},
                 {"landmark norm", fixed(chunk.landmark_norm, 6)}},
                style);
  out += "\n" + painted("text", dim, style) + "\n" + indented(chunk.text, 4, style);
  if (chunk.token_ids.empty()) return out;

  // Tokens side by side; lines end between them.
  out += "\n" + painted("token ids", dim, style) + "\n";
  const size_t columns = style.columns == 0 ? 104 : style.columns;
  std::string line;
  for (size_t i = 0; i < chunk.token_ids.size(); ++i) {
    const auto at = [i](const std::vector<std::string>& texts) { return i < texts.size() ? texts[i] : std::string(); };
    const std::string token =
        token_text(at(chunk.token_texts), at(chunk.token_pieces)) + "=" + std::to_string(chunk.token_ids[i]);
    if (!line.empty() && 4 + characters(line) + 1 + characters(token) > columns) {
      out += "    " + line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + token;
  }
  return out + "    " + line + "\n";
}

namespace {

std::string ranges_text(const std::vector<TurnRange>& turns) {
  constexpr size_t shown_max = 20;
  std::string out;
  for (size_t i = 0; i < std::min(turns.size(), shown_max); ++i) {
    out += i == 0 ? "" : ", ";
    out += std::to_string(turns[i].first);
    if (turns[i].last != turns[i].first) out += "-" + std::to_string(turns[i].last);
  }
  if (turns.size() > shown_max) out += " and " + with_thousands(turns.size() - shown_max) + " ranges more";
  return out;
}

std::string files_text(const std::vector<Receipt::File>& files, const Style& style) {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const Receipt::File& file : files)
    rows.emplace_back(printable(file.file), counted(file.records, "record") + ", " + readable_bytes(file.bytes));
  return rows_text(rows, style, 2);
}

// What became of the bytes: behind "Forgot 3 turns of notes." and "Deleted notes."
std::string erasure_text(const Receipt& receipt, const Style& style) {
  std::string out;
  if (receipt.complete) {
    out = "Nothing of it is left on disk since " + readable_time(receipt.time) + "; erased:\n";
  } else {
    out = "No read shows it any more; it is erased from the disk behind";
    if (receipt.job) out += ", as job " + std::to_string(*receipt.job);
    out += ": recall stats shows how far that is.\n";
  }
  return out + files_text(receipt.files, style);
}

}  // namespace

std::string report(const Receipt& receipt, const Style& style) {
  if (receipt.turn_count == 0) return "Nothing to forget: " + printable(receipt.memory) + " has no such turn.\n";
  std::string out = (receipt.dry_run ? "Would forget " : "Forgot ") + counted(receipt.turn_count, "turn") + " (" +
                    counted(receipt.tokens, "token") + ", " + readable_bytes(receipt.content_bytes) + ") of " +
                    printable(receipt.memory) + ": " + ranges_text(receipt.turns) + ".\n";
  if (!receipt.dry_run) return out + erasure_text(receipt, style);
  return out + "That erases " + counted(receipt.chunks, "encoded chunk") +
         ", those of the turns and what follows them; what is kept is encoded anew. Nothing was changed.\n";
}

std::string report(const DeleteReply& reply, const Style& style) {
  return "Deleted " + printable(reply.memory.memory) + ": " + counted(reply.memory.turns, "turn") + ", " +
         counted(reply.memory.tokens, "token") + ", " + readable_bytes(reply.memory.content_bytes) + ".\n" +
         erasure_text(reply.receipt, style);
}

std::string report(const VerifyReply& reply, const Style& style) {
  std::string out;
  for (const VerifyReply::Problem& problem : reply.problems) {
    std::string place = problem.memory.empty() ? "" : printable(problem.memory) + " ";
    place += printable(problem.part) + " " + std::to_string(problem.first);
    if (problem.last != problem.first) place += "-" + std::to_string(problem.last);
    out += painted(place, bold, style) + ": " + printable(problem.message) + (problem.repaired ? " (repaired)" : "") +
           "\n";
  }
  if (reply.problem_count > reply.problems.size())
    out += "... and " + with_thousands(reply.problem_count - reply.problems.size()) + " more\n";
  out += "Checked " + counted(reply.turns, "turn") + ", " + counted(reply.chunks, "chunk") + " and " +
         counted(reply.states, "state") + " of " +
         (reply.memories == 1 ? "1 memory" : with_thousands(reply.memories) + " memories") + ", " +
         readable_bytes(reply.bytes) + ": ";
  const uint64_t chunks = reply.unindexed_chunks.value_or(0), turns = reply.unindexed_turns.value_or(0);
  std::string unindexed;
  if (chunks > 0) unindexed = counted(chunks, "chunk") + " by " + (chunks == 1 ? "its" : "their") + " words";
  if (turns > 0)
    unindexed += (unindexed.empty() ? "" : " and ") + counted(turns, "turn") + " by " + (turns == 1 ? "its" : "their") +
                 " attributes";
  if (!unindexed.empty()) unindexed = "Being indexed still, which is no damage: " + unindexed + ".\n";
  if (reply.problem_count == 0) return out + "nothing is wrong.\n" + unindexed;
  out += counted(reply.problem_count, "problem");
  if (reply.repaired_count > 0) out += ", " + with_thousands(reply.repaired_count) + " repaired";
  out += ".\n";
  const bool repairable = std::ranges::any_of(
      reply.problems, [](const VerifyReply::Problem& each) { return each.repairable && !each.repaired; });
  const bool lost =
      std::ranges::any_of(reply.problems, [](const VerifyReply::Problem& each) { return !each.repairable; });
  if (repairable) out += "recall verify --repair makes again what follows from the turns.\n";
  if (lost) out += "What cannot be made again needs a backup.\n";
  return out + unindexed;
}

std::string report(const BackupReply& reply, const Style&) {
  std::string out = "Backed up to " + printable(reply.directory) + ": " + counted(reply.files, "file") + ", " +
                    readable_bytes(reply.bytes);
  if (reply.shared_bytes > 0)
    out += ", " + readable_bytes(reply.shared_bytes) + " of them shared with the store's files";
  return out + " in " + fixed(reply.took_ms / 1000, 2) + " s.\n";
}

std::string report(const Job& job, const Style& style) {
  std::string out = painted("job " + std::to_string(job.job), bold, style) + "  " + printable(job.kind);
  if (!job.memory.empty()) out += " " + printable(job.memory);
  // A deletion that goes on after a restart: the name is nowhere on disk any more.
  if (job.memory.empty() && job.kind == "delete") out += " (a memory deleted before the last start; its name is gone)";
  out += "  " + printable(job.state) + "  " + with_thousands(job.done) + " of " + with_thousands(job.total);
  out += "  " + painted("since " + readable_time(job.started), dim, style);
  if (!job.message.empty()) out += "  " + printable(job.message);
  return out + "\n";
}

std::string report(const Version& version, const Style& style) {
  return rows_text({{"recalld", printable(version.version)},
                    {"protocol", std::to_string(version.protocol)},
                    {"model", printable(version.model_hash)}},
                   style);
}

std::string report(const Health& health, const Style& style) {
  std::string out = health.ready ? "ready" : "not ready";
  out = painted(out, bold, style) + ", " + with_thousands(health.waiting_chunks) + " chunks waiting to be encoded\n";
  if (!health.problem.empty()) out += "problem: " + printable(health.problem) + "\n";
  return out;
}

std::string report(const AppendStream::Total& total, std::string_view memory, double seconds) {
  if (total.turns == 0) return "Nothing to append: the input holds no turn.\n";
  if (total.repeated_turns == total.turns && total.first_turn && total.last_turn) {
    return "Nothing was added: this load is in " + printable(memory) + " already, as " +
           turn_range(*total.first_turn, *total.last_turn) + ", under the same operation id.\n";
  }
  const uint64_t added = total.turns - total.repeated_turns;
  std::string out = "Appended " + counted(added, "turn") + " (" + with_thousands(total.tokens - total.repeated_tokens) +
                    " tokens) to " + printable(memory);
  if (total.repeated_turns > 0)
    out += ", after " + counted(total.repeated_turns, "turn") + " that were there under the same operation id,";
  if (total.first_turn && total.last_turn) out += " as " + turn_range(*total.first_turn, *total.last_turn);
  out += " in " + fixed(seconds, 2) + " s";
  if (total.searchable_through) {
    out += "; searchable through turn " + std::to_string(*total.searchable_through);
  } else {
    out += "; stored, encoding goes on behind";
  }
  return out + ".\n";
}

std::string report(const Json& object, const Style& style) {
  std::vector<std::pair<std::string, std::string>> rows;
  Json figures = object;
  std::string jobs;
  if (const auto found = object.find("jobs"); found != object.end()) {
    if (const auto decoded = decode<Jobs>(object)) {
      figures.erase("jobs");
      for (const Job& job : decoded->jobs) jobs += report(job, style);
    }
  }
  flatten(figures, "", rows);
  return rows_text(rows, style) + jobs;
}

}  // namespace recalld::client
