// One client on a stream socket: lines in, reply lines out. Knows nothing of what a line says.
//
// Lines are served in the order in which they came, many at a time; their replies leave in the order in which they are
// ready. Reading pauses while any bound is reached, and so the client's own writes come to wait.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>

namespace recalld {

// Called once with a reply line without its newline, or with "" when there is none to send; from any thread.
using Respond = std::move_only_function<void(std::string)>;

struct ConnectionLimits {
  size_t line_bytes_max = size_t{8} << 20;
  size_t requests_in_flight_max = 64;                     // lines whose Respond was not called yet
  size_t request_bytes_in_flight_max = size_t{16} << 20;  // of these lines; the last one may go beyond
  size_t reply_bytes_queued_max = size_t{16} << 20;       // replies waiting to be read, beyond which no line is served
  size_t reply_bytes_unread_max = size_t{256} << 20;  // beyond which (by lines served before) the client is hung up on
  std::chrono::milliseconds write_timeout{60'000};    // without the client reading a byte
  std::chrono::milliseconds overload_poll_interval{5};
};

// What stands behind the connections. Called on their thread.
struct LineService {
  std::function<void(std::string line, Respond respond)> serve;
  std::function<bool()> overloaded;  // true: no line is served until it is false again
  std::string overlong_reply;        // to a line beyond line_bytes_max
  std::string refusal;               // to a client beyond the number of connections
};

// All functions are called on the thread of the socket's executor. Shared, because whichever ends last frees it: the
// coroutine that reads, the one that writes, or a request whose client has long gone.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::local::stream_protocol::socket;

  // `service` outlives the last line served. `closed` is called once, when the connection has ended.
  using Closed = std::function<void(const std::shared_ptr<Connection>&)>;
  Connection(Socket socket, const LineService& service, ConnectionLimits limits, Closed closed);

  void start();
  void stop_reading();  // serves no further line; closes once the replies to the served ones are written
  void close();         // at once; replies that come later are thrown away

 private:
  using Self = std::shared_ptr<Connection>;

  // Static, with `self` in the frame: a coroutine keeps its connection.
  static boost::asio::awaitable<void> read_lines(Self self);
  static boost::asio::awaitable<void> write_replies(Self self);
  static boost::asio::awaitable<void> wait_for_room(Self self);

  void serve(std::string line);
  void reply(std::string line);
  bool crowded() const;
  void end_reading();
  void arm_write_deadline();

  Socket socket_;
  const LineService& service_;
  ConnectionLimits limits_;
  Closed closed_callback_;

  bool reading_ = true;
  bool closed_ = false;
  size_t requests_in_flight_ = 0;
  size_t request_bytes_in_flight_ = 0;
  std::deque<std::string> replies_;
  size_t reply_bytes_queued_ = 0;
  size_t front_bytes_written_ = 0;  // of replies_.front()

  // Timers that a coroutine sleeps on until it is woken by their cancellation.
  boost::asio::steady_timer room_;
  boost::asio::steady_timer replies_or_end_;
  boost::asio::steady_timer write_deadline_;
};

}  // namespace recalld
