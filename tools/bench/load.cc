// How appends and searches fare when many clients share a daemon, and whether everything that they see is right.
//
// Usage: load [clients=64] [seconds=60] [seed=1]
// Ends with status 1 when a request failed, a turn was lost, doubled, torn or out of order, or a search returned
// anything but what was written. The latency of an append is compared with that of a lone write of the same size to a
// file beside the store, followed by fdatasync: what the disk alone asks for a durable append. It is measured before
// and after the load, when nothing else goes on.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "base/descriptor.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/load_run.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

// Appends `writes` times `bytes` to a file, each time synced.
void time_synced_writes(const std::filesystem::path& path, size_t bytes, size_t writes, std::vector<double>& ms) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (file.get() < 0) give_up("open a file to write to", path.string());
  const std::string text(bytes, 'x');
  for (size_t i = 0; i < writes; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
        ::fdatasync(file.get()) != 0)
      give_up("write to", path.string());
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
}

void print_latency(const char* what, const std::vector<double>& ms) {
  std::printf("%-21s p50 %8.2f ms, p99 %8.2f ms, max %8.2f ms\n", what, percentile_of(ms, 0.5), percentile_of(ms, 0.99),
              ms.empty() ? 0 : ms.back());
}

}  // namespace

int main(int argc, char** argv) try {
  LoadOptions options;
  options.clients = argc > 1 ? std::stoull(argv[1]) : 64;
  options.seconds = argc > 2 ? std::stod(argv[2]) : 60;
  options.seed = argc > 3 ? std::stoull(argv[3]) : 1;
  const auto directory = std::filesystem::temp_directory_path() / ("recalld-bench-load-" + std::to_string(getpid()));
  std::filesystem::create_directory(directory);

  constexpr size_t expected_append_bytes = 400, lone_writes = 500;
  std::vector<double> lone_ms;
  time_synced_writes(directory / "synced", expected_append_bytes, lone_writes, lone_ms);

  DaemonProcess daemon(built_recalld(), directory / "data", {});
  options.socket = daemon.socket();
  const uint64_t idle_bytes = daemon.resident_bytes();
  const LoadReport report = run_load(options);
  const uint64_t peak_bytes = daemon.resident_bytes_max();
  client::Client client = daemon.connect();
  const auto stats = must(client.stats(), "stats");
  daemon.stop();
  time_synced_writes(directory / "synced", static_cast<size_t>(report.append_bytes), lone_writes, lone_ms);
  std::ranges::sort(lone_ms);
  std::filesystem::remove_all(directory);

  const double mib = 1 << 20;
  std::printf("%zu clients for %.1f s, seed %llu: %.0f appends/s of %.0f bytes, %.0f searches/s\n", options.clients,
              report.seconds, static_cast<unsigned long long>(options.seed),
              static_cast<double>(report.appends) / report.seconds, report.append_bytes,
              static_cast<double>(report.searches) / report.seconds);
  print_latency("append:", report.append_ms);
  print_latency("search:", report.search_ms);
  print_latency("lone synced write:", lone_ms);
  std::printf("p99 of an append under load to that of a lone synced write: %.1f\n",
              percentile_of(report.append_ms, 0.99) / std::max(percentile_of(lone_ms, 0.99), 1e-6));
  std::printf("resident: %.0f MiB idle, %.0f MiB at most; budget %.0f MiB; %llu chunks waited at the end\n",
              static_cast<double>(idle_bytes) / mib, static_cast<double>(peak_bytes) / mib,
              stats.at("memory_budget_bytes").get<double>() / mib,
              static_cast<unsigned long long>(stats.at("waiting_chunks").get<uint64_t>()));
  std::printf("checked: %llu turns acknowledged, %llu results of %llu searches; violations: %llu\n",
              static_cast<unsigned long long>(report.turns), static_cast<unsigned long long>(report.results),
              static_cast<unsigned long long>(report.searches),
              static_cast<unsigned long long>(report.violation_count));
  for (const std::string& violation : report.violations) std::printf("  %s\n", violation.c_str());
  return report.violation_count == 0 ? 0 : 1;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "load: %s\n", reason.what());
  return 1;
}
