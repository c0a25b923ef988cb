#include "tests/crash/kill.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <sstream>
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
using client::ForgetRequest;
using client::Receipt;
using std::chrono::milliseconds;

constexpr size_t writers_max = 3;
constexpr size_t in_flight_max = 4;    // requests of a writer
constexpr uint64_t requests_max = 7;   // of a writer, between two kills
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

// In which files below a directory any of these stand; it may be in use.
std::vector<std::string> found_in(const std::filesystem::path& directory, const std::vector<std::string>& all) {
  std::vector<std::string> found;
  std::error_code gone;
  for (std::filesystem::recursive_directory_iterator file(directory, gone), end; !gone && file != end;
       file.increment(gone)) {
    std::error_code none;
    if (!file->is_regular_file(none)) continue;
    std::ostringstream text;
    text << std::ifstream(file->path(), std::ios::binary).rdbuf();
    const std::string bytes = std::move(text).str();
    for (const std::string& each : all) {
      if (bytes.contains(each)) found.push_back(each + " in " + file->path().filename().string());
    }
  }
  return found;
}

// Turns that one writer appends to one memory, in their order, and those of them that it forgets again.
class Stream {
 public:
  struct Placed {
    AppendRequest request;
    uint64_t first_turn = 0;
  };

  Stream(std::string memory, bool shared, uint64_t seed) : memory_(std::move(memory)), shared_(shared), random_(seed) {}

  const std::string& memory() const { return memory_; }
  const std::vector<Placed>& placed() const { return placed_; }
  const std::set<uint64_t>& forgotten() const { return forgotten_; }
  bool idle() const { return in_flight_.empty(); }
  bool forgets() const { return forgetting_.has_value(); }

