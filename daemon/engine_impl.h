// What the engine is made of; for engine.cc and the files engine_*.cc only.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>

#include "daemon/append_queue.h"
#include "daemon/decoder.h"
#include "daemon/encoder.h"
#include "daemon/engine.h"
#include "daemon/forgetter.h"
#include "daemon/fusion.h"
#include "daemon/generator.h"
#include "daemon/gpu_decoder.h"
#include "daemon/indexer.h"
#include "daemon/jobs.h"
#include "daemon/model_thread.h"
#include "daemon/passages.h"
#include "daemon/reencoder.h"
#include "daemon/successor.h"
#include "daemon/transfer.h"
#include "daemon/upkeep.h"
#include "model/backend.h"
#include "model/meaning.h"

namespace recalld {

class Engine::Impl {
 public:
  using Clock = std::chrono::steady_clock;
  static double milliseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }

  static double milliseconds_between(Clock::time_point start, Clock::time_point end) {
    return std::chrono::duration<double, std::milli>(end - start).count();
  }

  explicit Impl(EngineOptions options);

  Expected<void> open();
  ~Impl();

  void interrupt();

  void append(AppendRequest request, Done<AppendReply> done);
  void search(SearchRequest request, Done<SearchReply> done);
  void generate(GenerateRequest request, Done<GenerateReply> done);
  Generator& generator() { return *generator_; }

  // Runs `read` on a read worker and hands its result to `done`.
  template <class Reply, class Read>
  void read(Done<Reply> done, Read read) {
    boost::asio::post(readers_, [done = std::move(done), read = std::move(read)]() mutable { done(read()); });
  }

  Expected<MemoryView> view(MemoryInfo info) const;
  Expected<MemoriesListReply> memories_list(const MemoriesListRequest& request) const;
  Expected<MemoryView> memories_get(const std::string& memory) const;
  Expected<TurnsListReply> turns_list(const TurnsListRequest& request) const;
  Expected<ChunksListReply> chunks_list(const ChunksListRequest& request) const;
  Expected<ChunkDetail> chunks_get(const std::string& memory, uint64_t chunk) const;
  Expected<StatsReply> stats() const;
  Expected<HealthReply> health() const;

  // Runs `begin`, which calls `done` itself, on a read worker.
  template <class Begin>
  void start(Begin begin) {
    boost::asio::post(readers_, std::move(begin));
  }
  Forgetter& forgetter() { return *forgetter_; }
  void reencode(ReencodeRequest request, Done<JobView> done);
  Transfer& transfer() { return *transfer_; }
  void import_memory(ImportRequest request, Done<ImportReply> done);
  void backup(BackupRequest request, Done<BackupReply> done);
  Upkeep& upkeep() { return *verifier_; }

  std::string device() const { return gpu_ ? "cuda (" + gpu_name_ + ")" : "cpu"; }
  Hash128 model_hash() const { return model_->hash(); }
  bool overloaded() const { return appends_->waiting_bytes() > options_.memory_budget_bytes / 8; }

 private:
  struct Waiter {
    uint64_t chunks = 0;  // the memory must have as many encoded
    AppendReply reply;
    Done<AppendReply> done;
  };
  struct Query {
    SearchRequest request;
    std::vector<uint32_t> tokens;
    Clock::time_point start;
    Done<SearchReply> done;
    int attempts = 0;
    size_t spare = 0;  // chunks that are ranked beyond the limit, in place of damaged ones
    std::shared_ptr<const TurnSelection> selection = {};  // with a filter; shared with the store, which keeps it
    MemoryId selected_memory = 0;                         // whose turns these are
  };
  // An answer on its way: what it takes to write it, once more too.
  struct Writing {
    GenerateRequest request;
    std::vector<uint32_t> prompt;
    Done<GenerateReply> done;
    Clock::time_point start;
    int attempts = 0;
  };
  // What the model makes of a query.
  struct Asked {
    SearchQuery query;  // its tokens: those that chunks are compared with
    // To explain the results: the first tokens of its text, and the queries of the first HSA layer for each of them.
    std::vector<std::string> texts{};
    std::vector<float> heads{};  // [texts, heads, head_dim]
    double took_ms = 0;
  };
  struct Together;  // a search of several memories under way
  struct Both;      // a hybrid search while the model and its words are worked on
  // A ranking by words that was begun beside the model.
  struct BegunWords {
    std::unique_ptr<LexicalBegun> ranking;  // null: it failed, and is tried again
    std::unique_ptr<LexicalBegun> of_all;   // with a filter: without it
    double beside_ms = 0, waited_ms = 0;    // RankingTimes: words_beside_ms, and what of words_ms went before
  };

