#include "daemon/json_rpc.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/shorten.h"

namespace recalld {
namespace {

constexpr auto replace_bad_bytes = Json::error_handler_t::replace;

RpcError invalid_request(std::string message) {
  return {code_invalid_request, ErrorKind::invalid_request, std::move(message)};
}

// Builds a value from a line, and stops at the first thing that would cost too much or that two readers could read in
// two ways: deep nesting, too many values, a key given twice.
class Builder final : public Json::json_sax_t {
 public:
  Json take() { return std::move(root_); }
  RpcError take_error() { return std::move(error_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") != text.npos) return put(value);
    // An integer of more than 64 bits. Rounding it would change what was said, so it is kept as a value of a type that
    // JSON text cannot have, which no argument accepts.
    return put(Json::binary(Json::binary_t::container_type(text.begin(), text.end())));
  }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // never in JSON text

  bool start_object(size_t) override { return open(Json::object()); }
  bool key(string_t& name) override {
    const auto [member, fresh] = open_.back()->emplace(std::move(name), nullptr);
    if (!fresh) return refuse("the key " + json_string(shortened(member.key())) + " appears twice in one object");
    slot_ = &member.value();
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool parse_error(size_t position, const std::string&, const Json::exception& exception) override {
    // Of the library's text only the reason is for our readers: its own tag goes, and the token may be megabytes long.
    std::string_view reason = exception.what();
    reason = reason.substr(0, reason.find("; last read: "));
    for (const std::string_view tag : {"] ", ": "})
      if (const size_t end = reason.find(tag); end != reason.npos) reason.remove_prefix(end + tag.size());
    error_ = {
        code_parse_error, ErrorKind::invalid_request,
        "the line is not JSON in UTF-8: byte " + std::to_string(position) + ": " + std::string(reason.substr(0, 200))};
    return false;
  }

 private:
  bool refuse(std::string message) {
    error_ = invalid_request(std::move(message));
    return false;
  }

  bool put(Json value) {
    if (++values_ > json_values_max)
      return refuse("the line holds more than " + std::to_string(json_values_max) +
                    " values; send them in several lines");
    if (open_.empty()) {
      root_ = std::move(value);
      slot_ = &root_;
    } else if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      slot_ = &open_.back()->back();
    } else {
      *slot_ = std::move(value);
    }
    return true;
  }

  bool open(Json value) {
    if (open_.size() == json_depth_max)
      return refuse("the line is nested deeper than " + std::to_string(json_depth_max) + " levels");
    if (!put(std::move(value))) return false;
    open_.push_back(slot_);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  Json* slot_ = nullptr;     // where the value of the last key goes, or the value put last
  std::vector<Json*> open_;  // arrays and objects not yet closed, the outermost first
  size_t values_ = 0;
  RpcError error_;
};

std::string reply_line(std::string_view id, const std::expected<std::string, RpcError>& answer) {
  std::string line = R"({"jsonrpc":"2.0","id":)";
  line.append(id);
  if (answer) return line.append(R"(,"result":)").append(*answer).append("}");
  const RpcError& error = answer.error();
  line.append(R"(,"error":{"code":)").append(std::to_string(error.code));
  line.append(R"(,"message":)").append(json_string(error.message));
  return line.append(R"(,"data":{"kind":")").append(name(error.kind)).append("\"}}}");
}

// A request whose form is right.
struct Request {
  RequestId id;
  std::string method;
  Json params;
};

// Checks the form of `value` and takes it apart; an error comes with the id to answer under.
std::expected<Request, std::pair<std::string, RpcError>> take_request(Json& value) {
  std::string id = "null";
  const auto refuse = [&id](std::string message) {
    return std::unexpected(std::pair(id, invalid_request(std::move(message))));
  };
  if (!value.is_object()) return refuse("a request is an object with the members jsonrpc, id, method and params");

  Request request;
  if (const auto found = value.find("id"); found != value.end()) {
    const bool scalar = found->is_string() || found->is_number() || found->is_null();
    if (!scalar) return refuse("id: expected a string, a number that fits 64 bits, or null");
    id = found->dump(-1, ' ', false, replace_bad_bytes);
    request.id = id;
  }
  const auto version = value.find("jsonrpc");
  if (version == value.end() || *version != "2.0") return refuse("jsonrpc: expected \"2.0\"");
  const auto method = value.find("method");
  if (method == value.end() || !method->is_string()) return refuse("method: expected a string");
  request.method = std::move(method->get_ref<std::string&>());
  request.params = Json::object();
  if (const auto params = value.find("params"); params != value.end()) {
    if (!params->is_structured()) return refuse("params: expected an object with the arguments by name");
    request.params = std::move(*params);
  }
  return request;
}

void serve_request(Json& value, const Call& call, std::move_only_function<void(std::string)> respond) {
  auto request = take_request(value);
  if (!request) return respond(reply_line(request.error().first, std::unexpected(std::move(request).error().second)));

  Answer answer = [id = request->id, respond = std::move(respond)](auto answered) mutable {
    respond(id ? reply_line(*id, answered) : std::string());
  };
  if (!request->params.is_object())
    return answer(std::unexpected(RpcError{code_invalid_params, ErrorKind::invalid_request,
                                           "params: expected an object with the arguments by name, got an array"}));
  call(request->method, request->params, request->id, std::move(answer));
}

// Gathers the replies to a batch, in the order of its requests.
class Batch {
 public:
  Batch(size_t requests, std::move_only_function<void(std::string)> respond)
      : replies_(requests), waiting_(requests), respond_(std::move(respond)) {}

