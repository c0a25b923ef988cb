#include "client/messages.h"

#include <utility>

namespace recalld::client {

namespace {

template <class T>
void read_optional(const Json& object, const char* key, std::optional<T>& out) {
  const auto field = object.find(key);
  if (field != object.end() && !field->is_null()) out = field->get<T>();
}

}  // namespace

// ---- JSON of requests

void to_json(Json& out, const Turn& turn) {
  out = Json{{"role", turn.role}, {"content", turn.content}};
  if (turn.name) out["name"] = *turn.name;
  if (turn.time) out["time"] = *turn.time;
  if (!turn.metadata.is_null()) out["metadata"] = turn.metadata;
}

Json params(const AppendRequest& request) {
  Json out{{"memory", request.memory}, {"turns", request.turns}};
  if (!request.operation_id.empty()) out["operation_id"] = request.operation_id;
  if (request.wait_searchable) out["wait"] = "searchable";
  return out;
}

Json params(const SearchRequest& request) {
  Json out{{"memory", request.memory}, {"query", request.query}};
  if (!request.memories.empty()) out["memory"] = request.memories;
  if (request.limit) out["limit"] = *request.limit;
  if (request.max_tokens) out["max_tokens"] = *request.max_tokens;
  if (!request.mode.empty()) out["mode"] = request.mode;
  if (!request.expand.empty()) out["expand"] = request.expand;
  if (request.explain) out["explain"] = true;
  if (!request.filter.is_null()) out["filter"] = request.filter;
  if (request.min_score) out["min_score"] = *request.min_score;
  return out;
}

Json params(const GenerateRequest& request) {
  Json out{{"memory", request.memory}, {"prompt", request.prompt}};
  if (request.max_tokens) out["max_tokens"] = *request.max_tokens;
  if (request.temperature) out["temperature"] = *request.temperature;
  if (request.top_p) out["top_p"] = *request.top_p;
  if (request.seed) out["seed"] = *request.seed;
  if (request.stream) out["stream"] = true;
  return out;
}

Json params(const PageRequest& request, std::string_view name_key) {
  Json out = Json::object();
  if (!request.memory.empty()) out[std::string(name_key)] = request.memory;
  if (request.limit) out["limit"] = *request.limit;
  if (!request.cursor.empty()) out["cursor"] = request.cursor;
  if (request.first) out["first"] = *request.first;
  return out;
}

Json params(const ForgetRequest& request) {
  Json out{{"memory", request.memory}};
  if (request.filter.is_null()) {
    Json turns = Json::array();
    for (const TurnRange& range : request.turns)
      turns.push_back(range.first == range.last ? Json(range.first) : Json{range.first, range.last});
    out["turns"] = std::move(turns);
  } else {
    out["filter"] = request.filter;
  }
  if (request.dry_run) out["dry_run"] = true;
  if (!request.wait) out["wait"] = "none";
  return out;
}

Json params(const VerifyRequest& request) {
  Json out = Json::object();
  if (!request.memory.empty()) out["memory"] = request.memory;
  if (request.repair) out["repair"] = true;
  if (!request.wait) out["wait"] = "none";
  return out;
}

Json params(const ExportRequest& request) {
  Json out{{"memory", request.memory}};
  if (request.encodings) out["encodings"] = true;
  if (request.limit) out["limit"] = *request.limit;
  if (!request.cursor.empty()) out["cursor"] = request.cursor;
  return out;
}

Json params(const ImportRequest& request) {
  return {{"memory", request.memory}, {"records", request.records}};
}

// ---- JSON of replies: these throw, and decode() catches.

void from_json(const Json& in, TokenRange& out) {
  out.first = in.at(0).get<uint64_t>();
  out.end = in.at(1).get<uint64_t>();
}

void from_json(const Json& in, Turn& out) {
  in.at("role").get_to(out.role);
  in.at("content").get_to(out.content);
  read_optional(in, "name", out.name);
  read_optional(in, "time", out.time);
  if (const auto metadata = in.find("metadata"); metadata != in.end()) out.metadata = *metadata;
}

void from_json(const Json& in, AppendReply& out) {
  in.at("memory").get_to(out.memory);
  in.at("first_turn").get_to(out.first_turn);
  in.at("last_turn").get_to(out.last_turn);
  in.at("tokens").get_to(out.tokens);
  read_optional(in, "searchable_through", out.searchable_through);
}

void from_json(const Json& in, SearchReply::Source& out) {
  in.at("turn").get_to(out.turn);
  in.at("role").get_to(out.role);
  read_optional(in, "name", out.name);
  in.at("time").get_to(out.time);
  const std::string cut = in.value("cut", "");
  out.cut_before = cut == "before" || cut == "both";
  out.cut_after = cut == "after" || cut == "both";
}

void from_json(const Json& in, SearchReply::Result& out) {
  in.at("chunk").get_to(out.chunk);
  in.at("score").get_to(out.score);
  in.at("text").get_to(out.text);
  in.at("tokens").get_to(out.tokens);
  in.at("turns").get_to(out.turns);
  if (const auto why = in.find("why"); why != in.end()) out.why = *why;
  if (const auto chunks = in.find("chunks"); chunks != in.end()) chunks->get_to(out.chunks);
  out.duplicates = in.value("duplicates", out.duplicates);
  out.memory = in.value("memory", out.memory);
}

void from_json(const Json& in, Unreadable& out) {
  in.at("chunks").at(0).get_to(out.first);
  in.at("chunks").at(1).get_to(out.last);
  in.at("message").get_to(out.message);
  out.memory = in.value("memory", out.memory);
}

void from_json(const Json& in, SearchReply& out) {
  in.at("results").get_to(out.results);
  read_optional(in, "unindexed_chunks", out.unindexed_chunks);
  const auto through = in.find("searchable_through");
  if (through != in.end() && through->is_object()) {
    out.memories.emplace();
    for (const auto& [memory, turn] : through->items())
      out.memories->push_back({memory, turn.is_null() ? std::nullopt : std::optional(turn.get<uint64_t>())});
  } else {
    read_optional(in, "searchable_through", out.searchable_through);
  }
  if (const auto unreadable = in.find("unreadable"); unreadable != in.end()) unreadable->get_to(out.unreadable);
  in.at("took_ms").get_to(out.took_ms);
}

void from_json(const Json& in, GenerateReply::Chunk& out) {
  in.at("chunk").get_to(out.chunk);
  in.at("weight").get_to(out.weight);
  in.at("text").get_to(out.text);
  in.at("tokens").get_to(out.tokens);
  in.at("turns").get_to(out.turns);
}

void from_json(const Json& in, GenerateReply::Unread& out) {
  in.at("turns").at(0).get_to(out.turns.first);
  in.at("turns").at(1).get_to(out.turns.last);
  in.at("reason").get_to(out.reason);
}

void from_json(const Json& in, GenerateReply& out) {
  in.at("text").get_to(out.text);
  in.at("tokens").get_to(out.tokens);
  in.at("finish").get_to(out.finish);
  in.at("chunks").get_to(out.chunks);
  read_optional(in, "searchable_through", out.searchable_through);
  read_optional(in, "unread", out.unread);
  read_optional(in, "seed", out.seed);
  if (const auto unreadable = in.find("unreadable"); unreadable != in.end()) unreadable->get_to(out.unreadable);
  in.at("took_ms").get_to(out.took_ms);
}

void from_json(const Json& in, StoredTurn& out) {
  in.at("turn").get_to(out.number);
  in.get_to(out.turn);
}

void from_json(const Json& in, TurnsReply& out) {
  in.at("turns").get_to(out.turns);
  read_optional(in, "next_cursor", out.next_cursor);
}

void from_json(const Json& in, Chunk& out) {
  in.at("chunk").get_to(out.chunk);
  in.at("text").get_to(out.text);
  in.at("tokens").get_to(out.tokens);
  out.first_turn = in.at("turns").at(0).get<uint64_t>();
  out.last_turn = in.at("turns").at(1).get<uint64_t>();
  const Json& kv = in.at("kv");
  kv.at("segment").get_to(out.kv_segment);
  kv.at("slot").get_to(out.kv_slot);
  kv.at("crc32c").get_to(out.kv_crc32c);
  in.at("landmark_norm").get_to(out.landmark_norm);
  in.at("generation").get_to(out.generation);
  if (const auto ids = in.find("token_ids"); ids != in.end()) ids->get_to(out.token_ids);
  read_optional(in, "kv_bytes", out.kv_bytes);
  if (const auto texts = in.find("token_texts"); texts != in.end()) texts->get_to(out.token_texts);
  if (const auto pieces = in.find("token_pieces"); pieces != in.end()) pieces->get_to(out.token_pieces);
}

void from_json(const Json& in, ChunksReply& out) {
  in.at("chunks").get_to(out.chunks);
  read_optional(in, "next_cursor", out.next_cursor);
}

void from_json(const Json& in, Memory& out) {
  in.at("memory").get_to(out.memory);
  in.at("turns").get_to(out.turns);
  in.at("next_turn").get_to(out.next_turn);
  in.at("tokens").get_to(out.tokens);
  in.at("chunks").get_to(out.chunks);
  in.at("encoded_chunks").get_to(out.encoded_chunks);
  in.at("content_bytes").get_to(out.content_bytes);
  in.at("created").get_to(out.created);
  in.at("updated").get_to(out.updated);
  read_optional(in, "searchable_through", out.searchable_through);
}

void from_json(const Json& in, MemoriesReply& out) {
  in.at("memories").get_to(out.memories);
  read_optional(in, "next_cursor", out.next_cursor);
}

void from_json(const Json& in, TurnRange& out) {
  in.at(0).get_to(out.first);
  in.at(1).get_to(out.last);
}

void from_json(const Json& in, Receipt::File& out) {
  in.at("file").get_to(out.file);
  in.at("records").get_to(out.records);
  in.at("bytes").get_to(out.bytes);
}

void from_json(const Json& in, Receipt& out) {
  in.at("memory").get_to(out.memory);
  in.at("turns").get_to(out.turns);
  in.at("turn_count").get_to(out.turn_count);
  in.at("tokens").get_to(out.tokens);
  in.at("content_bytes").get_to(out.content_bytes);
  in.at("chunks").get_to(out.chunks);
  in.at("files").get_to(out.files);
  in.at("complete").get_to(out.complete);
  in.at("time").get_to(out.time);
  out.dry_run = in.value("dry_run", false);
  read_optional(in, "job", out.job);
}

void from_json(const Json& in, DeleteReply& out) {
  in.get_to(out.memory);
  in.at("receipt").get_to(out.receipt);
}

void from_json(const Json& in, VerifyReply::Problem& out) {
  out.memory = in.value("memory", "");
  in.at("part").get_to(out.part);
  in.at("first").get_to(out.first);
  in.at("last").get_to(out.last);
  in.at("message").get_to(out.message);
  in.at("repairable").get_to(out.repairable);
  in.at("repaired").get_to(out.repaired);
}

void from_json(const Json& in, VerifyReply& out) {
  in.at("memories").get_to(out.memories);
  in.at("turns").get_to(out.turns);
  in.at("chunks").get_to(out.chunks);
  in.at("states").get_to(out.states);
  in.at("bytes").get_to(out.bytes);
  in.at("problems").get_to(out.problems);
  in.at("problem_count").get_to(out.problem_count);
  read_optional(in, "unindexed_chunks", out.unindexed_chunks);
  read_optional(in, "unindexed_turns", out.unindexed_turns);
  in.at("repaired_count").get_to(out.repaired_count);
  read_optional(in, "job", out.job);
}

void from_json(const Json& in, ExportReply& out) {
  in.at("records").get_to(out.records);
  read_optional(in, "next_cursor", out.next_cursor);
}

void from_json(const Json& in, ImportReply& out) {
  in.get_to(out.memory);
  in.at("imported").get_to(out.imported);
  in.at("present").get_to(out.present);
}

void from_json(const Json& in, BackupReply& out) {
  in.at("directory").get_to(out.directory);
  in.at("files").get_to(out.files);
  in.at("bytes").get_to(out.bytes);
  in.at("shared_bytes").get_to(out.shared_bytes);
  in.at("took_ms").get_to(out.took_ms);
}

void from_json(const Json& in, Job& out) {
  in.at("job").get_to(out.job);
  in.at("kind").get_to(out.kind);
  out.memory = in.value("memory", "");
  in.at("state").get_to(out.state);
  in.at("done").get_to(out.done);
  in.at("total").get_to(out.total);
  in.at("started").get_to(out.started);
  out.message = in.value("message", "");
}

void from_json(const Json& in, Jobs& out) {
  in.at("jobs").get_to(out.jobs);
}

void from_json(const Json& in, Health& out) {
  in.at("ready").get_to(out.ready);
  in.at("waiting_chunks").get_to(out.waiting_chunks);
  if (const auto problem = in.find("problem"); problem != in.end() && problem->is_string()) {
    problem->get_to(out.problem);
  }
}

void from_json(const Json& in, Version& out) {
  in.at("version").get_to(out.version);
  in.at("protocol").get_to(out.protocol);
  in.at("model_hash").get_to(out.model_hash);
}

template <class Reply>
Expected<Reply> decode(const Json& result) {
  try {
    return result.get<Reply>();
  } catch (const Json::exception& problem) {
    return fail(ErrorKind::internal, "the daemon's reply is not what this client expects (" +
                                         std::string(problem.what()) + "): is the daemon of another version?");
  }
}

template Expected<AppendReply> decode(const Json&);
template Expected<SearchReply> decode(const Json&);
template Expected<GenerateReply> decode(const Json&);
template Expected<TurnsReply> decode(const Json&);
template Expected<Chunk> decode(const Json&);
template Expected<ChunksReply> decode(const Json&);
template Expected<Memory> decode(const Json&);
template Expected<MemoriesReply> decode(const Json&);
template Expected<Receipt> decode(const Json&);
template Expected<DeleteReply> decode(const Json&);
template Expected<VerifyReply> decode(const Json&);
template Expected<ExportReply> decode(const Json&);
template Expected<ImportReply> decode(const Json&);
template Expected<BackupReply> decode(const Json&);
template Expected<Job> decode(const Json&);
template Expected<Jobs> decode(const Json&);
template Expected<Health> decode(const Json&);
template Expected<Version> decode(const Json&);
template Expected<Json> decode(const Json&);

}  // namespace recalld::client
