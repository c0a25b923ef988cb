#include "daemon/encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "daemon/model_thread.h"
#include "model/backend_cpu.h"
#include "model/block.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/faulty_file_io.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t seed = 11;

// A backend as a GPU's is, that computes on the CPU: it takes several memories at once, its states lie in a memory of
// its own, and it may fail.
class WideBackend final : public Backend {
 public:
  explicit WideBackend(Backend& cpu) : cpu_(cpu) {}

  uint64_t chunks_at_once = 16;
  bool every_other_call_fails = false;
  std::function<void()> while_encoding;
  std::vector<size_t> calls;  // segments of each that went well

  size_t states() const { return states_.now; }
  size_t states_most() const { return states_.most; }

  std::string describe() const override { return cpu_.describe(); }
  size_t state_bytes() const override { return cpu_.state_bytes(); }
  Expected<RecurrentState> zero_state() override { return on_device(cpu_.zero_state()); }
  Expected<RecurrentState> state_from(ByteView bytes) override { return on_device(cpu_.state_from(bytes)); }
  Expected<std::string> bytes_of(const RecurrentState& state) override { return cpu_.bytes_of(state); }
  uint64_t segment_chunks() const override { return chunks_at_once; }
  size_t segments_max() const override { return 4; }

  Expected<void> encode(std::span<const Segment> segments) override {
    EXPECT_LE(segments.size(), segments_max());
    if (every_other_call_fails && ++tries_ % 2 == 1) return fail(ErrorKind::device, "the device failed");
    std::vector<RecurrentState> after;
    for (const Segment& segment : segments) {
      EXPECT_LE(segment.tokens.size(), segment_chunks() * chunk_tokens);
      RecurrentState state{.values = segment.state->values, .device = std::make_shared<Counted>(states_)};
      run(segment, state);
      after.push_back(std::move(state));
    }
    for (size_t i = 0; i < segments.size(); ++i) *segments[i].state = std::move(after[i]);
    calls.push_back(segments.size());
    if (while_encoding) while_encoding();
    return {};
  }
  Expected<SearchQuery> query(std::span<const uint32_t> tokens, QueryParts parts) override {
    return cpu_.query(tokens, parts);
  }

 private:
  struct Count {
    size_t now = 0, most = 0;
  };
  struct Counted final : DeviceState {
    explicit Counted(Count& states) : count(states) { count.most = std::max(count.most, ++count.now); }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
    ~Counted() override { --count.now; }
    Count& count;
  };

  Expected<RecurrentState> on_device(Expected<RecurrentState> state) {
    if (state) state->device = std::make_shared<Counted>(states_);
    return state;
  }
  // In pieces that the CPU takes.
  void run(const Segment& segment, RecurrentState& state) {
    const size_t chunks = segment.tokens.size() / chunk_tokens;
    for (size_t first = 0; first < chunks;) {
      const size_t count = std::min<size_t>(chunks - first, cpu_.segment_chunks());
      const auto part = [&](auto all) {
        return all.subspan(first * (all.size() / chunks), count * (all.size() / chunks));
      };
      EXPECT_TRUE(
          cpu_.encode(std::array{Segment{&state, part(segment.tokens), part(segment.landmarks), part(segment.kv)}})
              .has_value());
      first += count;
    }
  }

  Backend& cpu_;
  Count states_;
  size_t tries_ = 0;
};

// A store with a memory "diary" whose chunks wait to be encoded.
class EncoderTest : public ::testing::Test {
 protected:
  static constexpr uint64_t budget_bytes = uint64_t{32} << 20;
  static constexpr uint64_t room_for_all_bytes = uint64_t{64} << 20;  // no state leaves RAM for want of it

