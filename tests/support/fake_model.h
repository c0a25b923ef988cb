// A model of a few lines for tests of what keeps encodings: everything that it makes depends on all tokens so far.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "memstore/store.h"
#include "memstore/turn.h"

namespace recalld {

// How much of the store a chunk and a turn take is up to the test: the numbers of a landmark, and the bytes of a token.
template <uint32_t landmark_dim = 32, size_t token_bytes = 3>
struct FakeModelOf {
  static constexpr uint32_t dim = landmark_dim, kv_bytes = 512, state_bytes = 64;
  static constexpr uint64_t checkpoint_chunks = 4;

  uint64_t state = 1;

  static RecordShape shape(std::string_view model = "a model of a few lines") {
    return {.kv_bytes = kv_bytes, .landmark_dim = dim, .state_bytes = state_bytes, .model = hash128(as_bytes(model))};
  }
  void read(std::span<const uint32_t> tokens) {
    for (const uint32_t token : tokens) state = (state ^ token) * 0x9E3779B97F4A7C15ULL + (state >> 29);
  }
  std::vector<Bf16> numbers(uint64_t seed, size_t count) const {
    std::mt19937_64 random(state + seed);
    std::vector<Bf16> values(count);
    for (Bf16& value : values) value = to_bf16(static_cast<float>(random() % 2001) / 1000.0f - 1);
    return values;
  }
  std::vector<Bf16> landmark() const { return numbers(0, dim); }
  std::vector<Bf16> kv() const { return numbers(7, kv_bytes / sizeof(Bf16)); }

  // As floats that hold 16 bits of it each.
  std::string to_bytes() const {
    std::array<float, state_bytes / sizeof(float)> values{};
    for (size_t i = 0; i < 4; ++i) values[i] = static_cast<float>(state >> (16 * i) & 0xffff);
    return {reinterpret_cast<const char*>(values.data()), state_bytes};
  }
  static FakeModelOf from(const std::string& bytes) {
    std::array<float, state_bytes / sizeof(float)> values{};
    std::memcpy(values.data(), bytes.data(), state_bytes);
    FakeModelOf model{0};
    for (size_t i = 0; i < 4; ++i) model.state |= static_cast<uint64_t>(values[i]) << (16 * i);
    return model;
  }

  static NewTurn tokenise(Turn turn) {
    NewTurn out{.turn = std::move(turn), .ids = {}, .ends = {}};
    const std::string text = stream_text(out.turn);
    for (size_t end = 0; end < text.size();) {
      const size_t begin = end;
      end = std::min(text.size(), end + token_bytes);
      out.ids.push_back(std::to_integer<uint32_t>(hash128(as_bytes(text.substr(begin, end - begin)))[0]) + 7000);
      out.ends.push_back(static_cast<uint32_t>(end));
    }
    return out;
  }
  static NewTurn user_turn(const std::string& content) {
    return tokenise({.role = Role::user, .name = {}, .content = content, .time_us = 5, .metadata = {}});
  }

  // Appends what a user says. Throws when that fails.
  static MemoryId append(Store& store, const std::string& memory, const std::vector<std::string>& contents,
                         std::string operation_id = {}) {
    AppendBatch batch{
        .memory = memory, .turns = {}, .operation_id = std::move(operation_id), .operation_digest = {}, .now_us = 9};
    for (const std::string& content : contents) batch.turns.push_back(user_turn(content));
    const auto replies = store.append({&batch, 1});
    if (!replies || !replies->at(0)) throw std::runtime_error("append failed");
    return replies->at(0)->id;
  }

  // Encodes at most `chunks` chunks of a generation, from the newest checkpoint on, as an encoder would.
  static Expected<uint64_t> encode(Store& store, StreamInfo stream, uint64_t chunks) {
    RECALLD_TRY(const auto kept, store.state(stream, stream.chunks));
    FakeModelOf model = kept ? from(kept->bytes) : FakeModelOf{};
    const uint64_t first = kept ? kept->chunks : 0;
    RECALLD_TRY(const auto again, store.tokens(stream, first * chunk_tokens, (stream.chunks - first) * chunk_tokens));
    model.read(again);
    uint64_t done = 0;
    while (done < chunks && stream.waiting_chunks() > 0) {
      // As many as lie before the next checkpoint are stored together.
      const uint64_t count =
          std::min({chunks - done, stream.waiting_chunks(), checkpoint_chunks - stream.chunks % checkpoint_chunks});
      std::vector<std::vector<Bf16>> made;
      for (uint64_t i = 0; i < count; ++i) {
        RECALLD_TRY(const auto tokens, store.tokens(stream, (stream.chunks + i) * chunk_tokens, chunk_tokens));
        model.read(tokens);
        made.push_back(model.landmark());
        made.push_back(model.kv());
      }
      std::vector<EncodedChunkView> views;
      for (uint64_t i = 0; i < count; ++i) views.push_back({made[2 * i], std::as_bytes(std::span(made[2 * i + 1]))});
      const std::string state = model.to_bytes();
      const bool keep = (stream.chunks + count) % checkpoint_chunks == 0;
      RECALLD_CHECK(store.put(stream, views, keep ? std::optional(as_bytes(state)) : std::nullopt));
      stream.chunks += count;
      done += count;
    }
    return done;
  }

  // Encodes everything, lets what is new serve, and erases what is old.
  static Expected<void> settle(Store& store, MemoryId id) {
    for (;;) {
      RECALLD_TRY(const MemoryInfo info, store.memory(id));
      if (!info.next && info.waiting_chunks() == 0) break;
      RECALLD_CHECK(encode(store, info.next ? *info.next : info.serving, UINT64_MAX));
      if (info.next) RECALLD_CHECK(store.swap(id));
    }
    RECALLD_CHECK(store.erase_forgotten(id));
    return {};
  }

  static std::unique_ptr<Store> open(const std::filesystem::path& directory,
                                     std::string_view model = "a model of a few lines") {
    auto store = Store::open(directory, {.shape = shape(model), .memory_budget_bytes = 16 << 20, .file_io = {}});
    if (!store) throw std::runtime_error(store.error().message);
    return *std::move(store);
  }
};

using FakeModel = FakeModelOf<>;

}  // namespace recalld
