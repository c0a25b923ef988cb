#include "daemon/engine.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include <unistd.h>

#include "daemon/append_queue.h"
#include "daemon/encoder.h"
#include "daemon/forgetter.h"
#include "daemon/jobs.h"
#include "daemon/model_thread.h"
#include "daemon/reencoder.h"
#include "daemon/successor.h"
#include "daemon/transfer.h"
#include "daemon/upkeep.h"
#include "daemon/version.h"
#include "memstore/data_directory.h"

namespace recalld {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

int64_t system_now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

uint64_t resident_bytes() {
  uint64_t pages = 0;
  if (std::FILE* statm = std::fopen("/proc/self/statm", "re")) {
    unsigned long long size = 0, resident = 0;
    if (std::fscanf(statm, "%llu %llu", &size, &resident) == 2) pages = resident;
    std::fclose(statm);
  }
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// What an operation_id stands for: everything that the client sent, and nothing that the daemon added.
Hash128 digest(const AppendRequest& request) {
  std::string text;
  ByteWriter out(text);
  for (const auto& [turn, has_time] : request.turns) {
    out.u8(static_cast<uint8_t>(turn.role));
    out.u8(turn.name.has_value());
    out.text(turn.name.value_or(""));
    out.text(turn.content);
    out.u8(has_time);
    out.u64(has_time ? static_cast<uint64_t>(turn.time_us) : 0);
    out.text(turn.metadata);
  }
  return hash128(as_bytes(text));
}

// What a request holds in RAM until it is durable, about: its text, and the id and the end of each token, eight bytes
// for some four bytes of text.
size_t request_bytes(const AppendRequest& request) {
  size_t bytes = sizeof(request) + request.operation_id.size();
  for (const auto& [turn, has_time] : request.turns)
    bytes += sizeof(NewTurn) + turn.name.value_or("").size() + 3 * turn.content.size() + turn.metadata.size();
  return bytes;
}

double norm(std::span<const Bf16> vector) {
  double squares = 0;
  for (const Bf16 x : vector) squares += static_cast<double>(to_float(x)) * static_cast<double>(to_float(x));
  return std::sqrt(squares);
}

}  // namespace

class Engine::Impl {
 public:
  explicit Impl(EngineOptions options) : options_(std::move(options)) {
    if (!options_.now_us) options_.now_us = system_now_us;
    if (options_.threads == 0) options_.threads = std::max(1u, std::thread::hardware_concurrency());
    pool_ = std::make_unique<WorkerPool>(options_.threads);
  }

  Expected<void> open();
  ~Impl();

  void append(AppendRequest request, Done<AppendReply> done);
  void search(SearchRequest request, Done<SearchReply> done);

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
  };
  // A search between the model thread (ranking) and a read worker (text).
  struct Ranking {
    MemoryInfo memory;
    std::vector<ScoredChunk> best;
    uint64_t end_token = 0;  // tokens of the memory that were covered
    size_t limit = 0;        // of `best`
    std::vector<Unreadable> unreadable;
    // To explain the results:
    std::vector<float> heads;                                      // the query's, of the first HSA layer
    std::unordered_map<uint64_t, std::vector<std::byte>> tail_kv;  // of those of the best that are not stored
  };

  Expected<void> change_over(const RecordShape& shape);
  Expected<void> open_successor();
  Forgetter::Follower follower();
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

  ModelThread::Outcome encode(MemoryId id);
  void rank_and_collect(Query query);
  Expected<Ranking> rank(const Query& query);
  bool still_holds(const Ranking& ranking) const;
  Expected<SearchReply> collect(const SearchRequest& request, const Ranking& ranking);
  void tell_damage(MemoryId id, const std::vector<Unreadable>& unreadable);
  Expected<SearchReply::Why> explain(const Ranking& ranking, const ScoredChunk& candidate, size_t rank) const;
  Expected<ChunkView> chunk_view(MemoryId id, uint64_t chunk) const;

  EngineOptions options_;
  Clock::time_point start_ = Clock::now();
  std::unique_ptr<WorkerPool> pool_;  // used by the model thread alone
  std::unique_ptr<Ramba> model_;
  std::optional<Tokenizer> tokenizer_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Encoder> encoder_;  // used by the model thread alone
  std::mutex successor_mutex_;        // guards successor_ against who forgets; the model thread alone changes it
  std::unique_ptr<Successor> successor_;
  std::unique_ptr<Reencoder> reencoder_;  // used by the model thread alone

  std::mutex waiters_mutex_;
  std::map<MemoryId, std::vector<Waiter>> waiters_;

  std::atomic<uint64_t> searches_ = 0;
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
  std::atomic<bool> stopping_ = false;
};