  void SetUp() override {
    const auto checkpoint = default_checkpoint();
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

  MemoryInfo append(Store& store, size_t turns, const std::string& memory = "diary", const std::set<size_t>& but = {}) {
    AppendBatch batch;
    batch.memory = memory;
    for (size_t i = 0; i < turns; ++i) {
      if (but.contains(i)) continue;
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

  // As the model thread does: several at once that take turns, until nothing waits. Returns the errors on the way.
  static std::vector<Error> take_turns(Encoder& encoder, std::vector<MemoryId> line, size_t at_once) {
    std::vector<Error> errors;
    for (int call = 0; call < 1000 && !line.empty(); ++call) {
      const std::vector<MemoryId> ids(line.begin(),
                                      line.begin() + static_cast<ptrdiff_t>(std::min(at_once, line.size())));
      line.erase(line.begin(), line.begin() + static_cast<ptrdiff_t>(ids.size()));
      const auto counts = encoder.encode_segments(ids);
      EXPECT_EQ(counts.size(), ids.size());
      for (size_t i = 0; i < counts.size(); ++i) {
        if (!counts[i]) errors.push_back(counts[i].error());
        if (!counts[i] || *counts[i] > 0) line.push_back(ids[i]);
      }
    }
    EXPECT_TRUE(line.empty()) << "chunks wait still";
    return errors;
  }

  // The same memories, of these many turns, in both stores.
  struct Twins {
    std::vector<MemoryInfo> memories, twins;
    std::vector<MemoryId> ids() const {
      std::vector<MemoryId> all;
      for (const MemoryInfo& memory : memories) all.push_back(memory.id);
      return all;
    }
  };
  Twins append_both(Store& clean, const std::vector<size_t>& turns) {
    Twins both;
    for (size_t i = 0; i < turns.size(); ++i) {
      const std::string name = "diary/" + std::to_string(i);
      both.memories.push_back(append(*store_, turns[i], name));
      both.twins.push_back(append(clean, turns[i], name));
    }
    return both;
  }
  // Compares landmarks, K/V and states with what a CPU leaves that encodes one memory after the other.
  void expect_as_one_by_one(Encoder& encoder, Store& clean, const Twins& both) {
    encoder.checkpoint_all();
    Encoder one_by_one(clean, *backend_, shape_, *tokenizer_, room_for_all_bytes);
    for (const MemoryInfo& twin : both.twins) EXPECT_TRUE(encode_all(one_by_one, twin.id).empty());
    one_by_one.checkpoint_all();
    for (const MemoryInfo& memory : both.memories) {
      SCOPED_TRACE(memory.name);
      const MemoryContents contents = contents_of(*store_, memory.name, shape_.kv_bytes);
      EXPECT_EQ(contents.info.waiting_chunks(), 0u);
      expect_same_encodings(contents, contents_of(clean, memory.name, shape_.kv_bytes));
    }
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

// Also where a search ends segments early, and where much comes while little waits.
TEST_F(EncoderTest, WhatASearchCoversNeverBecomesLess) {
  constexpr uint64_t most = Encoder::segment_chunks * chunk_tokens;
  uint64_t covered = 0;
  const auto cover = [&] {
    const auto coverage = encoder_->cover("diary");
    ASSERT_TRUE(coverage);
    const uint64_t now = Encoder::covered_tokens(coverage->memory);
    EXPECT_GE(now, covered);
    EXPECT_LE(now, coverage->memory.encoded_chunks * chunk_tokens + most);
    if (now > coverage->memory.encoded_chunks * chunk_tokens) {
      ASSERT_NE(coverage->tail, nullptr);
      EXPECT_EQ(coverage->tail->end_token, now);
    }
    covered = now;
  };
  while (append(*store_, 1).waiting_chunks() <= Encoder::segment_chunks) cover();
  cover();
  for (const size_t turns : {20, 150, 3, 150}) {
    const MemoryInfo memory = append(*store_, turns);
    cover();
    for (int parts = 0; parts < 3; ++parts) {
      const auto counts = encoder_->encode_segments(std::array{memory.id}, [] { return true; });
      ASSERT_TRUE(counts.front()) << counts.front().error().message;
      cover();
    }
  }
  EXPECT_GT(covered, most);
}

TEST_F(EncoderTest, ASearchThatComesWaitsForAPartOfASegmentAndTheBitsStayTheSame) {
  const auto clean = open_store("clean");
  const Twins both = append_both(*clean, {1'000});
  const MemoryInfo& memory = both.memories[0];
  ASSERT_GT(memory.complete_chunks(), Encoder::checkpoint_chunks + 3 * Encoder::segment_chunks);
  ModelThread* thread = nullptr;
  std::vector<uint64_t> stored;  // at each search
  std::promise<void> all_encoded;
  // One search comes while each of the first segments is encoded.
  const auto encode = [&](std::span<const MemoryId> ids) {
    bool asked = false;
    const auto counts = encoder_->encode_segments(ids, [&] {
      if (!std::exchange(asked, true) && stored.size() < 5)
        thread->search([&] { stored.push_back(encoder_->cover(memory.name)->memory.encoded_chunks); });
      return thread->search_goes_first();
    });
    EXPECT_TRUE(counts[0].has_value());
    if (counts[0].value_or(0) == 0) all_encoded.set_value();
    return std::vector{counts[0].value_or(0) > 0 ? ModelThread::Outcome::again : ModelThread::Outcome::done};
  };
  ModelThread model_thread(encode);
  thread = &model_thread;
  thread->encode(memory.id);
  all_encoded.get_future().wait();
  model_thread.stop();
  const uint64_t part = Onward::part_chunks;
  EXPECT_THAT(stored, ElementsAre(part, 2 * part, 3 * part, 4 * part, 5 * part));
  expect_as_one_by_one(*encoder_, *clean, both);
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

TEST_F(EncoderTest, SeveralMemoriesAtOnceLeaveTheSameBitsAsOneByOne) {
  const auto clean = open_store("clean");
  const Twins both = append_both(*clean, {300, 40, 9, 110, 60, 1});
  ASSERT_GT(both.memories[0].complete_chunks(), Encoder::checkpoint_chunks);
  ASSERT_EQ(both.memories[5].complete_chunks(), 0u);
  WideBackend wide(*backend_);
  wide.chunks_at_once = 20;
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes);
  EXPECT_TRUE(take_turns(encoder, both.ids(), wide.segments_max()).empty());
  EXPECT_EQ(std::ranges::max(wide.calls), wide.segments_max());
  expect_as_one_by_one(encoder, *clean, both);
}

TEST_F(EncoderTest, ADeviceThatFailsEveryOtherCallIsToldAndLosesNothing) {
  const auto clean = open_store("clean");
  const Twins both = append_both(*clean, {80, 40, 60, 9, 30});
  WideBackend wide(*backend_);
  wide.every_other_call_fails = true;
  wide.chunks_at_once = 4;
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes);
  const auto ids = both.ids();
  for (const auto& count : encoder.encode_segments(std::span(ids).first(4))) {
    ASSERT_FALSE(count.has_value());
    EXPECT_EQ(count.error().kind, ErrorKind::device);
  }
  for (const auto& count : encoder.encode_segments(std::span(ids).first(4))) EXPECT_GT(count.value_or(0), 0u);
  const auto failed = encoder.cover("diary/3");
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().kind, ErrorKind::device);
  EXPECT_TRUE(encoder.cover("diary/3").has_value());

  const std::vector<Error> errors = take_turns(encoder, ids, wide.segments_max());
  EXPECT_GT(errors.size(), 4u);
  for (const Error& error : errors) EXPECT_EQ(error.kind, ErrorKind::device);
  expect_as_one_by_one(encoder, *clean, both);
}

TEST_F(EncoderTest, ADiskThatFailsUnderSeveralMemoriesIsToldToAllAndTheSameChunksAreStoredOnceItWorks) {
  const auto clean = open_store("clean");
  const Twins both = append_both(*clean, {80, 40, 60, 9, 30});
  WideBackend wide(*backend_);
  wide.chunks_at_once = 4;
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes);
  const auto ids = both.ids();
  disk_->set({.writes_failed = 1});
  for (const auto& count : encoder.encode_segments(std::span(ids).first(4))) EXPECT_GT(count.value_or(0), 0u);
  // What is encoded for the next memory meanwhile is not stored either.
  for (const auto& count : encoder.encode_segments(std::array{ids[0], ids[4]})) EXPECT_FALSE(count.has_value());
  for (const MemoryId id : ids) EXPECT_EQ(store_->memory(id)->encoded_chunks, 0u);
  disk_->set({.writes_failed = 4, .syncs_failed = 4});
  EXPECT_FALSE(take_turns(encoder, ids, wide.segments_max()).empty());
  disk_->set({});
  EXPECT_TRUE(take_turns(encoder, ids, wide.segments_max()).empty());
  expect_as_one_by_one(encoder, *clean, both);
}

TEST_F(EncoderTest, AMemoryDeletedBesideOthersOnTheirWayLeavesThemAlone) {
  const auto clean = open_store("clean");
  Twins both = append_both(*clean, {80, 40, 60});
  WideBackend wide(*backend_);
  wide.chunks_at_once = 4;
  wide.while_encoding = [&] {
    if (wide.calls.size() > 1) return;
    EXPECT_TRUE(store_->erase("diary/1").has_value());
  };
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes);
  const auto ids = both.ids();
  for (const auto& count : encoder.encode_segments(ids)) EXPECT_EQ(count.value_or(0), 4u);
  const auto counts = encoder.encode_segments(ids);
  EXPECT_EQ(counts[0].value_or(0), 4u);
  ASSERT_FALSE(counts[1].has_value());
  EXPECT_EQ(counts[1].error().kind, ErrorKind::not_found);
  EXPECT_EQ(counts[2].value_or(0), 4u);
  encoder.forget(ids[1]);
  both.memories.erase(both.memories.begin() + 1);
  EXPECT_TRUE(take_turns(encoder, both.ids(), wide.segments_max()).empty());
  expect_as_one_by_one(encoder, *clean, both);
}

TEST_F(EncoderTest, GenerationsWithoutForgottenTurnsAreMadeSeveralAtOnce) {
  const std::set<size_t> forgotten = {3, 30, 31};
  const auto clean = open_store("clean");
  Twins both;
  for (const std::string name : {"diary/0", "diary/1", "diary/2"}) {
    both.memories.push_back(append(*store_, 90, name));
    both.twins.push_back(append(*clean, 90, name, forgotten));
  }
  WideBackend wide(*backend_);
  wide.chunks_at_once = 4;
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes);
  const auto ids = both.ids();
  // The first is encoded by then, the second in part, the third not at all.
  take_turns(encoder, {ids[0]}, 1);
  for (int call = 0; call < 2; ++call) EXPECT_GT(encode_segment(encoder, ids[1]).value_or(0), 0u);
  for (const MemoryId id : ids) {
    const std::array ranges = {TurnRange{3, 3}, TurnRange{30, 31}};
    EXPECT_TRUE(store_->forget(id, ranges).has_value());
  }
  for (const Error& error : take_turns(encoder, ids, wide.segments_max())) EXPECT_EQ(error.kind, ErrorKind::busy);
  for (const MemoryId id : ids) EXPECT_FALSE(store_->memory(id)->next.has_value());
  expect_as_one_by_one(encoder, *clean, both);
}

TEST_F(EncoderTest, StatesInRamLeaveRoomForThoseOnTheirWayAndForTheirBytes) {
  const uint64_t state = shape_.state_bytes,
                 stream = state + Encoder::segment_chunks * (shape_.kv_bytes + shape_.landmark_dim * 2);
  for (const uint64_t missing : {0, 1}) {
    Encoder encoder(*store_, *backend_, shape_, *tokenizer_, 2 * (stream + state) + 3 * stream - missing);
    for (size_t i = 0; i < 5; ++i)
      EXPECT_TRUE(
          encode_all(encoder, append(*store_, 12, std::to_string(missing) + "/" + std::to_string(i)).id).empty());
    EXPECT_EQ(encoder.state_bytes(), (3 - missing) * stream);
  }
}

// What a state on a device summarises is forgotten with the memory, and mending goes on where there is still something.
TEST_F(EncoderTest, ForgettingTakesTheStateThatIsMendedWith) {
  const MemoryInfo memory = append(*store_, 60, "mended");
  WideBackend wide(*backend_);
  wide.chunks_at_once = 4;
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes, 16);
  take_turns(encoder, {memory.id}, 1);
  const StreamInfo of = store_->memory(memory.id)->serving;
  ASSERT_GT(of.chunks, 10u);
  const auto mend = [&](bool forgetting) {
    Encoder::Mending mending;
    mending.of = of;
    for (uint64_t chunk = 1; chunk < of.chunks; ++chunk) mending.kv.insert(chunk);
    for (int calls = 0; !mending.done() && calls < 100; ++calls) {
      EXPECT_TRUE(encoder.make_again(mending, store_->page_chunks()).has_value());
      if (!forgetting || calls != 2) continue;
      EXPECT_GE(wide.states(), 1u);
      encoder.forget(memory.id);
      EXPECT_EQ(wide.states(), 0u) << "after " << calls << " calls";
    }
    EXPECT_TRUE(mending.done());
    return std::move(mending.made);
  };
  const auto undisturbed = mend(false), made = mend(true);
  ASSERT_EQ(made.size(), of.chunks - 1);
  ASSERT_EQ(made.size(), undisturbed.size());
  for (size_t i = 0; i < made.size(); ++i) {
    EXPECT_EQ(made[i].chunk, undisturbed[i].chunk);
    EXPECT_TRUE(made[i].record == undisturbed[i].record) << i;
  }
}

TEST_F(EncoderTest, ADeviceHoldsNoMoreStatesThanItHasRoomFor) {
  const auto clean = open_store("clean");
  const Twins both = append_both(*clean, {60, 30, 40, 50, 35, 45, 55, 25, 65});
  WideBackend wide(*backend_);
  wide.chunks_at_once = 2;
  const size_t streams_max = 2 * wide.segments_max() + 5;  // three that are kept
  Encoder encoder(*store_, wide, shape_, *tokenizer_, room_for_all_bytes, streams_max);
  const auto ids = both.ids();
  // Beside the rest something is mended and searched.
  take_turns(encoder, {ids[8]}, 1);
  Encoder::Mending mending;
  mending.of = store_->memory(ids[8])->serving;
  for (uint64_t chunk = 0; chunk < mending.of.chunks; ++chunk) mending.kv.insert(chunk);
  for (size_t first = 0; first < 200; first += wide.segments_max()) {
    std::vector<MemoryId> some;
    for (size_t i = 0; i < wide.segments_max(); ++i) some.push_back(ids[(first + i) % 8]);
    for (const auto& count : encoder.encode_segments(some)) EXPECT_TRUE(count.has_value());
    EXPECT_LE(encoder.state_bytes(), 3 * (backend_->state_bytes() + 17 * (shape_.kv_bytes + shape_.landmark_dim * 2)));
    EXPECT_TRUE(encoder.make_again(mending, store_->page_chunks()).has_value());
    EXPECT_TRUE(encoder.cover(both.memories[(first + wide.segments_max()) % 8].name).has_value());
  }
  EXPECT_LE(wide.states_most(), streams_max);
  EXPECT_GT(wide.states_most(), 2 * wide.segments_max());
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(store_->memory(ids[i])->waiting_chunks(), 0u) << i;
}

}  // namespace
}  // namespace recalld
