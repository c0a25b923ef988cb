// How fast a GPU encodes tokens, by itself and behind the daemon's socket, for one memory and for 16 at once.
//
// Usage: gpu_append [tokens a memory=1048576]
// By itself: random tokens, with landmarks and K/V copied out, and for the recurrent state alone; medians of rounds
// that take turns. Through the socket: made-up chat, one client a memory, durable and then searchable, in all. The
// clients make their chat meanwhile, on the same cores. Exits with 77 where there is no GPU; goals that are missed make
// the exit status 1 on an H200.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <future>
#include <random>
#include <string>
#include <vector>

#include "memstore/chunk.h"
#include "model/ramba.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill.h"
#include "tools/bench/gpu_setup.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t streams_many = 16;
constexpr size_t encode_states = 96;                                             // as the daemon has
constexpr double device_tokens_per_s_min = 8e6, durable_tokens_per_s_min = 2e6;  // of streams_many

// ---- By itself

struct Rates {
  double copied = 0;  // tokens a second, with landmarks and K/V in host memory
  double state = 0;   // without
};

// Streams that grow by one segment at a time, as many side by side as the GPU takes.
class Streams {
 public:
  Streams(Gpu& gpu, const Ramba& model, size_t count) : gpu_(gpu), streams_(count) {
    const size_t chunks = gpu.segment_chunks();
    std::mt19937 random(static_cast<uint32_t>(count));
    std::uniform_int_distribution<uint32_t> any(0, static_cast<uint32_t>(model.config().vocab_size - 1));
    for (Stream& stream : streams_) {
      stream.state = must(gpu.zero_state(), "make a state");
      stream.tokens.resize(chunks * chunk_tokens);
      for (uint32_t& token : stream.tokens) token = any(random);
      stream.landmarks.resize(chunks * model.landmark_dim());
      stream.kv.resize(chunks * model.kv_bytes());
    }
  }

  // Tokens a second of so many segments of each stream.
  double encode(size_t segments, bool copied) {
    const auto start = Clock::now();
    for (size_t i = 0; i < segments; ++i) {
      for (size_t first = 0; first < streams_.size(); first += gpu_.segments_max()) {
        std::vector<Backend::Segment> call;
        for (size_t s = first; s < std::min(streams_.size(), first + gpu_.segments_max()); ++s) {
          Stream& stream = streams_[s];
          call.push_back({.state = &stream.state, .tokens = stream.tokens, .landmarks = {}, .kv = {}});
          if (copied) call.back().landmarks = stream.landmarks;
          if (copied) call.back().kv = stream.kv;
        }
        must(gpu_.encode(call), "encode");
      }
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return static_cast<double>(segments * streams_.size() * streams_.front().tokens.size()) / seconds;
  }

 private:
  struct Stream {
    RecurrentState state;
    std::vector<uint32_t> tokens;
    std::vector<Bf16> landmarks;
    std::vector<std::byte> kv;
  };

  Gpu& gpu_;
  std::vector<Stream> streams_;
};

Rates encode_rates(Gpu& gpu, const Ramba& model, size_t count) {
  constexpr size_t segments_of_round = 64, warm_up = 2, rounds = 9;
  Streams streams(gpu, model, count);
  std::vector<double> copied, state;
  for (size_t round = 0; round < warm_up + rounds; ++round) {
    const bool copied_first = round % 2 == 0;
    const double first = streams.encode(segments_of_round / count, copied_first);
    const double second = streams.encode(segments_of_round / count, !copied_first);
    if (round < warm_up) continue;
    copied.push_back(copied_first ? first : second);
    state.push_back(copied_first ? second : first);
  }
  return {median(copied), median(state)};
}

// ---- Through the socket

struct Filled {
  double durable = 0;  // tokens a second, of all memories together
  double searchable = 0;
};

Filled fill_memories(DaemonProcess& daemon, const std::string& prefix, size_t count, uint64_t tokens) {
  std::vector<client::Client> clients;
  for (size_t i = 0; i < count; ++i) clients.push_back(daemon.connect());
  std::vector<std::future<FillReport>> reports;
  for (size_t i = 0; i < count; ++i)
    reports.push_back(std::async(std::launch::async, [&, i] {
      return fill(clients[i], prefix + "/" + std::to_string(i), tokens, 100 * count + i);
    }));
  FillReport all;
  for (auto& each : reports) {
    const FillReport report = each.get();
    all.tokens += report.tokens;
    all.durable_s = std::max(all.durable_s, report.durable_s);
    all.searchable_s = std::max(all.searchable_s, report.searchable_s);
  }
  return {static_cast<double>(all.tokens) / all.durable_s, static_cast<double>(all.tokens) / all.searchable_s};
}

void print_rates(size_t memories, const Rates& rates) {
  std::printf("on the device, %2zu %s %11.0f tokens/s copied out, %11.0f tokens/s for the state alone\n", memories,
              memories == 1 ? "memory:  " : "memories:", rates.copied, rates.state);
}

void print_filled(size_t memories, const Filled& filled) {
  std::printf("through the socket, %2zu %s %11.0f tokens/s durable, %11.0f tokens/s searchable\n", memories,
              memories == 1 ? "memory:  " : "memories:", filled.durable, filled.searchable);
}

}  // namespace

int main(int argc, char** argv) try {
  const uint64_t tokens = argc > 1 ? std::stoull(argv[1]) : uint64_t{1} << 20;
  const auto directory =
      std::filesystem::temp_directory_path() / ("recalld-bench-gpu-append-" + std::to_string(getpid()));
  setvbuf(stdout, nullptr, _IOLBF, 0);

  auto gpu = open_served_gpu(0, encode_states);
  Goals goals(gpu->name());
  WorkerPool pool(1);
  const auto model = must(Ramba::open(served_model(), Precision::automatic, Parts::lower, pool), "open model");
  std::printf("%s; segments of %llu chunks, %zu a call; %llu tokens a memory through the socket\n",
              gpu->describe().c_str(), static_cast<unsigned long long>(gpu->segment_chunks()), gpu->segments_max(),
              static_cast<unsigned long long>(tokens));
  print_rates(1, encode_rates(*gpu, *model, 1));
  const Rates many = encode_rates(*gpu, *model, streams_many);
  print_rates(streams_many, many);
  std::printf("  goal: %.0f tokens/s copied out %s\n", device_tokens_per_s_min,
              goals.fast(many.copied >= device_tokens_per_s_min));
  gpu.reset();  // the daemon has it to itself

  DaemonProcess daemon(built_recalld(), directory, {"--device", "cuda"});
  print_filled(1, fill_memories(daemon, "bench/alone", 1, tokens));
  const Filled filled = fill_memories(daemon, "bench/together", streams_many, tokens);
  print_filled(streams_many, filled);
  std::printf("  goal: %.0f tokens/s durable %s\n", durable_tokens_per_s_min,
              goals.fast(filled.durable >= durable_tokens_per_s_min));
  client::Client client = daemon.connect();
  std::printf("while its model thread encoded and stored, it did so at %.0f tokens/s\n",
              must(client.stats(), "stats").at("encode_tokens_per_s").get<double>());
  daemon.stop();
  std::filesystem::remove_all(directory);
  return goals.conclude();
} catch (const NoGpu& reason) {
  std::fprintf(stderr, "gpu_append: skipped: %s\n", reason.what());
  return skipped;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "gpu_append: %s\n", reason.what());
  return 1;
}
