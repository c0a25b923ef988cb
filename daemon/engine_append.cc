// Append: tokenise, commit, reply, encode behind the reply.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "daemon/engine_impl.h"

namespace recalld {
namespace {

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

}  // namespace

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

// The last turn that a search would cover now.
Expected<std::optional<uint64_t>> Engine::Impl::searchable_through(const MemoryInfo& memory) const {
  return through(memory.id, Encoder::covered_tokens(memory));
}

// Where damage keeps it from being told, nothing is claimed.
Expected<std::optional<uint64_t>> Engine::Impl::through(MemoryId id, uint64_t tokens) const {
  auto turn = store_->last_turn_within(id, tokens);
  if (!turn && turn.error().kind == ErrorKind::corrupt) return std::optional<uint64_t>();
  return turn;
}

std::vector<ModelThread::Outcome> Engine::Impl::encode(std::span<const MemoryId> ids) {
  const auto start = Clock::now();
  // A search waits for no more than the part that is being encoded.
  const auto counts = encoder_->encode_segments(ids, [this] { return model_thread_->search_goes_first(); });
  state_bytes_ = encoder_->state_bytes();
  uint64_t chunks = 0;
  for (const Expected<uint64_t>& count : counts) chunks += count.value_or(0);
  if (chunks > 0) {
    tokens_encoded_ += chunks * chunk_tokens;
    encode_us_ += static_cast<uint64_t>(milliseconds_since(start) * 1000);
  }
  std::vector<ModelThread::Outcome> outcomes;
  for (size_t i = 0; i < ids.size(); ++i) outcomes.push_back(encoded(ids[i], counts[i]));
  return outcomes;
}

// What follows for one memory, of which so many chunks were encoded.
ModelThread::Outcome Engine::Impl::encoded(MemoryId id, const Expected<uint64_t>& chunks) {
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

}  // namespace recalld