Expected<void> Engine::Impl::open() {
  RECALLD_TRY(LoadedModel loaded, load_model(options_.model, options_.precision, *pool_));
  model_ = std::move(loaded.model);
  tokenizer_ = std::move(loaded.tokenizer);
  // As much as the catalog writes out when it goes on after it found no room.
  Reserve reserve(options_.data / "reserve", std::max(options_.memory_budget_bytes / 8, uint64_t{4} << 20));
  reserve.give_up_when_short();
  RECALLD_CHECK(change_over(loaded.shape));

  // The budget: an eighth for recurrent states, an eighth for appends on their way, the rest for the store.
  const uint64_t state_bytes_max = options_.memory_budget_bytes / 8;
  StoreOptions store;
  store.memory_budget_bytes = options_.memory_budget_bytes / 4 * 3;
  store.shape = loaded.shape;
  RECALLD_TRY(const auto stamp, DataDirectory::stamp(options_.data));
  if (options_.repair && stamp) RECALLD_CHECK(Store::drop_damaged_tables(options_.data, store));
  RECALLD_TRY(store_, Store::open(options_.data, std::move(store)));

  encoder_ = std::make_unique<Encoder>(*store_, *model_, *tokenizer_, state_bytes_max);
  model_thread_ = std::make_unique<ModelThread>([this](MemoryId id) { return encode(id); });
  appends_ =
      std::make_unique<AppendQueue>([this](std::span<const AppendBatch> batches) { return store_->append(batches); });
  RECALLD_CHECK(open_successor());
  forgetter_ = std::make_unique<Forgetter>(
      *store_, jobs_, upkeep_, [this](MemoryId id) { model_thread_->encode(id); }, follower(), reserve,
      options_.now_us);

  transfer_ =
      std::make_unique<Transfer>(*store_, upkeep_,
                                 Transfer::Options{.shape = loaded.shape,
                                                   .tokenise = [this](Turn turn) { return tokenise(std::move(turn)); },
                                                   .encode = [this](MemoryId id) { model_thread_->encode(id); }});

  verifier_ = std::make_unique<Upkeep>(
      *store_, jobs_, *model_thread_, *encoder_, *tokenizer_, [this] { return forgetter_->resume(); },
      [this](const std::string& damage) {
        const std::lock_guard lock(problem_mutex_);
        damage_ = damage;
        damage_told_.clear();
      },
      options_.now_us);

  // What a crash or a stop left unencoded or not erased goes on now.
  RECALLD_CHECK(forgetter_->resume());
  constexpr size_t page = 1000;
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto ids, store_->unencoded(after, page));
    for (const MemoryId id : ids) model_thread_->encode(id);
    if (ids.size() < page) break;
    after = ids.back();
  }
  if (const auto model = model_of_successor(options_.data); !model.empty()) reencode({.model = model.string()}, {});
  if (options_.repair) verifier_->verify({.memory = {}, .repair = true, .wait = false}, [](const auto&) {});
  return {};
}

// ---- Another model

// A store that was encoded with another model is left to Store::open() to refuse, unless it has been encoded anew with
// this one, or is to be: then that becomes the store, with everything that was appended since.
Expected<void> Engine::Impl::change_over(const RecordShape& shape) {
  RECALLD_TRY(const auto stamp, DataDirectory::stamp(options_.data));
  if (!stamp || stamp->model == shape.model) return {};
  RECALLD_TRY(const auto next, DataDirectory::stamp(DataDirectory::next(options_.data)));
  const bool prepared = next && next->model == shape.model && successor_is_ready(options_.data);
  if (!prepared && !options_.reencode) return {};
  {
    StoreOptions options;
    options.shape = *stamp;
    options.memory_budget_bytes = options_.memory_budget_bytes / 2;
    RECALLD_TRY(const auto store, Store::open(options_.data, std::move(options)));
    RECALLD_TRY(const auto successor, Successor::open(options_.data, shape, options_.memory_budget_bytes / 2));
    spdlog::info("change over to another model: the journal is copied for it first");
    RECALLD_CHECK(successor->copy_all(*store, *tokenizer_));
  }
  RECALLD_CHECK(DataDirectory::adopt_next(options_.data));
  spdlog::info("changed over to model {}", hex(shape.model));
  return {};
}

// What was begun for another model follows what is forgotten, even while that model cannot be loaded.
Expected<void> Engine::Impl::open_successor() {
  const auto open = [&]() -> Expected<std::unique_ptr<Successor>> {
    RECALLD_TRY(const auto stamp, DataDirectory::stamp(DataDirectory::next(options_.data)));
    if (!stamp) return nullptr;
    return Successor::open(options_.data, *stamp, successor_bytes());
  };
  auto successor = open();
  if (!successor && successor.error().kind == ErrorKind::corrupt) {
    // All of it can be made again, and nothing could be forgotten in it as it is.
    spdlog::error("{}: it is dropped; run recall reencode to begin it anew", successor.error().message);
    return DataDirectory::drop_next(options_.data);
  }
  if (!successor) return std::unexpected(std::move(successor).error());
  successor_ = *std::move(successor);
  return {};
}