  // Not over the bound: a reply of the usual size still fits.
  bool has_room() const {
    const std::lock_guard lock(mutex_);
    return bytes_ < batch_reply_bytes_max;
  }

  void put(size_t index, std::string reply) {
    {
      const std::lock_guard lock(mutex_);
      bytes_ += reply.size();
      replies_[index] = std::move(reply);
      if (--waiting_ > 0) return;
    }
    std::string line;
    for (const std::string& each : replies_)
      if (!each.empty()) line.append(line.empty() ? "[" : ",").append(each);
    respond_(line.empty() ? line : line.append("]"));
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> replies_;  // empty: none yet, or a notification's
  size_t waiting_;
  size_t bytes_ = 0;
  std::move_only_function<void(std::string)> respond_;
};

void serve_batch(Json& requests, const Call& call, std::move_only_function<void(std::string)> respond) {
  // Shared by the answers to its requests; the last of them ends it.
  const auto batch = std::make_shared<Batch>(requests.size(), std::move(respond));
  const Call bounded_call = [&call, batch](std::string_view method, Json& params, const RequestId& id, Answer answer) {
    call(method, params, id, [batch, answer = std::move(answer)](auto answered) mutable {
      if (answered && !batch->has_room())
        answered = std::unexpected(RpcError{rpc_error({ErrorKind::full, {}}).code, ErrorKind::full,
                                            "the replies of this batch pass " + std::to_string(batch_reply_bytes_max) +
                                                " bytes; the request was carried out: ask for less at a time"});
      answer(std::move(answered));
    });
  };
  for (size_t i = 0; i < requests.size(); ++i)
    serve_request(requests[i], bounded_call, [batch, i](std::string reply) { batch->put(i, std::move(reply)); });
}

}  // namespace

RpcError rpc_error(Error error) {
  const auto code = [kind = error.kind] {
    switch (kind) {
      case ErrorKind::invalid_request:
        return code_invalid_params;
      case ErrorKind::not_found:
        return -32001;
      case ErrorKind::corrupt:
        return -32002;
      case ErrorKind::io:
        return -32003;
      case ErrorKind::full:
        return -32004;
      case ErrorKind::device:
        return -32005;
      case ErrorKind::busy:
        return -32006;
      case ErrorKind::internal:
        return code_internal_error;
    }
    return code_internal_error;
  };
  return {code(), error.kind, std::move(error.message)};
}

void serve_line(std::string_view line, const Call& call, std::move_only_function<void(std::string)> respond) {
  Builder builder;
  // The parser would take a NUL for the end of the line and not see what follows.
  if (const size_t nul = line.find('\0'); nul != line.npos)
    return respond(error_line({code_parse_error, ErrorKind::invalid_request,
                               "the line is not JSON in UTF-8: byte " + std::to_string(nul + 1) + ": a NUL"}));
  if (!Json::sax_parse(line.begin(), line.end(), &builder)) return respond(error_line(builder.take_error()));
  Json value = builder.take();
  if (!value.is_array()) return serve_request(value, call, std::move(respond));
  if (value.empty()) return respond(error_line(invalid_request("a batch holds at least one request")));
  if (value.size() > batch_requests_max)
    return respond(error_line(invalid_request("a batch holds at most " + std::to_string(batch_requests_max) +
                                              " requests, got " + std::to_string(value.size()))));
  serve_batch(value, call, std::move(respond));
}

std::string notification_line(std::string_view method, std::string_view params) {
  std::string line = R"({"jsonrpc":"2.0","method":)";
  return line.append(json_string(method)).append(R"(,"params":)").append(params).append("}");
}

std::string error_line(const RpcError& error) {
  return reply_line("null", std::unexpected(error));
}

std::string json_string(std::string_view text) {
  return Json(text).dump(-1, ' ', false, replace_bad_bytes);
}

}  // namespace recalld
