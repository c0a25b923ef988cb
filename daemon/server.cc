#include "daemon/server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include <spdlog/spdlog.h>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/descriptor.h"

namespace recalld {
namespace asio = boost::asio;
namespace {

constexpr size_t path_bytes_max = sizeof(sockaddr_un::sun_path) - 1;
constexpr int listen_backlog = 128;
constexpr std::chrono::milliseconds accept_retry_interval{100};  // while the process is out of descriptors
constexpr std::chrono::milliseconds directory_lock_wait_max{2'000};

sockaddr_un address_of(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.native().size() + 1);
  return address;
}

Descriptor stream_socket() {
  return Descriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

Expected<void> make_private_directory(const std::filesystem::path& directory) {
  std::error_code error;
  if (directory.empty() || std::filesystem::is_directory(directory, error)) return {};
  RECALLD_CHECK(make_private_directory(directory.parent_path()));
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    return std::unexpected(system_error("make directory " + directory.string(), errno));
  return {};
}

// Holds the directory's lock for as long as it lives, so that of two daemons that find a dead socket only one replaces
// it. It is held for a moment at a time.
Expected<Descriptor> lock_directory(const std::filesystem::path& directory) {
  const std::string name = directory.empty() ? "." : directory.string();
  Descriptor lock(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (lock.get() < 0) return std::unexpected(system_error("open directory " + name, errno));
  const auto deadline = std::chrono::steady_clock::now() + directory_lock_wait_max;
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return std::unexpected(system_error("lock directory " + name, errno));
    if (std::chrono::steady_clock::now() > deadline)
      return fail(ErrorKind::busy, "directory " + name + " is locked by another process; try again");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return lock;
}

// Removes a socket file that nobody listens on.
Expected<void> remove_stale_socket(const std::filesystem::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return std::unexpected(system_error("look for " + path.string(), errno));
  }
  if (!S_ISSOCK(status.st_mode))
    return fail(ErrorKind::invalid_request,
                path.string() + " exists and is no socket; choose another path with --socket");

  const Descriptor probe = stream_socket();
  if (probe.get() < 0) return std::unexpected(system_error("make a socket", errno));
  const sockaddr_un address = address_of(path);
  const bool connected = ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  if (connected || errno == EAGAIN)  // EAGAIN: a listener with a full backlog
    return fail(ErrorKind::busy, "another daemon listens on " + path.string() + "; stop it or choose another --socket");
  if (errno != ECONNREFUSED) return std::unexpected(system_error("probe socket " + path.string(), errno));
  if (::unlink(path.c_str()) != 0) return std::unexpected(system_error("remove stale socket " + path.string(), errno));
  return {};
}

Expected<Descriptor> listen_on(const std::filesystem::path& path) {
  Descriptor listener = stream_socket();
  if (listener.get() < 0) return std::unexpected(system_error("make a socket", errno));
  // The mode of the descriptor is the mode of the file from its first moment, whatever the umask adds to take away.
  if (::fchmod(listener.get(), 0600) != 0) return std::unexpected(system_error("set the mode of a socket", errno));
  const sockaddr_un address = address_of(path);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return std::unexpected(system_error("bind " + path.string(), errno));
  if (::listen(listener.get(), listen_backlog) != 0)
    return std::unexpected(system_error("listen on " + path.string(), errno));
  return listener;
}

std::pair<dev_t, ino_t> identity_of(const std::filesystem::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return {};
  return {status.st_dev, status.st_ino};
}

}  // namespace

Expected<void> Server::check(const std::filesystem::path& path) {
  const size_t path_bytes = path.native().size();
  if (path_bytes == 0 || path_bytes > path_bytes_max)
    return fail(ErrorKind::invalid_request, "socket path " + path.string() + " has " + std::to_string(path_bytes) +
                                                " bytes; a socket's has 1 to " + std::to_string(path_bytes_max) +
                                                ": choose a shorter one with --socket");
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return {};  // open() finds out why
  RECALLD_TRY(const Descriptor lock, lock_directory(path.parent_path()));
  return remove_stale_socket(path);
}

Expected<std::unique_ptr<Server>> Server::open(asio::io_context& io, std::filesystem::path path, LineService service,
                                               ServerLimits limits) {
  RECALLD_CHECK(check(path));
  RECALLD_CHECK(make_private_directory(path.parent_path()));
  RECALLD_TRY(const Descriptor lock, lock_directory(path.parent_path()));
  RECALLD_CHECK(remove_stale_socket(path));
  RECALLD_TRY(Descriptor listener, listen_on(path));

  Acceptor acceptor(io);
  boost::system::error_code error;
  acceptor.assign({}, listener.get(), error);
  if (error) return fail(ErrorKind::io, "listen on " + path.string() + ": " + error.message());
  listener.release();
  return std::unique_ptr<Server>(new Server(std::move(acceptor), std::move(path), std::move(service), limits));
}

Server::Server(Acceptor acceptor, std::filesystem::path path, LineService service, ServerLimits limits)
    : acceptor_(std::move(acceptor)),
      path_(std::move(path)),
      file_(identity_of(path_)),
      service_(std::move(service)),
      host_{.line_may_grow = [this](const Connection& connection) { return line_may_grow(connection); },
            .many_in_flight = [this] { return host_.requests_in_flight >= limits_.requests_in_flight_many; },
            .swamped = [this](size_t line_bytes) { return swamped(line_bytes); },
            .replies_grew = [this] { bound_replies(); },
            .closed = [this](const auto& closed) { connection_closed(closed); }},
      limits_(limits),
      stop_deadline_(acceptor_.get_executor()),
      accept_pause_(acceptor_.get_executor()) {}

Server::~Server() {
  stop_listening();
  stop_now();
}

void Server::start() {
  asio::co_spawn(acceptor_.get_executor(), accept(), [](const std::exception_ptr& failure) {
    // Memory ran out. A daemon that lives on and accepts nobody would be worse than one that ends.
    if (failure) std::rethrow_exception(failure);
  });
}

asio::awaitable<void> Server::accept() {
  while (!stopping_) {
    boost::system::error_code error;
    Connection::Socket socket = co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (stopping_) break;
    if (!error) {
      if (connections_.size() >= limits_.connections_max) {
        if (const auto silent = longest_silent()) {
          spdlog::warn("all {} connections are taken: closed the one whose client kept it waiting longest",
                       connections_.size());
          silent->dismiss(service_.refusal);
        }
      }
      if (connections_.size() < limits_.connections_max)
        add(std::move(socket));
      else
        refuse(std::move(socket));
    } else if (error != asio::error::connection_aborted) {
      // Out of descriptors or memory: clients wait in the backlog until there are some again.
      spdlog::warn("accept: {}", error.message());
      accept_pause_.expires_after(accept_retry_interval);
      co_await accept_pause_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    }
  }
}

void Server::add(Connection::Socket socket) {
  const auto connection = std::make_shared<Connection>(std::move(socket), service_, host_, limits_.connection);
  connections_.insert(connection);
  connection->start();
}

void Server::refuse(Connection::Socket socket) {
  // Small enough for the empty buffer of a new socket.
  boost::system::error_code ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(service_.refusal + "\n"), ignored);
}

// The connection whose place a new one may take; null when every one is in use. One that stalls amid a line or a reply
// goes before one that is idle, as a client that works never does the former and often the latter.
std::shared_ptr<Connection> Server::longest_silent() const {
  auto stalled_since = Connection::Clock::now() - limits_.silence_max;
  auto idle_since = stalled_since;
  std::shared_ptr<Connection> stalled, idle;
  for (const auto& connection : connections_) {
    if (const auto since = connection->stalled_since(); since && *since <= stalled_since) {
      stalled_since = *since;
      stalled = connection;
    }
    if (const auto since = connection->idle_since(); since && *since <= idle_since) {
      idle_since = *since;
      idle = connection;
    }
  }
  return stalled ? stalled : idle;
}

bool Server::line_may_grow(const Connection& connection) {
  size_t bytes = 0;
  std::shared_ptr<Connection> oldest;
  for (const auto& each : connections_) {
    bytes += each->line_bytes();
    if (each->line_bytes() > 0 && (!oldest || *each->line_began() < *oldest->line_began())) oldest = each;
  }
  if (bytes < limits_.long_line_bytes_max || oldest.get() == &connection) return true;
  const auto delayed_since = oldest->line_delayed_since();
  if (delayed_since && Connection::Clock::now() - *delayed_since > limits_.long_line_time_max) {
    spdlog::warn("closed a connection that did not end its long line in time: others wait for room for theirs");
    oldest->close();
  }
  return false;
}

bool Server::swamped(size_t line_bytes) const {
  return host_.requests_in_flight >= limits_.requests_in_flight_max ||
         (line_bytes > limits_.short_line_bytes_max &&
          host_.request_bytes_in_flight >= limits_.request_bytes_in_flight_max);
}

void Server::bound_replies() {
  size_t bytes = 0;
  std::shared_ptr<Connection> most;
  for (const auto& connection : connections_) {
    bytes += connection->reply_bytes_queued();
    if (!most || connection->reply_bytes_queued() > most->reply_bytes_queued()) most = connection;
  }
  if (bytes <= limits_.reply_bytes_unread_max) return;
  spdlog::warn("clients leave {} bytes of replies unread: closed the connection with the most of them", bytes);
  most->close();
}

void Server::stop(std::function<void()> stopped) {
  stopping_ = true;
  stopped_ = std::move(stopped);
  stop_listening();
  if (connections_.empty()) return finish_stop();
  const auto connections = connections_;  // closing one takes it out of the set
  for (const auto& connection : connections) connection->stop_reading();
  stop_deadline_.expires_after(limits_.stop_time_max);
  stop_deadline_.async_wait([this](boost::system::error_code cancelled) {
    if (cancelled) return;
    spdlog::warn("stop: {} connections had not ended in time and were closed", connections_.size());
    stop_now();
  });
}

void Server::stop_now() {
  const auto connections = connections_;
  for (const auto& connection : connections) connection->close();
}

void Server::stop_listening() {
  if (!acceptor_.is_open()) return;
  // Removed while it still listens: a daemon that starts meanwhile finds it alive or gone.
  if (identity_of(path_) == file_) ::unlink(path_.c_str());
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  accept_pause_.cancel();
}

void Server::connection_closed(const std::shared_ptr<Connection>& connection) {
  service_.closed(connection->number());
  connections_.erase(connection);
  if (stopping_ && connections_.empty()) finish_stop();
}

void Server::finish_stop() {
  stop_deadline_.cancel();
  if (stopped_) std::exchange(stopped_, nullptr)();
}

}  // namespace recalld
