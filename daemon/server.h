// The Unix stream socket of the daemon and the connections that come in over it.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <utility>

#include <sys/types.h>

#include <boost/asio/io_context.hpp>

#include "base/error.h"
#include "daemon/connection.h"

namespace recalld {

struct ServerLimits {
  // A client beyond them takes the place of one that has kept its connection waiting for silence_max: amid a line or a
  // reply first, else idle; the longest of them. While there is none, the new one is told so and hung up on.
  size_t connections_max = 256;
  std::chrono::milliseconds silence_max{60'000};

  // Lines in flight on all connections together, beyond which each has its fair share of them only: whoever sends one
  // request at a time does not wait behind all that others send ahead.
  size_t requests_in_flight_many = 32;

  // Beyond these no line is served, or none that is long. Clients that hang up and come back reach them: what they
  // began goes on.
  size_t requests_in_flight_max = 2048;
  size_t request_bytes_in_flight_max = size_t{256} << 20;
  size_t short_line_bytes_max = size_t{64} << 10;

  // Lines longer than one read that have begun and not ended, all together. Beyond it only the oldest of them is read
  // on, and its client is hung up on when it does not come to its end in time while others wait.
  size_t long_line_bytes_max = size_t{64} << 20;
  std::chrono::milliseconds long_line_time_max{5'000};

  // Replies not yet read, all together. Beyond it the client that leaves the most of them unread is hung up on.
  size_t reply_bytes_unread_max = size_t{256} << 20;

  std::chrono::milliseconds stop_time_max{10'000};  // for the requests in flight at stop()
  ConnectionLimits connection;
};

// All functions are called on the one thread that runs `io`.
class Server {
 public:
  // Fails as open() would because of the path, before anything else is made.
  static Expected<void> check(const std::filesystem::path& path);
  // Listens on `path` with mode 0600; its directory is made, with mode 0700, when it is not there. The socket of a
  // daemon that is gone is taken over; fails with busy when somebody listens there, with invalid_request when the path
  // is too long for a socket or holds something else. `service` outlives the last request.
  static Expected<std::unique_ptr<Server>> open(boost::asio::io_context& io, std::filesystem::path path,
                                                LineService service, ServerLimits limits = {});
  ~Server();  // closes everything at once; nothing runs `io` any more then

  void start();

  // Removes the socket, takes no further line, and closes each connection once its replies are written; whoever is left
  // after stop_time_max is closed as well. Calls `stopped` then: the server has no more work on `io`.
  void stop(std::function<void()> stopped);
  void stop_now();  // what stop() began ends at once

 private:
  using Acceptor = boost::asio::local::stream_protocol::acceptor;
  using FileIdentity = std::pair<dev_t, ino_t>;

  Server(Acceptor acceptor, std::filesystem::path path, LineService service, ServerLimits limits);

  boost::asio::awaitable<void> accept();
  void add(Connection::Socket socket);
  void refuse(Connection::Socket socket);
  std::shared_ptr<Connection> longest_silent() const;
  bool line_may_grow(const Connection& connection);
  bool swamped(size_t line_bytes) const;
  void bound_replies();
  void stop_listening();
  void connection_closed(const std::shared_ptr<Connection>& connection);
  void finish_stop();

  Acceptor acceptor_;
  std::filesystem::path path_;
  FileIdentity file_;
  LineService service_;
  ConnectionHost host_;
  ServerLimits limits_;
  bool stopping_ = false;
  std::function<void()> stopped_;                      // from stop() until it is called
  std::set<std::shared_ptr<Connection>> connections_;  // open ones; see Connection for why they are shared
  boost::asio::steady_timer stop_deadline_;
  boost::asio::steady_timer accept_pause_;
};

}  // namespace recalld
