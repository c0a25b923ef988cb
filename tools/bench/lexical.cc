// What the words of chunks cost when they are stored, and how long searches for them take.
//
// Usage: lexical [chunks=65536] [data directory]
// A store is filled without a model, with turns of made-up words that are as frequent as words of a language are: the
// r-th most frequent in proportion to 1 / r, the first hundred being those of English. A directory that holds such a
// store already is used as it is. Searches have five words each, drawn as the text is, so that some are in every chunk
// and some in very few; those of two kinds are told apart: as drawn, and without any of the hundred most frequent ones.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "memstore/catalog.h"
#include "memstore/store.h"
#include "memstore/words.h"
#include "tools/bench/bench_data.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/fill_store.h"

using namespace recalld;
using namespace recalld::bench;

namespace {

constexpr char memory_name[] = "bench/lexical";
constexpr size_t vocabulary = 200'000, frequent = 100;

constexpr const char* english[frequent] = {
    "the",    "of",   "and",  "to",    "a",     "in",   "is",    "it",   "you",   "that",  "he",    "was",   "for",
    "on",     "are",  "with", "as",    "his",   "they", "be",    "at",   "one",   "have",  "this",  "from",  "or",
    "had",    "by",   "not",  "but",   "some",  "what", "there", "we",   "can",   "out",   "other", "were",  "all",
    "your",   "when", "up",   "use",   "word",  "how",  "said",  "an",   "each",  "she",   "which", "do",    "their",
    "time",   "if",   "will", "way",   "about", "many", "then",  "them", "would", "write", "like",  "so",    "these",
    "her",    "long", "make", "thing", "see",   "him",  "two",   "has",  "look",  "more",  "day",   "could", "go",
    "come",   "did",  "my",   "sound", "no",    "most", "who",   "over", "know",  "water", "than",  "call",  "first",
    "people", "may",  "down", "side",  "been",  "now",  "find",  "any",  "new"};

class Words {
 public:
  explicit Words(uint64_t seed) : random_(seed) {}

  std::string draw(size_t least_rank = 0) {
    for (;;) {
      const double u = std::uniform_real_distribution<double>(0, 1)(random_);
      const auto rank = static_cast<size_t>(std::pow(static_cast<double>(vocabulary), u)) - 1;
      if (rank >= least_rank) return word(rank);
    }
  }
  std::string turn() {
    std::string text = draw();
    for (size_t words = 20 + random_() % 100; words > 0; --words) text += (random_() % 12 == 0 ? ", " : " ") + draw();
    return text + ".";
  }

