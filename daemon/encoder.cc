#include "daemon/encoder.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace recalld {

Encoder::Encoder(Store& store, Backend& backend, const RecordShape& shape, const Tokenizer& tokenizer,
                 uint64_t state_bytes_max, size_t streams_max)
    : store_(store),
      backend_(backend),
      shape_(shape),
      tokenizer_(tokenizer),
      streams_(streams_kept(state_bytes_max, streams_max), [this](const Stream& stream) { checkpoint(stream); }) {}

size_t Encoder::stream_bytes() const {
  const size_t tail_chunk_bytes = shape_.kv_bytes + shape_.landmark_dim * sizeof(Bf16);
  return shape_.state_bytes + segment_chunks * tail_chunk_bytes;
}

// Beside the streams that are kept, those of one call are being stored and those of another encoded. In RAM that is one
// each, with its state as the bytes that are stored, too: a backend that takes more of them has their states elsewhere.
size_t Encoder::streams_kept(uint64_t bytes_max, size_t streams_max) const {
  constexpr size_t moving_in_ram = 2;
  const auto without = [](size_t streams, size_t others) { return streams - std::min(streams, others); };
  const uint64_t moving_bytes = moving_in_ram * (stream_bytes() + uint64_t{shape_.state_bytes});
  const size_t by_bytes = (bytes_max - std::min(bytes_max, moving_bytes)) / std::max<size_t>(1, stream_bytes());
  if (streams_max == 0) return by_bytes;
  // One more is being mended, and a state that is read again is there twice while it advances.
  constexpr size_t others = 2;
  return std::min(by_bytes, without(streams_max, 2 * backend_.segments_max() + others));
}

uint64_t Encoder::state_bytes() const {
  return streams_.size() * stream_bytes();
}

uint64_t Encoder::covered_tokens(const MemoryInfo& memory) {
  return std::min(memory.tokens, (memory.encoded_chunks + segment_chunks) * chunk_tokens);
}

std::vector<Expected<uint64_t>> Encoder::encode_segments(std::span<const MemoryId> ids,
                                                         const std::function<bool()>& end_early) {
  // Memories that come one by one wait for each other's write: a disk that fails is known before the next one computes.
  if (ids.size() == 1 && !on_its_way(ids[0])) finish_write();
  std::vector<Expected<Segment>> segments;
  for (const MemoryId id : ids) segments.push_back(next_segment(id));
  encode(segments, end_early);
  finish_write();

  std::vector<Expected<uint64_t>> counts;
  std::vector<Segment> encoded;
  for (size_t i = 0; i < ids.size(); ++i) {
    Expected<Segment>& segment = segments[i];
    if (auto failed = take_failure(ids[i])) {  // then what follows it has no place either
      if (segment && segment->catches_up) do_not_wait(segment->to.stream, *failed);
      segment = std::unexpected(*std::move(failed));
    }
    if (!segment) {
      counts.push_back(std::unexpected(std::move(segment).error()));
      continue;
    }
    counts.push_back(segment->chunks());
    if (segment->chunks() == 0) continue;
    // From here on the state runs ahead of the store: it stays out of the cache until the store has caught up.
    streams_.erase(segment->to.stream);
    encoded.push_back(*std::move(segment));
  }
  drop_failures();
  if (!encoded.empty()) start_write(std::move(encoded));
  return counts;
}

Expected<Encoder::Segment> Encoder::next_segment(MemoryId id) {
  if (auto failed = take_failure(id)) return std::unexpected(*std::move(failed));
  RECALLD_TRY(MemoryInfo memory, store_.memory(id));
  if (!memory.next) return next_segment(memory.serving);

  // Where nothing waits, all of it must be stored before generations change.
  const auto next_or_all_stored = [&](const StreamInfo& of) -> Expected<Segment> {
    auto segment = next_segment(of);
    if (!segment || segment->chunks() > 0) return segment;
    finish_write();
    if (auto failed = take_failure(id)) return std::unexpected(*std::move(failed));
    return segment;
  };
  RECALLD_TRY(bool swapped, swap(memory));
  if (!swapped) {
    if (++turns_ % serving_share == 0) {
      // Where tokens of it are being forgotten, what serves cannot be continued, and waits for its successor.
      auto segment = next_or_all_stored(memory.serving);
      if (segment ? segment->chunks() > 0 : segment.error().kind != ErrorKind::busy) return segment;
    }
    auto segment = next_or_all_stored(*memory.next);
    if (segment)
      segment->catches_up = true;
    else
      do_not_wait(memory.next->stream, segment.error());
    if (!segment || segment->chunks() > 0) return segment;
    RECALLD_TRY(swapped, swap(memory));  // all of it is stored now
    if (!swapped) return Segment();
  }
  RECALLD_TRY(memory, store_.memory(id));
  return next_segment(memory.serving);
}

