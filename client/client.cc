#include "client/client.h"

#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <thread>
#include <utility>

namespace recalld::client {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t read_bytes = size_t{64} << 10;

std::optional<ErrorKind> kind_named(std::string_view text) {
  for (const ErrorKind kind : {ErrorKind::invalid_request, ErrorKind::not_found, ErrorKind::corrupt, ErrorKind::io,
                               ErrorKind::full, ErrorKind::device, ErrorKind::busy, ErrorKind::internal}) {
    if (name(kind) == text) return kind;
  }
  return std::nullopt;
}

// A JSON-RPC error object as an Error. The protocol's own codes stand in where no kind is given.
Error error_of(const Json& object) {
  constexpr int internal_error = -32603;
  Error error{ErrorKind::invalid_request, "the daemon refused the request without saying why"};
  if (!object.is_object()) return error;
  if (const auto message = object.find("message"); message != object.end() && message->is_string()) {
    error.message = message->get<std::string>();
  }
  if (const auto code = object.find("code"); code != object.end() && code->is_number_integer()) {
    if (*code == internal_error) error.kind = ErrorKind::internal;
  }
  if (const auto data = object.find("data"); data != object.end() && data->is_object()) {
    if (const auto kind = data->find("kind"); kind != data->end() && kind->is_string()) {
      error.kind = kind_named(kind->get_ref<const std::string&>()).value_or(error.kind);
    }
  }
  return error;
}

// Milliseconds until the deadline as poll() takes them: -1 waits for ever.
int poll_timeout(std::optional<steady_clock::time_point> deadline) {
  if (!deadline) return -1;
  const auto left = std::chrono::ceil<milliseconds>(*deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000'000));
}

// An environment variable that names an absolute path; the XDG specification says to ignore any other value.
std::filesystem::path absolute_path_in(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr || value[0] != '/') return {};
  return value;
}

std::filesystem::path home_directory() {
  if (auto home = absolute_path_in("HOME"); !home.empty()) return home;
  passwd entry{};
  passwd* found = nullptr;
  std::array<char, 4096> buffer{};
  if (getpwuid_r(getuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) return found->pw_dir;
  return "/";
}

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
  if (request.limit) out["limit"] = *request.limit;
  if (request.max_tokens) out["max_tokens"] = *request.max_tokens;
  if (!request.mode.empty()) out["mode"] = request.mode;
  if (request.explain) out["explain"] = true;
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
}

void from_json(const Json& in, SearchReply::Result& out) {
  in.at("chunk").get_to(out.chunk);
  in.at("score").get_to(out.score);
  in.at("text").get_to(out.text);
  in.at("tokens").get_to(out.tokens);
  in.at("turns").get_to(out.turns);
  if (const auto why = in.find("why"); why != in.end()) out.why = *why;
}

void from_json(const Json& in, SearchReply& out) {
  in.at("results").get_to(out.results);
  read_optional(in, "searchable_through", out.searchable_through);
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
}

void from_json(const Json& in, ChunksReply& out) {
  in.at("chunks").get_to(out.chunks);
  read_optional(in, "next_cursor", out.next_cursor);
}

void from_json(const Json& in, Memory& out) {
  in.at("memory").get_to(out.memory);
  in.at("turns").get_to(out.turns);
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
template Expected<TurnsReply> decode(const Json&);
template Expected<Chunk> decode(const Json&);
template Expected<ChunksReply> decode(const Json&);
template Expected<Memory> decode(const Json&);
template Expected<MemoriesReply> decode(const Json&);
template Expected<Health> decode(const Json&);
template Expected<Version> decode(const Json&);
template Expected<Json> decode(const Json&);

// ---- The connection

std::filesystem::path default_socket() {
  if (const char* socket = std::getenv("RECALLD_SOCKET"); socket != nullptr && socket[0] != '\0') return socket;
  if (const auto runtime = absolute_path_in("XDG_RUNTIME_DIR"); !runtime.empty()) return runtime / "recalld.sock";
  auto data = absolute_path_in("XDG_DATA_HOME");
  if (data.empty()) data = home_directory() / ".local/share";
  return data / "recalld/recalld.sock";
}

Client::Client(Descriptor descriptor, std::string socket, ClientOptions options)
    : descriptor_(std::move(descriptor)), socket_(std::move(socket)), options_(options) {}

Expected<Client> Client::connect(const std::filesystem::path& socket, ClientOptions options) {
  const std::string& path = socket.native();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorKind::invalid_request, "connect to '" + path + "': a socket's path has 1 to " +
                                                std::to_string(sizeof(address.sun_path) - 1) + " bytes, this one " +
                                                std::to_string(path.size()) + "; choose a shorter one with --socket");
  }
  path.copy(address.sun_path, path.size());

