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

#include "base/shorten.h"

namespace recalld::client {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t read_bytes = size_t{64} << 10;
constexpr milliseconds stop_interval{200};  // between two looks at ClientOptions::stop

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

}  // namespace

// ---- The connection

std::filesystem::path default_socket() {
  if (const char* socket = std::getenv("RECALLD_SOCKET"); socket != nullptr && socket[0] != '\0') return socket;
  if (const auto runtime = absolute_path_in("XDG_RUNTIME_DIR"); !runtime.empty()) return runtime / "recalld.sock";
  auto data = absolute_path_in("XDG_DATA_HOME");
  if (data.empty()) data = home_directory() / ".local/share";
  return data / "recalld/recalld.sock";
}

Client::Client(Descriptor descriptor, std::string socket, ClientOptions options)
    : descriptor_(std::move(descriptor)), socket_(std::move(socket)), options_(std::move(options)) {}

Expected<Client> Client::connect(const std::filesystem::path& socket, ClientOptions options) {
  const std::string& path = socket.native();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty())
    return fail(ErrorKind::invalid_request, "connect: the path of the socket is empty; name the daemon's socket");
  if (path.size() >= sizeof(address.sun_path)) {
    return fail(ErrorKind::invalid_request, "connect to '" + shortened(path) + "': a socket's path has 1 to " +
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
  return Client(std::move(descriptor), path, std::move(options));
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
    if (options_.stop && options_.stop()) {
      const Error stopped{ErrorKind::busy,
                          "stopped waiting for the daemon at " + socket_ + "; it may still carry the request out"};
      if (also_write) return broken(stopped);
      return std::unexpected(stopped);
    }
    int timeout = poll_timeout(deadline);
    const bool sliced = options_.stop && (timeout < 0 || timeout > stop_interval.count());
    if (sliced) timeout = static_cast<int>(stop_interval.count());
    const int ready = poll(&entry, 1, timeout);
    if (ready == 0 && sliced) continue;
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
  if (reply.contains("method")) {
    take_notification(reply);
    return {};
  }
  const auto error = reply.find("error");
  const auto id = reply.find("id");
  if (id == reply.end() || !id->is_number_unsigned()) {
    // An error that belongs to no request, such as the refusal of one connection too many.
    if (error != reply.end()) return broken(error_of(*error));
    return broken(Error{ErrorKind::internal, "a reply from " + socket_ + " carries no id"});
  }
  const auto request = id->get<uint64_t>();
  listeners_.erase(request);
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

// One that this client does not know is no mistake.
void Client::take_notification(const Json& line) const {
  if (line.value("method", Json()) != "generate.text") return;
  const Json params = line.value("params", Json::object());
  if (!params.is_object()) return;
  const auto id = params.find("id"), text = params.find("text");
  if (id == params.end() || !id->is_number_unsigned() || text == params.end() || !text->is_string()) return;
  const auto listener = listeners_.find(id->get<uint64_t>());
  if (listener != listeners_.end() && listener->second) listener->second(text->get_ref<const std::string&>());
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

Expected<GenerateReply> Client::generate(const GenerateRequest& request, OnText on_text) {
  RECALLD_TRY(const uint64_t submitted, submit_generate(request, std::move(on_text)));
  return decoded<GenerateReply>(wait(submitted));
}

Expected<uint64_t> Client::submit_generate(const GenerateRequest& request, OnText on_text) {
  RECALLD_TRY(const uint64_t submitted, submit("generate", params(request)));
  if (on_text) listeners_[submitted] = std::move(on_text);
  return submitted;
}

Expected<bool> Client::cancel(uint64_t request) {
  RECALLD_TRY(const Json reply, call("cancel", {{"id", request}}));
  return reply.value("cancelled", false);
}

Expected<MemoriesReply> Client::memories(const PageRequest& request) {
  return decoded<MemoriesReply>(call("memories.list", params(request, "prefix")));
}

Expected<Memory> Client::memory(std::string_view name) {
  return decoded<Memory>(call("memories.get", {{"memory", name}}));
}

Expected<DeleteReply> Client::delete_memory(std::string_view name, bool wait) {
  Json arguments{{"memory", name}};
  if (!wait) arguments["wait"] = "none";
  return decoded<DeleteReply>(call("memories.delete", std::move(arguments)));
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

Expected<Receipt> Client::forget(const ForgetRequest& request) {
  return decoded<Receipt>(call("forget", params(request)));
}

Expected<VerifyReply> Client::verify(const VerifyRequest& request) {
  return decoded<VerifyReply>(call("verify", params(request)));
}

Expected<ExportReply> Client::export_page(const ExportRequest& request) {
  return decoded<ExportReply>(call("export", params(request)));
}

Expected<ImportReply> Client::import_records(const ImportRequest& request) {
  return decoded<ImportReply>(call("import", params(request)));
}

Expected<BackupReply> Client::backup(std::string_view directory) {
  return decoded<BackupReply>(call("backup", {{"directory", directory}}));
}

Expected<Job> Client::reencode(std::string_view model) {
  return decoded<Job>(call("reencode", {{"model", model}}));
}

Expected<Job> Client::cancel_reencode() {
  return decoded<Job>(call("reencode", {{"cancel", true}}));
}

Expected<Jobs> Client::jobs() {
  return decoded<Jobs>(call("stats"));
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