// Lets the next generation of a memory serve, if it can.
Expected<bool> Encoder::swap(const MemoryInfo& memory) {
  RECALLD_TRY(const bool swapped, store_.swap(memory.id, at_once_.contains(memory.next->stream)));
  if (swapped) {
    if (on_its_way(memory.id)) finish_write();
    failed_.erase(memory.id);  // what waits still is tried again, and tells why
    streams_.erase(memory.serving.stream);
    at_once_.erase(memory.next->stream);
  }
  return swapped;
}

// Without room for both, or with damage that keeps it from catching up, the next generation serves as far as it has
// come.
void Encoder::do_not_wait(StreamId next, const Error& because) {
  if (because.kind != ErrorKind::full && because.kind != ErrorKind::corrupt) return;
  if (at_once_.size() == at_once_max) at_once_.clear();
  at_once_.insert(next);
}

Expected<Encoder::Segment> Encoder::next_segment(const StreamInfo& of) {
  const Segment* before = on_its_way(of.memory);
  if (before && (before->after.of.stream != of.stream || before->after.of.edition != of.edition)) {
    finish_write();
    if (auto failed = take_failure(of.memory)) return std::unexpected(*std::move(failed));
    before = nullptr;
  }
  const Stream* at = before ? &before->after : nullptr;
  if (!at) {
    RECALLD_TRY(at, stream(of));
  }
  const uint64_t waiting = of.complete_chunks() - std::min(at->chunks, of.complete_chunks());
  if (waiting == 0) return Segment();

  // A segment ends where a checkpoint is due, so that states are kept at the same chunks whatever the appends were.
  const uint64_t to_checkpoint = checkpoint_chunks - at->chunks % checkpoint_chunks;
  const uint64_t count = std::min({waiting, backend_.segment_chunks(), to_checkpoint});
  Segment segment;
  RECALLD_TRY(segment.tokens, store_.tokens(of, at->chunks * chunk_tokens, count * chunk_tokens));
  segment.to = of;
  segment.to.chunks = at->chunks;
  segment.after = {.of = of,
                   .chunks = at->chunks + count,
                   .checkpointed_chunks = at->checkpointed_chunks,
                   .state = at->state,
                   .tail = {}};
  segment.landmarks.resize(count * shape_.landmark_dim);
  segment.kv = AlignedBuffer((count * shape_.kv_bytes + io_alignment - 1) / io_alignment * io_alignment);
  return segment;
}

// All of them in one call, whose error becomes that of each. One that is alone may end early.
void Encoder::encode(std::span<Expected<Segment>> segments, const std::function<bool()>& end_early) {
  std::vector<Backend::Segment> batch;
  for (Expected<Segment>& segment : segments) {
    if (segment && segment->chunks() > 0)
      batch.push_back({&segment->after.state, segment->tokens, segment->landmarks,
                       segment->kv.bytes().first(segment->chunks() * shape_.kv_bytes)});
  }
  if (batch.empty()) return;
  const bool alone = batch.size() == 1;
  Expected<uint64_t> encoded = 0;  // tokens, of one that is alone
  if (alone)
    encoded = backend_.encode_until(batch[0], end_early);
  else if (const auto all = backend_.encode(batch); !all)
    encoded = std::unexpected(all.error());
  for (Expected<Segment>& segment : segments) {
    if (!segment || segment->chunks() == 0) continue;
    Stream& after = segment->after;
    if (!encoded) {
      segment = std::unexpected(encoded.error());
      continue;
    }
    if (alone) after.chunks = segment->to.chunks + *encoded / chunk_tokens;
    if (after.chunks % checkpoint_chunks == 0) {
      auto state = backend_.bytes_of(after.state);
      if (!state) {
        segment = std::unexpected(std::move(state).error());
        continue;
      }
      segment->state = *std::move(state);
      after.checkpointed_chunks = after.chunks;
    }
  }
}