 private:
  static std::string word(size_t rank) {
    if (rank < frequent) return english[rank];
    static constexpr const char* onsets[] = {"b", "d", "f", "g", "k", "l",  "m", "n",
                                             "p", "r", "s", "t", "v", "st", "tr"};
    static constexpr const char* rhymes[] = {"a", "e", "i", "o", "u", "an", "el", "or", "in", "ust"};
    std::string text;
    for (size_t left = rank; left > 0; left /= 150) text += std::string(onsets[left % 15]) + rhymes[left / 15 % 10];
    return text + "ok";
  }
  std::mt19937_64 random_;
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void fill(Store& store, uint64_t chunks) {
  constexpr uint64_t at_once = 256;
  Words words(1);
  std::vector<std::byte> kv(made_up_shape.kv_bytes);
  const std::vector<Bf16> landmark(made_up_shape.landmark_dim);
  const std::vector<EncodedChunkView> views(at_once, EncodedChunkView{landmark, kv});
  double put_s = 0, put_cpu_s = 0;
  const auto known = store.memory(memory_name);
  MemoryInfo memory = known ? *known : MemoryInfo{};
  const uint64_t before = memory.encoded_chunks;
  for (uint64_t first = before; first < chunks; first += at_once) {
    while (memory.tokens < (first + at_once) * chunk_tokens) {
      AppendBatch batch{.memory = memory_name, .turns = {}, .operation_id = "", .now_us = 1};
      for (int i = 0; i < 64; ++i) {
        NewTurn turn;
        turn.turn.content = words.turn();
        const size_t bytes = stream_text(turn.turn).size();
        for (size_t end = 0; end < bytes;) {  // a token covers four bytes
          end = std::min(end + 4, bytes);
          turn.ids.push_back(static_cast<uint32_t>(end % 30'000));
          turn.ends.push_back(static_cast<uint32_t>(end));
        }
        batch.turns.push_back(std::move(turn));
      }
      for (const auto& appended : must(store.append({&batch, 1}), "append")) must(appended, "append");
      memory = must(store.memory(memory_name), "find memory");
    }
    const auto start = std::chrono::steady_clock::now();
    const double cpu_start = cpu_seconds();
    must(store.put(memory.serving, views, std::nullopt), "put");
    put_s += seconds_since(start);
    put_cpu_s += cpu_seconds() - cpu_start;
    memory = must(store.memory(memory_name), "find memory");
  }
  if (before < chunks)
    std::printf("stored %llu chunks, %llu a write: %.1f us a chunk, %.1f us of them computing\n",
                static_cast<unsigned long long>(chunks - before), static_cast<unsigned long long>(at_once),
                1e6 * put_s / static_cast<double>(chunks - before),
                1e6 * put_cpu_s / static_cast<double>(chunks - before));
}

// What indexing a chunk computes, without the disk.
void measure_words() {
  Words words(5);
  std::string text;
  while (text.size() < 4'000'000) text += words.turn() + "\n";
  const double start = cpu_seconds();
  WordReader reader;
  std::vector<Word> found;
  reader.read(text, 0, text.size(), found);
  const double s = cpu_seconds() - start;
  std::printf("reading words: %.0f ns a word, %.1f us for 256 bytes, about a chunk\n",
              1e9 * s / static_cast<double>(found.size()), 1e6 * s * 256 / static_cast<double>(text.size()));
}

void measure(const Store& store, size_t least_rank, const char* what) {
  const MemoryInfo memory = must(store.memory(memory_name), "find memory");
  Words words(77);
  std::vector<double> ms, cpu_ms;
  size_t found = 0;
  for (int i = 0; i < 220; ++i) {
    std::string query = words.draw(least_rank);
    for (int more = 0; more < 4; ++more) query += " " + words.draw(least_rank);
    const auto start = std::chrono::steady_clock::now();
    const double cpu_start = cpu_seconds();
    const auto ranking = must(
        store.lexical_top_k(memory.id, {.text = query, .end_token = memory.encoded_chunks * chunk_tokens, .k = 100}),
        "search");
    if (i >= 20) ms.push_back(1e3 * seconds_since(start));  // the first ones warm up
    if (i >= 20) cpu_ms.push_back(1e3 * (cpu_seconds() - cpu_start));
    found += ranking.best.size();
    if (ranking.unindexed_chunks > 0) throw GaveUp("chunks are not indexed");
  }
  std::printf(
      "%s, %llu chunks, best 100, one thread: p50 %.2f ms, p95 %.2f ms, most %.2f ms; of a core's time p50 %.2f ms, "
      "p95 "
      "%.2f ms (%zu found)\n",
      what, static_cast<unsigned long long>(memory.encoded_chunks), percentile(ms, 0.5), percentile(ms, 0.95),
      percentile(ms, 1), percentile(cpu_ms, 0.5), percentile(cpu_ms, 0.95), found);
}

// What the rows of words take, before blocks share beginnings of keys and are compressed.
void count_rows(const std::filesystem::path& catalog_directory, const StoreStats& stats) {
  const auto catalog = must(Catalog::open({catalog_directory, 64 << 20, 8 << 20}), "open catalog");
  Catalog::Cursor rows = catalog->cursor(Family::postings, "");
  uint64_t count = 0, keys = 0, values = 0;
  for (bool found = must(rows.first(), "read rows"); found; found = must(rows.next(), "read rows")) {
    ++count;
    keys += rows.key().size();
    values += rows.value().size() + sizeof(uint32_t);  // and its checksum
  }
  const auto chunks = static_cast<double>(stats.encoded_chunks);
  std::printf(
      "rows of words: %.1f a chunk, with %.0f bytes of keys and %.0f of values; the catalog on disk, turns and tokens "
      "included: %.0f bytes a chunk\n",
      static_cast<double>(count) / chunks, static_cast<double>(keys) / chunks, static_cast<double>(values) / chunks,
      static_cast<double>(stats.catalog_bytes_on_disk) / chunks);
}

}  // namespace

int main(int argc, char** argv) try {
  const BenchData data(argc, argv, 64 << 10);
  measure_words();
  fill(*open_made_up(data.directory()), data.chunks());
  auto store = open_made_up(data.directory());
  measure(*store, 0, "five words as drawn");
  measure(*store, frequent, "five words without frequent ones");
  const StoreStats stats = must(store->stats(), "stats");
  store.reset();
  count_rows(data.directory() / "catalog", stats);
  return 0;
} catch (const GaveUp& reason) {
  std::fprintf(stderr, "lexical: %s\n", reason.what());
  return 1;
}
