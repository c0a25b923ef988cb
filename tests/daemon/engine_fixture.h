// An engine with the starter, whose answers and ranks tests may name, one call at a time, and what its store holds once
// it is closed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/engine.h"
#include "memstore/data_directory.h"
#include "memstore/store.h"
#include "tests/support/checkpoints.h"
#include "tests/support/temp_dir.h"

namespace recalld {

template <class T>
T must(Expected<T> value) {
  if (!value) throw std::runtime_error(value.error().message);
  if constexpr (!std::is_void_v<T>) return *std::move(value);
}

// Waits for the answer of one call.
template <class Reply, class Call>
Expected<Reply> answer(Call call) {
  std::promise<Expected<Reply>> promise;
  auto future = promise.get_future();
  call([&promise](Expected<Reply> reply) { promise.set_value(std::move(reply)); });
  return future.get();
}

// What a memory is, byte for byte.
struct MemoryContents {
  std::vector<StoredTurn> turns;
  std::vector<uint32_t> tokens;
  std::vector<std::string> landmarks;
  std::vector<std::byte> kv;            // of all chunks
  std::vector<StateCheckpoint> states;  // all that are kept
  MemoryInfo info;
};

inline std::unique_ptr<Store> open_store(const std::filesystem::path& data) {
  StoreOptions options;
  const auto stamp = must(DataDirectory::stamp(data));
  if (!stamp) throw std::runtime_error(data.string() + " holds no store");
  options.shape = *stamp;
  options.memory_budget_bytes = uint64_t{64} << 20;
  return must(Store::open(data, std::move(options)));
}

inline MemoryContents contents_of(const Store& store, const std::string& memory, uint32_t kv_bytes) {
  MemoryContents all;
  all.info = must(store.memory(memory));
  const MemoryId id = all.info.id;
  for (uint64_t next = 0; next < all.info.next_turn;) {
    auto page = must(store.turns(id, next, 1000, size_t{1} << 20));
    if (page.empty()) break;
    next = page.back().turn + 1;
    std::move(page.begin(), page.end(), std::back_inserter(all.turns));
  }
  all.tokens = must(store.tokens(id, 0, all.info.tokens));
  std::vector<uint64_t> chunks;
  for (uint64_t chunk = 0; chunk < all.info.encoded_chunks; ++chunk) {
    chunks.push_back(chunk);
    const std::vector<Bf16> landmark = must(store.landmark(id, chunk));
    all.landmarks.emplace_back(as_text(std::as_bytes(std::span(landmark))));
  }
  all.kv.resize(chunks.size() * kv_bytes);
  must(store.fetch(id, chunks, all.kv));
  for (uint64_t after = 0;;) {
    auto state = must(store.next_state(all.info.serving, after, UINT64_MAX));
    if (!state) break;
    after = state->chunks;
    all.states.push_back(*std::move(state));
  }
  return all;
}

inline MemoryContents contents_of(const std::filesystem::path& data, const std::string& memory) {
  const auto stamp = must(DataDirectory::stamp(data));
  return contents_of(*open_store(data), memory, stamp->kv_bytes);
}

// Compares everything but the numbers of turns, which tell what was there before, and the times.
inline void expect_same_encodings(const MemoryContents& a, const MemoryContents& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.landmarks.size(), b.landmarks.size());
  EXPECT_TRUE(a.landmarks == b.landmarks);
  EXPECT_TRUE(a.kv == b.kv);
  ASSERT_EQ(a.states.size(), b.states.size());
  for (size_t i = 0; i < a.states.size(); ++i) {
    EXPECT_EQ(a.states[i].chunks, b.states[i].chunks);
    EXPECT_TRUE(a.states[i].bytes == b.states[i].bytes) << "after " << a.states[i].chunks << " chunks";
  }
  ASSERT_EQ(a.turns.size(), b.turns.size());
  for (size_t i = 0; i < a.turns.size(); ++i) {
    EXPECT_EQ(a.turns[i].value.content, b.turns[i].value.content);
    EXPECT_EQ(a.turns[i].first_token, b.turns[i].first_token);
    EXPECT_EQ(a.turns[i].tokens, b.turns[i].tokens);
  }
}