  // A search between the model thread (landmarks) and a read worker (words and text).
  struct Ranking {
    MemoryInfo memory;
    std::vector<Candidate> best;
    uint64_t end_token = 0;  // tokens of the memory that were covered
    size_t limit = 0;        // of each ranking
    std::vector<Unreadable> unreadable;
    uint64_t unindexed_chunks = 0;
    std::optional<SelectedChunks> selected;  // with a filter
    const ChunkSet* only() const { return selected ? &selected->chunks : nullptr; }
    bool means(uint64_t chunk) const { return !selected || selected->chunks.contains(chunk); }
    // To score chunks by their landmarks that were found by words:
    std::vector<Bf16> query;
    std::vector<float> tail_dots;        // of the chunks that are not stored
    std::vector<uint32_t> query_tokens;  // to score chunks by their meaning
    // To score chunks by their tokens, and to explain the results:
    Asked asked;
    std::unordered_map<uint64_t, std::vector<std::byte>> tail_kv;  // of the chunks that are not stored
    RankingTimes took;
  };

  Expected<void> open_gpu();
  Expected<void> change_over(const RecordShape& shape);
  Expected<void> open_successor();
  Forgetter::Follower follower();
  Expected<void> forget_cached(MemoryId id);
  Expected<JobView> start_reencoding(const std::filesystem::path& model);
  Expected<JobView> cancel_reencoding();
  uint64_t successor_bytes() const { return std::max(options_.memory_budget_bytes / 4, uint64_t{8} << 20); }

  AppendBatch tokenise(AppendRequest request, int64_t now_us) const;
  NewTurn tokenise(Turn turn) const;
  void committed(Appended appended, AppendReply reply, bool wait, Done<AppendReply> done);
  void reply_when_searchable(MemoryId id, Waiter waiter);
  void release_waiters(MemoryId id, const Expected<MemoryInfo>& memory);
  Expected<std::optional<uint64_t>> searchable_through(const MemoryInfo& memory) const;
  Expected<std::optional<uint64_t>> through(MemoryId id, uint64_t tokens) const;

  std::vector<ModelThread::Outcome> encode(std::span<const MemoryId> ids);
  ModelThread::Outcome encoded(MemoryId id, const Expected<uint64_t>& chunks);
  void search(Query query);
  void rank_and_collect(Query query);
  Expected<void> select_turns(Query& query) const;
  Expected<void> restrict(const Query& query, Ranking& ranking) const;
  void rank_both(Query query);
  void begin_words(Both& both) const;
  void collect(Both& both);
  void collect(Query query, Expected<Ranking> ranking, BegunWords words);
  static size_t ranked(const Query& query);
  Expected<Asked> ask(const Query& query);
  void explain_query(std::span<const uint32_t> tokens, Asked& asked) const;
  void keep_compared(std::span<const uint32_t> tokens, std::vector<float>& heads) const;
  Expected<Ranking> rank(const Query& query);
  Expected<Ranking> rank(const Query& query, const Asked& asked);
  Expected<Ranking> cover_by_words(const Query& query) const;
  static LexicalQuery words_asked(const SearchRequest& request, const Ranking& ranking);
  static LexicalQuery words_of_all(const SearchRequest& request, const Ranking& ranking);
  Expected<void> add_words(const SearchRequest& request, Ranking& ranking, BegunWords begun) const;
  Expected<double> landmark_score(const Ranking& ranking, uint64_t chunk) const;
  Expected<void> add_token_scores(Ranking& ranking) const;
  Expected<std::vector<float>> late_scores(std::span<const float> tokens, std::span<const ByteView> records) const;
  Expected<void> add_meaning(Ranking& ranking) const;
  void order(const SearchRequest& request, std::vector<Candidate>& best) const;
  bool spare_more(Query& query, const SearchReply& reply, size_t lost, bool is_cut) const;
  bool still_holds(const Ranking& ranking) const;
  void search_together(SearchRequest request, Done<SearchReply> done);
  void rank_together(std::shared_ptr<Together> together);
  void collect_together(std::shared_ptr<Together> together);
  Expected<std::vector<std::string>> memories_of(const SearchRequest& request) const;
  Expected<SearchReply> merge(Together& together) const;
  // `best`: candidates of these rankings, best first.
  Expected<SearchReply> collect(const SearchRequest& request, std::span<const Ranking> rankings,
                                std::span<const Candidate> best) const;
  Expected<void> show_chunks(const SearchRequest& request, std::span<const Ranking> rankings,
                             std::span<const Candidate> best, SearchReply& reply) const;
  Expected<void> show_passages(const SearchRequest& request, std::span<const Ranking> rankings,
                               std::span<const Candidate> best, SearchReply& reply) const;
  Expected<void> add_result(const SearchRequest& request, std::span<const Ranking> rankings,
                            std::span<const Candidate> best, size_t candidate, SearchReply::Result result,
                            SearchReply& reply) const;
  Expected<TokenSpan> whole_turns(const Ranking& ranking, TokenSpan of) const;
  void write(Writing writing);
  void finish_writing(Writing writing, Expected<Generated> generated);
  Expected<GenerateReply> collect(Generated generated) const;
  Expected<void> read_sources(const Generated& generated, GenerateReply& reply) const;
  Expected<std::optional<GenerateReply::Unread>> unread_turns(const Generated& generated,
                                                              std::optional<uint64_t> read_through) const;
  void tell_damage(MemoryId id, const std::vector<Unreadable>& unreadable);
  static void rank_parts(std::vector<Candidate>& compared);
  static SearchReply::Why explain(const Ranking& ranking, const Candidate& candidate, SearchMode mode);
  Expected<void> explain_attention(const Ranking& ranking, uint64_t chunk, uint64_t text_first,
                                   SearchReply::Why& why) const;
  // `token_ends` as Store::passage() has it.
  Expected<ChunkView> chunk_view(MemoryId id, uint64_t chunk, std::vector<size_t>* token_ends = nullptr) const;

