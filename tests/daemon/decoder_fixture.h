// A memory that the starter has encoded, for what generates from it without an engine.
#pragma once

#include <array>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/decoder_cpu.h"
#include "daemon/encoder.h"
#include "daemon/reencoder.h"
#include "memstore/kv_file.h"
#include "model/backend_cpu.h"
#include "tests/daemon/engine_fixture.h"

namespace recalld {

class DecoderFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    LoadedModel loaded = must(load_model(starter_checkpoint(), Precision::automatic, Parts::all, pool_));
    model_ = std::move(loaded.model);
    tokenizer_.emplace(std::move(loaded.tokenizer));
    shape_ = loaded.shape;
    StoreOptions options;
    options.shape = shape_;
    options.memory_budget_bytes = uint64_t{64} << 20;
    store_ = must(Store::open(directory_.path() / "data", std::move(options)));
    backend_ = std::make_unique<CpuBackend>(*model_);
    encoder_ = std::make_unique<Encoder>(*store_, *backend_, shape_, *tokenizer_, uint64_t{8} << 20);
  }

  // Appends to memory "m" and encodes all that waits.
  MemoryInfo append(const std::vector<std::string>& contents) {
    AppendBatch batch;
    batch.memory = "m";
    for (const std::string& content : contents) {
      Turn turn{.role = Role::user, .name = {}, .content = content, .time_us = 0, .metadata = {}};
      Tokens tokens = tokenizer_->encode_turn(turn_prefix(turn), turn.content);
      batch.turns.push_back({std::move(turn), std::move(tokens.ids), std::move(tokens.ends)});
    }
    const MemoryId id = must(must(store_->append(std::array{batch})).front()).id;
    while (must(encoder_->encode_segments(std::array{id}).front()) > 0) {
    }
    return must(store_->memory(id));
  }

  void damage_kv(MemoryId id, uint64_t chunk) {
    const ChunkEntry entry = must(store_->chunk(id, chunk));
    std::fstream segment(directory_.path() / "data/kv" / segment_name(entry.segment),
                         std::ios::in | std::ios::out | std::ios::binary);
    segment.seekp(static_cast<std::streamoff>(uint64_t{entry.slot} * shape_.kv_bytes + 100));
    segment << "rot";
    ASSERT_TRUE(segment.good());
  }

  TempDir directory_;
  WorkerPool pool_{2};
  std::unique_ptr<Ramba> model_;
  std::unique_ptr<Backend> backend_;
  std::optional<Tokenizer> tokenizer_;
  RecordShape shape_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Encoder> encoder_;
};

}  // namespace recalld