Forgetter::Follower Engine::Impl::follower() {
  const auto with_successor = [this](auto use) -> Expected<void> {
    const std::lock_guard lock(successor_mutex_);
    return successor_ ? use(*successor_) : Expected<void>();
  };
  return {
      .forget =
          [with_successor](const std::string& memory, int64_t created_us, std::span<const TurnRange> turns) {
            return with_successor([&](Successor& successor) { return successor.forget(memory, created_us, turns); });
          },
      .remove =
          [with_successor](const std::string& memory, int64_t created_us) {
            return with_successor([&](Successor& successor) { return successor.remove(memory, created_us); });
          },
      .forget_missing =
          [this, with_successor] {
            return with_successor([&](Successor& successor) { return successor.forget_missing(*store_); });
          }};
}

// On the model thread, which alone may use the pool that models compute with.
void Engine::Impl::reencode(ReencodeRequest request, Done<JobView> done) {
  model_thread_->search([this, request = std::move(request), done = std::move(done)]() mutable {
    Expected<JobView> job = request.cancel ? cancel_reencoding() : start_reencoding(request.model);
    if (!job) spdlog::warn("encode the store anew: {}", job.error().message);
    if (done) done(std::move(job));
  });
}

Expected<JobView> Engine::Impl::start_reencoding(const std::filesystem::path& model) {
  if (reencoder_ && reencoder_->model_directory() == model) return jobs_.get(reencoder_->job());
  if (reencoder_)
    return fail(ErrorKind::busy, "encode the store anew with " + model.string() + ": this goes on with " +
                                     reencoder_->model_directory().string() +
                                     "; drop that first with recall reencode --cancel");
  RECALLD_TRY(LoadedModel loaded, load_model(model, options_.precision, *pool_));
  if (loaded.shape.model == model_->hash())
    return fail(ErrorKind::invalid_request, "encode the store anew with " + model.string() +
                                                ": that is the model which it is encoded with; give another one");
  {
    const std::lock_guard lock(successor_mutex_);
    if (!successor_ || successor_->shape().model != loaded.shape.model) {
      RECALLD_TRY(successor_, Successor::open(options_.data, loaded.shape, successor_bytes()));
    }
  }
  RECALLD_TRY(reencoder_, Reencoder::start(*store_, *successor_, model, std::move(loaded),
                                           options_.memory_budget_bytes / 8, jobs_, options_.now_us()));
  model_thread_->background([this] { return reencoder_->step(); });
  return jobs_.get(reencoder_->job());
}

Expected<JobView> Engine::Impl::cancel_reencoding() {
  const std::lock_guard lock(successor_mutex_);
  if (!successor_)
    return fail(ErrorKind::not_found, "drop what was encoded with another model: there is nothing of that kind");
  model_thread_->background({});
  const uint64_t job = reencoder_ ? reencoder_->job() : jobs_.start("reencode", "", options_.now_us());
  reencoder_.reset();
  successor_.reset();
  RECALLD_CHECK(DataDirectory::drop_next(options_.data));
  jobs_.fail(job, "cancelled; what had been encoded is gone");
  return jobs_.get(job);
}

Engine::Impl::~Impl() {
  stopping_ = true;
  tokenisers_.join();
  appends_.reset();  // commits what was accepted
  if (verifier_) verifier_->stop();
  if (model_thread_) model_thread_->stop();  // ranks the searches that were accepted
  readers_.join();                           // answers them
  if (forgetter_) forgetter_->stop();
  if (transfer_) transfer_->stop();
  upkeep_.join();
  for (auto& [id, waiters] : waiters_)
    for (Waiter& waiter : waiters)
      waiter.done(fail(ErrorKind::busy, "append to " + waiter.reply.memory +
                                            ": the turns are durable, but the daemon stops before they are encoded"));
  reencoder_.reset();
  if (encoder_) encoder_->checkpoint_all();
}

// ---- Append: tokenise, commit, reply, encode behind the reply

void Engine::Impl::append(AppendRequest request, Done<AppendReply> done) {
  const size_t bytes = request_bytes(request);
  AppendReply reply;
  reply.memory = request.memory;
  const bool wait = request.wait_searchable;
  const int64_t now_us = options_.now_us();  // as it arrives, so that times follow the order of turns
  PendingAppend* place = appends_->enter(
      request.memory, bytes, [this, reply, wait, done = std::move(done)](Expected<Appended> appended) mutable {
        if (!appended) return done(std::unexpected(std::move(appended).error()));
        committed(*appended, std::move(reply), wait, std::move(done));
      });
  boost::asio::post(tokenisers_, [this, place, now_us, request = std::move(request)]() mutable {
    appends_->ready(place, tokenise(std::move(request), now_us));
  });
}

