// How fast a conversation becomes durable and searchable, against what the machine's own matrix products allow, and
// how much memory the daemon needs meanwhile.
//
// Usage: append [tokens=1048576] [memory-budget=256MiB] [precision=auto]
// Order of measurement: products, append, append, products (ABBA). Each append fills a fresh memory through the socket.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>

#include "model/config.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill.h"
#include "tools/bench/products.h"

using namespace recalld;
using namespace recalld::bench;

int main(int argc, char** argv) try {
  const uint64_t tokens = argc > 1 ? std::stoull(argv[1]) : uint64_t{1} << 20;
  const std::string budget = argc > 2 ? argv[2] : "256MiB";
  const std::string precision = argc > 3 ? argv[3] : "auto";
  const auto directory = std::filesystem::temp_directory_path() / ("recalld-bench-append-" + std::to_string(getpid()));
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());

  DaemonProcess daemon(built_recalld(), directory,
                       {"--memory-budget", budget, "--precision", precision, "--device", "cpu"});
  client::Client client = daemon.connect();
  const auto stats = must(client.stats(), "stats");
  const std::string model_directory = stats.at("model_directory");
  const bool bf16 = stats.at("model_precision").get<std::string>().starts_with("bf16");
  const Config config = must(Config::read(model_directory + "/config.json"), "read config");
  const uint64_t budget_bytes = stats.at("memory_budget_bytes");
  std::printf("model: %s; %zu threads; %llu tokens an append\n", stats.at("model_precision").get<std::string>().c_str(),
              threads, static_cast<unsigned long long>(tokens));

  const double products_first = product_tokens_per_s(config, bf16, threads);
  const uint64_t idle_bytes = daemon.resident_bytes();
  const FillReport first = fill(client, "bench/first", tokens, 1);
  const FillReport second = fill(client, "bench/second", tokens, 2);
  const double products_second = product_tokens_per_s(config, bf16, threads);

  const auto per_s = [](const FillReport& report) { return static_cast<double>(report.tokens) / report.searchable_s; };
  const double append = (per_s(first) + per_s(second)) / 2;
  const double products = (products_first + products_second) / 2;
  std::printf("products alone:   %9.0f tokens/s  (%.0f, %.0f; %.2f MFLOP a token)\n", products, products_first,
              products_second, product_flop_per_token(config) / 1e6);
  std::printf(
      "append, durable:  %9.0f tokens/s  (%.0f, %.0f)\n",
      (static_cast<double>(first.tokens) / first.durable_s + static_cast<double>(second.tokens) / second.durable_s) / 2,
      static_cast<double>(first.tokens) / first.durable_s, static_cast<double>(second.tokens) / second.durable_s);
  std::printf("append, searchable: %7.0f tokens/s  (%.0f, %.0f)\n", append, per_s(first), per_s(second));
  std::printf("ratio to the products: %.2f\n", append / products);

  const double mib = 1 << 20;
  const uint64_t peak = daemon.resident_bytes_max();
  std::printf("resident: %.0f MiB idle, %.0f MiB at most while %llu tokens went in; budget %.0f MiB: %s\n",
              static_cast<double>(idle_bytes) / mib, static_cast<double>(peak) / mib,
              static_cast<unsigned long long>(first.tokens + second.tokens), static_cast<double>(budget_bytes) / mib,
              peak <= idle_bytes + budget_bytes ? "within idle + budget" : "ABOVE idle + budget");
  daemon.stop();
  std::filesystem::remove_all(directory);
  return peak <= idle_bytes + budget_bytes ? 0 : 1;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "append: %s\n", reason.what());
  return 1;
}
