// Clients that misbehave on the real daemon: an honest one beside them is answered as promptly as ever, and what the
// daemon holds stays within its bounds.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <functional>
#include <thread>

#include "client/client.h"
#include "tests/support/daemon_process.h"
#include "tests/support/raw_client.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using namespace std::chrono_literals;
using client::Json;
using Clock = std::chrono::steady_clock;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;  // everything takes many times as long, and memory says nothing
#else
constexpr bool sanitized = false;
#endif

constexpr auto answer_time_max = sanitized ? 60s : 10s;  // the whole suite may run beside this test
constexpr uint64_t mib = 1 << 20;

std::string request(std::string_view method, const Json& params = Json::object()) {
  return Json{{"jsonrpc", "2.0"}, {"id", 1}, {"method", method}, {"params", params}}.dump() + "\n";
}

std::string append_line(const std::string& memory, const std::string& content) {
  return request("append", {{"memory", memory}, {"turns", {{{"role", "user"}, {"content", content}}}}});
}

// As many of the `wanted` connections as the daemon has places for, with some to spare: where few files may be open, it
// serves fewer (daemon/main.cc).
size_t places(size_t wanted) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  return files.rlim_max >= 448 ? wanted : std::min<size_t>(wanted, std::max<size_t>(208, files.rlim_max) - 192 - 8);
}

class Hostile : public ::testing::Test {
 protected:
  Hostile() : honest_(daemon_.connect()) {
    for (int i = 0; i < 20; ++i) append_honestly();
  }

  void append_honestly() {
    client::AppendRequest append;
    append.memory = "honest";
    client::Turn turn;
    turn.content = "Line " + std::to_string(turns_) + ": the ferry left at noon with nine crates of apples.";
    append.turns = {turn};
    const auto reply = honest_.append(append);
    ASSERT_TRUE(reply) << reply.error().message;
    EXPECT_EQ(reply->first_turn, turns_++);
  }

  // Lets the honest client work while `attack` goes on (on a thread of its own) and, with what that leaves behind, for
  // half a second more. It is never kept waiting for long, and the daemon never grows by more than `growth_max` bytes.
  void work_during(const std::function<void()>& attack, uint64_t growth_max) {
    const uint64_t before = resident_bytes();
    std::atomic<bool> over = false;
    std::thread attacker([&] {
      attack();
      over = true;
    });
    Clock::duration slowest{};
    uint64_t most = before;
    size_t rounds = 0;
    for (auto end = Clock::time_point::max(); Clock::now() < end; ++rounds) {
      if (over && end == Clock::time_point::max()) end = Clock::now() + 500ms;
      const auto timed = [&](const auto& call) {
        const auto start = Clock::now();
        call();
        slowest = std::max(slowest, Clock::now() - start);
      };
      timed([&] { append_honestly(); });
      timed([&] {
        client::SearchRequest search;
        search.memory = "honest";
        search.query = "When did the ferry leave?";
        const auto reply = honest_.search(search);
        ASSERT_TRUE(reply) << reply.error().message;
        EXPECT_FALSE(reply->results.empty());
      });
      timed([&] { most = std::max(most, resident_bytes()); });
      if (HasFatalFailure()) break;
    }
    attacker.join();
    std::printf("%zu rounds; slowest answer %.0f ms; resident %.0f MiB before, %.0f MiB at most\n", rounds,
                std::chrono::duration<double, std::milli>(slowest).count(),
                static_cast<double>(before) / static_cast<double>(mib),
                static_cast<double>(most) / static_cast<double>(mib));
    EXPECT_LT(slowest, answer_time_max);
    if (!sanitized) {
      EXPECT_LT(most, before + growth_max);
    }
  }

  uint64_t resident_bytes() {
    const auto stats = honest_.stats();
    if (!stats) throw std::runtime_error(stats.error().message);
    return stats->at("resident_bytes").get<uint64_t>();
  }

  TempDir directory_;
  DaemonProcess daemon_{directory_.path()};
  client::Client honest_;
  uint64_t turns_ = 0;
};

TEST_F(Hostile, ClientsThatNeverReadTheirReplies) {
  client::AppendRequest append;
  append.memory = "big";
  client::Turn turn;
  turn.content = std::string(sanitized ? 50'000 : 300'000, 'x');
  append.turns = {turn, turn, turn};
  ASSERT_TRUE(honest_.append(append));
  std::string lines;
  for (int i = 0; i < 64; ++i) lines += request("turns.list", {{"memory", "big"}});
  std::deque<RawClient> deaf;
  work_during(
      [&] {
        for (int i = 0; i < 8; ++i) deaf.emplace_back(daemon_.socket()).send(lines);
        std::this_thread::sleep_for(4s);
      },
      300 * mib);  // without bounds these replies take 460 MiB
}

TEST_F(Hostile, ClientsThatNeverEndALine) {
  std::deque<RawClient> slow;
  work_during(
      [&] {
        for (size_t i = 0; i < places(100); ++i) slow.emplace_back(daemon_.socket());
        for (int i = 0; i < 20; ++i) {
          for (RawClient& client : slow) client.send("{");
          std::this_thread::sleep_for(100ms);
        }
      },
      64 * mib);
  // Slow is not wrong: the line is answered when it ends.
  ASSERT_TRUE(slow.front().send("\n"));
  EXPECT_TRUE(slow.front().line());
}

