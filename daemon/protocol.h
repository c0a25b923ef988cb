// Protocol, version 1 (docs/protocol.md): the arguments of each method as JSON into a typed request, and each typed
// reply as JSON text. Every limit of requests.h is checked here. Fails with invalid_request; the message begins with
// the path of the argument ("turns[3].content: expected ...").
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "daemon/json_rpc.h"
#include "daemon/requests.h"

namespace recalld {

// `params` is an object; its strings are moved out.
Expected<AppendRequest> append_request(Json& params);
Expected<SearchRequest> search_request(Json& params);
Expected<GenerateRequest> generate_request(Json& params);  // without its caller
Expected<std::string> cancel_request(Json& params);        // the id to be cancelled, as JSON text
Expected<MemoriesListRequest> memories_list_request(Json& params);
Expected<std::string> memory_request(Json& params);  // memories.get: the memory's name
Expected<DeleteRequest> delete_request(Json& params);
Expected<TurnsListRequest> turns_list_request(Json& params);
Expected<ChunksListRequest> chunks_list_request(Json& params);

struct ChunksGetRequest {
  std::string memory;
  uint64_t chunk = 0;
};
Expected<ChunksGetRequest> chunks_get_request(Json& params);

Expected<ForgetRequest> forget_request(Json& params);
Expected<VerifyRequest> verify_request(Json& params);
Expected<ExportRequest> export_request(Json& params);
Expected<ImportRequest> import_request(Json& params);
Expected<BackupRequest> backup_request(Json& params);
Expected<ReencodeRequest> reencode_request(Json& params);

// Methods without arguments.
struct NoArguments {};
Expected<NoArguments> no_arguments(Json& params);

std::string json_text(const AppendReply& reply);
std::string json_text(const SearchReply& reply);
std::string json_text(const GenerateReply& reply);
std::string json_text(const CancelReply& reply);
std::string json_text(const MemoriesListReply& reply);
std::string json_text(const MemoryView& reply);
std::string json_text(const DeleteReply& reply);
std::string json_text(const TurnsListReply& reply);
std::string json_text(const ChunksListReply& reply);
std::string json_text(const ChunkDetail& reply);
std::string json_text(const Receipt& reply);
std::string json_text(const VerifyReply& reply);
std::string json_text(const ExportReply& reply);
std::string json_text(const ImportReply& reply);
std::string json_text(const BackupReply& reply);
std::string json_text(const JobView& reply);
std::string json_text(const StatsReply& reply);
std::string json_text(const HealthReply& reply);
std::string json_text(const VersionReply& reply);

// [A-Za-z0-9._/-]{1,200}, no part between slashes empty, "." or "..".
bool is_memory_name(std::string_view name);

}  // namespace recalld
