// How long searches take with filters, beside the same searches without one.
//
// Usage: filter [chunks=65536] [data directory]
// A store is filled without a model, with turns of random words and random landmarks. A directory that holds such a
// store already is used as it is. Filters mean every turn, one in ten, one in a thousand, one in a hundred thousand,
// and none; each is told with its first search, which reads the rows of all turns, and with those after it.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "memstore/store.h"
#include "memstore/turn_selection.h"
#include "tools/bench/bench_data.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill_store.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

constexpr char memory_name[] = "bench/filter";

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

struct Times {
  std::vector<double> select, landmark, lexical, all;
};

// What a search does with the store, but for the model and the text of the results.
void search(const Store& store, const MemoryInfo& memory, const TurnQuery* filter, WorkerPool& pool, int number,
            const std::string& words, Times& times) {
  std::mt19937_64 random(static_cast<uint64_t>(number));
  std::vector<Bf16> query(made_up_shape.landmark_dim);
  for (Bf16& x : query) x = to_bf16(static_cast<float>(random() % 2001) / 1000.0f - 1);
  const auto start = std::chrono::steady_clock::now();
  SelectedChunks selected;
  if (filter != nullptr) {
    const auto selection = must(store.select(memory.id, *filter), "select");
    selected = must(store.selected_chunks(memory.id, *selection), "select chunks");
  }
  const ChunkSet* const only = filter == nullptr ? nullptr : &selected.chunks;
  times.select.push_back(ms_since(start));
  const auto scan = std::chrono::steady_clock::now();
  must(store.top_k(memory.id, query, 100, pool, nullptr, only), "scan");
  times.landmark.push_back(ms_since(scan));
  const auto rank = std::chrono::steady_clock::now();
  must(store.lexical_top_k(memory.id,
                           {.text = words, .end_token = memory.encoded_chunks * chunk_tokens, .k = 100, .only = only}),
       "rank");
  times.lexical.push_back(ms_since(rank));
  times.all.push_back(ms_since(start));
}

}  // namespace

int main(int argc, char** argv) try {
  const BenchData data(argc, argv, 64 << 10);
  // So much that the landmarks of 1 Mi chunks are in RAM.
  const auto store = open_made_up(data.directory(), uint64_t{2} << 30);
  fill_made_up(*store, memory_name, made_up_shape, data.chunks());
  const MemoryInfo memory = must(store->memory(memory_name), "find memory");
  WorkerPool pool(std::max(1u, std::thread::hardware_concurrency()));
  std::printf("%llu chunks, %llu turns\n", static_cast<unsigned long long>(memory.encoded_chunks),
              static_cast<unsigned long long>(memory.turns));

  // Words that the store has: those of its first passages.
  std::vector<std::string> words;
  for (int i = 0; i < 40; ++i) {
    const uint64_t token = static_cast<uint64_t>(i) * (memory.encoded_chunks / 41) * chunk_tokens;
    words.push_back(must(store->passage(memory.id, token, token + 12), "read text").text);
  }
  Times warm;
  for (int i = 0; i < 5; ++i) search(*store, memory, nullptr, pool, i, words[0], warm);

  constexpr std::array<uint64_t, 6> one_in{0, 1, 10, 1'000, 100'000, UINT64_MAX};  // 0: without a filter
  for (const uint64_t& share : one_in) {
    TurnQuery filter;
    filter.key.fill(static_cast<std::byte>(&share - one_in.data()));
    filter.matches = [&](uint64_t number, const Turn&) {  // scattered
      return share != UINT64_MAX && number * 0x9E3779B97F4A7C15ULL / (UINT64_MAX / share) == 0;
    };
    const TurnQuery* const asked = share == 0 ? nullptr : &filter;
    Times first, times;
    search(*store, memory, asked, pool, 1, words[0], first);
    for (int i = 0; i < 40; ++i) search(*store, memory, asked, pool, i, words[static_cast<size_t>(i)], times);
    const std::string what = share == 0            ? "without a filter"
                             : share == UINT64_MAX ? "of no turn"
                                                   : "of one turn in " + std::to_string(share);
    std::printf(
        "%-24s p50 %8.2f ms, p95 %8.2f ms: chunks of the filter %.2f ms, landmarks %.2f ms, words %.2f ms; the first "
        "search %.1f ms\n",
        what.c_str(), percentile(times.all, 0.5), percentile(times.all, 0.95), percentile(times.select, 0.5),
        percentile(times.landmark, 0.5), percentile(times.lexical, 0.5), first.all[0]);
    std::fflush(stdout);
  }
  return 0;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "filter: %s\n", reason.what());
  return 1;
}
