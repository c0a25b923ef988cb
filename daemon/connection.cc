#include "daemon/connection.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <exception>
#include <optional>
#include <vector>

#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "daemon/line_framer.h"

namespace recalld {
namespace asio = boost::asio;
namespace {

constexpr size_t read_bytes = size_t{64} << 10;
constexpr size_t buffers_per_write_max = 16;

// Sleeps until the timer is cancelled or, when it is set, goes off.
asio::awaitable<void> sleep_on(asio::steady_timer& timer) {
  boost::system::error_code cancelled;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, cancelled));
}

}  // namespace

Connection::Connection(Socket socket, const LineService& service, ConnectionHost& host, ConnectionLimits limits)
    : socket_(std::move(socket)),
      service_(service),
      host_(host),
      limits_(limits),
      number_(++host.connections_made),
      room_(socket_.get_executor()),
      replies_or_end_(socket_.get_executor()),
      write_deadline_(socket_.get_executor()) {}

void Connection::start() {
  const Self self = shared_from_this();
  const auto on_end = [self](const std::exception_ptr& failure) {
    if (failure) self->close();  // memory ran out in a coroutine
  };
  asio::co_spawn(socket_.get_executor(), read_lines(self), on_end);
  asio::co_spawn(socket_.get_executor(), write_replies(self), on_end);
}

asio::awaitable<void> Connection::read_lines(Self self) {
  std::vector<char> buffer(read_bytes);
  LineFramer framer(self->limits_.line_bytes_max);
  while (self->reading_) {
    if (self->line_bytes_ > 0) co_await wait_for_line_room(self);
    if (!self->reading_) break;
    boost::system::error_code error;
    self->awaits_bytes_ = true;
    const size_t bytes =
        co_await self->socket_.async_read_some(asio::buffer(buffer), asio::redirect_error(asio::use_awaitable, error));
    self->awaits_bytes_ = false;
    if (error) break;  // the client is done or gone; a line without its end was never sent
    self->quiet_since_ = Clock::now();
    std::string_view input(buffer.data(), bytes);
    while (self->reading_) {
      std::optional<LineFramer::Line> line = framer.next(input);
      if (!line) break;
      co_await wait_for_room(self, line->text.size());
      if (!self->reading_) break;
      if (line->overlong)
        self->reply(self->service_.overlong_reply);
      else
        self->serve(std::move(line->text));
      self->line_began_.reset();
      self->line_bytes_ = 0;
    }
    if (!framer.amid_line()) continue;
    if (!self->line_began_) self->line_began_ = self->line_read_on_since_ = Clock::now();
    self->line_bytes_ = framer.buffered_bytes() > read_bytes ? framer.buffered_bytes() : 0;
  }
  self->end_reading();
}

asio::awaitable<void> Connection::wait_for_room(Self self, size_t line_bytes) {
  while (self->reading_) {
    if (self->crowded()) {
      self->room_.expires_at(asio::steady_timer::time_point::max());
    } else if (self->service_.overloaded() || self->host_.swamped(line_bytes)) {
      self->room_.expires_after(self->limits_.overload_poll_interval);
    } else {
      break;
    }
    co_await sleep_on(self->room_);
  }
}

// Long lines share one room; a line that is paused for want of it keeps its place among the others.
asio::awaitable<void> Connection::wait_for_line_room(Self self) {
  while (self->reading_ && !self->host_.line_may_grow(*self)) {
    self->room_.expires_after(self->limits_.line_room_poll_interval);
    co_await sleep_on(self->room_);
    self->line_read_on_since_ = Clock::now();
  }
}

asio::awaitable<void> Connection::write_replies(Self self) {
  while (!self->closed_) {
    if (self->replies_.empty()) {
      if (!self->reading_ && (self->requests_in_flight_ + self->requests_aside_ == 0 || self->hung_up())) break;
      // A client may say that it sends no more and wait for its replies, or be gone.
      if (self->reading_)
        self->replies_or_end_.expires_at(asio::steady_timer::time_point::max());
      else
        self->replies_or_end_.expires_after(self->limits_.hang_up_poll_interval);
      co_await sleep_on(self->replies_or_end_);
      continue;
    }
    std::vector<asio::const_buffer> buffers;
    size_t written = self->front_bytes_written_;
    for (const std::string& reply : self->replies_) {
      if (buffers.size() == buffers_per_write_max) break;
      buffers.push_back(asio::buffer(reply) + std::exchange(written, 0));
    }
    self->arm_write_deadline();
    boost::system::error_code error;
    size_t bytes = co_await self->socket_.async_write_some(buffers, asio::redirect_error(asio::use_awaitable, error));
    self->write_deadline_.cancel();
    if (error) break;

    self->reply_bytes_queued_ -= bytes;
    for (bytes += self->front_bytes_written_; !self->replies_.empty() && bytes >= self->replies_.front().size();) {
      bytes -= self->replies_.front().size();
      self->replies_.pop_front();
      self->front_since_ = self->quiet_since_ = Clock::now();
    }
    self->front_bytes_written_ = bytes;
    self->room_.cancel();
  }
  self->close();
}

// A client that reads slowly is served slowly; one that reads nothing at all would hold its replies for ever.
void Connection::arm_write_deadline() {
  write_deadline_.expires_after(limits_.write_timeout);
  write_deadline_.async_wait([self = shared_from_this()](boost::system::error_code cancelled) {
    if (!cancelled) self->close();
  });
}

