// A store in a directory of its own, turns and encodings that are made up, and what tests ask it again and again.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memstore/catalog.h"
#include "memstore/store.h"
#include "memstore/turn.h"
#include "tests/support/temp_dir.h"

namespace recalld {

class StoreTest : public ::testing::Test {
 protected:
  static constexpr uint32_t dim = 64, kv_bytes = 1000, state_bytes = 300;

  static RecordShape shape(std::string_view model = "a model") {
    return {.kv_bytes = kv_bytes, .landmark_dim = dim, .state_bytes = state_bytes, .model = hash128(as_bytes(model))};
  }

  // A turn whose tokens cover `token_bytes` bytes each, with ids that count on from `first_id`.
  static NewTurn new_turn(std::string content, size_t token_bytes = 4, uint32_t first_id = 0) {
    NewTurn turn{.turn = {.role = Role::user, .name = {}, .content = std::move(content), .time_us = 5, .metadata = {}},
                 .ids = {},
                 .ends = {}};
    const size_t bytes = stream_text(turn.turn).size();
    for (size_t end = 0; end < bytes;) {
      end = std::min(bytes, end + token_bytes);
      turn.ids.push_back(first_id++);
      turn.ends.push_back(static_cast<uint32_t>(end));
    }
    return turn;
  }

  // A turn of exactly this many tokens.
  static NewTurn turn_of_tokens(uint32_t count, uint32_t first_id = 0) {
    return new_turn(std::string(count * 4 - sizeof("User: \n") + 1, 'x'), 4, first_id);
  }

  static AppendBatch batch(std::string memory, std::vector<NewTurn> turns, std::string operation_id = {},
                           std::string_view digest = {}) {
    return {.memory = std::move(memory),
            .turns = std::move(turns),
            .operation_id = std::move(operation_id),
            .operation_digest = hash128(as_bytes(digest)),
            .now_us = 1000};
  }

  // What a model might leave behind for a chunk: numbers that the memory and the chunk alone decide.
  struct Encoded {
    std::vector<Bf16> landmark;
    std::vector<std::byte> kv;

    Encoded(uint64_t seed, uint64_t chunk) : landmark(dim), kv(kv_bytes) {
      std::mt19937_64 random(seed * 1000003 + chunk);
      for (Bf16& x : landmark) x = to_bf16(static_cast<float>(random() % 2001) / 1000.0f - 1);
      for (std::byte& b : kv) b = static_cast<std::byte>(random());
    }
  };

  static std::string state_of(uint64_t chunks) {
    std::string state(state_bytes, static_cast<char>('a' + chunks % 26));
    return state.replace(0, 8, std::to_string(10000000 + chunks));
  }

  void SetUp() override { open(); }

  StoreOptions options(uint64_t budget_bytes = 16 << 20) const {
    return {.shape = shape(), .memory_budget_bytes = budget_bytes, .file_io = {}};
  }
  Expected<std::unique_ptr<Store>> try_open(const StoreOptions& options) { return Store::open(data(), options); }
  void open(uint64_t budget_bytes = 16 << 20) {
    store_.reset();
    auto store = try_open(options(budget_bytes));
    ASSERT_TRUE(store) << store.error().message;
    store_ = *std::move(store);
  }

  // Changes rows of the closed store behind its back, and opens it again as far as it can.
  Expected<void> tamper(const std::function<void(Catalog::Batch&)>& change) {
    store_.reset();
    {
      RECALLD_TRY(const auto catalog, Catalog::open({data() / "catalog", 4 << 20, 1 << 20}));
      Catalog::Batch rows(*catalog);
      change(rows);
      RECALLD_CHECK(catalog->write(rows));
    }
    RECALLD_TRY(store_, try_open(options()));
    return {};
  }

  std::filesystem::path data() const { return directory_.path() / "data"; }

  Appended append(const AppendBatch& batch) {
    auto replies = store_->append({&batch, 1});
    if (!replies) throw std::runtime_error(replies.error().message);
    if (!replies->at(0)) throw std::runtime_error(replies->at(0).error().message);
    return *replies->at(0);
  }

  // Appends tokens for `chunks` chunks to a memory and encodes all that wait, `at_once` a put.
  MemoryId fill(const std::string& name, uint64_t chunks, uint64_t at_once = 7, uint64_t state_every = 0) {
    std::vector<NewTurn> turns;
    for (uint64_t i = 0; i < chunks; ++i) turns.push_back(turn_of_tokens(chunk_tokens, static_cast<uint32_t>(i)));
    const MemoryId id = append(batch(name, std::move(turns))).id;
    const auto encoded = encode(id, at_once, state_every);
    if (!encoded) throw std::runtime_error(encoded.error().message);
    return id;
  }

  Expected<void> encode(MemoryId id, uint64_t at_once = 7, uint64_t state_every = 0) {
    for (;;) {
      RECALLD_TRY(const MemoryInfo info, store_->memory(id));
      uint64_t count = std::min(info.waiting_chunks(), at_once);
      if (count == 0) return {};
      if (state_every > 0) count = std::min(count, state_every - info.encoded_chunks % state_every);
      std::vector<Encoded> chunks;
      for (uint64_t i = 0; i < count; ++i) chunks.emplace_back(id, info.encoded_chunks + i);
      std::vector<EncodedChunkView> views;
      for (const Encoded& chunk : chunks) views.push_back({chunk.landmark, chunk.kv});
      const std::string state = state_of(info.encoded_chunks + count);
      const bool keep = state_every > 0 && (info.encoded_chunks + count) % state_every == 0;
      RECALLD_CHECK(store_->put(id, info.encoded_chunks, views, keep ? std::optional(as_bytes(state)) : std::nullopt));
    }
  }

  std::vector<std::pair<uint64_t, float>> top_k(MemoryId id, size_t k, size_t threads = 2) {
    WorkerPool pool(threads);
    const Encoded query(99, 7);
    const auto best = store_->top_k(id, query.landmark, k, pool);
    if (!best) throw std::runtime_error(best.error().message);
    std::vector<std::pair<uint64_t, float>> result;
    for (const ScoredChunk& chunk : *best) result.emplace_back(chunk.chunk, chunk.dot);
    return result;
  }

  std::string passage(MemoryId id, uint64_t first, uint64_t end) {
    const auto passage = store_->passage(id, first, end);
    return passage ? passage->text : "error: " + passage.error().message;
  }

  TempDir directory_;
  std::unique_ptr<Store> store_;
};

}  // namespace recalld
