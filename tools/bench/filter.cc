// How long searches take with filters, beside the same searches without one.
//
// Usage: filter [chunks=65536] [data directory]
// A store is filled without a model, with turns of random words and random landmarks. A directory that holds such a
// store already is used as it is. Filters mean every turn, one in ten, one in a thousand, one in a hundred thousand,
// one by its id, a thousandth of the time, and none. Each search with a filter, which finds nothing of it kept and asks
// the index, stands between searches without one, in the order A B B A; medians are told, and their ratio. A
// search by the rows of all turns is told beside it.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
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

constexpr int rounds = 12;
constexpr std::array<uint64_t, 3> groups{10, 1'000, 100'000};

// What the turns say of themselves: a time that rises, to how many groups they belong, and who they are.
int64_t time_of(uint64_t number) {
  return static_cast<int64_t>(number) * 1'000'000 + 1'700'000'000'000'000;
}
uint64_t group_of(uint64_t number, uint64_t of) {  // scattered
  return number * 0x9E3779B97F4A7C15ULL / (UINT64_MAX / of);
}
std::string group_attribute(uint64_t of) {
  return "metadata.of_" + std::to_string(of);
}
std::string id_of(uint64_t number) {
  std::array<char, 48> id{};
  std::snprintf(id.data(), id.size(), "%016llx-%016llx",
                static_cast<unsigned long long>(number * 0x9E3779B97F4A7C15ULL),
                static_cast<unsigned long long>(number));
  return id.data();
}
void describe(uint64_t number, Turn& turn) {
  turn.time_us = time_of(number);
  turn.metadata = std::to_string(number);
}
std::vector<Attribute> read_metadata(std::string_view metadata) {
  const uint64_t number = std::stoull(std::string(metadata));
  std::vector<Attribute> attributes{{"metadata.id", id_of(number)}};
  for (const uint64_t of : groups) attributes.push_back({group_attribute(of), group_of(number, of)});
  return attributes;
}

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
  StoreOptions options;
  options.read_metadata = read_metadata;
  options.memory_budget_bytes = uint64_t{2} << 30;  // so that the landmarks of 1 Mi chunks are in RAM
  const auto store = open_made_up(data.directory(), options);
  fill_made_up(*store, memory_name, made_up_shape, data.chunks(), describe);
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

  struct Asked {
    std::string what;
    TurnCondition condition;
    std::function<bool(uint64_t)> means;  // the same, by the number of the turn
  };
  const auto equals = [](std::string attribute, AttributeValue value) {
    return TurnCondition{
        .kind = TurnCondition::Kind::attribute, .attribute = std::move(attribute), .operands = {std::move(value)}};
  };
  const auto time = [](TurnCondition::Test test, uint64_t number) {
    return TurnCondition{.kind = TurnCondition::Kind::attribute,
                         .attribute = std::string(time_attribute),
                         .test = test,
                         .operands = {AttributeValue(time_of(number))}};
  };
  const uint64_t middle = memory.next_turn / 2, thousandth = memory.next_turn / 1000;
  std::vector<Asked> filters;
  filters.push_back({"of every turn", equals(std::string(role_attribute), "user"), [](uint64_t) { return true; }});
  for (const uint64_t one_in : groups)
    filters.push_back({"of one turn in " + std::to_string(one_in), equals(group_attribute(one_in), uint64_t{7}),
                       [one_in](uint64_t number) { return group_of(number, one_in) == 7; }});
  filters.push_back({"of one turn by its id", equals("metadata.id", id_of(middle)),
                     [middle](uint64_t number) { return number == middle; }});
  filters.push_back(
      {"of a thousandth of the time",
       {.kind = TurnCondition::Kind::all,
        .inside = {time(TurnCondition::Test::from, middle), time(TurnCondition::Test::below, middle + thousandth)}},
       [=](uint64_t number) { return number >= middle && number < middle + thousandth; }});
  filters.push_back({"of no turn", equals("metadata.id", std::string("nobody")), [](uint64_t) { return false; }});

  uint8_t serial = 0;
  uint64_t asked = 0;
  for (const Asked& each : filters) {
    TurnQuery filter;
    filter.matches = [&](uint64_t number, const Turn&) { return each.means(number); };
    filter.key.fill(static_cast<std::byte>(++serial));
    Times rows, whole, first, again;
    search(*store, memory, &filter, pool, 1, words[0], rows);
    filter.condition = std::make_shared<const TurnCondition>(each.condition);
    for (int i = 0; i < rounds; ++i) {
      const std::string& text = words[static_cast<size_t>(i) % words.size()];
      const auto filtered = [&] {
        ++asked;  // so that nothing that was kept answers
        std::memcpy(filter.key.data(), &asked, sizeof asked);
        search(*store, memory, &filter, pool, i, text, first);
      };
      search(*store, memory, nullptr, pool, i, text, whole);
      filtered();
      filtered();
      search(*store, memory, nullptr, pool, i, text, whole);
      search(*store, memory, &filter, pool, i, text, again);
    }
    const double of_whole = percentile(whole.all, 0.5), of_first = percentile(first.all, 0.5);
    std::printf(
        "%-28s %8.2f ms against %8.2f ms without it, %.2f of that: chunks of the filter %.2f ms, landmarks %.2f ms, "
        "words %.2f ms; asked again %.2f ms; by the rows of all turns %.1f ms\n",
        each.what.c_str(), of_first, of_whole, of_first / of_whole, percentile(first.select, 0.5),
        percentile(first.landmark, 0.5), percentile(first.lexical, 0.5), percentile(again.all, 0.5), rows.all[0]);
    std::fflush(stdout);
  }
  return 0;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "filter: %s\n", reason.what());
  return 1;
}
