#include "tools/bench/fill.h"

#include <chrono>
#include <deque>

#include "tools/bench/daemon_process.h"
#include "tools/bench/prose.h"

namespace recalld::bench {

FillReport fill(client::Client& client, const std::string& memory, uint64_t tokens, uint64_t seed) {
  using Clock = std::chrono::steady_clock;
  constexpr size_t turns_per_request = 64;
  constexpr size_t requests_in_flight = 8;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };

  Prose prose(seed);
  FillReport report;
  std::deque<uint64_t> in_flight;
  const auto take_one = [&] {
    const auto reply = must(client.wait(in_flight.front()), "append");
    in_flight.pop_front();
    report.tokens += reply.at("tokens").get<uint64_t>();
  };
  const auto start = Clock::now();
  while (report.tokens < tokens) {
    client::AppendRequest request;
    request.memory = memory;
    for (size_t i = 0; i < turns_per_request; ++i) {
      client::Turn turn;
      turn.role = i % 2 == 0 ? "user" : "assistant";
      turn.content = prose.turn();
      request.turns.push_back(std::move(turn));
    }
    in_flight.push_back(must(client.submit("append", client::params(request)), "append"));
    if (in_flight.size() == requests_in_flight) take_one();
  }
  while (!in_flight.empty()) take_one();
  report.durable_s = seconds_since(start);

  client::AppendRequest last{.memory = memory, .turns = {}, .operation_id = "", .wait_searchable = true};
  client::Turn turn;
  turn.content = "That was all.";
  last.turns.push_back(turn);
  report.tokens += must(client.append(last), "append").tokens;
  report.searchable_s = seconds_since(start);
  return report;
}

}  // namespace recalld::bench
