#include "daemon/protocol.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <utility>

#include "daemon/arguments.h"
#include "daemon/filter.h"
#include "daemon/protocol_parts.h"
#include "daemon/rfc3339.h"

namespace recalld {
namespace {

constexpr size_t cursor_bytes_max = 256;

// ---- Requests

Expected<AppendRequest::NewTurn> new_turn(Json& value, std::string path) {
  Arguments arguments(value, std::move(path));
  AppendRequest::NewTurn out;
  out.turn = take_turn(arguments, out.has_time);
  return arguments.done(std::move(out));
}

constexpr char memories_listing = 'm';
constexpr char turns_listing = 't';
constexpr char chunks_listing = 'c';

std::optional<uint64_t> whole_number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number > number_max) return std::nullopt;
  return number;
}

// What a cursor of `listing` points to; nothing when there is no cursor.
std::optional<std::string> take_cursor(Arguments& arguments, char listing) {
  const auto given = arguments.optional_text("cursor", 1, cursor_bytes_max);
  if (!given) return std::nullopt;
  const std::string_view position = std::string_view(*given).substr(std::min<size_t>(2, given->size()));
  const bool valid = listing == memories_listing ? is_memory_name(position) : whole_number(position).has_value();
  if (!given->starts_with(cursor(listing, "")) || !valid) {
    arguments.refuse("cursor", "the next_cursor of an earlier page of this listing", *given);
    return std::nullopt;
  }
  return std::string(position);
}

// Where a listing by number begins: at the cursor, or at the number `first`.
uint64_t take_first(Arguments& arguments, char listing) {
  const auto first = arguments.optional_integer("first", 0, number_max);
  const auto position = take_cursor(arguments, listing);
  if (first && position) arguments.refuse("first", "give either first or cursor, not both");
  return position ? whole_number(*position).value_or(0) : first.value_or(0);
}

size_t take_page_limit(Arguments& arguments) {
  return arguments.optional_integer("limit", 1, page_limit_max).value_or(100);
}

// ---- Replies

std::string_view name(Finish finish) {
  switch (finish) {
    case Finish::newline:
      return "newline";
    case Finish::max_tokens:
      return "max_tokens";
    case Finish::cancelled:
      break;
  }
  return "cancelled";
}

std::string_view name(GenerateReply::Unread::Reason reason) {
  switch (reason) {
    case GenerateReply::Unread::Reason::open_chunk:
      return "open_chunk";
    case GenerateReply::Unread::Reason::encoding:
      return "encoding";
    case GenerateReply::Unread::Reason::forgetting:
      break;
  }
  return "forgetting";
}

Reply stored_turn(const StoredTurn& stored) {
  Reply out{{"turn", stored.turn}};
  put_turn(out, stored.value);
  out["tokens"] = {stored.first_token, stored.first_token + stored.tokens};
  return out;
}

Reply memory_view(const MemoryView& view) {
  Reply out = memory_info(view.info);
  out["searchable_through"] = or_null(view.searchable_through);
  return out;
}

Reply chunk_view(const ChunkView& view) {
  char crc32c[9];
  std::snprintf(crc32c, sizeof crc32c, "%08x", static_cast<unsigned>(view.entry.crc32c));
  Reply turns = Reply::array();
  if (!view.passage.turns.empty()) turns = {view.passage.turns.front().turn, view.passage.turns.back().turn};
  return {{"chunk", view.chunk},
          {"text", view.passage.text},
          {"tokens", {view.passage.first_token, view.passage.end_token}},
          {"turns", std::move(turns)},
          {"kv", {{"segment", view.entry.segment}, {"slot", view.entry.slot}, {"crc32c", crc32c}}},
          {"landmark_norm", view.landmark_norm},
          {"generation", view.entry.generation}};
}

Reply gpu_view(const GpuStats& gpu) {
  return {{"name", gpu.name},
          {"budget_bytes", gpu.usage.budget_bytes},
          {"weights_bytes", gpu.usage.weights_bytes},
          {"states_bytes", gpu.usage.states_bytes},
          {"landmarks_bytes", gpu.usage.landmarks_bytes},
          {"cache_bytes", gpu.usage.cache_bytes},
          {"workspace_bytes", gpu.usage.workspace_bytes},
          {"host_landmarks_bytes", gpu.usage.host_landmarks_bytes},
          {"cache_slots", gpu.cache_slots},
          {"cache_hits", gpu.cache_hits},
          {"cache_misses", gpu.cache_misses},
          {"chunks_read_bytes", gpu.chunks_read_bytes}};
}

}  // namespace

bool is_memory_name(std::string_view name) {
  if (name.empty() || name.size() > memory_bytes_max) return false;
  const auto allowed = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '/' || c == '-';
  };
  if (!std::ranges::all_of(name, allowed)) return false;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

