#include "tools/bench/load_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "client/client.h"
#include "tools/bench/prose.h"

namespace recalld::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t clients_per_memory = 4;
constexpr size_t memories_per_client = 2;
constexpr uint64_t burst_appends = 4;  // sent without waiting for a reply
constexpr int violations_per_client_max = 5;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The words of one client in one memory, by their number: who wrote a turn and which one it is can be read off its
// name, and its content follows from that, down to a checksum at its end.
struct Author {
  size_t client = 0;
  size_t memory = 0;
  uint64_t seed = 0;

  std::string name(uint64_t number) const {
    return "c" + std::to_string(client) + "-m" + std::to_string(memory) + "-" + std::to_string(number);
  }
  std::string content(uint64_t number) const {
    Prose prose(seed * 1'000'003 + client * 7919 + memory * 104'729 + number * 15'485'863);
    std::string text = "Note " + std::to_string(number) + " of " + name(number) + ": " + prose.turn();
    char sum[16];
    std::snprintf(sum, sizeof sum, " [%08x]", crc32c(as_bytes(text)));
    return text + sum;
  }
};

// The place that a turn's name tells: client, memory, number.
struct Place {
  size_t client = 0;
  size_t memory = 0;
  uint64_t number = 0;
};

std::optional<Place> place_of(const std::string& name) {
  Place place;
  unsigned long long number = 0;
  int read = 0;
  if (std::sscanf(name.c_str(), "c%zu-m%zu-%llu%n", &place.client, &place.memory, &number, &read) != 3 ||
      static_cast<size_t>(read) != name.size())
    return std::nullopt;
  place.number = number;
  return place;
}

class Run;

// One of the clients, on a thread of its own.
class Worker {
 public:
  Worker(const Run& run, size_t index);
  void work(Clock::time_point end);

  struct Acknowledged {
    size_t memory = 0;
    uint64_t turn = 0;    // the daemon's number
    uint64_t number = 0;  // ours
  };
  std::vector<Acknowledged> acknowledged;  // in the order of sending, a memory
  struct Seen {
    size_t memory = 0;
    uint64_t turn = 0;
    Place place;
  };
  std::vector<Seen> seen;  // by searches
  uint64_t appends = 0, searches = 0, results = 0, content_bytes = 0;
  std::vector<double> append_ms, search_ms;
  std::vector<std::string> violations;
  uint64_t violation_count = 0;

 private:
  struct Sent {
    uint64_t request = 0;
    size_t slot = 0;
    uint64_t first_number = 0;
    uint64_t turns = 0;
    Clock::time_point start;
  };

  void violated(std::string what) {
    ++violation_count;
    if (violations.size() < violations_per_client_max) violations.push_back(std::move(what));
  }
  void send_append(size_t slot);
  void take_append(const Sent& sent);
  void search(size_t slot);
  void read_back();

  const Run& run_;
  size_t index_;
  std::mt19937_64 random_;
  std::optional<client::Client> client_;
  std::vector<Author> authors_;        // one for each memory of this client
  std::vector<uint64_t> next_number_;  // likewise
  std::vector<Sent> in_flight_;
  bool broken_ = false;
};

class Run {
 public:
  explicit Run(const LoadOptions& options)
      : options_(options),
        memories_(std::max<size_t>(1, (options.clients + clients_per_memory - 1) / clients_per_memory)) {}

  const LoadOptions& options() const { return options_; }
  size_t memories() const { return memories_; }
  std::string memory_name(size_t memory) const { return options_.prefix + "load/" + std::to_string(memory); }
  Author author(size_t client, size_t memory) const { return {client, memory, options_.seed}; }

  // "" or what is wrong with a turn that says it is `place`.
  std::string wrong(const Place& place, size_t memory, const std::string& content) const {
    if (place.memory != memory || place.client >= options_.clients)
      return "it was written to memory " + std::to_string(place.memory);
    if (content != author(place.client, place.memory).content(place.number)) return "its content is not what was sent";
    return "";
  }

  LoadReport run();

 private:
  void check_all(LoadReport& report, const std::vector<Worker>& workers) const;

