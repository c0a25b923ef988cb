// How long a search takes while the daemon still encodes what was appended, against one on a daemon with nothing to do,
// and where that time goes; and how fast the encoding gets on meanwhile, against the same without searches.
//
// Usage: backlog [tokens=98304] [binary=the one built beside this]
// A memory of `tokens` tokens is searched with nothing else going on, while as many wait in another memory, likewise
// with each search right behind an append of one turn, and while as many wait in the memory itself. Then as many are
// encoded without a search. Pauses of up to 60 ms lie between searches, so that they come at any time of an encoding.
// Every second search explains itself, and counts only for where its time went.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tools/bench/daemon_process.h"
#include "tools/bench/load_run.h"
#include "tools/bench/prose.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int idle_searches = 200;
constexpr char searched[] = "bench/searched", other[] = "bench/other";
// Of `why.took`; the first three are the model thread's.
constexpr const char* parts[] = {"query_ms",   "encode_ms", "landmarks_ms", "words_ms",
                                 "meaning_ms", "fetch_ms",  "tokens_ms"};
constexpr size_t of_model = 3;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Until everything appended is durable; most of it waits to be encoded then.
uint64_t append(client::Client& client, const std::string& memory, uint64_t tokens, Prose& prose) {
  uint64_t appended = 0;
  while (appended < tokens) {
    client::AppendRequest request{.memory = memory, .turns = {}, .operation_id = "", .wait_searchable = false};
    for (size_t i = 0; i < 512; ++i) {
      client::Turn turn;
      turn.role = i % 2 == 0 ? "user" : "assistant";
      turn.content = prose.turn();
      request.turns.push_back(std::move(turn));
    }
    appended += must(client.append(request), "append").tokens;
  }
  return appended;
}

uint64_t waiting(client::Client& client) {
  return must(client.health(), "health").waiting_chunks;
}

void wait_until_encoded(client::Client& client) {
  while (waiting(client) > 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

double median_of(std::vector<double> values) {
  std::ranges::sort(values);
  return percentile_of(values, 0.5);
}

struct Searches {
  std::vector<double> ms;                           // as the client sees them, sorted
  std::map<std::string, std::vector<double>> took;  // by part; "in line": on the model thread's, and the rest
};

Searches search(client::Client& client, const std::function<bool(int done)>& more,
                const std::function<void()>& before) {
  std::mt19937_64 random(7);
  Prose prose(8);
  Searches searches;
  for (int done = 0; more(done); ++done) {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60'000));
    before();
    const bool explain = done % 2 == 1;
    const client::Json request{{"memory", searched}, {"query", "Who said: " + prose.sentence()}, {"explain", explain}};
    const auto start = Clock::now();
    const client::Json reply = must(client.call("search", request), "search");
    if (!explain) {
      searches.ms.push_back(milliseconds_since(start));
      continue;
    }
    if (reply.at("results").empty()) continue;
    const client::Json& took = reply.at("results").at(0).at("why").at("took");
    double rest = reply.at("took_ms");
    for (const char* part : parts) {
      searches.took[part].push_back(took.at(part));
      rest -= took.at(part).get<double>();
    }
    searches.took["rest"].push_back(rest);
  }
  std::ranges::sort(searches.ms);
  return searches;
}

void print(const char* what, const Searches& searches, const Searches& idle) {
  const double p50 = percentile_of(searches.ms, 0.5), p95 = percentile_of(searches.ms, 0.95);
  std::printf("%-28s p50 %7.1f ms (x %5.2f), p95 %7.1f ms (x %5.2f), %3zu searches\n", what, p50,
              p50 / percentile_of(idle.ms, 0.5), p95, p95 / percentile_of(idle.ms, 0.95), searches.ms.size());
  std::printf("  medians, the model:");
  for (size_t i = 0; i < std::size(parts); ++i) {
    if (i == of_model) std::printf("; others:");
    const auto found = searches.took.find(parts[i]);
    std::printf(" %s %.1f", parts[i], found == searches.took.end() ? 0 : median_of(found->second));
  }
  const auto rest = searches.took.find("rest");
  std::printf("; in line, and the text of results: %.1f\n", rest == searches.took.end() ? 0 : median_of(rest->second));
}

}  // namespace

int main(int argc, char** argv) try {
  const uint64_t tokens = argc > 1 ? std::stoull(argv[1]) : 98'304;
  const std::filesystem::path binary = argc > 2 ? argv[2] : built_recalld();
  const auto directory = std::filesystem::temp_directory_path() / ("recalld-bench-backlog-" + std::to_string(getpid()));
  DaemonProcess daemon(binary, directory, {"--device", "cpu"});
  client::Client client = daemon.connect(), appender = daemon.connect();
  Prose prose(1);
  append(client, searched, tokens, prose);
  wait_until_encoded(client);

  const Searches idle = search(
      client, [](int done) { return done < 2 * idle_searches; }, [] {});
  print("nothing to do:", idle, idle);

  // Encodes what is appended to `memory` while `before` and a search follow each other; tokens a second.
  const auto encode = [&](const char* what, const char* memory, const std::function<void()>& before,
                          bool with_searches) {
    const uint64_t appended = append(appender, memory, tokens, prose);
    const uint64_t first = waiting(client);
    const auto start = Clock::now();
    // Without the end, which is no backlog any more.
    constexpr uint64_t last_chunks = 64;
    uint64_t left = first;
    const auto more = [&](int) { return (left = waiting(client)) > last_chunks; };
    if (with_searches) {
      print(what, search(client, more, before), idle);
    } else {
      while (more(0)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const double per_s = static_cast<double>(first - left) * 64 / (milliseconds_since(start) / 1e3);
    std::printf("  encoded meanwhile: %.0f tokens/s (%llu of %llu tokens waited)\n", per_s,
                static_cast<unsigned long long>(first * 64), static_cast<unsigned long long>(appended));
    wait_until_encoded(client);
    return per_s;
  };
  const double with = encode(
      "another memory waits:", other, [] {}, true);
  encode(
      "the same, behind an append:", other,
      [&] {
        client::AppendRequest request{.memory = searched, .turns = {}, .operation_id = "", .wait_searchable = false};
        client::Turn turn;
        turn.role = "user";
        turn.content = prose.turn();
        request.turns.push_back(std::move(turn));
        must(client.append(request), "append");
      },
      true);
  encode(
      "the memory itself waits:", searched, [] {}, true);
  std::printf("without searches:\n");
  const double without = encode(
      "", other, [] {}, false);
  std::printf("encoding while searches come, to without: %.2f\n", with / without);
  daemon.stop();
  std::filesystem::remove_all(directory);
  return 0;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "backlog: %s\n", reason.what());
  return 1;
}