Expected<AppendRequest> append_request(Json& params) {
  Arguments arguments(params, "");
  AppendRequest request;
  request.memory = take_memory(arguments);
  Json::array_t turns = arguments.array("turns", append_turns_max);
  request.operation_id = arguments.optional_text("operation_id", 1, operation_id_bytes_max).value_or("");
  request.wait_searchable = arguments.optional_choice<bool>("wait", {{"durable", false}, {"searchable", true}});

  request.turns.reserve(turns.size());
  for (size_t i = 0; i < turns.size() && arguments.ok(); ++i) {
    auto turn = new_turn(turns[i], "turns[" + std::to_string(i) + "]");
    if (turn)
      request.turns.push_back(*std::move(turn));
    else
      arguments.refuse(std::move(turn).error());
  }
  return arguments.done(std::move(request));
}

Expected<SearchRequest> search_request(Json& params) {
  Arguments arguments(params, "");
  SearchRequest request;
  take_searched(arguments, request);
  request.query = take_question(arguments, "query");
  request.limit = arguments.optional_integer("limit", 1, search_limit_max).value_or(request.limit);
  request.max_tokens = arguments.optional_integer("max_tokens", 1, number_max);
  request.explain = arguments.optional_flag("explain").value_or(false);
  request.mode = arguments.optional_choice<SearchMode>(
      "mode", {{"hybrid", SearchMode::hybrid}, {"landmark", SearchMode::landmark}, {"lexical", SearchMode::lexical}});
  request.expand = arguments.optional_choice<Expand>(
      "expand", {{"none", Expand::none}, {"chunks", Expand::chunks}, {"turns", Expand::turns}});
  request.min_score = arguments.optional_number("min_score", 0, 1);
  if (request.min_score && request.mode != SearchMode::hybrid)
    arguments.refuse("min_score",
                     "the scores of this mode are no probabilities; leave it out, or search in mode hybrid");
  if (Json* filter = arguments.take("filter")) {
    auto query = read_query(*filter, "filter");
    if (query)
      request.filter = *std::move(query);
    else
      arguments.refuse(std::move(query).error());
  }
  return arguments.done(std::move(request));
}

Expected<GenerateRequest> generate_request(Json& params) {
  Arguments arguments(params, "");
  GenerateRequest request;
  request.memory = take_memory(arguments);
  request.prompt = take_question(arguments, "prompt");
  request.max_tokens = arguments.optional_integer("max_tokens", 1, generate_tokens_max).value_or(request.max_tokens);
  request.temperature = arguments.optional_number("temperature", 0, temperature_max).value_or(request.temperature);
  request.top_p = arguments.optional_number("top_p", 0, 1).value_or(request.top_p);
  request.seed = arguments.optional_integer("seed", 0, number_max);
  request.stream = arguments.optional_flag("stream").value_or(false);
  return arguments.done(std::move(request));
}

Expected<std::string> cancel_request(Json& params) {
  Arguments arguments(params, "");
  std::string id;
  if (const Json* value = arguments.take("id"); value && (value->is_string() || value->is_number()))
    id = value->dump(-1, ' ', false, Json::error_handler_t::replace);
  else if (arguments.ok())
    arguments.refuse("id", "expected the id of a request of this connection, a string or a number");
  return arguments.done(std::move(id));
}

Expected<MemoriesListRequest> memories_list_request(Json& params) {
  Arguments arguments(params, "");
  MemoriesListRequest request;
  request.prefix = arguments.optional_text("prefix", 0, memory_bytes_max).value_or("");
  request.limit = take_page_limit(arguments);
  request.after = take_cursor(arguments, memories_listing).value_or("");
  return arguments.done(std::move(request));
}

Expected<std::string> memory_request(Json& params) {
  Arguments arguments(params, "");
  std::string memory = take_memory(arguments);
  return arguments.done(std::move(memory));
}

Expected<TurnsListRequest> turns_list_request(Json& params) {
  Arguments arguments(params, "");
  TurnsListRequest request;
  request.memory = take_memory(arguments);
  request.limit = take_page_limit(arguments);
  request.first = take_first(arguments, turns_listing);
  return arguments.done(std::move(request));
}

Expected<ChunksListRequest> chunks_list_request(Json& params) {
  Arguments arguments(params, "");
  ChunksListRequest request;
  request.memory = take_memory(arguments);
  request.limit = take_page_limit(arguments);
  request.first = take_first(arguments, chunks_listing);
  return arguments.done(std::move(request));
}

Expected<ChunksGetRequest> chunks_get_request(Json& params) {
  Arguments arguments(params, "");
  ChunksGetRequest request;
  request.memory = take_memory(arguments);
  request.chunk = arguments.integer("chunk", 0, number_max);
  return arguments.done(std::move(request));
}

Expected<NoArguments> no_arguments(Json& params) {
  Arguments arguments(params, "");
  return arguments.done(NoArguments{});
}

