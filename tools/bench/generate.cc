// How fast answers are written on a GPU whose cache holds a tenth of the chunks of a memory, against one that holds all
// of them, and how long a token waits whose chunks must be read, against what such reads take without recalld, alone
// and with an empty look at the host.
//
// Usage: generate [memory tokens=1048576] [directory of the store]
// Fills a memory through a daemon, or what is missing of it in a store that is there; without a directory the store is
// a temporary one. A tenth of its chunks must make a cache: with the starter that takes 400,000 tokens. Questions and
// passages of prose are then answered with 256 tokens each, the best but for the end of the line: with all chunks
// cached, with a tenth of the slots and nothing in them (cold: each answer), with a tenth after the same prompts
// (warm), and with all cached again; one at a time, where each token is timed, and 4 side by side. Exits with 77 where
// there is no GPU, with 1 when answers differ; goals that are missed do the same on an H200.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <spdlog/spdlog.h>

#include "daemon/generator.h"
#include "daemon/gpu_decoder.h"
#include "memstore/file_io.h"
#include "memstore/store.h"
#include "model/ramba.h"
#include "model/tokenizer.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill.h"
#include "tools/bench/gpu_look.h"
#include "tools/bench/gpu_setup.h"
#include "tools/bench/prose.h"
#include "tools/bench/read_batches.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

using Clock = std::chrono::steady_clock;
using Tokens = std::vector<uint32_t>;

constexpr char memory_name[] = "bench/generate";
constexpr size_t answer_tokens = 256;
constexpr size_t side_by_side = 4;
constexpr double cached_speed_min = 0.95;  // of a token whose chunks are cached, to one with all K/V resident
constexpr double wait_max = 1.3;           // of a token that misses chunks, to what fio needs for as many
constexpr double mib = 1 << 20;

constexpr const char* questions[] = {
    "What did Marta repair in the cellar last week?",   "Who sold the old bicycle at the market?",
    "How much did the plumber pay for the boiler?",     "Where is the spare key?",
    "When was the piano carried across the river?",     "To whom does the blue umbrella stand in the attic belong?",
    "What did Dr. Halloran forget behind the station?", "Which telescope was photographed near the old harbour?",
};

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// A directory that is removed in the end, unless the user named it.
class StoreDirectory {
 public:
  explicit StoreDirectory(const char* named)
      : path_(named ? std::filesystem::absolute(named)
                    : std::filesystem::temp_directory_path() / ("recalld-bench-generate-" + std::to_string(getpid()))),
        keep_(named != nullptr) {}
  ~StoreDirectory() {
    std::error_code ignored;
    if (!keep_) std::filesystem::remove_all(path_, ignored);
  }
  StoreDirectory(const StoreDirectory&) = delete;
  StoreDirectory& operator=(const StoreDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  const std::filesystem::path path_;
  const bool keep_;
};

// ---- The store

std::unique_ptr<Store> open_store(const std::filesystem::path& data, const RecordShape& shape) {
  StoreOptions options;
  options.shape = shape;
  options.memory_budget_bytes = options.memory_budget_bytes / 4 * 3;  // as the daemon shares it out
  return must(Store::open(data, std::move(options)), "open store");
}

void fill_store(const std::filesystem::path& data, const RecordShape& shape, uint64_t tokens) {
  uint64_t there = 0;
  if (std::filesystem::exists(data)) {
    const auto memory = open_store(data, shape)->memory(memory_name);
    there = memory ? memory->encoded_chunks * chunk_tokens : 0;
  }
  if (there >= tokens) return;
  DaemonProcess daemon(built_recalld(), data, {"--device", "cuda"});
  client::Client client = daemon.connect();
  const FillReport report = fill(client, memory_name, tokens - there, 1 + there);
  std::printf("filled with %llu tokens: durable after %.1f s, searchable after %.1f s\n",
              static_cast<unsigned long long>(report.tokens), report.durable_s, report.searchable_s);
}

// A GPU whose cache has as many slots. What the rest takes depends on the budget, so that a few are tried.
std::unique_ptr<Gpu> open_with_slots(uint64_t slots) {
  constexpr int attempts_max = 10;
  auto gpu = open_served_gpu();
  for (int attempt = 0; gpu->slots() != slots; ++attempt) {
    if (attempt == attempts_max) give_up("find a budget for the GPU", "none gives " + std::to_string(slots) + " slots");
    const GpuUsage usage = gpu->usage();
    const uint64_t slot_bytes = usage.cache_bytes / gpu->slots();
    // Landmarks get as much as the cache.
    const uint64_t budget_bytes =
        usage.weights_bytes + usage.states_bytes + usage.workspace_bytes + 2 * slots * slot_bytes;
    gpu.reset();
    gpu = open_served_gpu(budget_bytes);
  }
  return gpu;
}

// ---- Answers

struct Kind {
  const char* name;
  std::vector<Tokens> prompts;
};

// One token that was written, with what GpuDecoder says of it.
struct Token {
  double us = 0;
  uint64_t hits = 0, misses = 0, read_bytes = 0;
  GpuDecoder::Times times = {};  // of one that was written alone
};

struct Run {
  std::vector<Token> tokens;  // one answer at a time
  std::vector<double> prompt_us;
  double side_by_side_s = 0;  // of so many tokens, several answers at a time
  uint64_t side_by_side_tokens = 0;
  std::vector<Tokens> answers;  // one at a time, and then side by side