AppendBatch Engine::Impl::tokenise(AppendRequest request, int64_t now_us) const {
  AppendBatch batch;
  batch.now_us = now_us;
  batch.operation_digest = digest(request);
  batch.operation_id = std::move(request.operation_id);
  batch.memory = std::move(request.memory);
  for (auto& [turn, has_time] : request.turns) {
    if (!has_time) turn.time_us = now_us;
    batch.turns.push_back(tokenise(std::move(turn)));
  }
  return batch;
}

NewTurn Engine::Impl::tokenise(Turn turn) const {
  Tokens tokens = tokenizer_->encode_turn(turn_prefix(turn), turn.content);
  return {std::move(turn), std::move(tokens.ids), std::move(tokens.ends)};
}

void Engine::Impl::committed(Appended appended, AppendReply reply, bool wait, Done<AppendReply> done) {
  reply.first_turn = appended.first_turn;
  reply.last_turn = appended.last_turn;
  reply.tokens = appended.tokens;
  model_thread_->encode(appended.id);
  if (wait)
    return reply_when_searchable(appended.id, {appended.end_token / chunk_tokens, std::move(reply), std::move(done)});

  const auto memory = store_->memory(appended.id);
  if (memory) {
    if (auto through = searchable_through(*memory)) reply.searchable_through = *through;
  }
  done(std::move(reply));  // durable, whatever became of the memory since
}

void Engine::Impl::reply_when_searchable(MemoryId id, Waiter waiter) {
  {
    const std::lock_guard lock(waiters_mutex_);
    waiters_[id].push_back(std::move(waiter));
  }
  release_waiters(id, store_->memory(id));  // it may be encoded by now
}

void Engine::Impl::release_waiters(MemoryId id, const Expected<MemoryInfo>& memory) {
  std::vector<Waiter> released;
  {
    const std::lock_guard lock(waiters_mutex_);
    const auto found = waiters_.find(id);
    if (found == waiters_.end()) return;
    auto& waiting = found->second;
    const auto kept = std::stable_partition(waiting.begin(), waiting.end(), [&](const Waiter& waiter) {
      // Forgetting closes up the numbers of chunks: what was waited for may never have its number.
      return memory && memory->encoded_chunks < waiter.chunks && memory->waiting_chunks() > 0;
    });
    std::move(kept, waiting.end(), std::back_inserter(released));
    waiting.erase(kept, waiting.end());
    if (waiting.empty()) waiters_.erase(found);
  }
  for (Waiter& waiter : released) {
    if (!memory) {
      waiter.done(std::unexpected(memory.error()));
      continue;
    }
    auto through = searchable_through(*memory);
    if (through) waiter.reply.searchable_through = *through;
    waiter.done(std::move(waiter.reply));
  }
}

// The last turn that a search would cover now: it encodes up to a segment of waiting chunks and the open one itself.
Expected<std::optional<uint64_t>> Engine::Impl::searchable_through(const MemoryInfo& memory) const {
  const bool whole = memory.waiting_chunks() <= Encoder::segment_chunks;
  const uint64_t covered = whole ? memory.tokens : (memory.encoded_chunks + Encoder::segment_chunks) * chunk_tokens;
  return through(memory.id, covered);
}

// Where damage keeps it from being told, nothing is claimed.
Expected<std::optional<uint64_t>> Engine::Impl::through(MemoryId id, uint64_t tokens) const {
  auto turn = store_->last_turn_within(id, tokens);
  if (!turn && turn.error().kind == ErrorKind::corrupt) return std::optional<uint64_t>();
  return turn;
}

ModelThread::Outcome Engine::Impl::encode(MemoryId id) {
  const auto start = Clock::now();
  const Expected<uint64_t> chunks = encoder_->encode_segment(id);
  state_bytes_ = encoder_->state_bytes();
  if (chunks && *chunks > 0) {
    tokens_encoded_ += *chunks * chunk_tokens;
    encode_us_ += static_cast<uint64_t>(milliseconds_since(start) * 1000);
  }
  const bool gone = !chunks && chunks.error().kind == ErrorKind::not_found;
  const bool overtaken = !chunks && chunks.error().kind == ErrorKind::busy;  // by forgetting
  const bool failed = !chunks && !gone && !overtaken;
  const Expected<MemoryInfo> memory = store_->memory(id);
  if (memory && forgetter_) forgetter_->encoded(*memory);
  {
    const std::lock_guard lock(problem_mutex_);
    if (failed && problem_ != chunks.error().message) {
      problem_ = chunks.error().message;
      problem_memory_ = id;
      problem_chunks_ = memory ? memory->encoded_chunks : 0;
      spdlog::error("encode memory {}: {} (tried again until it works)", id, problem_);
    } else if (!failed && problem_memory_ == id &&
               (!memory || (chunks && *chunks == 0) || memory->encoded_chunks > problem_chunks_)) {
      problem_.clear();  // not sooner: chunks on their way to the store may fail there again
    }
  }
  if (failed) {
    release_waiters(id, std::unexpected(Error(chunks.error()).within("the turns are durable, but not encoded yet")));
    return ModelThread::Outcome::later;
  }
  if (gone) encoder_->forget(id);
  release_waiters(id, memory);
  return overtaken || (chunks && *chunks > 0) ? ModelThread::Outcome::again : ModelThread::Outcome::done;
}

