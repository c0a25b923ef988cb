// Whether a store much larger than its memory budget stays within it, how long searches take there, hot and cold, and
// how fast landmarks are scanned from disk, against fio's sequential read.
//
// Usage: out_of_core [chunks=65536] [memory-budget=24MiB] [made-up|real]
// made-up (the default): the store is filled without the model, with random encodings and one state for every 64
// chunks, to a quarter, to half and to all of its chunks; at each size a daemon is started on it, is searched, and
// reads some 10 Ki tokens of chat, of this memory and of many others. real: one daemon is given all the chat through
// its socket and reads it, while it is searched. Bounds that are missed say so, and make the exit status 1.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "memstore/store.h"
#include "model/ramba.h"
#include "tools/bench/bench_data.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill.h"
#include "tools/bench/fill_store.h"
#include "tools/bench/prose.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

constexpr char memory_name[] = "bench/out-of-core";
constexpr double mib = 1 << 20;
constexpr double growth_max = 1.05;      // of resident memory, from half of the chunks to all of them
constexpr double scan_ratio_min = 0.70;  // of fio's rate
constexpr int scan_rounds = 9;

struct Verdict {
  bool all_held = true;
  const char* operator()(bool held) {
    all_held = all_held && held;
    return held ? "held" : "MISSED";
  }
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// ---- The store

// What the page cache holds of the store is dropped: all of the machine's where we may, else the files' one by one.
const char* drop_page_cache(const std::filesystem::path& data) {
  sync();
  if (std::ofstream drop("/proc/sys/vm/drop_caches"); drop << 1 << std::flush) return "drop_caches";
  for (const auto& file : std::filesystem::recursive_directory_iterator(data)) {
    if (!file.is_regular_file()) continue;
    const int descriptor = open(file.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) continue;
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    close(descriptor);
  }
  return "posix_fadvise";
}

// ---- The daemon at work

double search_ms(client::Client& client, Prose& prose) {
  client::SearchRequest request;
  request.memory = memory_name;
  request.query = prose.sentence();
  const auto start = std::chrono::steady_clock::now();
  must(client.search(request), "search");
  return 1e3 * seconds_since(start);
}

// Searches all the while that `work` runs.
template <class Work>
void while_searching(DaemonProcess& daemon, Work work) {
  std::atomic<bool> done = false;
  std::thread searcher([&] {
    try {
      client::Client client = daemon.connect();
      Prose prose(5);
      while (!done) {
        if (client.memory(memory_name)) search_ms(client, prose);
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    } catch (const GaveUp& reason) {
      std::fprintf(stderr, "out_of_core: while it encoded: %s\n", reason.what());
    }
  });
  try {
    work();
  } catch (...) {
    done = true;
    searcher.join();
    throw;
  }
  done = true;
  searcher.join();
}

// Some chat for the memory, and a little for each of many, whose recurrent states then take turns in RAM.
void append_and_encode(DaemonProcess& daemon) {
  client::Client client = daemon.connect();
  while_searching(daemon, [&] {
    fill(client, memory_name, 4 << 10, 11);
    for (int i = 0; i < 16; ++i) {
      client::AppendRequest request{
          .memory = "bench/others/" + std::to_string(i), .turns = {}, .operation_id = "", .wait_searchable = true};
      Prose prose(static_cast<uint64_t>(i));
      for (int turn = 0; turn < 8; ++turn) {
        request.turns.emplace_back();
        request.turns.back().content = prose.turn();
      }
      must(client.append(request), "append");
      client::SearchRequest search;
      search.memory = request.memory;
      search.query = prose.sentence();
      must(client.search(search), "search");
    }
  });
}

struct Resident {
  double tokens = 0;
  uint64_t bytes_max = 0;
};

void report_resident(const std::vector<Resident>& sizes, uint64_t idle, uint64_t budget, Verdict& verdict) {
  std::printf("resident memory, idle: %.1f MiB; bound: idle + budget = %.1f MiB\n", static_cast<double>(idle) / mib,
              static_cast<double>(idle + budget) / mib);
  for (const Resident& size : sizes)
    std::printf("  at %6.3f Mi tokens, at most: %6.1f MiB, idle + %5.1f (bound: idle + %.1f) %s\n", size.tokens / mib,
                static_cast<double>(size.bytes_max) / mib,
                (static_cast<double>(size.bytes_max) - static_cast<double>(idle)) / mib,
                static_cast<double>(budget) / mib, verdict(size.bytes_max <= idle + budget));
  const double growth =
      static_cast<double>(sizes.back().bytes_max) / static_cast<double>(sizes[sizes.size() - 2].bytes_max);
  std::printf("  growth over the last doubling: %+.1f%% (bound: %+.1f%%) %s\n", 100 * (growth - 1),
              100 * (growth_max - 1), verdict(growth <= growth_max));
}

void report_latency(const std::filesystem::path& data, const std::vector<std::string>& flags) {
  const char* dropped_by = drop_page_cache(data);
  DaemonProcess daemon(built_recalld(), data, flags);
  client::Client client = daemon.connect();
  Prose prose(99);
  const double first_ms = search_ms(client, prose);
  std::vector<double> cold_ms, hot_ms;
  for (int i = 0; i < 20; ++i) {
    drop_page_cache(data);
    cold_ms.push_back(search_ms(client, prose));
  }
  for (int i = 0; i < 220; ++i) {
    const double ms = search_ms(client, prose);
    if (i >= 20) hot_ms.push_back(ms);
  }
  std::printf(
      "search, limit 8: hot p50 %.2f ms, p99 %.2f ms (%zu queries); cold p50 %.2f ms, max %.2f ms (%zu queries, page "
      "cache dropped by %s before each)\n",
      percentile(hot_ms, 0.5), percentile(hot_ms, 0.99), hot_ms.size(), percentile(cold_ms, 0.5),
      percentile(cold_ms, 1), cold_ms.size(), dropped_by);
  std::printf("start with a cold page cache: %.3f s to the first answer, the first search after another %.2f ms\n",
              daemon.seconds_to_first_answer(), first_ms);
}

// ---- The scan

// Bytes a second of one sequential read of `bytes` bytes past the page cache.
double fio_rate(const std::filesystem::path& file, uint64_t bytes) {
  const std::string command = "fio --name=sequential --filename='" + file.string() +
                              "' --size=" + std::to_string(bytes) +
                              " --rw=read --bs=1M --direct=1 --ioengine=io_uring --iodepth=4 --output-format=json";
  std::FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) give_up("run fio", std::strerror(errno));
  std::string output;
  char part[4096];
  for (size_t n; (n = std::fread(part, 1, sizeof part, pipe)) > 0;) output.append(part, n);
  if (pclose(pipe) != 0) give_up("run fio", "it failed; install it (tools/setup.sh --dev): " + output);
  const auto json = nlohmann::json::parse(output.substr(output.find('{')), nullptr, false);
  if (json.is_discarded()) give_up("run fio", "its output is not JSON: " + output);
  return json.at("jobs").at(0).at("read").at("bw_bytes").get<double>();
}

// Landmarks that do not fit into RAM, by the scan that a search does, and as many bytes by fio, in turn: scan, fio,
// fio, scan. Only bytes that the scan reads from disk count.
void report_scan(const std::filesystem::path& data, const RecordShape& shape, uint64_t budget, Verdict& verdict) {
  WorkerPool pool(std::max(1u, std::thread::hardware_concurrency()));
  StoreOptions options;
  options.shape = shape;
  options.memory_budget_bytes = std::max<uint64_t>(uint64_t{8} << 20, budget / 4 * 3);  // as the daemon shares it out
  const auto store = must(Store::open(data, std::move(options)), "open store");
  const MemoryInfo memory = must(store->memory(memory_name), "find memory");
  std::mt19937 random(7);
  std::vector<Bf16> query(shape.landmark_dim);
  for (Bf16& x : query) x = to_bf16(std::normal_distribution<float>()(random));
  const auto scan_s = [&] {
    drop_page_cache(data);
    const auto start = std::chrono::steady_clock::now();
    must(store->top_k(memory.id, query, 8, pool), "scan");
    return seconds_since(start);
  };
  scan_s();  // fills the cache of landmarks
  const double landmark_bytes = static_cast<double>(memory.encoded_chunks) * shape.landmark_dim * sizeof(Bf16);
  const double cached_bytes = static_cast<double>(must(store->stats(), "stats").landmark_cache_bytes);
  const double read_bytes = landmark_bytes - cached_bytes;
  if (read_bytes < landmark_bytes / 4) {
    std::printf("landmark scan: %.1f MiB of landmarks nearly fit into RAM; take more chunks\n", landmark_bytes / mib);
    return;
  }
  const auto fio_file = data.string() + ".fio";
  const auto fio_bytes = static_cast<uint64_t>(read_bytes / mib + 1) << 20;
  fio_rate(fio_file, fio_bytes);  // lays the file out
  std::vector<double> scan_rates, fio_rates, ratios;
  for (int i = 0; i < scan_rounds; ++i) {
    const double a = scan_s(), b = fio_rate(fio_file, fio_bytes), c = fio_rate(fio_file, fio_bytes), d = scan_s();
    scan_rates.push_back(2 * read_bytes / (a + d));
    fio_rates.push_back(2 / (1 / b + 1 / c));
    ratios.push_back(scan_rates.back() / fio_rates.back());
  }
  std::filesystem::remove(fio_file);
  std::printf(
      "landmark scan from disk, %.1f of %.1f MiB (the rest is cached), page cache dropped: %.0f MB/s; fio, sequential, "
      "O_DIRECT, 1 MiB at depth 4, as many bytes: %.0f MB/s (medians of %d rounds of scan, fio, fio, scan)\n",
      read_bytes / mib, landmark_bytes / mib, percentile(scan_rates, 0.5) / 1e6, percentile(fio_rates, 0.5) / 1e6,
      scan_rounds);
  const double ratio = percentile(ratios, 0.5);
  std::printf("  ratio: %.2f (bound: %.2f; rounds from %.2f to %.2f) %s\n", ratio, scan_ratio_min,
              percentile(ratios, 0), percentile(ratios, 1), verdict(ratio >= scan_ratio_min));
}

}  // namespace

