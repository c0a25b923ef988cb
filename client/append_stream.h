// Bulk loading: appends any number of turns to one memory as a series of requests, several of them in flight.
//
// Requests are cut by bytes and by turns and numbered. With an operation prefix each request carries the operation_id
// PREFIX-NUMBER, and the cuts depend on the turns alone, so that the same load run again, after a crash of either side
// or by mistake, changes nothing that was stored.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "client.h"

namespace recalld::client {

class AppendStream {
 public:
  // ---- Bounds
  static constexpr size_t request_bytes_max = size_t{32} << 10;  // of JSON; a single longer turn goes alone
  static constexpr size_t request_turns_max = 500;
  static constexpr size_t in_flight_max = 8;
  static constexpr size_t operation_prefix_bytes_max = 180;  // leaves room for the number within an operation_id

  // Where a turn stands in what is being loaded, for errors and for progress.
  struct Origin {
    uint64_t line = 0;      // counted from 1
    uint64_t end_byte = 0;  // bytes of the source up to and with this turn
  };

  // What has been acknowledged so far. Turn numbers are those of the memory; other clients' turns may lie between.
  struct Total {
    uint64_t requests = 0;
    uint64_t turns = 0;
    uint64_t tokens = 0;
    std::optional<uint64_t> first_turn;
    std::optional<uint64_t> last_turn;
    std::optional<uint64_t> searchable_through;
    uint64_t end_byte = 0;  // of the last acknowledged turn's origin
    uint64_t end_line = 0;
    uint64_t repeated_turns = 0;   // of these turns, stored before under the same operation ids: not added again
    uint64_t repeated_tokens = 0;  // and their tokens
  };

  struct Options {
    std::string operation_prefix{};                // empty: no operation ids
    std::optional<uint64_t> turns_there{};         // the memory's next_turn before: what has a lower number is repeated
    bool wait_searchable = false;                  // an acknowledgement then means encoded, not durable only
    std::string source = "input";                  // what errors call the place that the turns come from
    std::function<void(const Total&)> on_reply{};  // called after every acknowledgement; may be unset
  };

  // Borrows the client, which must do nothing else meanwhile.
  AppendStream(Client& client, std::string memory, Options options);

  // Takes one turn; sends when a request is full, and waits while in_flight_max of them are unanswered.
  // After an error nothing more is sent: every later call fails with it again, and total() tells what was stored.
  Expected<void> add(Turn turn, Origin origin);

  // Sends what waits for a request to fill, and waits for what was sent; more may be added. With an operation prefix it
  // sends nothing: the cuts must depend on the turns alone, or the same load again would be refused.
  Expected<void> flush();

  // Sends the rest and waits for everything.
  Expected<Total> finish();

  // Waits for what was sent and sends nothing more: turns that do not fill a request yet are dropped. A load that ends
  // early and has an operation prefix ends so: its last request would carry other turns when it is repeated whole.
  Expected<Total> settle();

  const Total& total() const { return total_; }
  uint64_t turns_in_flight() const;                              // sent, not acknowledged: they may have been stored
  uint64_t turns_waiting() const { return next_.turns.size(); }  // added, not sent

 private:
  struct InFlight {
    uint64_t request = 0;
    uint64_t turns = 0;
    Origin first;
    Origin last;
  };

  Expected<void> send();
  Expected<void> take_reply();
  std::unexpected<Error> failed(const InFlight& range, Error error);

  Client& client_;
  Options options_;
  AppendRequest next_;
  size_t next_bytes_ = 0;
  Origin next_first_;
  Origin next_last_;
  uint64_t requests_sent_ = 0;
  std::deque<InFlight> in_flight_;
  uint64_t turns_unanswered_ = 0;  // of requests that were given up waiting for
  std::optional<Error> failure_;   // the first
  Total total_;
};

}  // namespace recalld::client
