// What a search asks in and answers with.
#include <algorithm>
#include <utility>

#include "base/quote.h"
#include "daemon/arguments.h"
#include "daemon/protocol.h"
#include "daemon/protocol_parts.h"

namespace recalld {
namespace {

// "user/alice/*" without its star: the whole must be a name once something is put in its place.
std::string take_prefix(Arguments& arguments, std::string prefix) {
  prefix.pop_back();
  if (prefix.size() >= memory_bytes_max || !is_memory_name(prefix + "x"))
    arguments.refuse("memory", "expected the beginning of a memory's name before the \"*\", got " + described(prefix));
  return prefix;
}

std::vector<std::string> take_names(Arguments& arguments) {
  std::vector<std::string> names;
  for (const Json& each : arguments.array("memory", search_memories_max)) {
    const std::string at = "memory[" + std::to_string(names.size()) + "]";
    const std::string* name = each.get_ptr<const std::string*>();
    if (!name || !is_memory_name(*name)) {
      const bool is_prefix = name && name->ends_with('*');
      arguments.refuse(Error{ErrorKind::invalid_request,
                             at + ": expected the name of a memory, got " + described(each) +
                                 (is_prefix ? "; the beginning of names stands alone, in no array" : "")});
      return {};
    }
    if (std::ranges::find(names, *name) != names.end()) {
      arguments.refuse(Error{ErrorKind::invalid_request, at + ": " + in_quotes(*name) + " stands there already"});
      return {};
    }
    names.push_back(*name);
  }
  return names;
}

// What a match and a pair have in common, behind the text of the chunk's token.
template <class Look>
void put_look(Reply& out, const Look& look, size_t layer) {
  if (!look.piece.empty()) out["piece"] = look.piece;
  out["head"] = look.head;
  out["layer"] = layer;
  out["weight"] = look.weight;
}

Reply why(const SearchReply::Why& why) {
  Reply matches = Reply::array();
  for (const auto& match : why.matches) {
    matches.push_back({{"token", match.token}, {"text", match.text}});
    put_look(matches.back(), match, why.layer);
  }
  Reply out{{"rank", why.rank}, {"stored", why.stored}};
  const auto put = [&out](const char* member, const auto& value) {
    if (value) out[member] = *value;
  };
  put("landmark_score", why.landmark_score);
  put("landmark_rank", why.landmark_rank);
  put("bm25", why.bm25);
  put("context_bm25", why.context_bm25);
  put("lexical_rank", why.lexical_rank);
  put("token_score", why.token_score);
  if (why.features) {
    Reply& features = out["features"] = Reply::object();
    for (size_t i = 0; i < feature_count; ++i) features[std::string(feature_names[i])] = (*why.features)[i];
  }
  if (const auto& took = why.took) {
    out["took"] = {{"query_ms", took->query_ms},
                   {"encode_ms", took->encode_ms},
                   {"landmarks_ms", took->landmarks_ms},
                   {"words_ms", took->words_ms},
                   {"words_beside_ms", took->words_beside_ms},
                   {"meaning_ms", took->meaning_ms},
                   {"fetch_ms", took->fetch_ms},
                   {"tokens_ms", took->tokens_ms}};
  }
  Reply parts = Reply::array();
  for (const auto& part : why.parts)
    parts.push_back({{"part", part.name}, {"score", part.score}, {"rank", part.rank}, {"best", part.best}});
  out["parts"] = std::move(parts);
  out["matches"] = std::move(matches);
  if (why.pairs.empty()) return out;
  Reply pairs = Reply::array();
  for (const auto& pair : why.pairs) {
    pairs.push_back({{"query", pair.query}, {"token", pair.token}, {"text", pair.text}});
    put_look(pairs.back(), pair, why.layer);
  }
  out["pairs"] = std::move(pairs);
  Reply tokens = Reply::array();
  for (const auto& each : why.tokens)
    tokens.push_back({{"token", each.token}, {"byte", each.byte}, {"text", each.text}, {"weight", each.weight}});
  out["tokens"] = std::move(tokens);
  return out;
}

Reply result_view(const SearchReply::Result& result) {
  Reply out = Reply::object();
  if (!result.memory.empty()) out["memory"] = result.memory;
  out["chunk"] = result.chunk;
  if (!result.chunks.empty()) out["chunks"] = result.chunks;
  out["score"] = result.score;
  put_passage(out, result.passage);
  if (result.duplicates > 0) out["duplicates"] = result.duplicates;
  if (result.why) out["why"] = why(*result.why);
  return out;
}

// What is told once for a search of one memory, and for each of several by its name.
void put_of_memories(Reply& out, const std::vector<SearchReply::OfMemory>& memories) {
  Reply through = Reply::object(), unreadable = Reply::array();
  for (const auto& each : memories) {
    through[each.memory] = or_null(each.searchable_through);
    for (const Unreadable& lost : each.unreadable)
      unreadable.push_back({{"memory", each.memory}, {"chunks", {lost.first, lost.last}}, {"message", lost.message}});
  }
  out["searchable_through"] = std::move(through);
  if (!unreadable.empty()) out["unreadable"] = std::move(unreadable);
}

}  // namespace

void take_searched(Arguments& arguments, SearchRequest& request) {
  const Json* memory = arguments.take("memory");
  const std::string* text = memory ? memory->get_ptr<const std::string*>() : nullptr;
  if (text && text->ends_with('*'))
    request.prefix = take_prefix(arguments, *text);
  else if (memory && memory->is_array())
    request.memories = take_names(arguments);
  else
    request.memory = take_memory(arguments);
}

std::string json_text(const SearchReply& reply) {
  Reply results = Reply::array();
  for (const SearchReply::Result& result : reply.results) results.push_back(result_view(result));
  Reply out{{"results", std::move(results)}};
  if (reply.memories)
    put_of_memories(out, *reply.memories);
  else
    out["searchable_through"] = or_null(reply.searchable_through);
  out["took_ms"] = reply.took_ms;
  if (reply.unindexed_chunks > 0) out["unindexed_chunks"] = reply.unindexed_chunks;
  if (!reply.memories) put_unreadable(out, reply.unreadable);
  return text_of(out);
}

}  // namespace recalld