Expected<void> Encoder::encode_one(const Backend::Segment& segment) {
  return backend_.encode(std::span(&segment, 1));
}

// ---- What is being stored

const Encoder::Segment* Encoder::on_its_way(MemoryId id) const {
  if (!write_) return nullptr;
  const auto found = std::ranges::find(write_->segments, id, [](const Segment& each) { return each.to.memory; });
  return found == write_->segments.end() ? nullptr : &*found;
}

void Encoder::start_write(std::vector<Segment> segments) {
  write_.emplace(std::move(segments));
  const auto write = [this, &segments = std::as_const(write_->segments)] {
    std::vector<Expected<void>> stored;
    for (const Segment& segment : segments) stored.push_back(store(segment));
    return stored;
  };
  try {
    write_->stored = std::async(std::launch::async, write);
  } catch (const std::system_error&) {  // no thread can be started: it is stored when the result is asked for
    write_->stored = std::async(std::launch::deferred, write);
  }
}

void Encoder::finish_write() {
  if (!write_) return;
  const std::vector<Expected<void>> stored = write_->stored.get();
  std::vector<Segment> segments = std::move(write_->segments);
  write_.reset();
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i])
      streams_.insert(std::move(segments[i].after));
    else
      failed_.insert_or_assign(segments[i].to.memory, stored[i].error());
  }
}

// Why chunks of this memory were not stored. They wait again. What is wrong with one memory is that one's to know, yet
// a disk that fails is everybody's.
std::optional<Error> Encoder::take_failure(MemoryId id) {
  if (const auto own = failed_.extract(id)) return std::move(own.mapped());
  const auto of_disk = std::ranges::find_if(failed_, [](const auto& each) {
    const ErrorKind kind = each.second.kind;
    return kind != ErrorKind::corrupt && kind != ErrorKind::not_found && kind != ErrorKind::busy;
  });
  return of_disk == failed_.end() ? std::nullopt : std::optional(of_disk->second);
}

// The next try tells what is still so; but of damage to a memory's own landmarks only its own next call.
void Encoder::drop_failures() {
  std::erase_if(failed_, [](const auto& each) { return each.second.kind != ErrorKind::corrupt; });
}

bool Encoder::settle(MemoryId id) {
  if (!on_its_way(id)) return false;
  finish_write();
  failed_.erase(id);  // if it failed, the chunks wait still, and the next try tells why
  drop_failures();
  return true;
}

// Runs beside the model thread.
Expected<void> Encoder::store(const Segment& segment) const {
  std::vector<EncodedChunkView> views;
  for (size_t i = 0; i < segment.chunks(); ++i)
    views.push_back({std::span(segment.landmarks).subspan(i * shape_.landmark_dim, shape_.landmark_dim),
                     segment.kv.bytes().subspan(i * shape_.kv_bytes, shape_.kv_bytes)});
  return store_.put(segment.to, views, segment.state ? std::optional(as_bytes(*segment.state)) : std::nullopt);
}

// ---- Tails, and the states that streams go on from