// ---- Search: query, top-k over the stored landmarks and the tail, text

void Engine::Impl::search(SearchRequest request, Done<SearchReply> done) {
  Query query{std::move(request), {}, Clock::now(), std::move(done)};
  boost::asio::post(tokenisers_, [this, query = std::move(query)]() mutable {
    query.tokens = tokenizer_->encode_query(query.request.query);
    rank_and_collect(std::move(query));
  });
}

void Engine::Impl::rank_and_collect(Query query) {
  model_thread_->search([this, query = std::move(query)]() mutable {
    Expected<Ranking> ranking = rank(query);
    boost::asio::post(readers_, [this, query = std::move(query), ranking = std::move(ranking)]() mutable {
      if (!ranking) return query.done(std::unexpected(std::move(ranking).error()));
      Expected<SearchReply> reply = collect(query.request, *ranking);
      // Where turns were forgotten meanwhile, the numbers of chunks may stand for others now.
      if (!still_holds(*ranking)) {
        constexpr int attempts_max = 8;
        if (++query.attempts < attempts_max) return rank_and_collect(std::move(query));
        reply = fail(ErrorKind::busy, "search memory \"" + query.request.memory +
                                          "\": turns of it are being forgotten all the time; ask again");
      }
      // Damaged chunks must not take the places of others.
      constexpr size_t spare_max = 4'096;
      if (reply && reply->results.size() < query.request.limit &&
          reply->unreadable.size() > ranking->unreadable.size() && ranking->best.size() == ranking->limit &&
          query.spare < spare_max && !query.request.max_tokens) {
        query.spare = std::max<size_t>(16, query.spare * 4);
        return rank_and_collect(std::move(query));
      }
      if (reply) tell_damage(ranking->memory.id, reply->unreadable);
      if (reply) reply->took_ms = milliseconds_since(query.start);
      ++searches_;
      query.done(std::move(reply));
    });
  });
}

bool Engine::Impl::still_holds(const Ranking& ranking) const {
  const auto now = store_->memory(ranking.memory.id);
  return !now || (now->serving.stream == ranking.memory.serving.stream &&
                  now->serving.edition == ranking.memory.serving.edition);
}

Expected<Engine::Impl::Ranking> Engine::Impl::rank(const Query& query) {
  RECALLD_TRY(MemoryInfo memory, store_->memory(query.request.memory));
  if (encoder_->settle(memory.id)) {
    RECALLD_TRY(memory, store_->memory(memory.id));
  }
  Ramba::Query asked = model_->query(query.tokens);
  const std::span<const Bf16> embedding = asked.landmark;
  Expected<const Tail*> encoded_tail = encoder_->tail(memory);
  if (!encoded_tail && encoded_tail.error().kind == ErrorKind::busy) {  // turns were forgotten in between
    RECALLD_TRY(memory, store_->memory(memory.id));
    encoded_tail = encoder_->tail(memory);
  }
  std::vector<Unreadable> unreadable;
  if (!encoded_tail && encoded_tail.error().kind == ErrorKind::corrupt && memory.tokens > 0) {
    unreadable.push_back({memory.encoded_chunks, (memory.tokens - 1) / chunk_tokens, encoded_tail.error().message});
    encoded_tail = nullptr;
  }
  RECALLD_TRY(const Tail* tail, encoded_tail);
  state_bytes_ = encoder_->state_bytes();

  const size_t limit = query.request.limit + query.spare;
  TopK top(limit);
  uint64_t end_token = memory.encoded_chunks * chunk_tokens;
  std::vector<Unreadable> pages;
  RECALLD_TRY(const auto stored, store_->top_k(memory.id, embedding, limit, *pool_, &pages));
  unreadable.insert(unreadable.begin(), pages.begin(), pages.end());
  for (const ScoredChunk& chunk : stored) top.offer(chunk);
  if (tail) {
    end_token = tail->end_token;
    std::vector<float> dots(tail->landmarks.size() / embedding.size());
    landmark_dots_cpu(embedding, tail->landmarks.data(), dots.size(), dots.data());
    for (size_t i = 0; i < dots.size(); ++i) top.offer({tail->first_chunk + i, dots[i]});
  }
  Ranking ranking{std::move(memory), top.take(), end_token, limit, std::move(unreadable), {}, {}};
  if (query.request.explain) {
    ranking.heads = std::move(asked.heads);
    for (const ScoredChunk& chunk : ranking.best) {
      if (!tail || chunk.chunk < tail->first_chunk) continue;
      const auto kv =
          std::span(tail->kv).subspan((chunk.chunk - tail->first_chunk) * model_->kv_bytes(), model_->kv_bytes());
      ranking.tail_kv.emplace(chunk.chunk, std::vector(kv.begin(), kv.end()));
    }
  }
  return ranking;
}

