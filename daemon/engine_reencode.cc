// Another model: the store is encoded anew with it behind the replies, and changes over at a start.
#include <spdlog/spdlog.h>

#include <future>
#include <optional>
#include <utility>

#include "daemon/engine_impl.h"
#include "memstore/data_directory.h"

namespace recalld {
namespace {

// Turns that lost their index to a neighbour that was forgotten get it back before this is answered where they are few.
void index_again(Store& store, Indexer& indexer, MemoryId id) {
  constexpr int blocks_at_once = 4;
  std::optional<uint64_t> turn = 0;
  for (int blocks = 0; turn && blocks < blocks_at_once; ++blocks) {
    const auto next = store.index_turns(id, *turn);
    if (!next) break;
    turn = *next;
  }
  if (turn) indexer.index(id);
}

}  // namespace

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
          },
      .forget_cached = [this](MemoryId id) { return forget_cached(id); },
      .erased = [this](MemoryId id) { index_again(*store_, *indexer_, id); }};
}

// On the model thread, which alone may use encoder and decoder. The CPU's keep nothing that is of use to anybody.
Expected<void> Engine::Impl::forget_cached(MemoryId id) {
  if (!gpu_) return {};
  constexpr std::chrono::milliseconds patience{50};
  const auto done = std::make_shared<std::promise<Expected<void>>>();  // shared: after a stop nobody waits any more
  auto forgotten = done->get_future();
  model_thread_->search([this, id, done] {
    encoder_->forget(id);  // its states go first, so that they are overwritten with what else is free
    done->set_value(decoder_->forget(id));
  });
  while (forgotten.wait_for(patience) != std::future_status::ready)
    if (model_thread_ended_ && forgotten.wait_for(patience) != std::future_status::ready)
      return fail(ErrorKind::busy, "the daemon stops before the GPU's memory is overwritten");
  return forgotten.get();
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
  RECALLD_TRY(LoadedModel loaded, load_model(model, options_.precision, Parts::lower, *pool_));
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
  model_thread_->background([this] { return reencoder_->step([this] { return model_thread_->search_goes_first(); }); });
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
  if (auto dropped = DataDirectory::drop_next(options_.data); !dropped) {
    jobs_.fail(job, "cancelled; " + dropped.error().message);
    return std::unexpected(std::move(dropped).error());
  }
  jobs_.fail(job, "cancelled; what had been encoded is gone");
  return jobs_.get(job);
}

}  // namespace recalld
