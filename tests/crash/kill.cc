#include "tests/crash/kill.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <utility>

#include "client/client.h"
#include "tests/support/daemon_process.h"

namespace recalld::crash {
namespace {

using client::AppendReply;
using client::AppendRequest;
using client::Client;
using std::chrono::milliseconds;

constexpr size_t writers_max = 3;
constexpr size_t in_flight_max = 4;    // appends of a writer
constexpr uint64_t appends_max = 6;    // of a writer, between two kills
constexpr int64_t life_ms_max = 250;   // from the clients' first append to the kill
constexpr int64_t start_ms_max = 200;  // from the start of a daemon to a kill that waits for nobody
constexpr auto encoding_patience = std::chrono::minutes(4);
constexpr std::string_view shared_memory = "crew/log";

// What went wrong for good; a broken connection is none of it.
struct Loss : std::runtime_error {
  using runtime_error::runtime_error;
};

template <class T>
T must(Expected<T> value) {
  if (!value) throw Loss(value.error().message);
  return *std::move(value);
}

using Random = std::mt19937_64;
uint64_t below(Random& random, uint64_t bound) {
  return random() % bound;
}

std::string prose(Random& random, size_t bytes) {
  static constexpr std::string_view words[] = {"rope",  "tide", "harbour", "lamp", "herring", "chart",
                                               "storm", "sail", "winch",   "ø",    "60417",   "north"};
  std::string text;
  while (text.size() < bytes) (text += words[below(random, std::size(words))]) += below(random, 9) == 0 ? ".\n" : " ";
  return text;
}

// Turns that one writer appends to one memory, in their order.
class Stream {
 public:
  struct Placed {
    AppendRequest request;
    uint64_t first_turn = 0;
  };

  Stream(std::string memory, bool shared, uint64_t seed) : memory_(std::move(memory)), shared_(shared), random_(seed) {}

  const std::string& memory() const { return memory_; }
  const std::vector<Placed>& placed() const { return placed_; }
  bool idle() const { return in_flight_.empty(); }

  // The next append, which is in flight from now on.
  const AppendRequest& begin() {
    AppendRequest request;
    request.memory = memory_;
    for (uint64_t left = 1 + below(random_, 3); left > 0; --left) {
      client::Turn turn;
      turn.content = "Entry " + std::to_string(++turns_made_) + ": ";
      turn.content += prose(random_, below(random_, 20) == 0 ? 1200 : 1 + below(random_, 60));
      if (below(random_, 5) == 0) turn.name = "Runa";
      request.turns.push_back(std::move(turn));
    }
    // Without an operation_id nobody could tell whose turns are found after a kill when others append as well.
    if (shared_ || below(random_, 2) == 0) request.operation_id = memory_ + " " + std::to_string(random_());
    request.wait_searchable = below(random_, 8) == 0;
    in_flight_.push_back(std::move(request));
    return in_flight_.back();
  }

  // The reply to the oldest append in flight.
  void end(const AppendReply& reply) {
    if (!shared_ && reply.first_turn != turns_)
      throw Loss(memory_ + ": an append was put at turn " + std::to_string(reply.first_turn) + " instead of " +
                 std::to_string(turns_));
    place(reply.first_turn);
    check(placed_.back(), reply);
  }

  // After a kill: finds out what became of the appends in flight, and appends those that are missing.
  void settle(Client& client) {
    if (!shared_ && !in_flight_.empty()) {
      const auto info = client.memory(memory_);
      if (!info && info.error().kind != ErrorKind::not_found) throw Loss(info.error().message);
      const uint64_t found = info ? info->turns : 0;
      const size_t first = placed_.size();
      while (turns_ < found && !in_flight_.empty()) place(turns_);
      if (turns_ != found)
        throw Loss(memory_ + ": " + std::to_string(found) + " turns, which no number of whole appends makes");
      for (size_t i = first; i < placed_.size(); ++i) repeat(client, placed_[i]);
    }
    while (!in_flight_.empty()) end(must(client.append(in_flight_.front())));
  }

  // Any acknowledged append that has an operation_id, again: nothing changes.
  void repeat_one(Client& client, Random& random) {
    if (!placed_.empty()) repeat(client, placed_[below(random, placed_.size())]);
  }

 private:
  void place(uint64_t first_turn) {
    const uint64_t turns = in_flight_.front().turns.size();
    placed_.push_back({std::move(in_flight_.front()), first_turn});
    in_flight_.pop_front();
    turns_ += turns;
  }
  void check(const Placed& placed, const AppendReply& reply) const {
    if (reply.first_turn != placed.first_turn || reply.last_turn != placed.first_turn + placed.request.turns.size() - 1)
      throw Loss(memory_ + ": turns " + std::to_string(placed.first_turn) + " and following were answered as turns " +
                 std::to_string(reply.first_turn) + " to " + std::to_string(reply.last_turn));
  }
  void repeat(Client& client, const Placed& placed) const {
    if (placed.request.operation_id.empty()) return;
    if (const auto reply = client.append(placed.request)) {
      check(placed, *reply);
    } else if (reply.error().kind != ErrorKind::io) {  // io: killed meanwhile
      throw Loss(memory_ + ": an operation was refused when repeated: " + reply.error().message);
    }
  }

