#include "daemon/reencoder.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <utility>

namespace recalld {
namespace {

constexpr uint64_t steps_a_report = 4;

}  // namespace

Expected<LoadedModel> load_model(const std::filesystem::path& directory, Precision precision, Parts parts,
                                 WorkerPool& pool) {
  RECALLD_TRY(auto model, Ramba::open(directory, precision, parts, pool));
  const Config& config = model->config();
  if (!config.has_tokenizer)
    return fail(ErrorKind::invalid_request, "open model " + directory.string() +
                                                ": its config.json names no SentencePiece tokenizer, without which "
                                                "no text can be read; give another checkpoint");
  RECALLD_TRY(Tokenizer tokenizer,
              Tokenizer::open(directory / "tokenizer.model", config.recall_token_id, config.newline_token_id));
  if (tokenizer.vocab_size() > config.vocab_size)
    return fail(ErrorKind::invalid_request,
                "open model " + directory.string() + ": its tokenizer has " + std::to_string(tokenizer.vocab_size()) +
                    " pieces, its config.json says vocab_size " + std::to_string(config.vocab_size) +
                    "; give a checkpoint whose files belong together");
  const RecordShape shape{.kv_bytes = static_cast<uint32_t>(model->kv_bytes()),
                          .landmark_dim = static_cast<uint32_t>(model->landmark_dim()),
                          .state_bytes = static_cast<uint32_t>(model->lower_state_bytes()),
                          .model = model->hash()};
  return LoadedModel{std::move(model), std::move(tokenizer), shape};
}

Expected<std::unique_ptr<Reencoder>> Reencoder::start(const Store& from, Successor& successor,
                                                      const std::filesystem::path& directory, LoadedModel model,
                                                      uint64_t state_bytes_max, Jobs& jobs, int64_t now_us) {
  RECALLD_CHECK(successor.remember(directory));
  return std::unique_ptr<Reencoder>(
      new Reencoder(from, successor, directory, std::move(model), state_bytes_max, jobs, now_us));
}

Reencoder::Reencoder(const Store& from, Successor& successor, std::filesystem::path directory, LoadedModel model,
                     uint64_t state_bytes_max, Jobs& jobs, int64_t now_us)
    : from_(from),
      successor_(successor),
      directory_(std::move(directory)),
      model_(std::move(model)),
      backend_(*model_.model),
      encoder_(successor_.store(), backend_, model_.shape, model_.tokenizer, state_bytes_max),
      jobs_(jobs),
      job_(jobs.start("reencode", "", now_us)) {
  report();
}

Reencoder::~Reencoder() {
  encoder_.checkpoint_all();
  if (!ready_) jobs_.fail(job_, "stopped; it goes on with the next start");
}

ModelThread::Outcome Reencoder::step(const std::function<bool()>& end_early) {
  const Expected<bool> advanced = advance(end_early);
  if (!advanced && advanced.error().kind == ErrorKind::busy) return ModelThread::Outcome::later;
  if (!advanced) {
    spdlog::error("encode the store anew with {}: {} (tried again until it works)", directory_.string(),
                  advanced.error().message);
    return ModelThread::Outcome::later;
  }
  if (!*advanced || ++steps_ % steps_a_report == 0) report();
  if (*advanced) return ModelThread::Outcome::again;
  if (!ready_) {
    if (const auto marked = successor_.mark_ready(); !marked) {
      spdlog::error("encode the store anew: {} (tried again)", marked.error().message);
      return ModelThread::Outcome::later;
    }
    ready_ = true;
    const std::string next_step = "everything is encoded: stop recalld and start it with --model " +
                                  directory_.string() + " to change over; until then it follows what is appended";
    spdlog::info("encode the store anew: {}", next_step);
    jobs_.finish(job_, next_step);
  }
  return ModelThread::Outcome::later;
}

Expected<bool> Reencoder::advance(const std::function<bool()>& end_early) {
  RECALLD_TRY(const bool copied, successor_.copy_some(from_, model_.tokenizer));
  // In turns, so that one that cannot be encoded does not keep the others back.
  RECALLD_TRY(auto waiting, successor_.store().unencoded(after_, 1));
  if (waiting.empty() && after_ != 0) {
    RECALLD_TRY(waiting, successor_.store().unencoded(0, 1));
  }
  if (waiting.empty()) return copied;
  after_ = waiting.front();
  const Expected<uint64_t> chunks = encoder_.encode_segments(std::array{after_}, end_early)[0];
  if (!chunks) return std::unexpected(chunks.error());
  if (*chunks > 0) --after_;  // it goes on
  return true;
}

void Reencoder::report() {
  const auto there = from_.stats(), here = successor_.store().stats();
  if (!there || !here) return;
  // What has not been copied yet counts as it is encoded now: two models cut text into about as many tokens.
  const uint64_t total =
      std::max(here->encoded_chunks + here->waiting_chunks, there->encoded_chunks + there->waiting_chunks);
  jobs_.progress(job_, ready_ ? total : std::min(here->encoded_chunks, total), total);
}

}  // namespace recalld