// What is damaged is left out and told: the rest is served.
Expected<SearchReply> Engine::Impl::collect(const SearchRequest& request, const Ranking& ranking) {
  SearchReply reply;
  reply.unreadable = ranking.unreadable;
  const auto leave_out = [&](uint64_t chunk, const Error& error) {
    reply.unreadable.push_back({chunk, chunk, error.message});
  };
  RECALLD_TRY(reply.searchable_through, through(ranking.memory.id, ranking.end_token));
  uint64_t tokens_left = request.max_tokens.value_or(UINT64_MAX);
  for (const ScoredChunk& candidate : ranking.best) {
    if (reply.results.size() == request.limit) break;
    const uint64_t first = candidate.chunk * chunk_tokens;
    const uint64_t end = std::min(first + chunk_tokens, ranking.end_token);
    if (end - first > tokens_left) break;
    tokens_left -= end - first;

    SearchReply::Result result;
    result.chunk = candidate.chunk;
    result.score = static_cast<double>(candidate.dot * model_->score_scale());
    auto passage = store_->passage(ranking.memory.id, first, end);
    if (!passage && passage.error().kind == ErrorKind::corrupt) {
      leave_out(candidate.chunk, passage.error());
      tokens_left += end - first;
      continue;
    }
    RECALLD_TRY(result.passage, std::move(passage));
    if (result.passage.turns.empty()) {  // all that was in it is being forgotten
      tokens_left += end - first;
      continue;
    }
    if (request.explain) {
      auto why = explain(ranking, candidate, reply.results.size() + 1);
      if (why)
        result.why = *std::move(why);
      else if (why.error().kind != ErrorKind::corrupt)
        return std::unexpected(std::move(why).error());
      else
        leave_out(candidate.chunk, why.error());  // its landmark and its text are whole: it stays in the reply
    }
    reply.results.push_back(std::move(result));
  }
  return reply;
}

// Once a piece of damage, not once a search.
void Engine::Impl::tell_damage(MemoryId id, const std::vector<Unreadable>& unreadable) {
  constexpr size_t told_max = 1'000;
  const std::lock_guard lock(problem_mutex_);
  for (const Unreadable& lost : unreadable) {
    const std::string what = "memory " + std::to_string(id) + ", chunk " + std::to_string(lost.first) + " to " +
                             std::to_string(lost.last) + ": " + lost.message;
    if (damage_.empty()) damage_ = what;
    if (damage_told_.size() < told_max && damage_told_.insert(what).second) spdlog::error("search: {}", what);
  }
}

// Why a chunk was chosen, and the token that each head of the first HSA layer looks at most inside it.
Expected<SearchReply::Why> Engine::Impl::explain(const Ranking& ranking, const ScoredChunk& candidate,
                                                 size_t rank) const {
  SearchReply::Why why{.landmark_score = static_cast<double>(candidate.dot * model_->score_scale()),
                       .rank = rank,
                       .stored = true,
                       .matches = {}};
  std::vector<std::byte> kv(model_->kv_bytes());
  if (const auto tail = ranking.tail_kv.find(candidate.chunk); tail != ranking.tail_kv.end()) {
    why.stored = false;
    kv = tail->second;
  } else {
    RECALLD_CHECK(store_->fetch(ranking.memory.id, std::array{candidate.chunk}, kv));
  }
  if (ranking.heads.empty()) return why;  // the model has no HSA layer

  const std::vector<float> shares = model_->head_shares(ranking.heads, kv);
  const uint64_t first = candidate.chunk * chunk_tokens;
  const size_t tokens = std::min<uint64_t>(chunk_tokens, ranking.end_token - first);  // the open chunk is padded
  for (size_t head = 0; head * chunk_tokens < shares.size(); ++head) {
    const auto of_head = std::span(shares).subspan(head * chunk_tokens, tokens);
    const auto most = std::ranges::max_element(of_head);
    const uint64_t token = first + static_cast<uint64_t>(most - of_head.begin());
    RECALLD_TRY(Passage passage, store_->passage(ranking.memory.id, token, token + 1));
    why.matches.push_back(
        {.text = std::move(passage.text), .token = token, .head = head, .weight = static_cast<double>(*most)});
  }
  std::ranges::sort(why.matches, std::ranges::greater{}, &SearchReply::Why::Match::weight);
  return why;
}

