// Start, stop, and the front door. The members of Engine::Impl that do the work stand in engine_append.cc,
// engine_search.cc, engine_generate.cc, engine_inspect.cc and engine_reencode.cc.
#include "daemon/engine.h"

#include <algorithm>
#include <utility>

#include <spdlog/spdlog.h>

#include "daemon/decoder_cpu.h"
#include "daemon/engine_impl.h"
#include "daemon/filter.h"
#include "daemon/version.h"
#include "memstore/data_directory.h"
#include "model/backend_cpu.h"

namespace recalld {
namespace {

int64_t system_now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

// ---- Start and stop

Engine::Impl::Impl(EngineOptions options) : options_(std::move(options)) {
  if (!options_.now_us) options_.now_us = system_now_us;
  if (options_.threads == 0) options_.threads = std::max(1u, std::thread::hardware_concurrency());
  pool_ = std::make_unique<WorkerPool>(options_.threads);
}

Expected<void> Engine::Impl::open() {
  // One that is asked for is a reason not to start, so it comes before a store is made; one that may be there comes
  // after the store's lock is had, so that a second daemon says what is wrong.
  const bool asked_for = options_.device == Device::cuda;
  if (asked_for) RECALLD_CHECK(open_gpu());
  // With a GPU the CPU's model is there for its shapes, and to explain searches.
  const Parts parts = asked_for ? Parts::lower : Parts::all;
  RECALLD_TRY(LoadedModel loaded, load_model(options_.model, options_.precision, parts, *pool_));
  model_ = std::move(loaded.model);
  tokenizer_ = std::move(loaded.tokenizer);
  RECALLD_TRY(fusion_, Fusion::of_checkpoint(options_.model));
  RECALLD_TRY(meaning_, Meaning::of_checkpoint(options_.model, tokenizer_->vocab_size()));
  // As much as the catalog writes out when it goes on after it found no room.
  Reserve reserve(options_.data / "reserve", std::max(options_.memory_budget_bytes / 8, uint64_t{4} << 20));
  reserve.give_up_when_short();
  RECALLD_CHECK(change_over(loaded.shape));

  // The budget: an eighth for recurrent states, an eighth for appends on their way, the rest for the store.
  const uint64_t state_bytes_max = options_.memory_budget_bytes / 8;
  StoreOptions store;
  store.memory_budget_bytes = options_.memory_budget_bytes / 4 * 3;
  store.shape = loaded.shape;
  store.read_metadata = metadata_attributes;
  RECALLD_TRY(const auto stamp, DataDirectory::stamp(options_.data));
  if (options_.repair && stamp) RECALLD_CHECK(Store::drop_damaged_tables(options_.data, store));
  RECALLD_TRY(store_, Store::open(options_.data, std::move(store)));

  if (!asked_for) RECALLD_CHECK(open_gpu());
  if (!gpu_ && options_.gpu_budget_bytes != 0) spdlog::warn("gpu-budget is not used: the CPU computes");
  if (!gpu_) cpu_backend_ = std::make_unique<CpuBackend>(*model_);
  backend_ = gpu_ ? gpu_.get() : cpu_backend_.get();
  // Of the GPU's states one is a query's.
  const size_t streams_max = gpu_ ? gpu_->states_max() - 1 : 0;
  const uint64_t states_in_ram_max = gpu_ ? UINT64_MAX : state_bytes_max;  // a GPU's are not in RAM
  encoder_ = std::make_unique<Encoder>(*store_, *backend_, loaded.shape, *tokenizer_, states_in_ram_max, streams_max);
  if (gpu_) {
    auto decoder = std::make_unique<GpuDecoder>(*store_, *model_, *gpu_);
    gpu_decoder_ = decoder.get();
    decoder_ = std::move(decoder);
  } else {
    decoder_ = std::make_unique<CpuDecoder>(*store_, *model_, *pool_);
  }
  generator_ = std::make_unique<Generator>(*store_, loaded.shape, *tokenizer_, *encoder_, *decoder_);
  model_thread_ = std::make_unique<ModelThread>([this](std::span<const MemoryId> ids) { return encode(ids); },
                                                [this] { return generator_->step(); }, backend_->segments_max());
  indexer_ = std::make_unique<Indexer>(*store_, upkeep_);
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
      *store_, jobs_, *model_thread_, *encoder_, *tokenizer_, [this](MemoryId id) { indexer_->index(id); },
      [this] { return forgetter_->resume(); },
      [this](const std::string& damage) {
        const std::lock_guard lock(problem_mutex_);
        damage_ = damage;
        damage_told_.clear();
      },
      options_.now_us);

