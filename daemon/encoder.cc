#include "daemon/encoder.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <system_error>

namespace recalld {

Encoder::Encoder(Store& store, Ramba& model, const Tokenizer& tokenizer, uint64_t state_bytes_max)
    : store_(store),
      model_(model),
      tokenizer_(tokenizer),
      streams_(streams_kept(state_bytes_max), [this](const Stream& stream) { checkpoint(stream); }),
      hidden_(segment_chunks * chunk_tokens * model.config().hidden_size) {
  // The model takes its working memory when it first runs: here, so that later only what is stored takes more, and
  // nobody's first request waits for it.
  RecurrentState state = model_.lower_zero_state();
  encode(state, std::vector<uint32_t>(segment_chunks * chunk_tokens, tokenizer_.newline_id()));
}

size_t Encoder::stream_bytes() const {
  const size_t tail_chunk_bytes = model_.kv_bytes() + model_.landmark_dim() * sizeof(Bf16);
  return model_.lower_state_bytes() + (segment_chunks + 1) * tail_chunk_bytes;
}

// Beside the streams that are kept, one is being stored and one is being encoded.
size_t Encoder::streams_kept(uint64_t bytes_max) const {
  constexpr size_t moving = 2;
  const size_t streams = bytes_max / std::max<size_t>(1, stream_bytes());
  return streams - std::min(streams, moving);
}

uint64_t Encoder::state_bytes() const {
  return streams_.size() * stream_bytes();
}

Expected<uint64_t> Encoder::encode_segment(MemoryId id) {
  // Another memory's segment that failed is that memory's to encode again, yet a disk that fails is everybody's.
  if (write_ && write_->after.of.memory != id) {
    const MemoryId other = write_->after.of.memory;
    auto stored = finish_write();
    if (!stored && stored.error().kind == ErrorKind::corrupt)  // its own landmarks are damaged
      failed_[other] = std::move(stored).error();
    else if (!stored && stored.error().kind != ErrorKind::not_found && stored.error().kind != ErrorKind::busy)
      return std::unexpected(std::move(stored).error());
  }
  if (const auto failed = failed_.extract(id)) return std::unexpected(failed.mapped());
  RECALLD_TRY(MemoryInfo memory, store_.memory(id));
  if (!memory.next) return encode_next(memory.serving);

  RECALLD_TRY(bool swapped, swap(memory));
  if (!swapped) {
    if (++turns_ % serving_share == 0) {
      // Where tokens of it are being forgotten, what serves cannot be continued, and waits for its successor.
      auto count = encode_next(memory.serving);
      if (count ? *count > 0 : count.error().kind != ErrorKind::busy) return count;
    }
    auto count = encode_next(*memory.next);
    // Without room for both, or with damage that keeps it from catching up, it serves as far as it has come.
    if (!count && (count.error().kind == ErrorKind::full || count.error().kind == ErrorKind::corrupt)) {
      if (at_once_.size() == at_once_max) at_once_.clear();
      at_once_.insert(memory.next->stream);
    }
    if (!count || *count > 0) return count;
    RECALLD_TRY(swapped, swap(memory));  // all of it is stored now
    if (!swapped) return 0;
  }
  RECALLD_TRY(memory, store_.memory(id));
  return encode_next(memory.serving);
}

// Lets the next generation of a memory serve, if it can.
Expected<bool> Encoder::swap(const MemoryInfo& memory) {
  RECALLD_TRY(const bool swapped, store_.swap(memory.id, at_once_.contains(memory.next->stream)));
  if (swapped) {
    settle(memory.id);
    streams_.erase(memory.serving.stream);
    at_once_.erase(memory.next->stream);
  }
  return swapped;
}

Expected<uint64_t> Encoder::encode_next(const StreamInfo& of) {
  if (write_ && (write_->after.of.stream != of.stream || write_->after.of.edition != of.edition))
    RECALLD_CHECK(finish_write());
  const Stream* at = write_ ? &write_->after : nullptr;
  if (!at) {
    RECALLD_TRY(at, stream(of));
  }
  const uint64_t waiting = of.complete_chunks() - std::min(at->chunks, of.complete_chunks());
  if (waiting == 0) {
    RECALLD_CHECK(finish_write());
    return 0;
  }

  // A segment ends where a checkpoint is due, so that states are kept at the same chunks whatever the appends were.
  const uint64_t to_checkpoint = checkpoint_chunks - at->chunks % checkpoint_chunks;
  const uint64_t count = std::min({waiting, segment_chunks, to_checkpoint});
  RECALLD_TRY(const auto tokens, store_.tokens(of, at->chunks * chunk_tokens, count * chunk_tokens));

  // From here on the state runs ahead of the store: it stays out of the cache until the store has caught up.
  StreamInfo to = of;
  to.chunks = at->chunks;
  Stream next{.of = of,
              .chunks = at->chunks + count,
              .checkpointed_chunks = at->checkpointed_chunks,
              .state = at->state,
              .tail = {}};
  std::vector<EncodedChunk> encoded = encode(next.state, tokens);
  std::optional<std::string> state;
  if (count == to_checkpoint) {
    state = Ramba::to_bytes(next.state);
    next.checkpointed_chunks = next.chunks;
  }
  RECALLD_CHECK(finish_write());
  streams_.erase(of.stream);
  // Shared by both ways to run it.
  const auto write = [this, to, encoded = std::make_shared<std::vector<EncodedChunk>>(std::move(encoded)),
                      state = std::move(state)] { return store(to, *encoded, state); };
  std::future<Expected<void>> stored;
  try {
    stored = std::async(std::launch::async, write);
  } catch (const std::system_error&) {  // no thread can be started: it is stored when the result is asked for
    stored = std::async(std::launch::deferred, write);
  }
  write_.emplace(std::move(next), std::move(stored));
  return count;
}

bool Encoder::settle(MemoryId id) {
  if (!write_ || write_->after.of.memory != id) return false;
  static_cast<void>(finish_write());  // if it failed, the chunks wait still, and the next try tells why
  return true;
}

Expected<void> Encoder::finish_write() {
  if (!write_) return {};
  auto stored = write_->stored.get();
  Stream after = std::move(write_->after);
  write_.reset();
  if (stored) streams_.insert(std::move(after));
  return stored;
}

// Runs beside the model thread.
Expected<void> Encoder::store(const StreamInfo& to, const std::vector<EncodedChunk>& chunks,
                              const std::optional<std::string>& state) const {
  const size_t kv_bytes = model_.kv_bytes();
  AlignedBuffer kv((chunks.size() * kv_bytes + io_alignment - 1) / io_alignment * io_alignment);
  std::vector<std::vector<Bf16>> landmarks;
  std::vector<EncodedChunkView> views;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const ByteSpan record = kv.bytes().subspan(i * kv_bytes, kv_bytes);
    model_.pack_kv(chunks[i], record);
    landmarks.push_back(model_.pack_landmark(chunks[i]));
    views.push_back({landmarks.back(), record});
  }
  return store_.put(to, views, state ? std::optional(as_bytes(*state)) : std::nullopt);
}

