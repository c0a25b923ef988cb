// How long a search takes in a memory of 16 Ki chunks, and where its time goes, how fast the landmarks are scanned, and
// how soon an existing store answers.
//
// Usage: search [chunks=16384] [data directory]
// A directory that holds a store already is used as it is (memory "bench/search"), so that a second run is quick;
// without one a temporary store is filled first.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/landmark_topk.h"
#include "memstore/store.h"
#include "model/ramba.h"
#include "tools/bench/bench_data.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill.h"
#include "tools/bench/prose.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

constexpr char memory_name[] = "bench/search";

template <class Body>
double seconds(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What of a search's time is whose: of searches that explain one result, since these tell, beside the time inside the
// daemon of those that do not.
void measure_parts(client::Client& client, double inside_ms) {
  Prose prose(98);
  std::vector<std::pair<std::string, double>> parts;
  constexpr int queries = 100;
  for (int i = 0; i < queries; ++i) {
    client::SearchRequest request;
    request.memory = memory_name;
    request.query = prose.sentence();
    request.limit = 1;
    request.explain = true;
    const client::Json reply = must(client.call("search", params(request)), "search");
    for (const auto& [name, ms] : reply.at("results").at(0).at("why").at("took").items()) {
      auto part = std::ranges::find(parts, name, &std::pair<std::string, double>::first);
      if (part == parts.end()) part = parts.insert(part, {name, 0.0});
      part->second += ms.get<double>() / queries;
    }
  }
  double rest = inside_ms;
  std::printf("inside the daemon %.2f ms in the mean:", inside_ms);
  for (const auto& [name, ms] : parts) {
    std::printf(" %s %.2f (%.0f%%),", name.c_str(), ms, 100 * ms / inside_ms);
    if (name != "words_beside_ms") rest -= ms;  // which went on beside the model
  }
  std::printf(" the rest %.2f (%.0f%%): waiting, ranking and text\n", rest, 100 * rest / inside_ms);
}

void measure_latency(DaemonProcess& daemon) {
  client::Client client = daemon.connect();
  Prose prose(99);
  std::vector<double> latency_ms;
  double inside_ms = 0;
  for (int i = 0; i < 320; ++i) {
    client::SearchRequest request;
    request.memory = memory_name;
    request.query = prose.sentence();
    double inside = 0;
    const double ms = 1e3 * seconds([&] { inside = must(client.search(request), "search").took_ms; });
    if (i < 20) continue;  // the first ones warm up
    latency_ms.push_back(ms);
    inside_ms += inside;
  }
  std::printf("search through the socket, limit 8, %zu queries: p50 %.2f ms, p99 %.2f ms\n", latency_ms.size(),
              percentile(latency_ms, 0.5), percentile(latency_ms, 0.99));
  measure_parts(client, inside_ms / static_cast<double>(latency_ms.size()));
}

// The scan as a search does it, and a plain loop that sums the words of an equal buffer with as many threads, in turn.
void measure_scan(const std::filesystem::path& data, const std::filesystem::path& model_directory) {
  WorkerPool pool(std::max(1u, std::thread::hardware_concurrency()));
  const auto model = must(Ramba::open(model_directory, Precision::automatic, Parts::lower, pool), "open model");
  StoreOptions options;
  options.shape = {.kv_bytes = static_cast<uint32_t>(model->kv_bytes()),
                   .landmark_dim = static_cast<uint32_t>(model->landmark_dim()),
                   .state_bytes = static_cast<uint32_t>(model->lower_state_bytes()),
                   .model = model->hash()};
  const auto store = must(Store::open(data, std::move(options)), "open store");
  const MemoryInfo memory = must(store->memory(memory_name), "find memory");

  std::mt19937 random(7);
  std::vector<Bf16> query(model->landmark_dim());
  for (Bf16& x : query) x = to_bf16(std::normal_distribution<float>()(random));
  const size_t bytes = memory.encoded_chunks * query.size() * sizeof(Bf16);
  std::vector<uint64_t> buffer(bytes / sizeof(uint64_t));
  std::iota(buffer.begin(), buffer.end(), random());
  std::vector<uint64_t> sums(pool.threads());

  const auto scan = [&] {
    for (int i = 0; i < 20; ++i) must(store->top_k(memory.id, query, 8, pool), "scan");
  };
  const auto sum = [&] {
    const size_t part = buffer.size() / pool.threads();
    for (int i = 0; i < 20; ++i)
      pool.run(pool.threads(), [&](size_t index, size_t) {
        const auto begin = buffer.begin() + static_cast<std::ptrdiff_t>(index * part);
        sums[index] += std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(part), uint64_t{0});
      });
  };
  std::vector<double> scan_s, sum_s, ratios;
  scan();
  sum();
  for (int i = 0; i < 15; ++i) {  // scan, sum, sum, scan
    const double a = seconds(scan), b = seconds(sum), c = seconds(sum), d = seconds(scan);
    scan_s.push_back((a + d) / 2);
    sum_s.push_back((b + c) / 2);
    ratios.push_back((b + c) / (a + d));
  }
  const double gigabytes = 20 * static_cast<double>(bytes) / 1e9;
  std::printf(
      "landmark scan of %llu chunks, %zu threads: %.1f GB/s; plain summing loop over an equal buffer: %.1f GB/s; ratio "
      "%.2f (checksum %llx)\n",
      static_cast<unsigned long long>(memory.encoded_chunks), pool.threads(), gigabytes / percentile(scan_s, 0.5),
      gigabytes / percentile(sum_s, 0.5), percentile(ratios, 0.5),
      static_cast<unsigned long long>(std::accumulate(sums.begin(), sums.end(), uint64_t{0})));
}

}  // namespace

int main(int argc, char** argv) try {
  const BenchData data(argc, argv, 16 << 10);
  std::filesystem::path model_directory;
  {
    DaemonProcess daemon(built_recalld(), data.directory(), {});
    client::Client client = daemon.connect();
    model_directory = must(client.stats(), "stats").at("model_directory").get<std::string>();
    if (!client.memory(memory_name)) {
      const FillReport report = fill(client, memory_name, data.chunks() * chunk_tokens, 3);
      std::printf("filled: %llu tokens in %.1f s\n", static_cast<unsigned long long>(report.tokens),
                  report.searchable_s);
    }
  }
  {
    DaemonProcess daemon(built_recalld(), data.directory(), {});
    client::Client client = daemon.connect();
    client::SearchRequest request;
    request.memory = memory_name;
    request.query = "Who painted the ladder?";
    const double search_s = seconds([&] { must(client.search(request), "search"); });
    std::printf("start on an existing store: %.3f s to the first answer, a search after another %.3f s\n",
                daemon.seconds_to_first_answer(), search_s);
    measure_latency(daemon);
  }
  measure_scan(data.directory(), model_directory);
  return 0;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "search: %s\n", reason.what());
  return 1;
}