TEST_F(Hostile, ClientsThatSayNothing) {
  std::deque<RawClient> idle;
  work_during(
      [&] {
        for (size_t i = 0; i < places(200); ++i) idle.emplace_back(daemon_.socket());
        std::this_thread::sleep_for(2s);
      },
      64 * mib);
  for (RawClient& client : idle) {
    ASSERT_TRUE(client.send(request("version")));
    ASSERT_TRUE(client.line());
  }
}

TEST_F(Hostile, HundredsOfConnectionsOverTheBound) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = std::max(files.rlim_cur, std::min<rlim_t>(files.rlim_max, 4096));
  setrlimit(RLIMIT_NOFILE, &files);
  const size_t crowd = std::min<size_t>(700, files.rlim_cur - 40);
  std::deque<RawClient> clients;
  work_during(
      [&] {
        for (size_t i = 0; i < crowd; ++i) clients.emplace_back(daemon_.socket());
      },
      96 * mib);
  size_t refused = 0, served = 0;
  for (RawClient& client : clients) {
    client.send(request("version"));
    const auto line = client.line();
    if (line && line->contains("too many connections")) ++refused;
    if (line && line->contains("protocol")) ++served;
  }
  EXPECT_EQ(refused + served, crowd);
  EXPECT_LE(served, 255u);  // the honest client has a place too
  if (crowd > 255) {
    EXPECT_GT(refused, 0u);
  }
  clients.clear();
  daemon_.connect();
}

TEST_F(Hostile, HalfClosedSockets) {
  std::deque<RawClient> clients;
  work_during(
      [&] {
        for (size_t i = 0; i < places(100); ++i) {
          RawClient& client = clients.emplace_back(daemon_.socket());
          client.send(request("version") + R"({"jsonrpc":"2.0","id":2,)");
          client.send_no_more();
        }
      },
      64 * mib);
  for (RawClient& client : clients) {
    EXPECT_TRUE(client.line());
    EXPECT_EQ(client.line(), std::nullopt);
  }
}

TEST_F(Hostile, ClientsThatHangUpAmidAnAppend) {
  const std::string line = append_line("broken-off", std::string(200'000, 'x'));
  work_during(
      [&] {
        for (size_t i = 0; i < 200; ++i) {
          RawClient client(daemon_.socket());
          client.send(std::string_view(line).substr(0, 1 + i * line.size() / 201));
        }
      },
      96 * mib);
  EXPECT_EQ(honest_.memory("broken-off").error().kind, ErrorKind::not_found);

  // Whole lines are carried out, whether or not anybody waits for the reply.
  for (int i = 0; i < 50; ++i) RawClient(daemon_.socket()).send(append_line("whole", "Turn of a client that left."));
  for (int i = 0; i < 1000; ++i) {
    if (const auto memory = honest_.memory("whole"); memory && memory->turns == 50) return;
    std::this_thread::sleep_for(20ms);
  }
  FAIL() << "a whole append of a client that hung up was not carried out";
}

TEST_F(Hostile, FloodsOfPipelinedRequests) {
  std::string lines;
  for (int i = 0; i < 50; ++i) {
    lines += request("version") + request("turns.list", {{"memory", "honest"}});
    lines += request("search", {{"memory", "honest"}, {"query", "Which crates?"}, {"limit", 128}, {"explain", true}});
    lines += append_line("flood", "Nobody reads this.");
  }
  std::atomic<bool> over = false;
  std::vector<std::thread> flooding;
  std::deque<RawClient> clients;
  for (int i = 0; i < 4; ++i) clients.emplace_back(daemon_.socket());
  work_during(
      [&] {
        for (RawClient& client : clients) {
          flooding.emplace_back([&] {
            while (!over && client.send(lines)) continue;
          });
          flooding.emplace_back([&] {
            while (!over && client.line()) continue;
          });
        }
        std::this_thread::sleep_for(4s);
        over = true;
        for (RawClient& client : clients) client.hang_up_under_way();
      },
      256 * mib);
  for (std::thread& thread : flooding) thread.join();
}

TEST_F(Hostile, HugeLinesAgainAndAgain) {
  const std::string part(1'000'000, 'x');
  std::atomic<bool> over = false;
  std::vector<std::thread> senders;
  std::deque<RawClient> overlong, endless;
  work_during(
      [&] {
        for (int i = 0; i < 4; ++i) {  // lines far over the bound
          RawClient& client = overlong.emplace_back(daemon_.socket());
          senders.emplace_back([&] {
            for (int sent = 0; !over; ++sent) client.send(sent % 50 == 49 ? "\n" : part);
          });
        }
        for (int i = 0; i < 20; ++i) {  // lines just within it, without an end: 160 MB in all
          RawClient& client = endless.emplace_back(daemon_.socket());
          for (int sent = 0; sent < 8; ++sent)
            if (client.send_until_held_up(part, part.size()) < part.size()) break;
        }
        over = true;
      },
      (64 + 96) * mib);
  for (std::thread& sender : senders) sender.join();

  // An honest long line is served as well: those that do not end give way.
  client::AppendRequest append;
  append.memory = "long";
  client::Turn turn;
  turn.content = part;
  append.turns = {turn, turn};
  const auto reply = honest_.append(append);
  EXPECT_TRUE(reply) << reply.error().message;
}

}  // namespace
}  // namespace recalld