Expected<const Tail*> Encoder::tail(const MemoryInfo& memory) {
  const uint64_t waiting = std::min(memory.waiting_chunks(), segment_chunks);
  const bool whole = waiting == memory.waiting_chunks();  // then the open chunk follows directly
  const uint64_t first_token = memory.encoded_chunks * chunk_tokens;
  const uint64_t end_token = whole ? memory.tokens : first_token + waiting * chunk_tokens;
  if (end_token == first_token) return nullptr;

  const Expected<Stream*> found = this->stream(memory.serving);
  if (!found && found.error().kind == ErrorKind::busy) return nullptr;
  RECALLD_TRY(Stream * stream, found);
  if (stream->tail && stream->tail->first_chunk == memory.encoded_chunks && stream->tail->end_token == end_token &&
      stream->tail->edition == memory.serving.edition)
    return &*stream->tail;

  RECALLD_TRY(auto tokens, store_.tokens(memory.serving, first_token, end_token - first_token));
  const uint64_t count = (tokens.size() + chunk_tokens - 1) / chunk_tokens;
  tokens.resize(count * chunk_tokens, tokenizer_.newline_id());
  Tail tail{.first_chunk = memory.encoded_chunks,
            .end_token = end_token,
            .edition = memory.serving.edition,
            .landmarks = {},
            .kv = {}};
  tail.kv.resize(count * model_.kv_bytes());
  RecurrentState state = stream->state;
  uint64_t done = 0;
  while (done < count) {
    const uint64_t part = std::min(count - done, segment_chunks);
    const auto encoded = encode(state, std::span(tokens).subspan(done * chunk_tokens, part * chunk_tokens));
    for (const EncodedChunk& chunk : encoded) {
      const std::vector<Bf16> landmark = model_.pack_landmark(chunk);
      tail.landmarks.insert(tail.landmarks.end(), landmark.begin(), landmark.end());
      model_.pack_kv(chunk, std::span(tail.kv).subspan(done * model_.kv_bytes(), model_.kv_bytes()));
      ++done;
    }
  }
  stream->tail = std::move(tail);
  return &*stream->tail;
}