  // What a crash or a stop left unencoded or not erased goes on now, and what an earlier version left unindexed.
  RECALLD_CHECK(forgetter_->resume());
  indexer_->start();
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

// A machine without a GPU is nothing to worry about; one that has a GPU which cannot be used may be.
Expected<void> Engine::Impl::open_gpu() {
  if (options_.device == Device::cpu) return {};
  // The states of memories that are being encoded, twice as many on their way to the store, and those kept for more.
  constexpr size_t encode_states = 96;
  // The host's memory has the recurrent states' share of the budget free, which lie on the GPU.
  auto gpu = options_.open_gpu({.model = options_.model,
                                .budget_bytes = options_.gpu_budget_bytes,
                                .encode_states = encode_states,
                                .host_landmarks_bytes_max = options_.memory_budget_bytes / 8});
  if (gpu) {
    gpu_ = *std::move(gpu);
    gpu_name_ = gpu_->name();
    if (options_.precision == Precision::f32)
      spdlog::warn("precision f32 is the CPU's alone: the GPU multiplies in bf16; use --device cpu for f32");
    gpu_slots_ = gpu_->slots();
    return {};
  }
  Error error = std::move(gpu).error();
  if (options_.device == Device::cuda) {
    const bool of_gpu = error.kind == ErrorKind::device || error.kind == ErrorKind::not_found;
    if (of_gpu && !error.message.contains("--device")) error.message += "; --device cpu does without a GPU";
    return std::unexpected(std::move(error));
  }
  const bool none = error.kind == ErrorKind::not_found;
  spdlog::log(none ? spdlog::level::info : spdlog::level::warn, "the CPU computes: {}", error.message);
  return {};
}

void Engine::Impl::interrupt() {
  stopping_ = true;
  if (verifier_) verifier_->interrupt();
  if (generator_) generator_->interrupt();
}

Engine::Impl::~Impl() {
  interrupt();
  tokenisers_.join();
  appends_.reset();  // commits what was accepted
  if (verifier_) verifier_->stop();
  if (model_thread_) model_thread_->stop();  // ranks the searches that were accepted
  model_thread_ended_ = true;
  readers_.join();  // answers them
  if (forgetter_) forgetter_->stop();
  if (indexer_) indexer_->stop();
  if (transfer_) transfer_->stop();
  upkeep_.join();
  for (auto& [id, waiters] : waiters_)
    for (Waiter& waiter : waiters)
      waiter.done(fail(ErrorKind::busy, "append to " + waiter.reply.memory +
                                            ": the turns are durable, but the daemon stops before they are encoded"));
  reencoder_.reset();
  if (encoder_) encoder_->checkpoint_all();
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

void Engine::interrupt() {
  impl_->interrupt();
}

void Engine::append(AppendRequest request, Done<AppendReply> done) {
  impl_->append(std::move(request), std::move(done));
}
void Engine::search(SearchRequest request, Done<SearchReply> done) {
  impl_->search(std::move(request), std::move(done));
}

void Engine::generate(GenerateRequest request, Done<GenerateReply> done) {
  impl_->generate(std::move(request), std::move(done));
}
CancelReply Engine::cancel(const Caller& caller) {
  return {impl_->generator().cancel(caller)};
}
void Engine::connection_closed(uint64_t connection) {
  impl_->generator().cancel_all(connection);
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

std::string Engine::device() const {
  return impl_->device();
}

bool Engine::overloaded() const {
  return impl_->overloaded();
}

}  // namespace recalld