// Fills an empty directory with the starter and a table of meaning, which is of the same tokenizer.
inline void copy_starter_with_meaning(const std::filesystem::path& to) {
  std::filesystem::copy(starter_checkpoint(), to, std::filesystem::copy_options::recursive);
  std::filesystem::copy(default_checkpoint() / "meaning.safetensors", to);
}

// One engine at a time on a directory of its own.
class EngineDriver {
 public:
  explicit EngineDriver(std::filesystem::path data, std::filesystem::path model = starter_checkpoint())
      : data_(std::move(data)), model_(std::move(model)) {}

  Expected<void> try_open(bool reencode = false) {
    EngineOptions options;
    options.data = data_;
    options.model = model_;
    options.memory_budget_bytes = 64 << 20;
    options.threads = threads_;
    options.reencode = reencode;
    if (open_gpu_) options.device = Device::cuda;
    options.open_gpu = open_gpu_;
    options.now_us = [this] { return ++now_us_; };
    auto engine = Engine::open(std::move(options));
    if (!engine) return std::unexpected(std::move(engine).error());
    engine_ = *std::move(engine);
    return {};
  }
  void open(bool reencode = false) { must(try_open(reencode)); }
  void close() { engine_.reset(); }
  void use_model(std::filesystem::path model) { model_ = std::move(model); }
  void use_threads(size_t threads) { threads_ = threads; }
  void use_gpu(decltype(EngineOptions::open_gpu) open) { open_gpu_ = std::move(open); }

  const std::filesystem::path& data() const { return data_; }
  Engine& operator*() { return *engine_; }
  Engine* operator->() { return engine_.get(); }

  static AppendRequest request(const std::string& memory, const std::vector<std::string>& contents) {
    AppendRequest request;
    request.memory = memory;
    for (const std::string& content : contents)
      request.turns.push_back(
          {Turn{.role = Role::user, .name = {}, .content = content, .time_us = 0, .metadata = {}}, false});
    return request;
  }
  Expected<AppendReply> append(AppendRequest request) {
    return answer<AppendReply>([&](auto done) { engine_->append(std::move(request), std::move(done)); });
  }
  Expected<AppendReply> try_append(const std::string& memory, const std::vector<std::string>& contents,
                                   bool searchable = false) {
    AppendRequest r = request(memory, contents);
    r.wait_searchable = searchable;
    return append(std::move(r));
  }
  AppendReply append(const std::string& memory, const std::vector<std::string>& contents, bool searchable = false) {
    return must(try_append(memory, contents, searchable));
  }
  Expected<SearchReply> try_search(const std::string& memory, const std::string& query, size_t limit = 16,
                                   SearchMode mode = SearchMode::hybrid) {
    SearchRequest request{.memory = memory,
                          .query = query,
                          .mode = mode,
                          .limit = limit,
                          .max_tokens = {},
                          .min_score = {},
                          .explain = true};
    return answer<SearchReply>([&](auto done) { engine_->search(std::move(request), std::move(done)); });
  }
  // All text that a search shows, the explanations too.
  std::string found(const std::string& memory, const std::string& query, size_t limit = 16) {
    const SearchReply reply = must(try_search(memory, query, limit));
    std::string text;
    for (const auto& result : reply.results) {
      text += result.passage.text;
      for (const auto& match : result.why->matches) text += match.text;
    }
    return text;
  }
  Expected<Receipt> try_forget(ForgetRequest request) {
    return answer<Receipt>([&](auto done) { engine_->forget(std::move(request), std::move(done)); });
  }
  Receipt forget(const std::string& memory, std::vector<TurnRange> turns, bool wait = true) {
    return must(
        try_forget({.memory = memory, .turns = std::move(turns), .filter = {}, .dry_run = false, .wait = wait}));
  }
  DeleteReply remove(const std::string& memory, bool wait = true) {
    return must(answer<DeleteReply>([&](auto done) { engine_->memories_delete({memory, wait}, std::move(done)); }));
  }
  Expected<JobView> reencode(const std::filesystem::path& model, bool cancel = false) {
    return answer<JobView>([&](auto done) { engine_->reencode({model.string(), cancel}, std::move(done)); });
  }
  std::vector<StoredTurn> turns(const std::string& memory) {
    std::vector<StoredTurn> turns;
    for (std::optional<uint64_t> first = 0; first;) {
      auto page = must(answer<TurnsListReply>([&](auto done) {
        engine_->turns_list({.memory = memory, .first = *first, .limit = 1000}, std::move(done));
      }));
      std::move(page.turns.begin(), page.turns.end(), std::back_inserter(turns));
      first = page.next_first;
    }
    return turns;
  }
  ChunkDetail chunk(const std::string& memory, uint64_t chunk) {
    return must(answer<ChunkDetail>([&](auto done) { engine_->chunks_get(memory, chunk, std::move(done)); }));
  }
  MemoryInfo info(const std::string& memory) {
    return must(answer<MemoryView>([&](auto done) { engine_->memories_get(memory, std::move(done)); })).info;
  }
  std::vector<JobView> jobs() {
    return must(answer<StatsReply>([&](auto done) { engine_->stats(std::move(done)); })).jobs;
  }
  JobView job(uint64_t number) {
    for (JobView& job : jobs())
      if (job.job == number) return std::move(job);
    throw std::runtime_error("there is no job " + std::to_string(number));
  }

