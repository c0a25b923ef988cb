// export and import: a memory as records, each one a JSON object (docs/export-format.md).
#include <utility>

#include "base/base64.h"
#include "daemon/protocol.h"
#include "daemon/protocol_parts.h"
#include "daemon/rfc3339.h"

namespace recalld {
namespace {

constexpr uint64_t export_format = 1;
constexpr char export_pages = 'x';
constexpr size_t export_cursor_bytes_max = 1'024;
constexpr size_t export_limit_default = 1'000;

enum class RecordType { memory, turn, operation, chunk, state, end };

// ---- From JSON

// Bytes as base64. Their number is for the store to judge.
std::string take_bytes(Arguments& arguments, std::string_view argument) {
  const std::string text = arguments.text(argument, 4, line_bytes_max);
  auto bytes = from_base64(text);
  if (!bytes) arguments.refuse(argument, "bytes as base64 with its padding", text);
  return std::move(bytes).value_or("");
}

uint64_t take_number(Arguments& arguments, std::string_view argument) {
  return arguments.integer(argument, 0, number_max);
}

Hash128 take_hash(Arguments& arguments, std::string_view argument) {
  const std::string text = arguments.text(argument, 1, 64);
  const auto hash = hash_from_hex(text);
  if (!hash) arguments.refuse(argument, "32 hexadecimal digits in lower case", text);
  return hash.value_or(Hash128{});
}

int64_t take_required_time(Arguments& arguments, std::string_view argument) {
  const auto time_us = take_time(arguments, argument);
  if (!time_us) arguments.refuse(argument, "this argument is missing");
  return time_us.value_or(0);
}

ExportHeader take_header(Arguments& arguments) {
  ExportHeader header;
  if (const uint64_t format = take_number(arguments, "format"); format != export_format)
    arguments.refuse("format", "this recalld reads format " + std::to_string(export_format) +
                                   ", the record is of format " + std::to_string(format) +
                                   "; import it with the version that wrote it, or a newer one");
  header.memory = take_memory(arguments);
  header.created_us = take_required_time(arguments, "created");
  header.updated_us = take_required_time(arguments, "updated");
  header.next_turn = take_number(arguments, "next_turn");
  if (arguments.take("model_hash")) header.model_hash = hex(take_hash(arguments, "model_hash"));
  return header;
}

StoredTurn take_stored_turn(Arguments& arguments) {
  StoredTurn stored;
  stored.turn = take_number(arguments, "turn");
  bool has_time = false;
  stored.value = take_turn(arguments, has_time);
  if (!has_time) arguments.refuse("time", "this argument is missing");
  return stored;
}

ExportOperation take_operation(Arguments& arguments) {
  ExportOperation operation;
  operation.operation_id = arguments.text("operation_id", 1, operation_id_bytes_max);
  operation.digest = take_hash(arguments, "digest");
  operation.first_turn = take_number(arguments, "first_turn");
  operation.last_turn = take_number(arguments, "last_turn");
  operation.tokens = take_number(arguments, "tokens");
  if (operation.last_turn < operation.first_turn)
    arguments.refuse("last_turn", "expected at least first_turn, " + std::to_string(operation.first_turn) + ", got " +
                                      std::to_string(operation.last_turn));
  return operation;
}

Expected<ExportRecord> export_record(Json& value, std::string path) {
  Arguments arguments(value, std::move(path));
  const auto type = arguments.choice<RecordType>("type", {{"memory", RecordType::memory},
                                                          {"turn", RecordType::turn},
                                                          {"operation", RecordType::operation},
                                                          {"chunk", RecordType::chunk},
                                                          {"state", RecordType::state},
                                                          {"end", RecordType::end}});
  ExportRecord record;
  if (!arguments.ok()) return arguments.done(std::move(record));
  switch (type) {
    case RecordType::memory:
      record = take_header(arguments);
      break;
    case RecordType::turn:
      record = take_stored_turn(arguments);
      break;
    case RecordType::operation:
      record = take_operation(arguments);
      break;
    case RecordType::chunk: {
      const uint64_t chunk = take_number(arguments, "chunk");
      std::string landmark = take_bytes(arguments, "landmark");
      record = ExportChunk{chunk, std::move(landmark), take_bytes(arguments, "kv")};
      break;
    }
    case RecordType::state: {
      const uint64_t chunks = take_number(arguments, "chunks");
      record = ExportState{chunks, take_bytes(arguments, "state")};
      break;
    }
    case RecordType::end: {
      const uint64_t turns = take_number(arguments, "turns");
      record = ExportEnd{turns, take_number(arguments, "chunks")};
      break;
    }
  }
  return arguments.done(std::move(record));
}

// ---- To JSON

Reply json_of(const ExportHeader& header) {
  Reply out{{"type", "memory"},
            {"format", export_format},
            {"memory", header.memory},
            {"created", format_rfc3339(header.created_us)},
            {"updated", format_rfc3339(header.updated_us)},
            {"next_turn", header.next_turn}};
  if (!header.model_hash.empty()) out["model_hash"] = header.model_hash;
  return out;
}

Reply json_of(const StoredTurn& stored) {
  Reply out{{"type", "turn"}, {"turn", stored.turn}};
  put_turn(out, stored.value);
  return out;
}

Reply json_of(const ExportOperation& operation) {
  return {{"type", "operation"},
          {"operation_id", operation.operation_id},
          {"digest", hex(operation.digest)},
          {"first_turn", operation.first_turn},
          {"last_turn", operation.last_turn},
          {"tokens", operation.tokens}};
}

Reply json_of(const ExportChunk& chunk) {
  return {{"type", "chunk"}, {"chunk", chunk.chunk}, {"landmark", base64(chunk.landmark)}, {"kv", base64(chunk.kv)}};
}

Reply json_of(const ExportState& state) {
  return {{"type", "state"}, {"chunks", state.chunks}, {"state", base64(state.state)}};
}

Reply json_of(const ExportEnd& end) {
  return {{"type", "end"}, {"turns", end.turns}, {"chunks", end.chunks}};
}

}  // namespace

Expected<ExportRequest> export_request(Json& params) {
  Arguments arguments(params, "");
  ExportRequest request;
  request.memory = take_memory(arguments);
  request.encodings = arguments.optional_flag("encodings").value_or(false);
  request.limit = arguments.optional_integer("limit", 1, page_limit_max).value_or(export_limit_default);
  if (const auto given = arguments.optional_text("cursor", 1, export_cursor_bytes_max)) {
    const std::string begin = cursor(export_pages, "");
    const auto after =
        given->starts_with(begin) ? from_base64(std::string_view(*given).substr(begin.size())) : std::nullopt;
    if (!after || after->empty())
      arguments.refuse("cursor", "the next_cursor of an earlier page of this export", *given);
    else
      request.after = *after;
  }
  return arguments.done(std::move(request));
}

Expected<ImportRequest> import_request(Json& params) {
  Arguments arguments(params, "");
  ImportRequest request;
  request.memory = take_memory(arguments);
  Json::array_t records = arguments.array("records", import_records_max);
  request.records.reserve(records.size());
  for (size_t i = 0; i < records.size() && arguments.ok(); ++i) {
    auto record = export_record(records[i], "records[" + std::to_string(i) + "]");
    if (record)
      request.records.push_back(*std::move(record));
    else
      arguments.refuse(std::move(record).error());
  }
  return arguments.done(std::move(request));
}

std::string json_text(const ExportReply& reply) {
  Reply records = Reply::array();
  for (const ExportRecord& record : reply.records)
    records.push_back(std::visit([](const auto& each) { return json_of(each); }, record));
  Reply out{{"records", std::move(records)}};
  // The engine's own words may hold any bytes.
  if (reply.next_after) out["next_cursor"] = cursor(export_pages, base64(*reply.next_after));
  return text_of(out);
}

std::string json_text(const ImportReply& reply) {
  Reply out = memory_info(reply.memory);
  out["imported"] = reply.imported;
  out["present"] = reply.present;
  out["ignored"] = reply.ignored;
  return text_of(out);
}

}  // namespace recalld