  void add(Run other) {
    std::ranges::move(other.tokens, std::back_inserter(tokens));
    std::ranges::move(other.prompt_us, std::back_inserter(prompt_us));
    std::ranges::move(other.answers, std::back_inserter(answers));
    side_by_side_s += other.side_by_side_s;
    side_by_side_tokens += other.side_by_side_tokens;
  }
};

enum class Cache {
  cold,  // empty before each answer, or each few that are side by side
  warm,  // the same prompts were answered before
};

class Answers {
 public:
  Answers(const Store& store, const Ramba& model, const Tokenizer& tokenizer, MemoryInfo memory)
      : store_(store), model_(model), tokenizer_(tokenizer), memory_(std::move(memory)) {}

  // As the daemon asks it, but for the last token, which only a question has.
  Tokens prompt(const Tokens& asked) const {
    const uint64_t count = std::min(memory_.serving.tokens, Generator::context_tokens);
    Tokens tokens = must(store_.tokens(memory_.serving, memory_.serving.tokens - count, count), "read tokens");
    tokens.insert(tokens.end(), asked.begin(), asked.end());
    return tokens;
  }

  Run run(Gpu& gpu, const Kind& kind, Cache cache) const {
    Run run;
    std::unique_ptr<GpuDecoder> decoder;
    const auto renew = [&] {
      decoder.reset();  // its memories must be gone before there are others
      decoder = std::make_unique<GpuDecoder>(store_, model_, gpu);
    };
    renew();
    if (cache == Cache::warm)
      for (const Tokens& prompt : kind.prompts) {
        Run before;
        answer(*decoder, prompt, before);
      }
    for (const Tokens& prompt : kind.prompts) {
      if (cache == Cache::cold) renew();
      answer(*decoder, prompt, run);
    }
    for (size_t first = 0; first < kind.prompts.size(); first += side_by_side) {
      if (cache == Cache::cold) renew();
      const auto prompts = std::span(kind.prompts).subspan(first);
      answer_side_by_side(*decoder, prompts.first(std::min(side_by_side, prompts.size())), run);
    }
    return run;
  }

 private:
  std::unique_ptr<Decoder::Stream> open(GpuDecoder& decoder) const {
    Decoder::Source source{
        .memory = memory_, .stored_chunks = memory_.encoded_chunks, .tail_landmarks = {}, .tail_kv = {}};
    return must(decoder.open(std::move(source)), "begin an answer");
  }

  uint32_t best(std::span<const float> logits) const {
    size_t best = tokenizer_.newline_id() == 0 ? 1 : 0;
    for (size_t token = 0; token < logits.size(); ++token)
      if (logits[token] > logits[best] && token != tokenizer_.newline_id()) best = token;
    return static_cast<uint32_t>(best);
  }

  // The first token of the answer.
  uint32_t read(GpuDecoder& decoder, Decoder::Stream& stream, std::span<const uint32_t> prompt) const {
    std::vector<float> logits;
    for (size_t done = 0; done < prompt.size(); done += chunk_tokens) {
      const auto part = prompt.subspan(done, std::min<size_t>(chunk_tokens, prompt.size() - done));
      logits = must(decoder.read(stream, part, done + part.size() == prompt.size()), "read a prompt").logits;
    }
    return best(logits);
  }

  void answer(GpuDecoder& decoder, const Tokens& prompt, Run& run) const {
    const auto stream = open(decoder);
    const auto start = Clock::now();
    Tokens answer{read(decoder, *stream, prompt)};
    run.prompt_us.push_back(us_since(start));
    while (answer.size() <= answer_tokens) {
      const Decoder::Written written{stream.get(), answer.back()};
      const GpuDecoder::Counts before = decoder.counts();
      const auto begin = Clock::now();
      auto reads = decoder.write({&written, 1});
      while (!reads.front()) reads = decoder.write({&written, 1});
      const double us = us_since(begin);
      const GpuDecoder::Counts after = decoder.counts();
      run.tokens.push_back({us, after.hits - before.hits, after.misses - before.misses,
                            after.read_bytes - before.read_bytes, decoder.times()});
      answer.push_back(best(must(*std::move(reads.front()), "write a token").logits));
    }
    run.answers.push_back(std::move(answer));
  }