  EngineOptions options_;
  Clock::time_point start_ = Clock::now();
  std::unique_ptr<WorkerPool> pool_;  // used by the model thread alone
  std::unique_ptr<Gpu> gpu_;          // null: the model computes on the CPU
  std::string gpu_name_;
  uint32_t gpu_slots_ = 0;
  std::unique_ptr<Ramba> model_;
  std::unique_ptr<Backend> cpu_backend_;  // null with a GPU
  Backend* backend_ = nullptr;            // the one or the other; computes on the model thread alone
  std::optional<Tokenizer> tokenizer_;
  Fusion fusion_;
  std::optional<Meaning> meaning_;  // unset: the checkpoint has none
  std::unique_ptr<Store> store_;
  std::unique_ptr<Encoder> encoder_;         // used by the model thread alone
  std::unique_ptr<Decoder> decoder_;         // likewise
  const GpuDecoder* gpu_decoder_ = nullptr;  // the same one, on a GPU
  std::unique_ptr<Generator> generator_;
  std::mutex successor_mutex_;  // guards successor_ against who forgets; the model thread alone changes it
  std::unique_ptr<Successor> successor_;
  std::unique_ptr<Reencoder> reencoder_;  // used by the model thread alone

  std::mutex waiters_mutex_;
  std::map<MemoryId, std::vector<Waiter>> waiters_;

  std::atomic<uint64_t> searches_ = 0;
  std::atomic<uint64_t> generations_ = 0;
  std::atomic<uint64_t> seeds_ = 0;  // that were chosen here
  std::atomic<uint64_t> tokens_encoded_ = 0;
  std::atomic<uint64_t> encode_us_ = 0;
  std::atomic<uint64_t> state_bytes_ = 0;
  mutable std::mutex problem_mutex_;
  std::string problem_;  // why the encoding of problem_memory_ stands still
  MemoryId problem_memory_ = 0;
  uint64_t problem_chunks_ = 0;        // how many it had encoded then
  std::string damage_;                 // the first that a search or a verification found, and nobody mended yet
  std::set<std::string> damage_told_;  // in the log

  // In order of use: a request passes from each of these to the next.
  boost::asio::thread_pool tokenisers_{std::max(1u, std::thread::hardware_concurrency())};
  boost::asio::strand<boost::asio::thread_pool::executor_type> imports_{tokenisers_.get_executor()};  // in their order
  std::unique_ptr<AppendQueue> appends_;
  std::unique_ptr<ModelThread> model_thread_;
  boost::asio::thread_pool readers_{2};
  boost::asio::thread_pool upkeep_{1};
  Jobs jobs_;
  std::unique_ptr<Upkeep> verifier_;
  std::unique_ptr<Forgetter> forgetter_;  // between the read workers, the model thread and the upkeep thread
  std::unique_ptr<Transfer> transfer_;    // between the read workers, the tokenise workers and the upkeep thread
  std::unique_ptr<Indexer> indexer_;      // on the upkeep thread
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> model_thread_ended_ = false;  // what is posted to it from here on never runs
};

}  // namespace recalld
