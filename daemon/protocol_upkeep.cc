// The methods that look after what is stored: forget, memories.delete, verify, backup, reencode, and the view of jobs.
#include <utility>

#include "daemon/filter.h"
#include "daemon/protocol.h"
#include "daemon/protocol_parts.h"
#include "daemon/rfc3339.h"

namespace recalld {
namespace {

// A number, or [first, last].
Expected<TurnRange> turn_range(const Json& value, const std::string& path) {
  const auto is_number = [](const Json& each) {
    return each.is_number_unsigned() && each.get<uint64_t>() <= number_max;
  };
  if (is_number(value)) return TurnRange{value.get<uint64_t>(), value.get<uint64_t>()};
  if (value.is_array() && value.size() == 2 && is_number(value[0]) && is_number(value[1])) {
    const TurnRange range{value[0].get<uint64_t>(), value[1].get<uint64_t>()};
    if (range.first <= range.last) return range;
    return fail(ErrorKind::invalid_request, path + ": the range [" + std::to_string(range.first) + "," +
                                                std::to_string(range.last) + "] ends before it begins");
  }
  return fail(ErrorKind::invalid_request, path + ": expected the number of a turn, or [first,last], from 0 to " +
                                              std::to_string(number_max) + ", got " + described(value));
}

// An absolute path on the daemon's machine.
std::string take_directory(Arguments& arguments, std::string_view argument) {
  std::string directory = arguments.text(argument, 1, path_bytes_max);
  if (arguments.ok() && (!directory.starts_with('/') || directory.contains('\0')))
    arguments.refuse(argument, "the absolute path of a directory", directory);
  return directory;
}

Reply receipt(const Receipt& receipt) {
  Reply turns = Reply::array();
  for (const TurnRange& range : receipt.turns) turns.push_back({range.first, range.last});
  Reply files = Reply::array();
  for (const Receipt::File& file : receipt.files)
    files.push_back({{"file", file.file}, {"records", file.records}, {"bytes", file.bytes}});
  Reply out{{"memory", receipt.memory},
            {"turns", std::move(turns)},
            {"turn_count", receipt.turn_count},
            {"tokens", receipt.tokens},
            {"content_bytes", receipt.content_bytes},
            {"chunks", receipt.chunks},
            {"files", std::move(files)},
            {"complete", receipt.complete},
            {"time", format_rfc3339(receipt.time_us)}};
  if (receipt.dry_run) out["dry_run"] = true;
  if (receipt.job) out["job"] = *receipt.job;
  return out;
}

}  // namespace

Expected<ForgetRequest> forget_request(Json& params) {
  Arguments arguments(params, "");
  ForgetRequest request;
  request.memory = take_memory(arguments);
  const bool by_number = arguments.take("turns") != nullptr;
  Json* filter = arguments.take("filter");
  if (by_number && filter) arguments.refuse("filter", "give either turns or filter, not both");
  if (!by_number && !filter) arguments.refuse("turns", "give turns or filter; memories.delete removes a whole memory");
  if (by_number) {
    const Json::array_t turns = arguments.array("turns", forget_ranges_max);
    for (size_t i = 0; i < turns.size() && arguments.ok(); ++i) {
      auto range = turn_range(turns[i], "turns[" + std::to_string(i) + "]");
      if (range)
        request.turns.push_back(*range);
      else
        arguments.refuse(std::move(range).error());
    }
  } else if (filter) {
    auto query = read_query(*filter, "filter");
    if (query)
      request.filter = *std::move(query);
    else
      arguments.refuse(std::move(query).error());
  }
  request.dry_run = arguments.optional_flag("dry_run").value_or(false);
  request.wait = take_wait(arguments);
  return arguments.done(std::move(request));
}

Expected<DeleteRequest> delete_request(Json& params) {
  Arguments arguments(params, "");
  DeleteRequest request;
  request.memory = take_memory(arguments);
  request.wait = take_wait(arguments);
  return arguments.done(std::move(request));
}

Expected<VerifyRequest> verify_request(Json& params) {
  Arguments arguments(params, "");
  VerifyRequest request;
  if (arguments.take("memory")) request.memory = take_memory(arguments);
  request.repair = arguments.optional_flag("repair").value_or(false);
  request.wait = take_wait(arguments);
  return arguments.done(std::move(request));
}

Expected<BackupRequest> backup_request(Json& params) {
  Arguments arguments(params, "");
  BackupRequest request;
  request.directory = take_directory(arguments, "directory");
  return arguments.done(std::move(request));
}

Expected<ReencodeRequest> reencode_request(Json& params) {
  Arguments arguments(params, "");
  ReencodeRequest request;
  request.cancel = arguments.optional_flag("cancel").value_or(false);
  const bool has_model = arguments.take("model") != nullptr;
  if (has_model && request.cancel) arguments.refuse("model", "give either model or cancel, not both");
  if (!request.cancel) request.model = take_directory(arguments, "model");
  return arguments.done(std::move(request));
}

Reply job_view(const JobView& job) {
  Reply out{{"job", job.job}, {"kind", job.kind}};
  if (!job.memory.empty()) out["memory"] = job.memory;
  out["state"] = job.state;
  out["done"] = job.done;
  out["total"] = job.total;
  out["started"] = format_rfc3339(job.started_us);
  if (!job.message.empty()) out["message"] = job.message;
  return out;
}

std::string json_text(const Receipt& reply) {
  return text_of(receipt(reply));
}

std::string json_text(const DeleteReply& reply) {
  Reply out = memory_info(reply.memory);
  out["receipt"] = receipt(reply.receipt);
  return text_of(out);
}

std::string json_text(const VerifyReply& reply) {
  Reply problems = Reply::array();
  for (const Problem& problem : reply.problems) {
    Reply out = Reply::object();
    if (!problem.memory.empty()) out["memory"] = problem.memory;
    out["part"] = problem.part;
    out["first"] = problem.first;
    out["last"] = problem.last;
    out["message"] = problem.message;
    out["repairable"] = problem.repairable;
    out["repaired"] = problem.repaired;
    problems.push_back(std::move(out));
  }
  Reply out{{"memories", reply.memories},
            {"turns", reply.turns},
            {"chunks", reply.chunks},
            {"states", reply.states},
            {"bytes", reply.bytes},
            {"problems", std::move(problems)},
            {"problem_count", reply.problem_count},
            {"repaired_count", reply.repaired_count}};
  if (reply.unindexed_chunks > 0) out["unindexed_chunks"] = reply.unindexed_chunks;
  if (reply.unindexed_turns > 0) out["unindexed_turns"] = reply.unindexed_turns;
  if (reply.job) out["job"] = *reply.job;
  return text_of(out);
}

std::string json_text(const BackupReply& reply) {
  return text_of({{"directory", reply.directory},
                  {"files", reply.files},
                  {"bytes", reply.bytes},
                  {"shared_bytes", reply.shared_bytes},
                  {"took_ms", reply.took_ms}});
}

std::string json_text(const JobView& reply) {
  return text_of(job_view(reply));
}

}  // namespace recalld