  const LoadOptions& options_;
  size_t memories_;
};

Worker::Worker(const Run& run, size_t index)
    : run_(run), index_(index), random_(run.options().seed * 6'364'136'223'846'793'005u + index) {
  for (size_t i = 0; i < std::min(memories_per_client, run.memories()); ++i) {
    authors_.push_back(run.author(index, (index + i * (run.memories() / 2)) % run.memories()));
    if (i > 0 && authors_[i].memory == authors_[0].memory) authors_.pop_back();
  }
  next_number_.resize(authors_.size());
}

void Worker::work(Clock::time_point end) {
  auto client = client::Client::connect(run_.options().socket, {.reply_timeout = std::chrono::minutes(5)});
  if (!client) return violated("connect: " + client.error().message);
  client_ = *std::move(client);
  for (uint64_t round = 0; Clock::now() < end && !broken_; ++round) {
    const size_t slot = random_() % authors_.size();
    const uint64_t burst = random_() % 4 == 0 ? burst_appends : 1;
    for (uint64_t i = 0; i < burst && !broken_; ++i) send_append(slot);
    for (const Sent& sent : std::exchange(in_flight_, {})) take_append(sent);
    search(random_() % authors_.size());
    if (round % 16 == 15) read_back();
  }
}

void Worker::send_append(size_t slot) {
  client::AppendRequest request;
  request.memory = run_.memory_name(authors_[slot].memory);
  Sent sent{0, slot, next_number_[slot], 1 + random_() % 3, {}};
  for (uint64_t i = 0; i < sent.turns; ++i) {
    client::Turn turn;
    turn.role = (sent.first_number + i) % 2 == 0 ? "user" : "assistant";
    turn.name = authors_[slot].name(sent.first_number + i);
    turn.content = authors_[slot].content(sent.first_number + i);
    content_bytes += turn.content.size();
    request.turns.push_back(std::move(turn));
  }
  auto params = client::params(request);
  sent.start = Clock::now();
  const auto id = client_->submit("append", std::move(params));
  if (!id) {
    broken_ = true;
    return violated("append: " + id.error().message);
  }
  sent.request = *id;
  next_number_[slot] += sent.turns;
  in_flight_.push_back(sent);
}

void Worker::take_append(const Sent& sent) {
  auto result = client_->wait(sent.request);
  append_ms.push_back(milliseconds_since(sent.start));
  auto reply = result ? client::decode<client::AppendReply>(*result) : std::unexpected(result.error());
  if (!reply) {
    broken_ = true;
    return violated("append: " + reply.error().message);
  }
  ++appends;
  if (reply->last_turn - reply->first_turn + 1 != sent.turns)
    violated("an append of " + std::to_string(sent.turns) + " turns was answered by numbers " +
             std::to_string(reply->first_turn) + " to " + std::to_string(reply->last_turn));
  for (uint64_t i = 0; i < sent.turns; ++i)
    acknowledged.push_back({authors_[sent.slot].memory, reply->first_turn + i, sent.first_number + i});
}

void Worker::search(size_t slot) {
  const Author& author = authors_[slot];
  if (next_number_[slot] == 0 || broken_) return;  // the memory may not be there yet
  client::SearchRequest request;
  request.memory = run_.memory_name(author.memory);
  request.query = "What does " + author.name(random_() % next_number_[slot]) + " say? " + Prose(random_()).sentence();
  const auto start = Clock::now();
  const auto reply = client_->search(request);
  search_ms.push_back(milliseconds_since(start));
  if (!reply) {
    broken_ = true;
    return violated("search: " + reply.error().message);
  }
  ++searches;
  results += reply->results.size();
  if (reply->results.empty()) violated("a search in a memory that is not empty found nothing");

  for (const auto& result : reply->results) {
    const std::string where = request.memory + " chunk " + std::to_string(result.chunk) + ": ";
    std::string written;  // the stream text of all turns that the result names
    size_t first_bytes = 0, last_bytes = 0;
    bool known = !result.turns.empty();
    for (const auto& source : result.turns) {
      const auto place = place_of(source.name.value_or(""));
      if (!place || place->memory != author.memory || place->client >= run_.options().clients) {
        known = false;
        break;
      }
      seen.push_back({author.memory, source.turn, *place});
      const std::string text =
          *source.name + ": " + run_.author(place->client, place->memory).content(place->number) + "\n";
      if (written.empty()) first_bytes = text.size();
      last_bytes = text.size();
      written += text;
    }
    if (!known) {
      violated(where + "names a turn that nobody wrote");
      continue;
    }
    for (size_t i = 1; i < result.turns.size(); ++i)
      if (result.turns[i].turn != result.turns[i - 1].turn + 1) violated(where + "its turns have a gap");
    // Begins in the first turn that it names, ends in the last.
    bool verbatim = false;
    for (size_t at = written.find(result.text); at < first_bytes && !verbatim; at = written.find(result.text, at + 1))
      verbatim = at + result.text.size() > written.size() - last_bytes;
    if (!verbatim) violated(where + "its text is not cut from the turns that it names: " + result.text);
  }
}

// One of this client's own turns and what follows it.
void Worker::read_back() {
  if (broken_ || acknowledged.empty()) return;
  const Acknowledged own = acknowledged[random_() % acknowledged.size()];
  client::PageRequest request;
  request.memory = run_.memory_name(own.memory);
  request.first = own.turn;
  request.limit = 20;
  const auto page = client_->turns(request);
  if (!page || page->turns.empty())
    return violated("turns.list: " + (page ? "nothing from an acknowledged turn on" : page.error().message));
  for (size_t i = 0; i < page->turns.size(); ++i) {
    const auto& [turn, value] = page->turns[i];
    const std::string where = request.memory + " turn " + std::to_string(turn) + ", read back: ";
    if (turn != own.turn + i) violated(where + "it stands where another was expected");
    const auto place = place_of(value.name.value_or(""));
    if (!place) {
      violated(where + "nobody wrote it");
      continue;
    }
    if (const auto wrong = run_.wrong(*place, own.memory, value.content); !wrong.empty()) violated(where + wrong);
    if (i == 0 && (place->client != index_ || place->number != own.number))
      violated(where + "another turn was acknowledged under this number");
  }
}

LoadReport Run::run() {
  std::vector<Worker> workers;
  for (size_t i = 0; i < options_.clients; ++i) workers.emplace_back(*this, i);
  const auto start = Clock::now();
  const auto end = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options_.seconds));
  std::vector<std::thread> threads;
  for (Worker& worker : workers) threads.emplace_back([&worker, end] { worker.work(end); });
  for (std::thread& thread : threads) thread.join();

  LoadReport report;
  report.seconds = milliseconds_since(start) / 1e3;
  double content_bytes = 0;
  for (Worker& worker : workers) {
    report.appends += worker.appends;
    report.turns += worker.acknowledged.size();
    report.searches += worker.searches;
    report.results += worker.results;
    content_bytes += static_cast<double>(worker.content_bytes);
    report.append_ms.insert(report.append_ms.end(), worker.append_ms.begin(), worker.append_ms.end());
    report.search_ms.insert(report.search_ms.end(), worker.search_ms.begin(), worker.search_ms.end());
    report.violation_count += worker.violation_count;
    for (std::string& violation : worker.violations)
      if (report.violations.size() < LoadReport::violations_kept_max)
        report.violations.push_back("client " + std::to_string(&worker - workers.data()) + ": " + std::move(violation));
  }
  std::ranges::sort(report.append_ms);
  std::ranges::sort(report.search_ms);
  if (report.appends > 0) report.append_bytes = content_bytes / static_cast<double>(report.appends);
  check_all(report, workers);
  return report;
}