  // Waits until no job runs and no chunk waits.
  void settle() {
    wait_for("everything to be done", [&] {
      const auto stats = must(answer<StatsReply>([&](auto done) { engine_->stats(std::move(done)); }));
      return stats.store.waiting_chunks == 0 && std::ranges::count(stats.jobs, "running", &JobView::state) == 0;
    });
  }
  static void wait_for(const std::string& what, const std::function<bool()>& is_so) {
    for (const auto start = std::chrono::steady_clock::now(); !is_so();) {
      if (std::chrono::steady_clock::now() - start > std::chrono::minutes(2))
        throw std::runtime_error("waited two minutes for " + what);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

 private:
  std::filesystem::path data_;
  std::filesystem::path model_;
  size_t threads_ = 0;
  decltype(EngineOptions::open_gpu) open_gpu_;
  std::atomic<int64_t> now_us_ = 1'700'000'000'000'000;  // a clock that never stands still
  std::unique_ptr<Engine> engine_;
};

// What an engine holds that got nothing but `contents`, as memory "m".
inline MemoryContents contents_made_of(const std::vector<std::string>& contents,
                                       const std::filesystem::path& model = starter_checkpoint()) {
  const TempDir directory;
  EngineDriver engine(directory.path() / "data", model);
  engine.open();
  engine.append("m", contents, true);
  engine.settle();
  engine.close();
  return contents_of(engine.data(), "m");
}

// What tests say, ask for and forget.
inline constexpr char secret[] = "Quillon keeps the marzipan ledger under the third slab.";
inline constexpr char secret_words[] = "marzipan ledger";
inline constexpr char secret_question[] = "Where does Quillon keep the marzipan ledger?";
inline constexpr char fact[] = "The code for the lamp room is 60417.";
inline constexpr char question[] = "What is the code for the lamp room?";

inline std::string log_entry(size_t number) {
  return "Entry " + std::to_string(number) + ": the tide turned at " + std::to_string(number % 12) + " and " +
         std::to_string(number % 5) + " boats came in with herring, rope and wet sails.";
}
inline std::vector<std::string> harbour_log(size_t first, size_t end) {
  std::vector<std::string> log;
  for (size_t i = first; i < end; ++i) log.push_back(log_entry(i));
  return log;
}

}  // namespace recalld
