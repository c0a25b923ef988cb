#include "daemon/encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "model/backend_cpu.h"
#include "tests/support/faulty_file_io.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

constexpr uint64_t seed = 11;

// A store with a memory "diary" whose chunks wait to be encoded.
class EncoderTest : public ::testing::Test {
 protected:
  static constexpr uint64_t budget_bytes = uint64_t{32} << 20;

  void SetUp() override {
    const auto checkpoint = std::filesystem::path(RECALLD_SOURCE_DIR) / "model/default";
    auto model = Ramba::open(checkpoint, Precision::automatic, Parts::lower, pool_);
    ASSERT_TRUE(model.has_value()) << model.error().message;
    model_ = *std::move(model);
    auto tokenizer = Tokenizer::open(checkpoint / "tokenizer.model", model_->config().recall_token_id,
                                     model_->config().newline_token_id);
    ASSERT_TRUE(tokenizer.has_value());
    tokenizer_.emplace(*std::move(tokenizer));
    backend_.emplace(*model_);
    shape_ = {.kv_bytes = static_cast<uint32_t>(model_->kv_bytes()),
              .landmark_dim = static_cast<uint32_t>(model_->landmark_dim()),
              .state_bytes = static_cast<uint32_t>(model_->lower_state_bytes()),
              .model = model_->hash()};
    store_ = open_store("faulty");
    encoder_ = open_encoder(*store_);
  }

  std::unique_ptr<Store> open_store(const std::string& name) {
    StoreOptions options;
    options.shape = shape_;
    options.memory_budget_bytes = budget_bytes;
    options.file_io = [this, name]() -> Expected<std::unique_ptr<FileIo>> {
      auto disk = std::make_unique<FaultyFileIo>(open_file_io(), seed);
      if (name == "faulty") disk_ = disk.get();
      return disk;
    };
    auto store = Store::open(directory_.path() / name, std::move(options));
    EXPECT_TRUE(store.has_value()) << (store ? "" : store.error().message);
    return store ? *std::move(store) : nullptr;
  }
  std::unique_ptr<Encoder> open_encoder(Store& store) { return open_encoder(store, *backend_); }
  std::unique_ptr<Encoder> open_encoder(Store& store, Backend& backend) {
    return std::make_unique<Encoder>(store, backend, shape_, *tokenizer_, budget_bytes / 8);
  }

  MemoryInfo append(Store& store, size_t turns, const std::string& memory = "diary") {
    AppendBatch batch;
    batch.memory = memory;
    for (size_t i = 0; i < turns; ++i) {
      Turn turn{.role = Role::user, .name = {}, .content = {}, .time_us = 0, .metadata = {}};
      turn.content = "Day " + std::to_string(i) + ": rain until " + std::to_string(i % 12 + 1) + ", then a long walk.";
      Tokens tokens = tokenizer_->encode_turn(turn_prefix(turn), turn.content);
      batch.turns.push_back({std::move(turn), std::move(tokens.ids), std::move(tokens.ends)});
    }
    EXPECT_TRUE((*store.append(std::array{batch}))[0].has_value());
    return *store.memory(memory);
  }

  static Expected<uint64_t> encode_segment(Encoder& encoder, MemoryId id) {
    return encoder.encode_segments(std::array{id})[0];
  }

  // Calls until nothing waits; returns the errors on the way.
  std::vector<std::string> encode_all(Encoder& encoder, MemoryId id) {
    std::vector<std::string> errors;
    for (int call = 0; call < 1000; ++call) {
      const auto chunks = encode_segment(encoder, id);
      if (!chunks) errors.push_back(chunks.error().message);
      if (chunks && *chunks == 0) return errors;
    }
    ADD_FAILURE() << "chunks wait still";
    return errors;
  }