void Connection::serve(std::string line) {
  const size_t bytes = line.size();
  ++requests_in_flight_;
  ++host_.requests_in_flight;
  request_bytes_in_flight_ += bytes;
  host_.request_bytes_in_flight += bytes;
  enum class State { in_flight, aside, answered };
  const auto state = std::make_shared<State>(State::in_flight);  // shared by the calls below; the executor's alone
  const auto leave = [state](Connection& from, State to) {
    if (*state == State::in_flight) --from.requests_in_flight_, --from.host_.requests_in_flight;
    if (*state == State::aside) --from.requests_aside_;
    if (to == State::aside) ++from.requests_aside_;
    *state = to;
  };
  Client client{.connection = number_,
                .notify =
                    [self = shared_from_this()](std::string notification) {
                      asio::post(self->socket_.get_executor(),
                                 [self, notification = std::move(notification)]() mutable {
                                   if (!self->closed_) self->send(std::move(notification));
                                 });
                    },
                .set_aside =
                    [self = shared_from_this(), state, leave] {
                      asio::post(self->socket_.get_executor(), [self, state, leave] {
                        if (*state == State::in_flight) leave(*self, State::aside);
                        self->room_.cancel();
                      });
                    }};
  service_.serve(std::move(line), std::move(client),
                 [self = shared_from_this(), leave, bytes](std::string reply) mutable {
                   // Named first: the closure that holds the connection is moved from within the same call.
                   const auto executor = self->socket_.get_executor();
                   asio::post(executor, [self = std::move(self), leave, bytes, reply = std::move(reply)]() mutable {
                     leave(*self, State::answered);
                     self->request_bytes_in_flight_ -= bytes;
                     self->host_.request_bytes_in_flight -= bytes;
                     if (!reply.empty()) self->reply(std::move(reply));
                     self->room_.cancel();
                     self->replies_or_end_.cancel();
                   });
                 });
}

// Whether the client has closed the connection, and not only its half of it.
bool Connection::hung_up() const {
  if (closed_) return true;
  pollfd entry{const_cast<Socket&>(socket_).native_handle(), 0, 0};
  return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLHUP | POLLERR)) != 0;
}

void Connection::reply(std::string line) {
  if (closed_) return;
  ++replies_made_;
  reply_bytes_average_ = (3 * reply_bytes_average_ + line.size()) / 4;
  send(std::move(line));
}

void Connection::send(std::string line) {
  if (!replies_.empty() && reply_bytes_queued_ + line.size() > limits_.reply_bytes_unread_max) return close();
  line.push_back('\n');
  if (replies_.empty()) front_since_ = Clock::now();
  reply_bytes_queued_ += line.size();
  replies_.push_back(std::move(line));
  replies_or_end_.cancel();
  if (reply_bytes_queued_ > read_bytes) host_.replies_grew();
}

std::optional<Connection::Clock::time_point> Connection::line_delayed_since() const {
  if (!line_began_ || (!awaits_bytes_ && reply_bytes_queued_ < limits_.reply_bytes_queued_max)) return std::nullopt;
  return line_read_on_since_;
}

std::optional<Connection::Clock::time_point> Connection::stalled_since() const {
  if (!replies_.empty()) return front_since_;
  if (awaits_bytes_ && requests_in_flight_ + requests_aside_ == 0) return line_began_;
  return std::nullopt;
}

std::optional<Connection::Clock::time_point> Connection::idle_since() const {
  if (awaits_bytes_ && requests_in_flight_ + requests_aside_ == 0 && replies_.empty() && !line_began_)
    return quiet_since_;
  return std::nullopt;
}

// What a request costs shows only in its reply: a client may send ahead as far as it has seen replies, and as far as
// their size lets expect that the next ones fit.
size_t Connection::requests_in_flight_max() const {
  const size_t fitting = limits_.reply_bytes_queued_max / std::max<size_t>(1, reply_bytes_average_);
  return std::min({limits_.requests_in_flight_max, limits_.requests_in_flight_first + replies_made_,
                   std::max(limits_.requests_in_flight_fair, fitting)});
}

bool Connection::crowded() const {
  return requests_in_flight_ >= requests_in_flight_max() ||
         (requests_in_flight_ >= limits_.requests_in_flight_fair && host_.many_in_flight()) ||
         request_bytes_in_flight_ >= limits_.request_bytes_in_flight_max ||
         reply_bytes_queued_ >= limits_.reply_bytes_queued_max;
}

void Connection::end_reading() {
  reading_ = false;
  room_.cancel();
  replies_or_end_.cancel();
}

void Connection::stop_reading() {
  boost::system::error_code ignored;
  socket_.shutdown(Socket::shutdown_receive, ignored);  // ends a read in progress
  end_reading();
}

void Connection::close() {
  if (std::exchange(closed_, true)) return;
  boost::system::error_code ignored;
  socket_.close(ignored);
  write_deadline_.cancel();
  end_reading();
  host_.closed(shared_from_this());
}

void Connection::dismiss(std::string last_line) {
  if (closed_) return;
  if (replies_.empty()) {
    last_line.push_back('\n');
    boost::system::error_code ignored;
    socket_.non_blocking(true, ignored);
    socket_.write_some(asio::buffer(last_line), ignored);
  }
  close();
}

}  // namespace recalld