std::string json_text(const AppendReply& reply) {
  return text_of({{"memory", reply.memory},
                  {"first_turn", reply.first_turn},
                  {"last_turn", reply.last_turn},
                  {"tokens", reply.tokens},
                  {"searchable_through", or_null(reply.searchable_through)}});
}

std::string json_text(const GenerateReply& reply) {
  Reply chunks = Reply::array();
  for (const GenerateReply::Source& source : reply.chunks) {
    Reply out{{"chunk", source.chunk}, {"weight", source.weight}};
    put_passage(out, source.passage);
    chunks.push_back(std::move(out));
  }
  Reply out{{"text", reply.text},
            {"tokens", reply.tokens},
            {"finish", name(reply.finish)},
            {"chunks", std::move(chunks)},
            {"searchable_through", or_null(reply.searchable_through)},
            {"took_ms", reply.took_ms}};
  if (reply.seed) out["seed"] = *reply.seed;
  if (reply.unread)
    out["unread"] = {{"turns", {reply.unread->turns.first, reply.unread->turns.last}},
                     {"reason", name(reply.unread->reason)}};
  put_unreadable(out, reply.unreadable);
  return text_of(out);
}

std::string json_text(const CancelReply& reply) {
  return text_of({{"cancelled", reply.cancelled}});
}

std::string json_text(const MemoriesListReply& reply) {
  Reply memories = Reply::array();
  for (const MemoryView& memory : reply.memories) memories.push_back(memory_view(memory));
  Reply out{{"memories", std::move(memories)}};
  if (reply.next_after) out["next_cursor"] = cursor(memories_listing, *reply.next_after);
  return text_of(out);
}

std::string json_text(const MemoryView& reply) {
  return text_of(memory_view(reply));
}

std::string json_text(const TurnsListReply& reply) {
  Reply turns = Reply::array();
  for (const StoredTurn& turn : reply.turns) turns.push_back(stored_turn(turn));
  Reply out{{"turns", std::move(turns)}};
  if (reply.next_first) out["next_cursor"] = cursor(turns_listing, std::to_string(*reply.next_first));
  return text_of(out);
}

std::string json_text(const ChunksListReply& reply) {
  Reply chunks = Reply::array();
  for (const ChunkView& chunk : reply.chunks) chunks.push_back(chunk_view(chunk));
  Reply out{{"chunks", std::move(chunks)}};
  if (reply.next_first) out["next_cursor"] = cursor(chunks_listing, std::to_string(*reply.next_first));
  return text_of(out);
}

std::string json_text(const ChunkDetail& reply) {
  Reply out = chunk_view(reply.view);
  out["token_ids"] = reply.token_ids;
  out["token_texts"] = reply.token_texts;
  out["token_pieces"] = reply.token_pieces;
  out["kv_bytes"] = reply.kv_bytes;
  return text_of(out);
}

std::string json_text(const StatsReply& reply) {
  const StoreStats& store = reply.store;
  Reply jobs = Reply::array();
  for (const JobView& job : reply.jobs) jobs.push_back(job_view(job));
  Reply out{{"memories", store.memories},
            {"turns", store.turns},
            {"tokens", store.tokens},
            {"encoded_chunks", store.encoded_chunks},
            {"waiting_chunks", store.waiting_chunks},
            {"kv_segments", store.kv_segments},
            {"kv_bytes_on_disk", store.kv_bytes_on_disk},
            {"catalog_bytes_on_disk", store.catalog_bytes_on_disk},
            {"landmark_cache_bytes", store.landmark_cache_bytes},
            {"entry_cache_bytes", store.entry_cache_bytes},
            {"block_cache_bytes", store.block_cache_bytes},
            {"memtable_bytes", store.memtable_bytes},
            {"state_cache_bytes", reply.state_cache_bytes},
            {"memory_budget_bytes", reply.memory_budget_bytes},
            {"resident_bytes", reply.resident_bytes},
            {"file_io", store.file_io},
            {"model_directory", reply.model_directory},
            {"model_hash", reply.model_hash},
            {"model_precision", reply.model_precision},
            {"device", reply.device},
            {"appends_waiting", reply.appends_waiting},
            {"searches", reply.searches},
            {"generations", reply.generations},
            {"tokens_generated", reply.tokens_generated},
            {"tokens_encoded", reply.tokens_encoded},
            {"encode_tokens_per_s", reply.encode_tokens_per_s},
            {"uptime_s", reply.uptime_s}};
  if (reply.gpu) out["gpu"] = gpu_view(*reply.gpu);
  out["jobs"] = std::move(jobs);
  return text_of(out);
}

std::string json_text(const HealthReply& reply) {
  Reply out{{"ready", reply.ready}, {"waiting_chunks", reply.waiting_chunks}};
  if (!reply.problem.empty()) out["problem"] = reply.problem;
  return text_of(out);
}

std::string json_text(const VersionReply& reply) {
  return text_of({{"version", reply.version}, {"protocol", reply.protocol}, {"model_hash", reply.model_hash}});
}

}  // namespace recalld