  void answer_side_by_side(GpuDecoder& decoder, std::span<const Tokens> prompts, Run& run) const {
    std::vector<std::unique_ptr<Decoder::Stream>> streams;
    std::vector<Tokens> answers;
    for (const Tokens& prompt : prompts) {
      streams.push_back(open(decoder));
      answers.push_back({read(decoder, *streams.back(), prompt)});
    }
    const auto start = Clock::now();
    while (true) {
      std::vector<Decoder::Written> written;
      std::vector<size_t> of_written;
      for (size_t i = 0; i < answers.size(); ++i) {
        if (answers[i].size() > answer_tokens) continue;
        written.push_back({streams[i].get(), answers[i].back()});
        of_written.push_back(i);
      }
      if (written.empty()) break;
      auto reads = decoder.write(written);
      for (size_t w = 0; w < reads.size(); ++w)
        if (reads[w]) answers[of_written[w]].push_back(best(must(*std::move(reads[w]), "write tokens").logits));
    }
    run.side_by_side_s += 1e-6 * us_since(start);
    run.side_by_side_tokens += answers.size() * answer_tokens;
    std::ranges::move(answers, std::back_inserter(run.answers));
  }

  const Store& store_;
  const Ramba& model_;
  const Tokenizer& tokenizer_;
  const MemoryInfo memory_;
};

// Question prompts as the daemon makes them, and passages that go on.
std::vector<Kind> kinds(const Answers& answers, const Tokenizer& tokenizer) {
  Kind asking{"questions", {}}, telling{"prose", {}};
  for (const char* const question : questions)
    asking.prompts.push_back(answers.prompt(tokenizer.encode_query(question)));
  Prose prose(77);
  for (size_t i = 0; i < std::size(questions); ++i) {
    Tokens passage{tokenizer.newline_id()};
    std::ranges::copy(tokenizer.encode(prose.turn() + " " + prose.sentence()).ids, std::back_inserter(passage));
    telling.prompts.push_back(answers.prompt(passage));
  }
  return {std::move(asking), std::move(telling)};
}

// ---- What came of it

std::vector<double> times(const std::vector<Token>& tokens, auto chosen) {
  std::vector<double> us;
  for (const Token& token : tokens)
    if (chosen(token)) us.push_back(token.us);
  return us;
}

bool has_no_misses(const Token& token) {
  return token.misses == 0;
}

// Times of tokens by the number of chunks that they missed.
std::map<uint64_t, std::vector<double>> by_misses(const std::vector<Token>& tokens) {
  std::map<uint64_t, std::vector<double>> us;
  for (const Token& token : tokens) us[token.misses].push_back(token.us);
  return us;
}

void report(const char* name, const Run& run) {
  Token all;
  for (const Token& token : run.tokens) {
    all.us += token.us;
    all.hits += token.hits;
    all.misses += token.misses;
    all.read_bytes += token.read_bytes;
  }
  std::printf(
      "  %-14s %6.0f tokens/s, %6.0f with %zu side by side; prompts read in %.1f ms; hit rate %.4f, %llu chunks (%.1f "
      "MiB) read for %zu tokens\n",
      name, 1e6 * static_cast<double>(run.tokens.size()) / all.us,
      static_cast<double>(run.side_by_side_tokens) / run.side_by_side_s, side_by_side, median(run.prompt_us) / 1e3,
      static_cast<double>(all.hits) / static_cast<double>(std::max<uint64_t>(1, all.hits + all.misses)),
      static_cast<unsigned long long>(all.misses), static_cast<double>(all.read_bytes) / mib, run.tokens.size());
  std::printf("    median us of a token by the chunks that it missed:");
  for (const auto& [misses, us] : by_misses(run.tokens))
    std::printf("  %llu: %.1f (%zu)", static_cast<unsigned long long>(misses), median(us), us.size());
  std::printf("\n");
}

void report_cached_speed(const char* name, const Run& resident, const Run& run, Goals& goals) {
  const auto us = times(run.tokens, has_no_misses);
  if (us.empty()) {
    std::printf("  %-14s no token had all its chunks in the cache\n", name);
    return;
  }
  const double speed = median(times(resident.tokens, has_no_misses)) / median(us);
  std::printf("  %-14s tokens whose chunks are cached: %.3f of the speed with all K/V resident (goal: %.2f) %s\n", name,
              speed, cached_speed_min, goals.fast(speed >= cached_speed_min));
}

// Where the time of tokens with misses goes, on the host's clock. What a token takes up to its choice and from it to
// its logits is known from those whose chunks were cached; the rest is what a wait is made of:
// - decided: the host has seen what is missing, and the reads are on their way
// - read: the last record has come and is what was stored. Meanwhile the GPU is told what follows (told), which costs
//   something only where it takes longer than the first read
// - gone on: the GPU has seen that, has copied what was not copied yet, and has found all chunks
// - rest: what the parts before and behind take longer than in tokens whose chunks were cached
void report_timeline(const std::vector<Token>& tokens) {
  constexpr size_t tokens_min = 20;
  using Time = GpuDecoder::Times::Time;
  const auto median_us = [](const std::vector<const Token*>& of, Time GpuDecoder::Times::*from,
                            Time GpuDecoder::Times::*to) {
    std::vector<double> us;
    for (const Token* const token : of)
      us.push_back(std::chrono::duration<double, std::micro>(token->times.*to - token->times.*from).count());
    return median(us);
  };
  std::map<uint64_t, std::vector<const Token*>> of_misses;
  for (const Token& token : tokens)
    if (token.misses == 0 || token.times.resumed != Time{}) of_misses[token.misses].push_back(&token);
  using Times = GpuDecoder::Times;
  const double before_us = median_us(of_misses[0], &Times::begun, &Times::chosen);
  const double behind_us = median_us(of_misses[0], &Times::chosen, &Times::done);
  std::printf(
      "  where a wait goes, medians; a token whose chunks are cached chooses after %.1f and is done %.1f later\n",
      before_us, behind_us);
  for (const auto& [misses, of] : of_misses) {
    if (misses == 0 || of.size() < tokens_min) continue;
    std::printf("  %2llu missed: decided %.1f, read %.1f (told %.1f), gone on %.1f, rest %.1f before and %.1f behind\n",
                static_cast<unsigned long long>(misses), median_us(of, &Times::chosen, &Times::reading),
                median_us(of, &Times::reading, &Times::arrived), median_us(of, &Times::reading, &Times::prepared),
                median_us(of, &Times::arrived, &Times::resumed),
                median_us(of, &Times::begun, &Times::chosen) - before_us,
                median_us(of, &Times::resumed, &Times::done) - behind_us);
  }
}

// How long tokens with misses waited, against as many reads without recalld. With several groups the chunks of a token
// are not read in one batch but in one a group: then this is more than what it is compared with.
void report_waits(const Store& store, const MemoryInfo& memory, const RecordShape& shape,
                  const std::vector<Token>& tokens, const ReadBatches& reads, Goals& goals) {
  constexpr size_t tokens_min = 20;  // fewer say nothing
  constexpr unsigned fio_s = 2;
  const auto us = by_misses(tokens);
  std::printf("waiting for chunks, us (all tokens with a tenth of the slots), beside batches of reads (%s)\n",
              reads.describe().c_str());
  if (!us.contains(0)) {
    std::printf("  no token had all its chunks in the cache: there is nothing to compare with\n");
    return;
  }
  // A token that waits goes on by way of the host, whatever the reads take.
  constexpr size_t kernels_of_model = 64;  // about as many as the starter's upper half has
  const auto look_us = empty_look_us(1), long_look_us = empty_look_us(kernels_of_model);
  if (look_us && long_look_us)
    std::printf("  an empty look at the host takes %.1f, %.1f where the graph behind it has %zu kernels\n", *look_us,
                *long_look_us, kernels_of_model);
  else
    std::printf("  an empty look at the host was not measured\n");
  report_timeline(tokens);
  const double cached_us = median(us.at(0));
  const std::chrono::microseconds rest(static_cast<int64_t>(cached_us));
  std::mt19937 random(3);
  for (const auto& [misses, times] : us) {
    if (misses == 0 || times.size() < tokens_min) continue;
    const double wait_us = median(times) - cached_us, plain_us = reads.plain_us(misses, random);
    const double rested_us = reads.plain_us(misses, random, rest);
    std::printf(
        "  %2llu missed (%5zu tokens): waits %.1f; plain reads, median %.1f, ratio %.2f; after rests as long as a "
        "token takes %.1f, ratio %.2f; the store's fetch %.1f and %.1f",
        static_cast<unsigned long long>(misses), times.size(), wait_us, plain_us, wait_us / plain_us, rested_us,
        wait_us / rested_us, fetch_us(store, memory, shape.kv_bytes, misses, random),
        fetch_us(store, memory, shape.kv_bytes, misses, random, rest));
    if (look_us) std::printf("; ratio with an empty look %.2f", wait_us / (plain_us + *look_us));
    const auto fio_us = reads.fio_us(misses, fio_s);
    if (fio_us) std::printf("; fio, mean %.1f, ratio %.2f", *fio_us, wait_us / *fio_us);
    std::printf(" (goal: %.1f) %s\n", wait_max, goals.fast(wait_us <= wait_max * fio_us.value_or(plain_us)));
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const uint64_t tokens = argc > 1 ? std::stoull(argv[1]) : uint64_t{1} << 20;
  const StoreDirectory directory(argc > 2 ? argv[2] : nullptr);
  setvbuf(stdout, nullptr, _IOLBF, 0);
  spdlog::set_level(spdlog::level::warn);

  const std::string card = open_served_gpu()->name();
  Goals goals(card);
  WorkerPool pool(1);
  const std::filesystem::path model_directory = served_model();
  const auto model = must(Ramba::open(model_directory, Precision::automatic, Parts::lower, pool), "open model");
  const RecordShape shape{.kv_bytes = static_cast<uint32_t>(model->kv_bytes()),
                          .landmark_dim = static_cast<uint32_t>(model->landmark_dim()),
                          .state_bytes = static_cast<uint32_t>(model->lower_state_bytes()),
                          .model = model->hash()};
  const Config& config = model->config();
  const Tokenizer tokenizer =
      must(Tokenizer::open(model_directory / "tokenizer.model", config.recall_token_id, config.newline_token_id),
           "open tokenizer");
  fill_store(directory.path(), shape, tokens);
  const auto store = open_store(directory.path(), shape);
  const MemoryInfo memory = must(store->memory(memory_name), "find memory");
  const Answers answers(*store, *model, tokenizer, memory);
  const std::vector<Kind> asked = kinds(answers, tokenizer);
  std::printf("%s; %.3f Mi tokens in %llu chunks of %.0f KiB, %zu groups that attend to %zu each; %zu prompts a kind\n",
              card.c_str(), static_cast<double>(memory.tokens) / mib,
              static_cast<unsigned long long>(memory.encoded_chunks), static_cast<double>(shape.kv_bytes) / 1024,
              config.num_upper_groups, config.retrieval_heads() * config.chunk_topk, std::size(questions));

  std::vector<Run> resident(asked.size()), cold(asked.size()), warm(asked.size());
  const auto run_all = [&](uint64_t slots, Cache cache, std::vector<Run>& runs) {
    const auto gpu = open_with_slots(slots);
    std::printf("%llu slots: a budget of %.0f MiB\n", static_cast<unsigned long long>(slots),
                static_cast<double>(gpu->usage().budget_bytes) / mib);
    for (size_t i = 0; i < asked.size(); ++i) runs[i].add(answers.run(*gpu, asked[i], cache));
  };
  const uint64_t tenth = memory.encoded_chunks / 10;
  run_all(memory.encoded_chunks, Cache::warm, resident);
  run_all(tenth, Cache::cold, cold);
  run_all(tenth, Cache::warm, warm);
  run_all(memory.encoded_chunks, Cache::warm, resident);

  std::vector<Token> of_tenth;
  for (size_t i = 0; i < asked.size(); ++i) {
    std::printf("%s\n", asked[i].name);
    report("all resident", resident[i]);
    report("a tenth, cold", cold[i]);
    report("a tenth, warm", warm[i]);
    report_cached_speed("cold", resident[i], cold[i], goals);
    report_cached_speed("warm", resident[i], warm[i], goals);
    std::printf("  nothing was read with all resident: %s\n",
                goals.right(std::ranges::all_of(resident[i].tokens, has_no_misses)));
    const size_t prompts = asked[i].prompts.size();
    bool same = true;
    for (const Run* run : {&resident[i], &cold[i], &warm[i]})
      for (size_t a = 0; a < run->answers.size(); ++a) same &= run->answers[a] == resident[i].answers[a % prompts];
    std::printf("  the answers are the same, one at a time and side by side: %s\n", goals.right(same));
    for (const Run* run : {&cold[i], &warm[i]}) std::ranges::copy(run->tokens, std::back_inserter(of_tenth));
  }
  report_waits(*store, memory, shape, of_tenth, ReadBatches(*store, memory, directory.path(), shape.kv_bytes), goals);
  return goals.conclude();
} catch (const NoGpu& reason) {
  std::fprintf(stderr, "generate: skipped: %s\n", reason.what());
  return skipped;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "generate: %s\n", reason.what());
  return 1;
}