int main(int argc, char** argv) try {
  const uint64_t chunks = argc > 1 ? std::stoull(argv[1]) : 64 << 10;
  const std::string budget_text = argc > 2 ? argv[2] : "24MiB";
  const bool real = argc > 3 && std::string(argv[3]) == "real";
  const auto data = std::filesystem::temp_directory_path() / ("recalld-bench-out-of-core-" + std::to_string(getpid()));
  const std::vector<std::string> flags{"--memory-budget", budget_text, "--device", "cpu"};
  setvbuf(stdout, nullptr, _IOLBF, 0);

  uint64_t idle = 0, budget = 0;
  std::filesystem::path model_directory;
  {
    DaemonProcess daemon(built_recalld(), data, flags);
    client::Client client = daemon.connect();
    const auto stats = must(client.stats(), "stats");
    budget = stats.at("memory_budget_bytes");
    model_directory = stats.at("model_directory").get<std::string>();
    idle = daemon.resident_bytes();
  }
  RecordShape shape;
  {
    WorkerPool pool(1);
    const auto model = must(Ramba::open(model_directory, Precision::automatic, Parts::lower, pool), "open model");
    shape = {.kv_bytes = static_cast<uint32_t>(model->kv_bytes()),
             .landmark_dim = static_cast<uint32_t>(model->landmark_dim()),
             .state_bytes = static_cast<uint32_t>(model->lower_state_bytes()),
             .model = model->hash()};
  }

  Verdict verdict;
  std::vector<Resident> sizes;
  std::unique_ptr<DaemonProcess> daemon;
  for (const uint64_t size : {chunks / 4, chunks / 2, chunks}) {
    const auto start = std::chrono::steady_clock::now();
    if (real) {
      if (!daemon) daemon = std::make_unique<DaemonProcess>(built_recalld(), data, flags);
      client::Client client = daemon->connect();
      const uint64_t before = sizes.empty() ? 0 : client.memory(memory_name).value().tokens;
      const uint64_t wanted = size * chunk_tokens;
      while_searching(*daemon, [&] { fill(client, memory_name, wanted - std::min(wanted, before), size); });
    } else {
      StoreOptions options;
      options.shape = shape;
      fill_made_up(*must(Store::open(data, std::move(options)), "open store"), memory_name, shape, size);
      daemon = std::make_unique<DaemonProcess>(built_recalld(), data, flags);
      append_and_encode(*daemon);
    }
    client::Client client = daemon->connect();
    const double tokens = static_cast<double>(must(client.memory(memory_name), "find memory").tokens);
    sizes.push_back({tokens, daemon->resident_bytes_max()});
    std::printf("filled to %.3f Mi tokens in %.1f s\n", tokens / mib, seconds_since(start));
    if (!real) daemon.reset();
  }
  daemon.reset();
  report_resident(sizes, idle, budget, verdict);
  report_latency(data, flags);
  report_scan(data, shape, budget, verdict);
  std::filesystem::remove_all(data);
  return verdict.all_held ? 0 : 1;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "out_of_core: %s\n", reason.what());
  return 1;
}