Expected<Encoder::Covered> Encoder::cover(std::string_view name) {
  Covered covered;
  RECALLD_TRY(covered.memory, store_.memory(name));
  if (settle(covered.memory.id)) {
    RECALLD_TRY(covered.memory, store_.memory(covered.memory.id));
  }
  Expected<const Tail*> encoded = tail(covered.memory);
  if (!encoded && encoded.error().kind == ErrorKind::busy) {  // turns were forgotten in between
    RECALLD_TRY(covered.memory, store_.memory(covered.memory.id));
    encoded = tail(covered.memory);
  }
  const MemoryInfo& memory = covered.memory;
  if (!encoded && encoded.error().kind == ErrorKind::corrupt && memory.tokens > 0) {
    covered.unreadable.push_back({memory.encoded_chunks, (memory.tokens - 1) / chunk_tokens, encoded.error().message});
    encoded = nullptr;
  }
  RECALLD_TRY(covered.tail, encoded);
  return covered;
}

void Encoder::forget(MemoryId id) {
  settle(id);
  streams_.erase_memory(id);
}

void Encoder::checkpoint_all() {
  static_cast<void>(finish_write());  // if it failed, the chunks are encoded again after the next start
  streams_.evict_all();
}

// The generation's stream at its encoded end: from RAM, or from the newest checkpoint and the tokens after it.
Expected<Stream*> Encoder::stream(const StreamInfo& of) {
  if (Stream* cached = streams_.find(of.stream); cached && cached->chunks == of.chunks) {
    cached->of = of;
    return cached;
  }
  std::string damage;
  RECALLD_TRY(const auto kept, store_.state(of, of.chunks, &damage));
  tell_damage(of.memory, damage);
  Stream stream{.of = of, .chunks = 0, .checkpointed_chunks = 0, .state = model_.lower_zero_state(), .tail = {}};
  if (kept) {
    stream.chunks = stream.checkpointed_chunks = kept->chunks;
    stream.state = model_.lower_state_from_bytes(as_bytes(kept->bytes));
  }
  RECALLD_CHECK(advance(stream, of.chunks));
  return &streams_.insert(std::move(stream));
}

// Reads tokens again whose chunks are stored already, for the state alone.
Expected<void> Encoder::advance(Stream& stream, uint64_t to_chunk) {
  while (stream.chunks < to_chunk) {
    const uint64_t count = std::min(segment_chunks, to_chunk - stream.chunks);
    RECALLD_TRY(const auto tokens, store_.tokens(stream.of, stream.chunks * chunk_tokens, count * chunk_tokens));
    model_.lower(stream.state, tokens, std::span(hidden_).first(tokens.size() * model_.config().hidden_size));
    stream.chunks += count;
  }
  return {};
}

void Encoder::tell_damage(MemoryId id, const std::string& damage) {
  constexpr size_t told_max = 1'000;
  if (damage.empty() || damage_told_.size() >= told_max || !damage_told_.insert(std::to_string(id) + damage).second)
    return;
  spdlog::error("encode memory {}: {}", id, damage);
}

// ---- Mending