  const std::string memory_;
  const bool shared_;
  Random random_;
  uint64_t turns_made_ = 0;
  uint64_t turns_ = 0;  // placed
  std::deque<AppendRequest> in_flight_;
  std::vector<Placed> placed_;
};

// One client, with a memory of its own and one that it shares.
class Writer {
 public:
  Writer(size_t number, uint64_t seed)
      : own("agent/" + std::to_string(number), false, seed * 31 + number),
        shared(std::string(shared_memory), true, seed * 37 + number),
        random_(seed * 41 + number) {}

  // Appends until the daemon is gone, or it has appended enough.
  void run(const std::filesystem::path& socket) try {
    auto client = Client::connect(socket);
    if (!client) return;
    std::deque<std::pair<Stream*, uint64_t>> waiting;
    for (uint64_t left = 1 + below(random_, appends_max); left > 0 || !waiting.empty();) {
      if (left > 0 && waiting.size() < in_flight_max) {
        --left;
        if (below(random_, 6) == 0 && waiting.empty()) own.repeat_one(*client, random_);
        Stream& stream = shared.idle() && below(random_, 3) == 0 ? shared : own;
        const auto sent = client->submit("append", client::params(stream.begin()));
        if (!sent) return;
        waiting.emplace_back(&stream, *sent);
        continue;
      }
      const auto [stream, request] = waiting.front();
      waiting.pop_front();
      const auto result = client->wait(request);
      if (!result && result.error().kind == ErrorKind::io) return;
      stream->end(must(client::decode<AppendReply>(must(result))));
    }
  } catch (const Loss& loss) {
    failure_ = loss.what();
  }

  void settle(Client& client) {
    if (!failure_.empty()) throw Loss(failure_);
    own.settle(client);
    shared.settle(client);
    own.repeat_one(client, random_);
    shared.repeat_one(client, random_);
  }

  Stream own;
  Stream shared;

 private:
  Random random_;
  std::string failure_;
};

// Walks a listing to its end.
template <class Entry, class Fetch>
std::vector<Entry> all(const std::string& memory, Fetch fetch) {
  std::vector<Entry> entries;
  client::PageRequest request;
  request.memory = memory;
  while (true) {
    auto [page, cursor] = fetch(request);
    std::move(page.begin(), page.end(), std::back_inserter(entries));
    if (!cursor) return entries;
    request.cursor = *cursor;
  }
}
std::vector<client::StoredTurn> all_turns(Client& client, const std::string& memory) {
  return all<client::StoredTurn>(memory, [&](const client::PageRequest& request) {
    auto reply = must(client.turns(request));
    return std::pair(std::move(reply.turns), reply.next_cursor);
  });
}
std::vector<client::Chunk> all_chunks(Client& client, const std::string& memory) {
  return all<client::Chunk>(memory, [&](const client::PageRequest& request) {
    auto reply = must(client.chunks(request));
    return std::pair(std::move(reply.chunks), reply.next_cursor);
  });
}

class Harness {
 public:
  Harness(const std::filesystem::path& directory, const KillOptions& options)
      : options_(options), random_(options.seed), directory_(directory) {
    for (size_t i = 0; i < writers_max; ++i) writers_.push_back(std::make_unique<Writer>(i, options.seed));
  }

  KillResult run() try {
    std::filesystem::create_directories(directory_ / "killed");
    begin();
    while (result_.kills < options_.kills) {
      live_and_die();
      if (below(random_, 4) == 0) die_at_start();
    }
    end();
    return result_;
  } catch (const std::exception& failure) {
    result_.failures.emplace_back(failure.what());
    return result_;
  }

 private:
  // The memories are made in a fixed order, so that a clean store gives them the same ids.
  void begin() {
    DaemonProcess daemon(directory_ / "killed");
    Client client = daemon.connect();
    for (const auto& writer : writers_) writer->own.end(must(client.append(writer->own.begin())));
    writers_[0]->shared.end(must(client.append(writers_[0]->shared.begin())));
    kill(daemon);
  }

  void live_and_die() {
    DaemonProcess daemon(directory_ / "killed");
    Client client = daemon.connect();
    settle(client);
    std::vector<std::thread> threads;
    for (const auto& writer : writers_) threads.emplace_back([&] { writer->run(daemon.socket()); });
    std::this_thread::sleep_for(milliseconds(below(random_, life_ms_max)));
    kill(daemon);
    for (std::thread& thread : threads) thread.join();
  }

  void die_at_start() {
    DaemonProcess daemon(directory_ / "killed");
    std::this_thread::sleep_for(milliseconds(below(random_, start_ms_max)));
    kill(daemon);
    ++result_.kills_at_start;
  }

