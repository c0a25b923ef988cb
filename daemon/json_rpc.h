// JSON-RPC 2.0 over lines: requests, notifications and batches in, replies and errors out. Knows no method.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace recalld {

using Json = nlohmann::json;

// ---- Limits of one line, beside its length
inline constexpr size_t json_depth_max = 32;
inline constexpr size_t json_values_max = 1'000'000;  // numbers, strings, objects, ... of a line
inline constexpr size_t batch_requests_max = 1'000;
inline constexpr size_t batch_reply_bytes_max = size_t{16} << 20;  // what lies beyond is answered by an error

// Codes that JSON-RPC reserves.
inline constexpr int code_parse_error = -32700;
inline constexpr int code_invalid_request = -32600;
inline constexpr int code_method_not_found = -32601;
inline constexpr int code_invalid_params = -32602;
inline constexpr int code_internal_error = -32603;

struct RpcError {
  int code = code_internal_error;
  ErrorKind kind = ErrorKind::internal;  // goes out as data.kind
  std::string message;
};

// invalid_request is -32602, internal -32603, and every other kind has a code of its own from -32001 down.
RpcError rpc_error(Error error);

// Called once with the result as JSON text, from any thread.
using Answer = std::move_only_function<void(std::expected<std::string, RpcError>)>;

// A request's id as JSON text; nothing: it is a notification.
using RequestId = std::optional<std::string>;

// Carries out one request. `params` is an object, empty when the request had none; what it holds may be moved out.
using Call = std::function<void(std::string_view method, Json& params, const RequestId& id, Answer answer)>;

// Serves one line: calls `call` for each request in it, in order, before it returns; calls `respond` once, when every
// answer is there, with the reply line (no newline) or, when nothing but notifications came in, with "". Any thread may
// answer; the last one to do so runs `respond`.
void serve_line(std::string_view line, const Call& call, std::move_only_function<void(std::string)> respond);

// A notification to the client, as a line without newline. `params`: JSON text.
std::string notification_line(std::string_view method, std::string_view params);

// An error that belongs to no request (its id is null), as a line without newline.
std::string error_line(const RpcError& error);

// JSON text of a string in quotes, of any bytes: what is not UTF-8 becomes U+FFFD.
std::string json_string(std::string_view text);

}  // namespace recalld