// Every turn of every memory, against what was acknowledged and what searches saw.
void Run::check_all(LoadReport& report, const std::vector<Worker>& workers) const {
  const auto violated = [&report](std::string what) {
    ++report.violation_count;
    if (report.violations.size() < LoadReport::violations_kept_max) report.violations.push_back(std::move(what));
  };
  auto client = client::Client::connect(options_.socket, {.reply_timeout = std::chrono::minutes(5)});
  if (!client) return violated("connect to read everything back: " + client.error().message);

  for (size_t memory = 0; memory < memories_; ++memory) {
    const std::string name = memory_name(memory);
    std::vector<Place> stored;                   // by turn number
    std::map<size_t, uint64_t> next;             // by client: the number that is expected of it next
    std::map<size_t, std::vector<uint64_t>> at;  // by client: the turn number of each of its turns
    bool readable = true;
    client::PageRequest request;
    request.memory = name;
    request.limit = 1000;
    for (bool more = true; more;) {
      const auto page = client->turns(request);
      if (!page) {
        if (page.error().kind != ErrorKind::not_found) violated(name + ": " + page.error().message);
        readable = page.error().kind == ErrorKind::not_found;
        break;
      }
      for (const auto& [turn, value] : page->turns) {
        const std::string where = name + " turn " + std::to_string(turn) + ": ";
        if (turn != stored.size()) violated(where + "expected number " + std::to_string(stored.size()));
        const auto place = place_of(value.name.value_or(""));
        stored.push_back(place.value_or(Place{}));
        if (!place) {
          violated(where + "nobody wrote it");
          continue;
        }
        if (const auto wrong = this->wrong(*place, memory, value.content); !wrong.empty()) violated(where + wrong);
        if (place->number != next[place->client])
          violated(where + "client " + std::to_string(place->client) + " says " + std::to_string(place->number) +
                   " where " + std::to_string(next[place->client]) + " comes next");
        next[place->client] = place->number + 1;
        at[place->client].push_back(turn);
      }
      more = page->next_cursor.has_value();
      request.cursor = page->next_cursor.value_or("");
    }
    if (!readable) continue;

    for (size_t i = 0; i < workers.size(); ++i) {
      const auto& own = at[i];
      uint64_t acknowledged = 0;
      for (const auto& turn : workers[i].acknowledged) {
        if (turn.memory != memory) continue;
        ++acknowledged;
        if (turn.number >= own.size() || own[turn.number] != turn.turn)
          violated(name + ": turn " + std::to_string(turn.turn) + " was acknowledged to client " + std::to_string(i) +
                   " as its " + std::to_string(turn.number) + ", and is not there");
      }
      if (workers[i].violation_count == 0 && own.size() != acknowledged)
        violated(name + ": " + std::to_string(own.size()) + " turns of client " + std::to_string(i) + ", " +
                 std::to_string(acknowledged) + " were acknowledged");
      for (const auto& seen : workers[i].seen) {
        if (seen.memory != memory) continue;
        if (seen.turn >= stored.size() || stored[seen.turn].client != seen.place.client ||
            stored[seen.turn].number != seen.place.number)
          violated(name + ": a search saw another turn under number " + std::to_string(seen.turn));
      }
    }
  }
}

}  // namespace

LoadReport run_load(const LoadOptions& options) {
  return Run(options).run();
}

double percentile_of(const std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
}

}  // namespace recalld::bench