  void kill(DaemonProcess& daemon) {
    if (const int status = daemon.kill(); status != -SIGKILL)
      throw Loss("the daemon ended by itself, with status " + std::to_string(status) + ": " + daemon.log());
    ++result_.kills;
  }

  void settle(Client& client) {
    for (const auto& writer : writers_) writer->settle(client);
    result_.turns = 0;
    for (const auto& [memory, turns] : expected()) {
      const auto found = all_turns(client, memory);
      if (found.size() != turns.size())
        throw Loss(memory + ": " + std::to_string(found.size()) + " turns instead of " + std::to_string(turns.size()));
      for (size_t i = 0; i < found.size(); ++i) {
        if (found[i].number != i || found[i].turn.content != turns[i]->content || found[i].turn.name != turns[i]->name)
          throw Loss(memory + ": turn " + std::to_string(i) + " is another one: " + found[i].turn.content);
      }
      result_.turns += found.size();
    }
  }

  // All turns that were acknowledged, by memory. Each number is there once, or this throws.
  std::map<std::string, std::vector<const client::Turn*>> expected() const {
    std::map<std::string, std::vector<const client::Turn*>> turns;
    for (const auto& writer : writers_) {
      for (const Stream* stream : {&writer->own, &writer->shared}) {
        auto& memory = turns[stream->memory()];
        for (const auto& [request, first_turn] : stream->placed()) {
          if (memory.size() < first_turn + request.turns.size()) memory.resize(first_turn + request.turns.size());
          for (size_t i = 0; i < request.turns.size(); ++i) {
            if (std::exchange(memory[first_turn + i], &request.turns[i]) != nullptr)
              throw Loss(stream->memory() + ": turn " + std::to_string(first_turn + i) + " was given to two appends");
          }
        }
      }
    }
    for (const auto& [memory, of] : turns) {
      if (std::ranges::find(of, nullptr) != of.end()) throw Loss(memory + ": a turn that nobody appended");
    }
    return turns;
  }

  static void wait_until_encoded(Client& client) {
    for (const auto start = std::chrono::steady_clock::now();
         std::chrono::steady_clock::now() - start < encoding_patience;) {
      const client::Health health = must(client.health());
      if (!health.problem.empty()) throw Loss("encoding: " + health.problem);
      if (health.waiting_chunks == 0) return;
      std::this_thread::sleep_for(milliseconds(20));
    }
    throw Loss("chunks still wait to be encoded");
  }

  // Everything is encoded without anybody asking for it, and as a daemon does that got the same turns in peace.
  void end() {
    DaemonProcess daemon(directory_ / "killed");
    Client client = daemon.connect();
    wait_until_encoded(client);
    settle(client);
    wait_until_encoded(client);

    std::filesystem::create_directories(directory_ / "clean");
    DaemonProcess clean_daemon(directory_ / "clean");
    Client clean = clean_daemon.connect();
    const auto turns = expected();
    for (const auto& writer : writers_) append_all(clean, writer->own.memory(), turns);
    append_all(clean, std::string(shared_memory), turns);
    wait_until_encoded(clean);
    for (const auto& [memory, of] : turns) {
      compare(memory, all_chunks(client, memory), all_chunks(clean, memory), must(client.memory(memory)).tokens / 64);
      client::SearchRequest search;
      search.memory = memory;
      search.query = of.back()->content.substr(0, 40);
      if (must(client.search(search)).searchable_through != of.size() - 1)
        throw Loss(memory + ": the last turn is not searchable");
    }
  }

  static void append_all(Client& client, const std::string& memory,
                         const std::map<std::string, std::vector<const client::Turn*>>& turns) {
    AppendRequest request;
    request.memory = memory;
    for (const client::Turn* turn : turns.at(memory)) request.turns.push_back(*turn);
    must(client.append(request));
  }

  void compare(const std::string& memory, const std::vector<client::Chunk>& chunks,
               const std::vector<client::Chunk>& clean, uint64_t complete) {
    if (chunks.size() != complete || clean.size() != complete)
      throw Loss(memory + ": " + std::to_string(chunks.size()) + " chunks are encoded, " +
                 std::to_string(clean.size()) + " in peace, of " + std::to_string(complete));
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (chunks[i].text != clean[i].text || chunks[i].kv_crc32c != clean[i].kv_crc32c ||
          chunks[i].landmark_norm != clean[i].landmark_norm)
        throw Loss(memory + ": chunk " + std::to_string(i) + " is encoded otherwise than in peace");
    }
    result_.chunks += chunks.size();
  }

  const KillOptions options_;
  Random random_;
  const std::filesystem::path directory_;
  std::vector<std::unique_ptr<Writer>> writers_;
  KillResult result_;
};

}  // namespace

KillResult kill_again_and_again(const std::filesystem::path& directory, const KillOptions& options) {
  return Harness(directory, options).run();
}

}  // namespace recalld::crash