  // The next append, which is in flight from now on.
  const AppendRequest& begin() {
    AppendRequest request;
    request.memory = memory_;
    for (uint64_t left = 1 + below(random_, 3); left > 0; --left) {
      client::Turn turn;
      turn.content = "Entry " + std::to_string(++turns_made_) + " " + mark(random_()) + ": ";
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

  // Some turns that are there, to be forgotten, which is in flight from now on; nothing when there are none.
  std::optional<ForgetRequest> begin_forgetting(bool wait) {
    if (placed_.empty() || forgets()) return std::nullopt;
    const auto& [request, first_turn] = placed_[below(random_, placed_.size())];
    const uint64_t first = first_turn + below(random_, request.turns.size());
    const uint64_t last = std::min(first + below(random_, 2), first_turn + request.turns.size() - 1);
    std::set<uint64_t> turns;
    for (uint64_t turn = first; turn <= last; ++turn) {
      if (!forgotten_.contains(turn)) turns.insert(turn);
    }
    if (turns.empty()) return std::nullopt;
    forgetting_ = std::move(turns);
    return ForgetRequest{.memory = memory_, .turns = {{first, last}}, .wait = wait};
  }

  // The reply to it.
  void end_forgetting(const Receipt& receipt, bool waited, const std::filesystem::path& data) {
    if (receipt.turn_count != forgetting_->size())
      throw Loss(memory_ + ": " + std::to_string(receipt.turn_count) + " turns were forgotten instead of " +
                 std::to_string(forgetting_->size()));
    if (waited) {
      if (!receipt.complete) throw Loss(memory_ + ": the receipt of what was forgotten is not complete");
      must_be_gone(data / "catalog", marks(*forgetting_));
    }
    forgotten_.merge(*std::exchange(forgetting_, std::nullopt));
  }

  // What only these turns say.
  std::vector<std::string> marks(const std::set<uint64_t>& turns) const {
    std::vector<std::string> marks;
    for (const auto& [request, first_turn] : placed_) {
      for (size_t i = 0; i < request.turns.size(); ++i) {
        if (!turns.contains(first_turn + i)) continue;
        const std::string& content = request.turns[i].content;
        marks.push_back(content.substr(content.find('<'), mark_bytes));
      }
    }
    return marks;
  }

  static void must_be_gone(const std::filesystem::path& directory, const std::vector<std::string>& marks) {
    const auto found = found_in(directory, marks);
    if (!found.empty()) throw Loss("a forgotten turn is still on the disk: " + found.front());
  }

  // After a kill: finds out what became of the appends and of the forgetting in flight, and appends what is missing.
  // Forgets once more, or leaves as it is, what was not forgotten.
  void settle(Client& client, const std::function<std::set<uint64_t>(const std::string&)>& there) {
    if (forgetting_) {
      const std::set<uint64_t> turns = there(memory_);
      const size_t left =
          static_cast<size_t>(std::ranges::count_if(*forgetting_, [&](uint64_t turn) { return turns.contains(turn); }));
      if (left != 0 && left != forgetting_->size()) throw Loss(memory_ + ": turns were forgotten by halves");
      ForgetRequest again{.memory = memory_, .turns = {}, .wait = false};
      for (const uint64_t turn : *forgetting_) again.turns.push_back({turn, turn});
      if (left == 0) {
        forgotten_.merge(*forgetting_);
      } else if (below(random_, 2) == 0) {
        if (must(client.forget(again)).turn_count != left) throw Loss(memory_ + ": other turns were forgotten");
        forgotten_.merge(*forgetting_);
      }
      forgetting_.reset();
    }
    if (!shared_ && !in_flight_.empty()) {
      const auto info = client.memory(memory_);
      if (!info && info.error().kind != ErrorKind::not_found) throw Loss(info.error().message);
      const uint64_t found = info ? info->next_turn : 0;
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
  // Words that no other turn has.
  static constexpr size_t mark_bytes = 18;
  static std::string mark(uint64_t number) {
    std::array<char, mark_bytes + 1> words{};
    std::snprintf(words.data(), words.size(), "<%016llx>", static_cast<unsigned long long>(number));
    return words.data();
  }
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
  std::optional<std::set<uint64_t>> forgetting_;  // in flight
  std::set<uint64_t> forgotten_;
};

// One client, with a memory of its own and one that it shares.
class Writer {
 public:
  Writer(size_t number, uint64_t seed)
      : own("agent/" + std::to_string(number), false, seed * 31 + number),
        shared(std::string(shared_memory), true, seed * 37 + number),
        random_(seed * 41 + number) {}

  // Appends and forgets until the daemon, which has its data there, is gone or it has done enough.
  void run(const std::filesystem::path& socket, const std::filesystem::path& data) try {
    auto client = Client::connect(socket);
    if (!client) return;
    struct Waiting {
      Stream* stream = nullptr;
      uint64_t request = 0;
      bool forgets = false;
      bool waits = false;  // until it is erased
    };
    std::deque<Waiting> waiting;
    for (uint64_t left = 1 + below(random_, requests_max); left > 0 || !waiting.empty();) {
      if (left > 0 && waiting.size() < in_flight_max) {
        --left;
        if (below(random_, 6) == 0 && waiting.empty()) own.repeat_one(*client, random_);
        Stream& stream = shared.idle() && below(random_, 3) == 0 ? shared : own;
        const bool waits = below(random_, 2) == 0;
        const auto forget = below(random_, 4) == 0 ? stream.begin_forgetting(waits) : std::nullopt;
        const auto sent = forget ? client->submit("forget", client::params(*forget))
                                 : client->submit("append", client::params(stream.begin()));
        if (!sent) return;
        waiting.push_back({&stream, *sent, forget.has_value(), waits});
        continue;
      }
      const auto [stream, request, forgets, waits] = waiting.front();
      waiting.pop_front();
      const auto result = client->wait(request);
      if (!result && result.error().kind == ErrorKind::io) return;
      if (forgets)
        stream->end_forgetting(must(client::decode<Receipt>(must(result))), waits, data);
      else
        stream->end(must(client::decode<AppendReply>(must(result))));
    }
  } catch (const Loss& loss) {
    failure_ = loss.what();
  }

  void settle(Client& client, const std::function<std::set<uint64_t>(const std::string&)>& there) {
    if (!failure_.empty()) throw Loss(failure_);
    own.settle(client, there);
    shared.settle(client, there);
    own.repeat_one(client, random_);
    shared.repeat_one(client, random_);
  }

  Stream own;
  Stream shared;

 private:
  Random random_;
  std::string failure_;
};

// The bytes of whole groups of base64.
std::string unbase64(std::string_view text) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  for (size_t at = 0; at + 4 <= text.size(); at += 4) {
    uint32_t group = 0;
    for (const char digit : text.substr(at, 4)) group = group << 6 | static_cast<uint32_t>(digits.find(digit));
    for (int shift = 16; shift >= 0; shift -= 8) bytes += static_cast<char>(group >> shift);
  }
  return bytes;
}

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
    for (const auto& writer : writers_)
      threads.emplace_back([&] { writer->run(daemon.socket(), directory_ / "killed" / "data"); });
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
    const auto there = [&](const std::string& memory) {
      std::set<uint64_t> numbers;
      for (const auto& turn : all_turns(client, memory)) numbers.insert(turn.number);
      return numbers;
    };
    for (const auto& writer : writers_) writer->settle(client, there);
    result_.turns = 0;
    result_.forgotten = 0;
    for (const auto& writer : writers_)
      result_.forgotten += writer->own.forgotten().size() + writer->shared.forgotten().size();
    for (const auto& [memory, turns] : expected()) {
      const auto found = all_turns(client, memory);
      if (found.size() != turns.size())
        throw Loss(memory + ": " + std::to_string(found.size()) + " turns instead of " + std::to_string(turns.size()));
      auto turn = turns.begin();
      for (size_t i = 0; i < found.size(); ++i, ++turn) {
        const auto& [number, of] = *turn;
        if (found[i].number != number || found[i].turn.content != of->content || found[i].turn.name != of->name)
          throw Loss(memory + ": turn " + std::to_string(number) + " is another one: " + found[i].turn.content);
      }
      result_.turns += found.size();
    }
  }

  using Turns = std::map<uint64_t, const client::Turn*>;  // by number

  // All turns that were acknowledged and not forgotten, by memory. Each number was given once, or this throws.
  std::map<std::string, Turns> expected() const {
    std::map<std::string, Turns> turns;
    for (const auto& writer : writers_) {
      for (const Stream* stream : {&writer->own, &writer->shared}) {
        auto& memory = turns[stream->memory()];
        for (const auto& [request, first_turn] : stream->placed()) {
          for (size_t i = 0; i < request.turns.size(); ++i) {
            if (!memory.emplace(first_turn + i, &request.turns[i]).second)
              throw Loss(stream->memory() + ": turn " + std::to_string(first_turn + i) + " was given to two appends");
          }
        }
      }
    }
    for (const auto& [memory, of] : turns) {
      if (!of.empty() && of.rbegin()->first != of.size() - 1) throw Loss(memory + ": a turn that nobody appended");
    }
    for (const auto& writer : writers_) {
      for (const Stream* stream : {&writer->own, &writer->shared}) {
        for (const uint64_t turn : stream->forgotten()) turns[stream->memory()].erase(turn);
      }
    }
    return turns;
  }

  static void wait_until_encoded(Client& client) {
    for (const auto start = std::chrono::steady_clock::now();
         std::chrono::steady_clock::now() - start < encoding_patience;) {
      const client::Health health = must(client.health());
      if (!health.problem.empty()) throw Loss("encoding: " + health.problem);
      if (health.waiting_chunks == 0 && nothing_runs(client)) return;
      std::this_thread::sleep_for(milliseconds(20));
    }
    throw Loss("chunks still wait to be encoded, or bytes to be erased");
  }
  static bool nothing_runs(Client& client) {
    const client::Jobs jobs = must(client.jobs());
    for (const client::Job& job : jobs.jobs) {
      if (job.state == "failed") throw Loss(job.kind + " " + job.memory + ": " + job.message);
    }
    return std::ranges::none_of(jobs.jobs, [](const client::Job& job) { return job.state == "running"; });
  }

  // Everything is encoded without anybody asking for it, and as a daemon does that got the same turns in peace.
  void end() {
    DaemonProcess daemon(directory_ / "killed");
    Client client = daemon.connect();
    wait_until_encoded(client);
    settle(client);
    wait_until_encoded(client);
    forget_one_more(client);
    for (const auto& writer : writers_) {
      for (const Stream* stream : {&writer->own, &writer->shared})
        Stream::must_be_gone(directory_ / "killed" / "data", stream->marks(stream->forgotten()));
    }

    std::filesystem::create_directories(directory_ / "clean");
    DaemonProcess clean_daemon(directory_ / "clean");
    Client clean = clean_daemon.connect();
    const auto turns = expected();
    for (const auto& writer : writers_) append_all(clean, writer->own.memory(), turns);
    append_all(clean, std::string(shared_memory), turns);
    wait_until_encoded(clean);
    for (const auto& [memory, of] : turns) {
      if (of.empty()) continue;
      compare(memory, all_chunks(client, memory), all_chunks(clean, memory), must(client.memory(memory)).tokens / 64);
      if (encodings(client, memory) != encodings(clean, memory))
        throw Loss(memory + ": it is encoded otherwise than in peace");
      client::SearchRequest search;
      search.memory = memory;
      const std::string& last = of.rbegin()->second->content;
      search.query = last.substr(0, last.find(':'));
      if (must(client.search(search)).searchable_through != of.rbegin()->first)
        throw Loss(memory + ": the last turn is not searchable");
    }
  }

  static void append_all(Client& client, const std::string& memory, const std::map<std::string, Turns>& turns) {
    AppendRequest request;
    request.memory = memory;
    for (const auto& [number, turn] : turns.at(memory)) request.turns.push_back(*turn);
    if (!request.turns.empty()) must(client.append(request));
  }

  // The landmark and the K/V of each chunk, as an export has them.
  static std::vector<std::pair<std::string, std::string>> encodings(Client& client, const std::string& memory) {
    std::vector<std::pair<std::string, std::string>> chunks;
    client::ExportRequest request{.memory = memory, .encodings = true};
    while (true) {
      const auto page = must(client.export_page(request));
      for (const auto& record : page.records) {
        if (record.at("type") == "chunk")
          chunks.emplace_back(record.at("landmark").get<std::string>(), record.at("kv").get<std::string>());
      }
      if (!page.next_cursor) return chunks;
      request.cursor = *page.next_cursor;
    }
  }

  // Of the chunks that know of a forgotten turn nothing is left either.
  void forget_one_more(Client& client) {
    Stream& stream = writers_[0]->own;
    const auto before = encodings(client, stream.memory());
    for (int attempt = 0; attempt < 20; ++attempt) {
      const auto forget = stream.begin_forgetting(true);
      if (!forget) continue;
      stream.end_forgetting(must(client.forget(*forget)), true, directory_ / "killed" / "data");
      wait_until_encoded(client);
      const auto after = encodings(client, stream.memory());
      std::vector<std::string> gone;
      for (size_t i = 0; i < before.size(); ++i) {
        if (i < after.size() && after[i] == before[i]) continue;
        for (const std::string& record : {before[i].first, before[i].second})
          gone.push_back(unbase64(record.substr(0, 64)));
      }
      Stream::must_be_gone(directory_ / "killed" / "data", gone);
      result_.chunks_gone += gone.size() / 2;
      return;
    }
  }

  void compare(const std::string& memory, const std::vector<client::Chunk>& chunks,
               const std::vector<client::Chunk>& clean, uint64_t complete) {
    if (chunks.size() != complete || clean.size() != complete)
      throw Loss(memory + ": " + std::to_string(chunks.size()) + " chunks are encoded, " +
                 std::to_string(clean.size()) + " in peace, of " + std::to_string(complete));
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (chunks[i].text != clean[i].text || chunks[i].landmark_norm != clean[i].landmark_norm)
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