// ---- Inspect

Expected<MemoryView> Engine::Impl::view(MemoryInfo info) const {
  RECALLD_TRY(const auto through, searchable_through(info));
  return MemoryView{std::move(info), through};
}

Expected<MemoriesListReply> Engine::Impl::memories_list(const MemoriesListRequest& request) const {
  RECALLD_TRY(auto page, store_->memories(request.prefix, request.after, request.limit));
  MemoriesListReply reply;
  for (MemoryInfo& info : page.memories) {
    auto viewed = view(std::move(info));
    if (!viewed && viewed.error().kind == ErrorKind::not_found) continue;  // deleted while we were listing
    if (!viewed) return std::unexpected(std::move(viewed).error());
    reply.memories.push_back(*std::move(viewed));
  }
  if (!page.next.empty()) reply.next_after = std::move(page.next);
  return reply;
}

Expected<MemoryView> Engine::Impl::memories_get(const std::string& memory) const {
  RECALLD_TRY(MemoryInfo info, store_->memory(memory));
  return view(std::move(info));
}

Expected<TurnsListReply> Engine::Impl::turns_list(const TurnsListRequest& request) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(request.memory));
  TurnsListReply reply;
  RECALLD_TRY(reply.turns, store_->turns(memory.id, request.first, request.limit, page_bytes_max));
  const bool more = !reply.turns.empty() && reply.turns.back().turn + 1 < memory.next_turn;
  if (more) {
    // What follows may all be forgotten.
    RECALLD_TRY(const auto next, store_->turns(memory.id, reply.turns.back().turn + 1, 1, 0));
    if (!next.empty()) reply.next_first = next.front().turn;
  }
  return reply;
}

Expected<ChunkView> Engine::Impl::chunk_view(MemoryId id, uint64_t chunk) const {
  ChunkView view;
  view.chunk = chunk;
  RECALLD_TRY(view.entry, store_->chunk(id, chunk));
  RECALLD_TRY(view.passage, store_->passage(id, chunk * chunk_tokens, (chunk + 1) * chunk_tokens));
  RECALLD_TRY(const auto landmark, store_->landmark(id, chunk));
  view.landmark_norm = norm(landmark);
  return view;
}

Expected<ChunksListReply> Engine::Impl::chunks_list(const ChunksListRequest& request) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(request.memory));
  ChunksListReply reply;
  size_t bytes = 0;
  for (uint64_t chunk = request.first; chunk < memory.encoded_chunks; ++chunk) {
    if (reply.chunks.size() == request.limit || bytes >= page_bytes_max) {
      reply.next_first = chunk;
      break;
    }
    RECALLD_TRY(ChunkView view, chunk_view(memory.id, chunk));
    bytes += view.passage.text.size();
    reply.chunks.push_back(std::move(view));
  }
  return reply;
}

Expected<ChunkDetail> Engine::Impl::chunks_get(const std::string& name, uint64_t chunk) const {
  RECALLD_TRY(const MemoryInfo memory, store_->memory(name));
  if (chunk >= memory.encoded_chunks)
    return fail(ErrorKind::not_found, "chunk " + std::to_string(chunk) + " of memory " + name + " is not stored: " +
                                          std::to_string(memory.encoded_chunks) + " chunks are, counted from 0");
  ChunkDetail detail;
  RECALLD_TRY(detail.view, chunk_view(memory.id, chunk));
  RECALLD_TRY(detail.token_ids, store_->tokens(memory.id, chunk * chunk_tokens, chunk_tokens));
  for (uint64_t token = chunk * chunk_tokens; token < (chunk + 1) * chunk_tokens; ++token) {
    RECALLD_TRY(Passage piece, store_->passage(memory.id, token, token + 1));
    detail.token_texts.push_back(std::move(piece.text));
  }
  std::vector<std::byte> kv(model_->kv_bytes());
  RECALLD_CHECK(store_->fetch(memory.id, std::array{chunk}, kv));
  detail.kv_bytes = kv.size();
  return detail;
}

Expected<StatsReply> Engine::Impl::stats() const {
  StatsReply reply;
  RECALLD_TRY(reply.store, store_->stats());
  reply.jobs = jobs_.list();
  reply.model_directory = options_.model.string();
  reply.model_hash = hex(model_->hash());
  reply.model_precision = model_->describe();
  reply.device = "cpu";
  reply.resident_bytes = resident_bytes();
  reply.memory_budget_bytes = options_.memory_budget_bytes;
  reply.state_cache_bytes = state_bytes_;
  reply.appends_waiting = appends_->waiting();
  reply.searches = searches_;
  reply.tokens_encoded = tokens_encoded_;
  reply.encode_tokens_per_s =
      encode_us_ == 0 ? 0 : 1e6 * static_cast<double>(tokens_encoded_) / static_cast<double>(encode_us_);
  reply.uptime_s = milliseconds_since(start_) / 1000;
  return reply;
}

