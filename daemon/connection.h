// One client on a stream socket: lines in, reply lines out. Knows nothing of what a line says.
//
// Lines are served in the order in which they came, many at a time; their replies leave in the order in which they are
// ready. Reading pauses while any bound is reached, and so the client's own writes come to wait.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>

namespace recalld {

// Called once with a reply line without its newline, or with "" when there is none to send; from any thread.
using Respond = std::move_only_function<void(std::string)>;

// Whom a line comes from. `notify` sends it a line (without newline) beside the replies: from any thread, also when the
// client has gone.
struct Client {
  uint64_t connection = 0;  // its number
  std::function<void(std::string line)> notify = {};
  // This line may take long: it counts no more among those in flight that keep further ones from being served. Whoever
  // calls it has a bound of its own. From any thread.
  std::function<void()> set_aside = {};
};

struct ConnectionLimits {
  size_t line_bytes_max = size_t{8} << 20;
  size_t requests_in_flight_max = 64;                     // lines whose Respond was not called yet
  size_t requests_in_flight_first = 4;                    // likewise, on a new connection; one more for each reply
  size_t requests_in_flight_fair = 2;                     // likewise, while all connections together have many
  size_t request_bytes_in_flight_max = size_t{16} << 20;  // of these lines; the last one may go beyond
  size_t reply_bytes_queued_max = size_t{16} << 20;       // replies waiting to be read, beyond which no line is served
  size_t reply_bytes_unread_max = size_t{256} << 20;  // beyond which (by lines served before) the client is hung up on
  std::chrono::milliseconds write_timeout{60'000};    // without the client reading a byte
  std::chrono::milliseconds overload_poll_interval{5};
  std::chrono::milliseconds line_room_poll_interval{20};
  std::chrono::milliseconds hang_up_poll_interval{200};  // of a client that sends no more
};

class Connection;

// What holds the connections, and keeps the bounds on all of them together. Called on their thread, and not by a
// connection that is closed.
struct ConnectionHost {
  std::function<bool(const Connection&)> line_may_grow;  // false: the connection asks again before it reads on
  std::function<bool()> many_in_flight;                  // true: who has its fair share in flight is not served on
  std::function<bool(size_t line_bytes)> swamped;        // true: such a line is not served until it is false again
  std::function<void()> replies_grew;
  std::function<void(const std::shared_ptr<Connection>&)> closed;  // once each

  uint64_t connections_made = 0;

  // Counted by the connections, those of clients that have gone meanwhile too.
  size_t requests_in_flight = 0;
  size_t request_bytes_in_flight = 0;
};

// What stands behind the connections. Called on their thread.
struct LineService {
  std::function<void(std::string line, Client client, Respond respond)> serve;
  std::function<void(uint64_t connection)> closed;  // the client of this number has gone
  std::function<bool()> overloaded;                 // true: no line is served until it is false again
  std::string overlong_reply;                       // to a line beyond line_bytes_max
  std::string refusal;                              // to a client beyond the number of connections
};

// All functions are called on the thread of the socket's executor. Shared, because whichever ends last frees it: the
// coroutine that reads, the one that writes, or a request whose client has long gone.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::local::stream_protocol::socket;
  using Clock = std::chrono::steady_clock;

  // `service` and `host` outlive the last line served.
  Connection(Socket socket, const LineService& service, ConnectionHost& host, ConnectionLimits limits);

  void start();
  void stop_reading();  // serves no further line; closes once the replies to the served ones are written
  void close();         // at once; replies that come later are thrown away

  // Closes, with `last_line` as the last one unless it would fall into a reply or the client leaves no room for it.
  void dismiss(std::string last_line);

  uint64_t number() const { return number_; }
  size_t reply_bytes_queued() const { return reply_bytes_queued_; }

  // Of a line that has begun and is not served yet: what it takes (nothing while that is no more than one read), when
  // it began, and since when it is the client, not the daemon, who keeps it from its end.
  size_t line_bytes() const { return line_bytes_; }
  std::optional<Clock::time_point> line_began() const { return line_began_; }
  std::optional<Clock::time_point> line_delayed_since() const;

  // Since when nothing is under way but what the client owes: the rest of a line or the reading of a reply; or, idle,
  // its next request. Nothing when it owes nothing of the kind.
  std::optional<Clock::time_point> stalled_since() const;
  std::optional<Clock::time_point> idle_since() const;

 private:
  using Self = std::shared_ptr<Connection>;

  // Static, with `self` in the frame: a coroutine keeps its connection.
  static boost::asio::awaitable<void> read_lines(Self self);
  static boost::asio::awaitable<void> write_replies(Self self);
  static boost::asio::awaitable<void> wait_for_room(Self self, size_t line_bytes);
  static boost::asio::awaitable<void> wait_for_line_room(Self self);

  void serve(std::string line);
  void reply(std::string line);
  void send(std::string line);
  size_t requests_in_flight_max() const;
  bool crowded() const;
  bool hung_up() const;
  void end_reading();
  void arm_write_deadline();

  Socket socket_;
  const LineService& service_;
  ConnectionHost& host_;
  ConnectionLimits limits_;
  const uint64_t number_;

  bool reading_ = true;
  bool closed_ = false;
  bool awaits_bytes_ = false;  // a read is under way
  Clock::time_point quiet_since_ = Clock::now();
  std::optional<Clock::time_point> line_began_;
  Clock::time_point line_read_on_since_;  // it began then, or the last pause for want of room ended
  size_t line_bytes_ = 0;
  size_t requests_in_flight_ = 0;
  size_t requests_aside_ = 0;  // not answered either
  size_t request_bytes_in_flight_ = 0;
  size_t replies_made_ = 0;
  size_t reply_bytes_average_ = 0;  // of the last few
  std::deque<std::string> replies_;
  size_t reply_bytes_queued_ = 0;
  size_t front_bytes_written_ = 0;  // of replies_.front()
  Clock::time_point front_since_;   // since when it is the front

  // Timers that a coroutine sleeps on until it is woken by their cancellation.
  boost::asio::steady_timer room_;
  boost::asio::steady_timer replies_or_end_;
  boost::asio::steady_timer write_deadline_;
};

}  // namespace recalld