  // Everything that encoding left behind.
  std::vector<std::byte> encodings(const Store& store, const MemoryInfo& memory) const {
    std::vector<std::byte> bytes;
    for (uint64_t chunk = 0; chunk < memory.complete_chunks(); ++chunk) {
      std::vector<std::byte> kv(model_->kv_bytes());
      const auto fetched = store.fetch(memory.id, std::array{chunk}, kv);
      EXPECT_TRUE(fetched.has_value()) << fetched.error().message;
      bytes.insert(bytes.end(), kv.begin(), kv.end());
      const auto landmark = store.landmark(memory.id, chunk);
      EXPECT_TRUE(landmark.has_value());
      const auto landmark_bytes = std::as_bytes(std::span(*landmark));
      bytes.insert(bytes.end(), landmark_bytes.begin(), landmark_bytes.end());
    }
    return bytes;
  }

  TempDir directory_;
  WorkerPool pool_{2};
  std::unique_ptr<Ramba> model_;
  std::optional<CpuBackend> backend_;
  RecordShape shape_;
  std::optional<Tokenizer> tokenizer_;
  FaultyFileIo* disk_ = nullptr;  // owned by store_
  std::unique_ptr<Store> store_;
  std::unique_ptr<Encoder> encoder_;
};

TEST_F(EncoderTest, ADiskThatFailsIsReportedAndTheSameChunksAreStoredOnceItWorks) {
  const MemoryInfo memory = append(*store_, 240);
  ASSERT_GT(memory.complete_chunks(), 2 * Encoder::segment_chunks);

  disk_->set({.writes_failed = 1});
  EXPECT_EQ(encode_segment(*encoder_, memory.id).value_or(0), Encoder::segment_chunks);  // on its way
  EXPECT_FALSE(encode_segment(*encoder_, memory.id).has_value());                        // it did not arrive
  EXPECT_EQ(store_->memory(memory.id)->encoded_chunks, 0u);
  disk_->set({.writes_failed = 3, .syncs_failed = 3});
  EXPECT_FALSE(encode_all(*encoder_, memory.id).empty());
  disk_->set({});
  encode_all(*encoder_, memory.id);
  EXPECT_EQ(store_->memory(memory.id)->encoded_chunks, memory.complete_chunks());

  const auto clean = open_store("clean");
  const MemoryInfo twin = append(*clean, 240);
  const auto clean_encoder = open_encoder(*clean);
  EXPECT_TRUE(encode_all(*clean_encoder, twin.id).empty());
  EXPECT_TRUE(encodings(*store_, memory) == encodings(*clean, twin));
}

TEST_F(EncoderTest, OneTokenAtATimeLeavesTheSameBitsAsAllAtOnce) {
  // Turns of one token each, so that every append is the smallest there is.
  const auto turn_of = [](uint32_t id) {
    NewTurn turn{{.role = Role::user, .name = {}, .content = "x", .time_us = 0, .metadata = {}}, {id}, {}};
    turn.ends.push_back(static_cast<uint32_t>(stream_text(turn.turn).size()));
    return turn;
  };
  AppendBatch whole;
  whole.memory = "diary";
  const auto clean = open_store("clean");
  const auto clean_encoder = open_encoder(*clean);
  for (uint32_t i = 0; i < 3 * chunk_tokens + 5; ++i) {
    whole.turns.push_back(turn_of(100 + i * 37 % 5000));
    AppendBatch one;
    one.memory = "diary";
    one.turns.push_back(whole.turns.back());
    const auto appended = clean->append(std::array{one});
    ASSERT_TRUE(appended.has_value() && (*appended)[0].has_value());
    const MemoryId id = (*appended)[0]->id;
    if (i % 3 == 0) {  // a search between appends encodes the open chunk for itself
      clean_encoder->settle(id);
      EXPECT_TRUE(clean_encoder->tail(*clean->memory(id)).has_value());
    }
    EXPECT_TRUE(encode_all(*clean_encoder, id).empty());
  }
  ASSERT_TRUE((*store_->append(std::array{whole}))[0].has_value());
  const MemoryInfo at_once = *store_->memory("diary"), by_one = *clean->memory("diary");
  EXPECT_TRUE(encode_all(*encoder_, at_once.id).empty());
  ASSERT_EQ(by_one.complete_chunks(), 3u);
  EXPECT_TRUE(encodings(*clean, by_one) == encodings(*store_, at_once));
}