Expected<HealthReply> Engine::Impl::health() const {
  RECALLD_TRY(const StoreStats stats, store_->stats());
  const std::lock_guard lock(problem_mutex_);
  return HealthReply{
      .ready = true, .waiting_chunks = stats.waiting_chunks, .problem = problem_.empty() ? damage_ : problem_};
}

// ---- Import and backup

void Engine::Impl::import_memory(ImportRequest request, Done<ImportReply> done) {
  boost::asio::post(imports_, [this, request = std::move(request), done = std::move(done)]() mutable {
    done(transfer_->import_page(std::move(request)));
  });
}

void Engine::Impl::backup(BackupRequest request, Done<BackupReply> done) {
  boost::asio::post(upkeep_, [this, request = std::move(request), done = std::move(done)]() mutable {
    const auto start = Clock::now();
    BackupOptions options;
    options.proceed = [this](const std::filesystem::path&) -> Expected<void> {
      if (!stopping_) return {};
      return fail(ErrorKind::busy, "the daemon stops before the backup is complete; begin again after its start");
    };
    const auto copied = store_->backup(request.directory, options);
    if (!copied) return done(std::unexpected(copied.error()));
    done(BackupReply{.directory = std::move(request.directory),
                     .files = copied->files,
                     .bytes = copied->bytes,
                     .shared_bytes = copied->shared_bytes,
                     .took_ms = milliseconds_since(start)});
  });
}

// ---- The front door

Expected<std::unique_ptr<Engine>> Engine::open(EngineOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  RECALLD_CHECK(impl->open());
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

void Engine::append(AppendRequest request, Done<AppendReply> done) {
  impl_->append(std::move(request), std::move(done));
}
void Engine::search(SearchRequest request, Done<SearchReply> done) {
  impl_->search(std::move(request), std::move(done));
}

void Engine::memories_list(MemoriesListRequest request, Done<MemoriesListReply> done) {
  impl_->read(std::move(done), [this, request = std::move(request)] { return impl_->memories_list(request); });
}
void Engine::memories_get(std::string memory, Done<MemoryView> done) {
  impl_->read(std::move(done), [this, memory = std::move(memory)] { return impl_->memories_get(memory); });
}
void Engine::memories_delete(DeleteRequest request, Done<DeleteReply> done) {
  impl_->start([this, request = std::move(request), done = std::move(done)]() mutable {
    impl_->forgetter().remove(std::move(request), std::move(done));
  });
}
void Engine::forget(ForgetRequest request, Done<Receipt> done) {
  impl_->start([this, request = std::move(request), done = std::move(done)]() mutable {
    impl_->forgetter().forget(std::move(request), std::move(done));
  });
}
void Engine::verify(VerifyRequest request, Done<VerifyReply> done) {
  impl_->upkeep().verify(std::move(request), std::move(done));
}
void Engine::export_memory(ExportRequest request, Done<ExportReply> done) {
  impl_->read(std::move(done), [this, request = std::move(request)] { return impl_->transfer().export_page(request); });
}
void Engine::import_memory(ImportRequest request, Done<ImportReply> done) {
  impl_->import_memory(std::move(request), std::move(done));
}
void Engine::backup(BackupRequest request, Done<BackupReply> done) {
  impl_->backup(std::move(request), std::move(done));
}
void Engine::reencode(ReencodeRequest request, Done<JobView> done) {
  impl_->reencode(std::move(request), std::move(done));
}
void Engine::turns_list(TurnsListRequest request, Done<TurnsListReply> done) {
  impl_->read(std::move(done), [this, request = std::move(request)] { return impl_->turns_list(request); });
}
void Engine::chunks_list(ChunksListRequest request, Done<ChunksListReply> done) {
  impl_->read(std::move(done), [this, request = std::move(request)] { return impl_->chunks_list(request); });
}
void Engine::chunks_get(std::string memory, uint64_t chunk, Done<ChunkDetail> done) {
  impl_->read(std::move(done), [this, memory = std::move(memory), chunk] { return impl_->chunks_get(memory, chunk); });
}
void Engine::stats(Done<StatsReply> done) {
  impl_->read(std::move(done), [this] { return impl_->stats(); });
}
void Engine::health(Done<HealthReply> done) {
  impl_->read(std::move(done), [this] { return impl_->health(); });
}

VersionReply Engine::version() const {
  return {version_string, 1, hex(impl_->model_hash())};
}

bool Engine::overloaded() const {
  return impl_->overloaded();
}

}  // namespace recalld