Expected<const Tail*> Encoder::tail(const MemoryInfo& memory) {
  const uint64_t first_token = memory.encoded_chunks * chunk_tokens, end_token = covered_tokens(memory);
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
  tail.landmarks.resize(count * shape_.landmark_dim);
  tail.kv.resize(count * shape_.kv_bytes);
  RecurrentState state = stream->state;
  for (uint64_t done = 0; done < count;) {
    const uint64_t part = std::min(count - done, backend_.segment_chunks());
    RECALLD_CHECK(encode_one({&state, std::span(tokens).subspan(done * chunk_tokens, part * chunk_tokens),
                              std::span(tail.landmarks).subspan(done * shape_.landmark_dim, part * shape_.landmark_dim),
                              std::span(tail.kv).subspan(done * shape_.kv_bytes, part * shape_.kv_bytes)}));
    done += part;
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
  failed_.erase(id);
  streams_.erase_memory(id);
  if (mending_state_.memory == id) mending_state_.state.reset();
}

void Encoder::checkpoint_all() {
  finish_write();  // if it failed, the chunks are encoded again after the next start
  mending_state_.state.reset();
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
  Stream stream{.of = of, .chunks = 0, .checkpointed_chunks = 0, .state = {}, .tail = {}};
  if (kept) stream.chunks = stream.checkpointed_chunks = kept->chunks;
  RECALLD_TRY(stream.state, kept ? backend_.state_from(as_bytes(kept->bytes)) : backend_.zero_state());
  RECALLD_CHECK(advance(stream, of.chunks));
  return &streams_.insert(std::move(stream));
}

// Reads tokens again whose chunks are stored already, for the state alone.
Expected<void> Encoder::advance(Stream& stream, uint64_t to_chunk) {
  while (stream.chunks < to_chunk) {
    const uint64_t count = std::min(backend_.segment_chunks(), to_chunk - stream.chunks);
    RECALLD_TRY(const auto tokens, store_.tokens(stream.of, stream.chunks * chunk_tokens, count * chunk_tokens));
    RECALLD_CHECK(encode_one({&stream.state, tokens, {}, {}}));
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
  if (mending.number == 0) mending.number = ++mendings_;
  if (mending_state_.mending != mending.number) mending_state_ = {mending.number, mending.of.memory, {}};
  auto to_store = make_more(mending, mending_state_.state, page_chunks);
  if (!to_store || mending.done()) mending_state_.state.reset();
  return to_store;
}

Expected<bool> Encoder::make_more(Mending& mending, std::optional<RecurrentState>& state, uint64_t page_chunks) {
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
  if (!state || mending.at > wanted || wanted - mending.at > checkpoint_chunks) {
    RECALLD_TRY(const auto kept, store_.state(mending.of, wanted));
    const uint64_t kept_at = kept ? kept->chunks : 0;
    if (!state || mending.at > wanted || mending.at < kept_at) {
      if (mending.blocked && kept_at <= mending.blocked_from && mending.blocked_from <= wanted) return give_up(wanted);
      RECALLD_TRY(state, kept ? backend_.state_from(as_bytes(kept->bytes)) : backend_.zero_state());
      mending.at = kept_at;
    }
  }

  // A segment ends before the first chunk that is wanted, at the end of its page, and where a state is.
  uint64_t end = mending.at + backend_.segment_chunks();
  if (mending.at < wanted) end = std::min(end, wanted);
  end = std::min(end, (mending.at / page_chunks + 1) * page_chunks);
  if (const auto next = mending.states.upper_bound(mending.at); next != mending.states.end())
    end = std::min(end, *next);
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
    state.reset();
    return give_up(std::max(wanted, end - 1));
  }
  if (end <= wanted) {
    RECALLD_CHECK(encode_one({&*state, *tokens, {}, {}}));
  } else {
    std::vector<Bf16> landmarks(count * shape_.landmark_dim);
    std::vector<std::byte> records(count * shape_.kv_bytes);
    RECALLD_CHECK(encode_one({&*state, *tokens, landmarks, records}));
    for (uint64_t i = 0; i < count; ++i) {
      const bool kv = mending.kv.erase(first + i) > 0, landmark = mending.landmarks.erase(first + i) > 0;
      if (!kv && !landmark) continue;
      const auto its_landmark = std::span(landmarks).subspan(i * shape_.landmark_dim, shape_.landmark_dim);
      const auto its_record = std::span(records).subspan(i * shape_.kv_bytes, shape_.kv_bytes);
      mending.made.push_back({.chunk = first + i,
                              .landmark = {its_landmark.begin(), its_landmark.end()},
                              .record = {its_record.begin(), its_record.end()},
                              .kv = kv,
                              .has_landmark = landmark});
    }
  }
  mending.at = end;
  if (mending.states.erase(end) > 0) {
    RECALLD_TRY(std::string bytes, backend_.bytes_of(*state));
    mending.made_states.push_back({end, std::move(bytes)});
  }
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

void Encoder::checkpoint(const Stream& stream) {
  if (stream.chunks == stream.checkpointed_chunks) return;
  const auto bytes = backend_.bytes_of(stream.state);
  const auto kept =
      bytes ? store_.put_state(stream.of, stream.chunks, as_bytes(*bytes)) : std::unexpected(bytes.error());
  if (!kept && kept.error().kind != ErrorKind::not_found && kept.error().kind != ErrorKind::busy)
    spdlog::warn("keep the state of memory {} at chunk {}: {} (its tokens are read again next time)", stream.of.memory,
                 stream.chunks, kept.error().message);
}

}  // namespace recalld