Expected<bool> Encoder::make_again(Mending& mending, uint64_t page_chunks) {
  // The first chunk, or end of chunks, that something is wanted of.
  const auto first_wanted = [&] {
    uint64_t first = UINT64_MAX;
    if (!mending.kv.empty()) first = std::min(first, *mending.kv.begin());
    if (!mending.landmarks.empty()) first = std::min(first, *mending.landmarks.begin());
    if (!mending.states.empty()) first = std::min(first, *mending.states.begin() - 1);
    return first;
  };
  // Gives up everything before the end of this chunk.
  const auto give_up = [&](uint64_t chunk) {
    std::erase_if(mending.kv, [&](uint64_t each) { return each <= chunk; });
    std::erase_if(mending.landmarks, [&](uint64_t each) { return each <= chunk; });
    std::erase_if(mending.states, [&](uint64_t each) { return each <= chunk + 1; });
    return !mending.made.empty() || !mending.made_states.empty();
  };
  if (mending.done()) return !mending.made.empty() || !mending.made_states.empty();
  const uint64_t wanted = first_wanted();
  if (!mending.state || mending.at > wanted || wanted - mending.at > checkpoint_chunks) {
    RECALLD_TRY(const auto kept, store_.state(mending.of, wanted));
    const uint64_t kept_at = kept ? kept->chunks : 0;
    if (!mending.state || mending.at > wanted || mending.at < kept_at) {
      if (mending.blocked && kept_at <= mending.blocked_from && mending.blocked_from <= wanted) return give_up(wanted);
      mending.state = kept ? model_.lower_state_from_bytes(as_bytes(kept->bytes)) : model_.lower_zero_state();
      mending.at = kept_at;
    }
  }

  // A segment ends before the first chunk that is wanted, at the end of its page, and where a state is.
  uint64_t end = mending.at + segment_chunks;
  if (mending.at < wanted) end = std::min(end, wanted);
  end = std::min(end, (mending.at / page_chunks + 1) * page_chunks);
  if (const auto state = mending.states.upper_bound(mending.at); state != mending.states.end())
    end = std::min(end, *state);
  end = std::min(end, mending.of.chunks);
  const uint64_t first = mending.at, count = end - first;
  const auto tokens = store_.tokens(mending.of, first * chunk_tokens, count * chunk_tokens);
  if (!tokens || tokens->size() != count * chunk_tokens) {
    if (tokens || tokens.error().kind == ErrorKind::busy)
      return fail(ErrorKind::busy, "mend memory " + std::to_string(mending.of.memory) +
                                       ": turns of it are being forgotten; verify it again");
    if (tokens.error().kind != ErrorKind::corrupt) return std::unexpected(tokens.error());
    // What is damaged here is the journal, which only a backup has.
    mending.blocked = true;
    mending.blocked_from = first;
    mending.state.reset();
    return give_up(std::max(wanted, end - 1));
  }
  if (end <= wanted) {
    model_.lower(*mending.state, *tokens, std::span(hidden_).first(tokens->size() * model_.config().hidden_size));
  } else {
    const std::vector<EncodedChunk> encoded = encode(*mending.state, *tokens);
    for (uint64_t i = 0; i < count; ++i) {
      const bool kv = mending.kv.erase(first + i) > 0, landmark = mending.landmarks.erase(first + i) > 0;
      if (!kv && !landmark) continue;
      mending.made.push_back({.chunk = first + i,
                              .landmark = model_.pack_landmark(encoded[i]),
                              .record = std::vector<std::byte>(model_.kv_bytes()),
                              .kv = kv,
                              .has_landmark = landmark});
      model_.pack_kv(encoded[i], mending.made.back().record);
    }
  }
  mending.at = end;
  if (mending.states.erase(end) > 0) mending.made_states.push_back({end, Ramba::to_bytes(*mending.state)});
  const bool made = !mending.made.empty() || !mending.made_states.empty();
  return made && (mending.done() || end % page_chunks == 0 || first_wanted() / page_chunks != (end - 1) / page_chunks);
}

Expected<void> Encoder::store_again(Mending& mending) const {
  std::vector<MendedChunk> chunks;
  for (const Mending::Made& made : mending.made)
    chunks.push_back(
        {.chunk = made.chunk, .encoded = {made.landmark, made.record}, .kv = made.kv, .landmark = made.has_landmark});
  RECALLD_CHECK(store_.mend(mending.of, chunks, mending.made_states));
  mending.made.clear();
  mending.made_states.clear();
  return {};
}

std::vector<EncodedChunk> Encoder::encode(RecurrentState& state, std::span<const uint32_t> tokens) {
  const auto hidden = std::span(hidden_).first(tokens.size() * model_.config().hidden_size);
  model_.lower(state, tokens, hidden);
  return model_.encode_chunks(hidden);
}

void Encoder::checkpoint(const Stream& stream) {
  if (stream.chunks == stream.checkpointed_chunks) return;
  const std::string bytes = Ramba::to_bytes(stream.state);
  const auto kept = store_.put_state(stream.of, stream.chunks, as_bytes(bytes));
  if (!kept && kept.error().kind != ErrorKind::not_found && kept.error().kind != ErrorKind::busy)
    spdlog::warn("keep the state of memory {} at chunk {}: {} (its tokens are read again next time)", stream.of.memory,
                 stream.chunks, kept.error().message);
}

}  // namespace recalld