  Descriptor descriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (descriptor.get() < 0) return std::unexpected(system_error("make a socket", errno));

  const auto deadline = steady_clock::now() + options.connect_timeout;
  while (::connect(descriptor.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int cause = errno;
    if (cause == EINTR) continue;
    if (cause == ENOENT || cause == ECONNREFUSED) {
      return fail(ErrorKind::io, "no daemon at " + path + ": start it with `recalld --socket " + path + "`");
    }
    // A Unix socket whose backlog is full says EAGAIN instead of making the caller wait.
    if (cause != EAGAIN) return std::unexpected(system_error("connect to " + path, cause));
    if (steady_clock::now() >= deadline) {
      return fail(ErrorKind::io, "connect to " + path + ": the daemon took no connection for " +
                                     std::to_string(options.connect_timeout.count()) + " ms; is it overloaded?");
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  return Client(std::move(descriptor), path, options);
}

Expected<Json> Client::call(std::string_view method, Json params) {
  RECALLD_TRY(const uint64_t request, submit(method, std::move(params)));
  return wait(request);
}

Expected<uint64_t> Client::submit(std::string_view method, Json params) {
  if (broken_) return std::unexpected(*broken_);
  if (unanswered_.size() + answered_.size() >= requests_in_flight_max) {
    return fail(ErrorKind::full, "send " + std::string(method) + ": " + std::to_string(requests_in_flight_max) +
                                     " requests are already in flight on this connection; wait for a reply first");
  }
  const uint64_t request = last_request_ + 1;
  std::string line;
  try {
    line = Json{{"jsonrpc", "2.0"}, {"id", request}, {"method", method}, {"params", std::move(params)}}.dump();
  } catch (const Json::exception&) {
    return fail(ErrorKind::invalid_request, "send " + std::string(method) + ": a text in it is not valid UTF-8");
  }
  if (line.size() > line_bytes_max) {
    return fail(ErrorKind::invalid_request, "send " + std::string(method) + ": the request has " +
                                                std::to_string(line.size()) + " bytes, at most " +
                                                std::to_string(line_bytes_max) + " are taken; send it in parts");
  }
  line.push_back('\n');
  last_request_ = request;
  unanswered_.insert(request);
  RECALLD_CHECK(send_line(line));
  return request;
}

Expected<Json> Client::wait(uint64_t request) {
  const Deadline deadline = reply_deadline();
  for (;;) {
    if (auto found = answered_.extract(request)) return std::move(found.mapped());
    if (!unanswered_.contains(request)) {
      return fail(ErrorKind::invalid_request,
                  "wait for request " + std::to_string(request) + ": it was never sent, or its reply has been taken");
    }
    if (broken_) return std::unexpected(*broken_);
    RECALLD_CHECK(receive(deadline));
  }
}

Client::Deadline Client::reply_deadline() const {
  if (options_.reply_timeout.count() <= 0) return std::nullopt;
  return steady_clock::now() + options_.reply_timeout;
}

Expected<void> Client::send_line(std::string_view line) {
  const Deadline deadline = reply_deadline();
  while (!line.empty()) {
    const ssize_t sent = ::send(descriptor_.get(), line.data(), line.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      line.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      // Replies are read while waiting to write, so that two full buffers never wait for each other.
      RECALLD_TRY(const Ready ready, wait_ready(true, deadline));
      if (ready.read) RECALLD_CHECK(read_available());
    } else if (errno == EPIPE || errno == ECONNRESET) {
      // The daemon may have said why before it closed.
      if (auto read = read_available(); !read) return read;
      return broken(Error{ErrorKind::io, "the daemon at " + socket_ + " closed the connection; see its log"});
    } else if (errno != EINTR) {
      return broken(system_error("send to " + socket_, errno));
    }
  }
  return {};
}

Expected<void> Client::receive(Deadline deadline) {
  RECALLD_CHECK(wait_ready(false, deadline));
  return read_available();
}

Expected<Client::Ready> Client::wait_ready(bool also_write, Deadline deadline) {
  for (;;) {
    pollfd entry{descriptor_.get(), static_cast<short>(also_write ? POLLIN | POLLOUT : POLLIN), 0};
    const int ready = poll(&entry, 1, poll_timeout(deadline));
    if (ready > 0) return Ready{(entry.revents & ~POLLOUT) != 0, (entry.revents & POLLOUT) != 0};
    if (ready == 0) {
      const Error late{ErrorKind::busy, "no answer from the daemon at " + socket_ + " within " +
                                            std::to_string(options_.reply_timeout.count()) +
                                            " ms; it may still carry the request out"};
      // A request that was sent in part can't be taken back; a late reply just waits for wait() to be called again.
      if (also_write) return broken(late);
      return std::unexpected(late);
    }
    if (errno != EINTR) return broken(system_error("wait for " + socket_, errno));
  }
}

Expected<void> Client::read_available() {
  std::array<char, read_bytes> buffer;
  for (;;) {
    const ssize_t got = ::recv(descriptor_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {};
    if (got < 0 && errno != ECONNRESET) return broken(system_error("read from " + socket_, errno));
    if (got <= 0) {
      return broken(Error{ErrorKind::io, "the daemon at " + socket_ + " closed the connection; see its log"});
    }
    std::string_view bytes(buffer.data(), static_cast<size_t>(got));
    for (size_t end = bytes.find('\n'); end != std::string_view::npos; end = bytes.find('\n')) {
      received_.append(bytes.substr(0, end));
      bytes.remove_prefix(end + 1);
      RECALLD_CHECK(take_line(std::exchange(received_, {})));
    }
    received_.append(bytes);
    if (received_.size() > reply_bytes_max) {
      return broken(Error{ErrorKind::internal, "the reply from " + socket_ + " passes " +
                                                   std::to_string(reply_bytes_max) + " bytes: is it recalld?"});
    }
  }
}

Expected<void> Client::take_line(std::string_view line) {
  if (line.empty()) return {};
  Json reply = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!reply.is_object()) {
    return broken(Error{ErrorKind::internal, "what answers at " + socket_ + " does not speak recalld's protocol"});
  }
  if (reply.contains("method")) return {};  // a notification
  const auto error = reply.find("error");
  const auto id = reply.find("id");
  if (id == reply.end() || !id->is_number_unsigned()) {
    // An error that belongs to no request, such as the refusal of one connection too many.
    if (error != reply.end()) return broken(error_of(*error));
    return broken(Error{ErrorKind::internal, "a reply from " + socket_ + " carries no id"});
  }
  const auto request = id->get<uint64_t>();
  if (unanswered_.erase(request) == 0) return {};
  if (error != reply.end()) {
    answered_.emplace(request, std::unexpected(error_of(*error)));
  } else if (const auto result = reply.find("result"); result != reply.end()) {
    answered_.emplace(request, std::move(*result));
  } else {
    answered_.emplace(request,
                      fail(ErrorKind::internal, "the reply from " + socket_ + " has neither result nor error"));
  }
  return {};
}

std::unexpected<Error> Client::broken(Error error) {
  if (!broken_) broken_ = std::move(error);
  return std::unexpected(*broken_);
}

// ---- Typed calls

namespace {

template <class Reply>
Expected<Reply> decoded(const Expected<Json>& result) {
  if (!result) return std::unexpected(result.error());
  return decode<Reply>(*result);
}

}  // namespace

Expected<AppendReply> Client::append(const AppendRequest& request) {
  return decoded<AppendReply>(call("append", params(request)));
}

Expected<SearchReply> Client::search(const SearchRequest& request) {
  return decoded<SearchReply>(call("search", params(request)));
}

Expected<MemoriesReply> Client::memories(const PageRequest& request) {
  return decoded<MemoriesReply>(call("memories.list", params(request, "prefix")));
}

Expected<Memory> Client::memory(std::string_view name) {
  return decoded<Memory>(call("memories.get", {{"memory", name}}));
}

Expected<void> Client::delete_memory(std::string_view name) {
  RECALLD_CHECK(call("memories.delete", {{"memory", name}}));
  return {};
}

Expected<TurnsReply> Client::turns(const PageRequest& request) {
  return decoded<TurnsReply>(call("turns.list", params(request)));
}

Expected<ChunksReply> Client::chunks(const PageRequest& request) {
  return decoded<ChunksReply>(call("chunks.list", params(request)));
}

Expected<Chunk> Client::chunk(std::string_view memory, uint64_t chunk) {
  return decoded<Chunk>(call("chunks.get", {{"memory", memory}, {"chunk", chunk}}));
}

Expected<Json> Client::stats() {
  return call("stats");
}

Expected<Health> Client::health() {
  return decoded<Health>(call("health"));
}

Expected<Version> Client::version() {
  return decoded<Version>(call("version"));
}

}  // namespace recalld::client