TEST_F(EncoderTest, ASearchSeesWhatIsOnItsWayToTheStore) {
  const MemoryInfo memory = append(*store_, 240);
  ASSERT_EQ(encode_segment(*encoder_, memory.id).value_or(0), Encoder::segment_chunks);
  EXPECT_TRUE(encoder_->settle(memory.id));
  EXPECT_FALSE(encoder_->settle(memory.id));
  const MemoryInfo now = *store_->memory(memory.id);
  EXPECT_EQ(now.encoded_chunks, Encoder::segment_chunks);
  const auto tail = encoder_->tail(now);
  ASSERT_TRUE(tail.has_value() && *tail != nullptr);
  EXPECT_EQ((*tail)->first_chunk, Encoder::segment_chunks);
}

TEST_F(EncoderTest, MemoriesThatTakeTurnsInRoomForOneStateLeaveTheSameBitsAsOneAfterTheOther) {
  const auto clean = open_store("clean");
  Encoder large(*clean, *backend_, shape_, *tokenizer_, uint64_t{64} << 20);
  Encoder small(*store_, *backend_, shape_, *tokenizer_, 1);
  std::vector<MemoryInfo> memories, twins;
  for (size_t i = 0; i < 3; ++i) {
    const std::string name = "diary/" + std::to_string(i);
    memories.push_back(append(*store_, 80 + i, name));
    twins.push_back(append(*clean, 80 + i, name));
    EXPECT_TRUE(encode_all(large, twins.back().id).empty());
  }
  uint64_t stored = 1;
  while (stored > 0) {
    stored = 0;
    for (const MemoryInfo& memory : memories) {
      const auto chunks = encode_segment(small, memory.id);
      ASSERT_TRUE(chunks.has_value()) << chunks.error().message;
      stored += *chunks;
      small.settle(memory.id);
      EXPECT_EQ(small.state_bytes(), large.state_bytes() / 3);  // which holds all three
      // The state that left is on disk: nothing has to be read again.
      const MemoryInfo now = *store_->memory(memory.id);
      EXPECT_TRUE(small.tail(now).has_value());
      if (&memory != &memories.front()) {
        const MemoryInfo evicted = *store_->memory(memories.front().id);
        const auto state = store_->state(evicted.id, evicted.encoded_chunks);
        ASSERT_TRUE(state.has_value() && state->has_value());
        EXPECT_EQ((*state)->chunks, evicted.encoded_chunks);
      }
    }
  }
  for (size_t i = 0; i < memories.size(); ++i) {
    EXPECT_EQ(store_->memory(memories[i].id)->encoded_chunks, memories[i].complete_chunks());
    EXPECT_TRUE(encodings(*store_, memories[i]) == encodings(*clean, twins[i])) << memories[i].name;
  }
}

TEST_F(EncoderTest, AMemoryDeletedWhileItsChunksAreStoredLeavesTheOthersAlone) {
  const MemoryInfo diary = append(*store_, 240);
  ASSERT_GT(encode_segment(*encoder_, diary.id).value_or(0), 0u);
  ASSERT_TRUE(store_->erase("diary").has_value());
  const MemoryInfo other = append(*store_, 60);
  EXPECT_NE(other.id, diary.id);
  EXPECT_TRUE(encode_all(*encoder_, other.id).empty());
  const auto gone = encode_segment(*encoder_, diary.id);
  ASSERT_FALSE(gone.has_value());
  EXPECT_EQ(gone.error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->memory(other.id)->encoded_chunks, other.complete_chunks());
}

}  // namespace
}  // namespace recalld
