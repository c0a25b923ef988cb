#include "daemon/protocol_parts.h"

#include <algorithm>
#include <utility>

#include "base/quote.h"
#include "base/shorten.h"
#include "daemon/protocol.h"
#include "daemon/rfc3339.h"
#include "memstore/words.h"

namespace recalld {
namespace {

constexpr std::string_view memory_rule =
    "a name of 1 to 200 characters out of A-Z a-z 0-9 . _ / -, with no part between slashes empty, \".\" or \"..\"";

bool is_speaker_name(std::string_view name) {
  return std::ranges::none_of(name, [](char c) { return (c >= '\0' && c < ' ') || c == '\x7f'; });
}

// A flat JSON object, as text.
std::string take_metadata(Arguments& arguments) {
  const Json* metadata = arguments.take("metadata");
  if (!metadata) return {};
  if (!metadata->is_object()) {
    arguments.refuse("metadata", "a flat object", *metadata);
    return {};
  }
  for (const auto& [key, value] : metadata->items()) {
    if (value.is_primitive() && !value.is_binary()) continue;
    arguments.refuse("metadata." + shortened(key), "a string, a number that fits 64 bits, true, false or null", value);
    return {};
  }
  std::string text = metadata->dump();
  if (text.size() > metadata_bytes_max)
    arguments.refuse("metadata", "expected an object of at most " + std::to_string(metadata_bytes_max) +
                                     " bytes as JSON, got " + std::to_string(text.size()));
  return text;
}

Reply source(const Passage::Source& turn) {
  Reply out{{"turn", turn.turn}, {"role", name(turn.role)}};
  if (turn.name) out["name"] = *turn.name;
  out["time"] = format_rfc3339(turn.time_us);
  if (turn.cut_before || turn.cut_after) out["cut"] = !turn.cut_after ? "before" : turn.cut_before ? "both" : "after";
  return out;
}

}  // namespace

std::string take_memory(Arguments& arguments, std::string_view argument) {
  std::string memory = arguments.text(argument, 1, memory_bytes_max);
  if (!arguments.ok() || is_memory_name(memory)) return memory;
  if (memory.ends_with('*'))
    arguments.refuse(argument, in_quotes(memory) +
                                   " is the beginning of names, which search alone takes; name one "
                                   "memory (memories.list with a prefix tells which there are)");
  else
    arguments.refuse(argument, memory_rule, memory);
  return memory;
}

std::string take_question(Arguments& arguments, std::string_view argument) {
  std::string question = arguments.text(argument, 1, query_bytes_max);
  if (arguments.ok() && is_blank(question))
    arguments.refuse(argument, "expected a text with something in it, got only spaces or invisible characters");
  return question;
}

std::optional<int64_t> take_time(Arguments& arguments, std::string_view argument) {
  const auto time = arguments.optional_text(argument, 0, 64);
  if (!time) return std::nullopt;
  const auto time_us = parse_rfc3339(*time);
  if (!time_us) arguments.refuse(argument, "a time of RFC 3339, such as \"2026-01-02T03:04:05Z\"", *time);
  return time_us;
}

Turn take_turn(Arguments& arguments, bool& has_time) {
  Turn turn;
  turn.role = arguments.choice<Role>(
      "role", {{"user", Role::user}, {"assistant", Role::assistant}, {"system", Role::system}, {"tool", Role::tool}});
  turn.content = arguments.text("content", 1, content_bytes_max);
  turn.name = arguments.optional_text("name", 1, name_bytes_max);
  if (turn.name && !is_speaker_name(*turn.name))
    arguments.refuse("name", "expected a name without control characters, such as a newline");
  const auto time_us = take_time(arguments, "time");
  has_time = time_us.has_value();
  turn.time_us = time_us.value_or(0);
  turn.metadata = take_metadata(arguments);
  return turn;
}

bool take_wait(Arguments& arguments) {
  return arguments.optional_choice<bool>("wait", {{"done", true}, {"none", false}});
}

std::string cursor(char listing, std::string_view position) {
  return std::string{listing, ':'}.append(position);
}

std::string text_of(const Reply& reply) {
  return reply.dump(-1, ' ', false, Reply::error_handler_t::replace);
}

Reply memory_info(const MemoryInfo& info) {
  return {{"memory", info.name},
          {"turns", info.turns},
          {"next_turn", info.next_turn},
          {"tokens", info.tokens},
          {"chunks", info.complete_chunks()},
          {"encoded_chunks", info.encoded_chunks},
          {"content_bytes", info.content_bytes},
          {"created", format_rfc3339(info.created_us)},
          {"updated", format_rfc3339(info.updated_us)}};
}

Reply or_null(const std::optional<uint64_t>& number) {
  return number ? Reply(*number) : Reply(nullptr);
}

void put_passage(Reply& out, const Passage& passage) {
  Reply turns = Reply::array();
  for (const Passage::Source& turn : passage.turns) turns.push_back(source(turn));
  out["text"] = passage.text;
  out["tokens"] = {passage.first_token, passage.end_token};
  out["turns"] = std::move(turns);
}

void put_unreadable(Reply& out, const std::vector<Unreadable>& chunks) {
  if (chunks.empty()) return;
  Reply unreadable = Reply::array();
  for (const Unreadable& lost : chunks)
    unreadable.push_back({{"chunks", {lost.first, lost.last}}, {"message", lost.message}});
  out["unreadable"] = std::move(unreadable);
}

void put_turn(Reply& out, const Turn& turn) {
  out["role"] = name(turn.role);
  if (turn.name) out["name"] = *turn.name;
  out["content"] = turn.content;
  out["time"] = format_rfc3339(turn.time_us);
  if (!turn.metadata.empty()) out["metadata"] = Reply::parse(turn.metadata, nullptr, false);
}

}  // namespace recalld
