// Answers through a GPU's cache have the bits of the CPU's, whatever is cached, waited for, damaged or forgotten
// meanwhile. The GPU is one that computes on the CPU; what the memories hold is made up.
#include "daemon/gpu_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "daemon/decoder_cpu.h"
#include "memstore/catalog.h"
#include "memstore/kv_file.h"
#include "memstore/rows.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/cpu_gpu.h"
#include "tests/support/slow_file_io.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Call = CpuGpu::Call;

constexpr size_t prompt_tokens = 150, answer_tokens = 30;

// What came of a stream's tokens.
struct Answer {
  std::vector<std::vector<float>> logits;            // after the prompt and after each token
  std::vector<std::map<uint64_t, double>> attended;  // likewise
  std::vector<uint64_t> told;                        // first chunks of what is unreadable

  void take(Decoder::Read read, bool last) {
    for (const Unreadable& chunks : read.unreadable) told.push_back(chunks.first);
    if (!last) return;
    logits.push_back(std::move(read.logits));
    attended.push_back(std::move(read.attended));
  }
  uint32_t next_token() const {
    return static_cast<uint32_t>(std::ranges::max_element(logits.back()) - logits.back().begin());
  }
  std::set<uint64_t> chunks() const {
    std::set<uint64_t> all;
    for (const auto& of_token : attended)
      for (const auto& [chunk, share] : of_token) all.insert(chunk);
    return all;
  }
};

void expect_same(const Answer& found, const Answer& expected) {
  ASSERT_EQ(found.logits.size(), expected.logits.size());
  for (size_t i = 0; i < found.logits.size(); ++i) {
    EXPECT_TRUE(found.logits[i] == expected.logits[i]) << "after token " << i;
    EXPECT_EQ(found.attended[i], expected.attended[i]) << "after token " << i;
  }
  EXPECT_THAT(found.told, ::testing::UnorderedElementsAreArray(expected.told));
}

// A stream and what it has said.
struct Talk {
  std::unique_ptr<Decoder::Stream> stream;
  Answer answer;
  size_t waited = 0;  // calls in which others went on
};

// With the variant: two groups of upper layers, two retrieval heads, four chunks each.
class GpuDecoderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = must(Ramba::open(variant_checkpoint(), Precision::automatic, Parts::all, pool_));
    open_store();
    m_ = make("m", 300, 1);
    n_ = make("n", 200, 2);
  }

  void open_store() {
    store_.reset();
    StoreOptions options;
    options.shape = {.kv_bytes = static_cast<uint32_t>(model_->kv_bytes()),
                     .landmark_dim = static_cast<uint32_t>(model_->landmark_dim()),
                     .state_bytes = static_cast<uint32_t>(model_->lower_state_bytes()),
                     .model = model_->hash()};
    options.memory_budget_bytes = uint64_t{64} << 20;
    options.file_io = [this]() -> Expected<std::unique_ptr<FileIo>> {
      auto disk = std::make_unique<SlowFileIo>(open_file_io_posix(DirectIo::never));
      disk_ = disk.get();
      return disk;
    };
    store_ = must(Store::open(data(), std::move(options)));
  }
  std::filesystem::path data() const { return directory_.path() / "data"; }

  // Appends one turn.
  MemoryId append(const std::string& name, size_t tokens) {
    AppendBatch batch;
    batch.memory = name;
    NewTurn turn;
    turn.turn.content = std::string(tokens, 'x');
    const size_t prefix = turn_prefix(turn.turn).size();
    for (size_t i = 0; i < tokens; ++i) {
      turn.ids.push_back(static_cast<uint32_t>(i % 500));
      turn.ends.push_back(static_cast<uint32_t>(prefix + i + 1));
    }
    turn.ends.back() = static_cast<uint32_t>(stream_text(turn.turn).size());
    batch.turns.push_back(std::move(turn));
    return must(must(store_->append(std::array{batch})).front()).id;
  }
  // Appends so many chunks to a memory; what they know is random.
  MemoryInfo make(const std::string& name, uint64_t chunks, uint32_t seed) {
    const MemoryId id = append(name, chunks * chunk_tokens);

    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto numbers = [&](size_t count) {
      std::vector<Bf16> values(count);
      for (Bf16& value : values) value = to_bf16(normal(random));
      return values;
    };
    constexpr uint64_t at_once = 100;
    for (MemoryInfo info = must(store_->memory(id)); info.waiting_chunks() > 0; info = must(store_->memory(id))) {
      std::vector<std::vector<Bf16>> made;
      std::vector<EncodedChunkView> views;
      for (uint64_t i = 0; i < std::min(at_once, info.waiting_chunks()); ++i) {
        made.push_back(numbers(model_->landmark_dim()));
        made.push_back(numbers(model_->kv_bytes() / sizeof(Bf16)));
      }
      for (size_t i = 0; i < made.size(); i += 2) views.push_back({made[i], std::as_bytes(std::span(made[i + 1]))});
      must(store_->put(id, info.encoded_chunks, views, {}));
    }
    return must(store_->memory(id));
  }

  // The last `tail` chunks are given along, as if they were not stored yet.
  Decoder::Source source(const MemoryInfo& memory, uint64_t tail = 0) const {
    Decoder::Source source{
        .memory = memory, .stored_chunks = memory.encoded_chunks - tail, .tail_landmarks = {}, .tail_kv = {}};
    source.tail_landmarks.resize(tail * model_->landmark_dim());
    source.tail_kv.resize(tail * model_->kv_bytes());
    if (tail == 0) return source;
    must(store_->landmarks(memory.id, source.stored_chunks, source.tail_landmarks));
    for (uint64_t i = 0; i < tail; ++i) {
      const auto record = kv(memory, source.stored_chunks + i);
      std::ranges::copy(record, source.tail_kv.begin() + static_cast<ptrdiff_t>(i * record.size()));
    }
    return source;
  }
  std::vector<std::byte> kv(const MemoryInfo& memory, uint64_t chunk) const {
    std::vector<std::byte> record(model_->kv_bytes());
    must(store_->fetch(memory.id, std::array{chunk}, record));
    return record;
  }

  std::unique_ptr<CpuGpu> open_gpu(uint32_t slots = 0, uint64_t landmarks_bytes_max = UINT64_MAX) const {
    return must(
        CpuGpu::open({.model = variant_checkpoint(), .slots = slots, .landmarks_bytes_max = landmarks_bytes_max}));
  }

  // ---- Asking
  static Talk begin(Decoder& decoder, Decoder::Source source, uint32_t seed, size_t tokens = prompt_tokens) {
    Talk talk{must(decoder.open(std::move(source))), {}};
    std::mt19937 random(seed);
    std::vector<uint32_t> prompt(tokens);
    for (uint32_t& token : prompt) token = static_cast<uint32_t>(random() % 512);
    for (size_t done = 0; done < tokens; done += chunk_tokens) {
      const auto block = std::span(prompt).subspan(done, std::min<size_t>(chunk_tokens, tokens - done));
      const bool last = done + block.size() == tokens;
      talk.answer.take(must(decoder.read(*talk.stream, block, last)), last);
    }
    return talk;
  }
  // Writes with all of them until each has so many tokens more.
  static void write(Decoder& decoder, std::span<Talk> talks, size_t tokens) {
    std::vector<size_t> written(talks.size());
    while (std::ranges::min(written) < tokens) {
      std::vector<Decoder::Written> next;
      std::vector<size_t> of;
      for (size_t i = 0; i < talks.size(); ++i) {
        if (written[i] == tokens) continue;
        next.push_back({talks[i].stream.get(), talks[i].answer.next_token()});
        of.push_back(i);
      }
      auto reads = decoder.write(next);
      ASSERT_TRUE(std::ranges::any_of(reads, [](const auto& read) { return read.has_value(); }));
      for (size_t i = 0; i < reads.size(); ++i) {
        if (!reads[i]) {
          ++talks[of[i]].waited;
          continue;
        }
        talks[of[i]].answer.take(must(*std::move(reads[i])), true);
        ++written[of[i]];
      }
    }
  }
  static Answer ask(Decoder& decoder, Decoder::Source source, uint32_t seed, size_t tokens = answer_tokens) {
    Talk talk = begin(decoder, std::move(source), seed);
    write(decoder, {&talk, 1}, tokens);
    return std::move(talk.answer);
  }
  // As the CPU answers.
  Answer expected(const Decoder::Source& source, uint32_t seed, size_t tokens = answer_tokens) {
    CpuDecoder cpu(*store_, *model_, pool_);
    return ask(cpu, source, seed, tokens);
  }
  // One write of one stream that fails.
  static Error error_of(Decoder& decoder, Talk& talk) {
    auto reads = decoder.write(std::array{Decoder::Written{talk.stream.get(), talk.answer.next_token()}});
    if (!reads.at(0) || *reads[0]) throw std::runtime_error("the stream did not fail");
    return reads[0]->error();
  }

  // The slots that make all prompts of these seeds evict: as many as one selection takes.
  uint32_t slots_min(const std::vector<std::pair<const MemoryInfo*, uint32_t>>& asked) {
    const auto gpu = open_gpu();
    GpuDecoder decoder(*store_, *model_, *gpu);
    for (const auto& [memory, seed] : asked) ask(decoder, source(*memory), seed);
    return gpu->chosen_max();
  }

  // How many chunks of the memory have their K/V in there.
  size_t chunks_in(ByteView bytes, const MemoryInfo& memory) const {
    constexpr size_t some = 64;  // bytes of a record that tell which it is
    size_t found = 0;
    for (uint64_t chunk = 0; chunk < memory.encoded_chunks; ++chunk) {
      const auto record = kv(memory, chunk);
      found += memmem(bytes.data(), bytes.size(), record.data() + record.size() / 2, some) != nullptr;
    }
    return found;
  }

  // ---- Damage
  std::string overwrite_kv(const MemoryInfo& memory, uint64_t chunk, const std::string& bytes) {
    const ChunkEntry entry = must(store_->chunk(memory.id, chunk));
    std::fstream segment(data() / "kv" / segment_name(entry.segment), std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(uint64_t{entry.slot} * model_->kv_bytes() + 100);
    std::string before(bytes.size(), '\0');
    segment.seekg(at).read(before.data(), static_cast<std::streamsize>(before.size()));
    segment.seekp(at) << bytes;
    EXPECT_TRUE(segment.good());
    return before;
  }
  // Damages the first page of the landmarks.
  void damage_landmarks(const MemoryInfo& memory) {
    const uint64_t page_chunks = store_->page_chunks();
    store_.reset();
    {
      const auto catalog = must(Catalog::open({data() / "catalog", 4 << 20, 1 << 20}));
      Catalog::Batch rows(*catalog);
      const bool whole = memory.encoded_chunks >= page_chunks;
      const StreamId stream = memory.serving.stream;
      rows.put(Family::landmarks, whole ? row_key(stream, 0) : row_key(stream, 0, uint32_t{0}), "short");
      must(catalog->write(rows));
    }
    open_store();
  }

  // ---- Reads that take their time
  // Holds back the reads of one memory.
  void hold_reads_of(const MemoryInfo& memory) {
    std::set<uint64_t> places;
    for (uint64_t chunk = 0; chunk < memory.encoded_chunks; ++chunk)
      places.insert(must(store_->chunk(memory.id, chunk)).slot * uint64_t{model_->kv_bytes()});
    disk_->hold([places](uint64_t offset) { return places.contains(offset); });
  }
  // Reads of other memories until no chunk of this one is cached.
  void crowd_out(GpuDecoder& decoder, CpuGpu& gpu, const MemoryInfo& memory, const MemoryInfo& others) {
    for (uint32_t seed = 100; chunks_in(gpu.cache(), memory) > 0; ++seed) {
      if (seed == 150) throw std::runtime_error("the chunks of " + memory.name + " stay in the cache");
      begin(decoder, source(others), seed);
    }
  }
  // Two streams, of which that of n waits for a read that the disk holds back and that of m has gone on.
  std::pair<Talk, Talk> stall(GpuDecoder& decoder, CpuGpu& gpu) {
    std::pair<Talk, Talk> talks{begin(decoder, source(n_), 1), begin(decoder, source(m_), 2)};
    crowd_out(decoder, gpu, n_, m_);
    hold_reads_of(n_);
    const auto reads =
        decoder.write(std::array<Decoder::Written, 2>{{{talks.first.stream.get(), talks.first.answer.next_token()},
                                                       {talks.second.stream.get(), talks.second.answer.next_token()}}});
    EXPECT_FALSE(reads[0]);
    EXPECT_TRUE(reads[1] && *reads[1]);
    if (reads[1] && *reads[1]) talks.second.answer.take(**reads[1], true);
    EngineDriver::wait_for("a read to be held", [&] { return disk_->holds_a_read(); });
    return talks;
  }
  std::jthread release_soon() {
    return std::jthread([this] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      disk_->release();
    });
  }

  TempDir directory_;
  WorkerPool pool_{2};
  std::unique_ptr<Ramba> model_;
  std::unique_ptr<Store> store_;
  SlowFileIo* disk_ = nullptr;
  MemoryInfo m_, n_;
};

// ---- Alone

TEST_F(GpuDecoderTest, AnswersHaveTheBitsOfTheCpuWithARoomyCacheAndWithTheSmallest) {
  const Answer first = expected(source(m_), 1), second = expected(source(n_), 2);
  EXPECT_THAT(first.told, IsEmpty());
  EXPECT_EQ(first.logits.size(), answer_tokens + 1);
  const auto roomy = open_gpu(1000);
  uint64_t misses = 0;
  {
    GpuDecoder decoder(*store_, *model_, *roomy);
    expect_same(ask(decoder, source(m_), 1), first);
    expect_same(ask(decoder, source(n_), 2), second);
    const GpuDecoder::Counts cold = decoder.counts();
    misses = cold.misses;
    EXPECT_EQ(cold.read_bytes, misses * model_->kv_bytes());
    EXPECT_LE(misses, m_.encoded_chunks + n_.encoded_chunks);
    expect_same(ask(decoder, source(m_), 1), first);
    EXPECT_EQ(decoder.counts().misses, misses) << "it is all there";
    EXPECT_GT(decoder.counts().hits, cold.hits);
  }
  const uint32_t slots = roomy->chosen_max();
  ASSERT_LT(slots, 250u);
  const auto tight = open_gpu(slots);
  GpuDecoder decoder(*store_, *model_, *tight);
  for (int round = 0; round < 2; ++round) {
    expect_same(ask(decoder, source(m_), 1), first);
    expect_same(ask(decoder, source(n_), 2), second);
  }
  EXPECT_GT(decoder.counts().misses, 2 * misses);
}

TEST_F(GpuDecoderTest, CountsAreExact) {
  const MemoryInfo few = make("few", 4, 7);  // as many as each token attends to, in each group
  const auto gpu = open_gpu();
  GpuDecoder decoder(*store_, *model_, *gpu);
  const uint64_t reads = disk_->reads();
  expect_same(ask(decoder, source(few), 1), expected(source(few), 1));
  const uint64_t selections = 2 * (3 + answer_tokens);  // three blocks, and a token each
  EXPECT_EQ(decoder.counts().misses, 4u);
  EXPECT_EQ(decoder.counts().hits, 4 * selections - 4);
  EXPECT_EQ(decoder.counts().read_bytes, 4 * model_->kv_bytes());
  EXPECT_GE(disk_->reads(), reads + 4);
  ask(decoder, source(few, 2), 2);
  EXPECT_EQ(decoder.counts().misses, 4u);
  EXPECT_EQ(decoder.counts().hits, 8 * selections - 4);
}

TEST_F(GpuDecoderTest, AMemoryWithoutChunksIsReadFromItsPromptAlone) {
  const MemoryInfo memory = make("empty", 1, 3);
  Decoder::Source nothing = source(memory);
  nothing.stored_chunks = 0;
  const auto gpu = open_gpu();
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer answer = ask(decoder, nothing, 1);
  expect_same(answer, expected(nothing, 1));
  EXPECT_THAT(answer.chunks(), IsEmpty());
  EXPECT_EQ(decoder.counts().misses, 0u);
}

TEST_F(GpuDecoderTest, ChunksThatAreNotStoredYetAreReadTooAndGrowIntoTheMemory) {
  const auto tight = open_gpu(slots_min({{&m_, 1}, {&m_, 2}, {&m_, 3}}) + 40);  // in slots_min() all is stored
  GpuDecoder decoder(*store_, *model_, *tight);
  Decoder::Source some = source(m_, 250);
  some.tail_landmarks.resize(60 * model_->landmark_dim());
  some.tail_kv.resize(60 * model_->kv_bytes());
  const Answer with_tail = ask(decoder, some, 1);
  expect_same(with_tail, expected(some, 1));
  EXPECT_FALSE(std::ranges::all_of(with_tail.chunks(), [](uint64_t chunk) { return chunk < 50; }));
  EXPECT_LT(decoder.counts().read_bytes, decoder.counts().misses * model_->kv_bytes()) << "a tail is not read";
  Talk old = begin(decoder, source(m_, 120), 1);
  expect_same(ask(decoder, source(m_, 5), 2), expected(source(m_, 5), 2));
  expect_same(ask(decoder, source(m_), 1), expected(source(m_), 1));
  EXPECT_EQ(tight->calls(Call::open_memory), 1u) << "it is one memory that grows";
  write(decoder, {&old, 1}, answer_tokens);
  expect_same(old.answer, expected(source(m_, 120), 1));

  // A stream does not see what came after it began.
  Talk before = begin(decoder, source(m_), 3);
  const Answer then = expected(source(m_), 3);
  const MemoryInfo more = make("m", 100, 9);
  expect_same(ask(decoder, source(more), 4), expected(source(more), 4));
  write(decoder, {&before, 1}, answer_tokens);
  expect_same(before.answer, then);
}

// ---- Side by side

TEST_F(GpuDecoderTest, StreamsSideBySideGetWhatEachGetsAlone) {
  const std::vector<std::pair<const MemoryInfo*, uint32_t>> asked = {{&m_, 1}, {&m_, 1}, {&m_, 2}, {&n_, 3},
                                                                     {&n_, 4}, {&m_, 5}, {&n_, 3}, {&m_, 1}};
  const uint32_t slots = slots_min(asked);
  std::map<std::pair<const MemoryInfo*, uint32_t>, Answer> alone;
  for (const auto& each : asked)
    if (!alone.contains(each)) alone[each] = expected(source(*each.first), each.second);
  const uint32_t of_tokens = Gpu::lanes_max * 2 * 4;
  for (const uint32_t room : {slots + of_tokens, 1000u}) {
    for (const int delay_us : {0, 300, 3000}) {
      SCOPED_TRACE(std::to_string(room) + " slots, reads of " + std::to_string(delay_us) + " us");
      const auto gpu = open_gpu(room);
      GpuDecoder decoder(*store_, *model_, *gpu);
      std::vector<Talk> talks;
      for (const auto& [memory, seed] : asked) talks.push_back(begin(decoder, source(*memory), seed));
      disk_->delay(std::chrono::microseconds(delay_us));
      write(decoder, talks, answer_tokens);
      disk_->delay(std::chrono::microseconds(0));
      size_t waited = 0;
      for (size_t i = 0; i < talks.size(); ++i) {
        SCOPED_TRACE("stream " + std::to_string(i));
        expect_same(talks[i].answer, alone[asked[i]]);
        waited += talks[i].waited;
      }
      EXPECT_EQ(decoder.counts().read_bytes, decoder.counts().misses * model_->kv_bytes())
          << "a chunk that two streams miss at once is read once";
      if (room == slots + of_tokens && delay_us == 3000) {
        EXPECT_GT(waited, 0u);
      }
    }
  }
}

TEST_F(GpuDecoderTest, AChunkThatIsBeingReadForAnotherStreamIsWaitedFor) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&m_, 2}, {&n_, 1}}) + 32);
  GpuDecoder decoder(*store_, *model_, *gpu);
  Talk same = begin(decoder, source(n_), 1);
  auto [waits, goes_on] = stall(decoder, *gpu);
  // It chooses what `waits` is reading.
  const uint64_t misses = decoder.counts().misses;
  std::array<Decoder::Written, 3> tokens{{{waits.stream.get(), waits.answer.next_token()},
                                          {goes_on.stream.get(), goes_on.answer.next_token()},
                                          {same.stream.get(), same.answer.next_token()}}};
  auto reads = decoder.write(tokens);
  EXPECT_FALSE(reads[0]);
  ASSERT_TRUE(reads[1]);
  goes_on.answer.take(must(*std::move(reads[1])), true);
  EXPECT_FALSE(reads[2]);
  const uint64_t of_m = decoder.counts().misses - misses;
  EXPECT_LE(of_m, 8u) << "of the one that went on, in each group four a head";
  {
    const auto releasing = release_soon();
    // All that are left wait: the call takes as long as the disk does.
    auto left = decoder.write(std::array{tokens[0], tokens[2]});
    ASSERT_TRUE(left[0] || left[1]);
    std::array<Talk*, 2> talks{&waits, &same};
    for (size_t i = 0; i < 2; ++i)
      if (left[i]) talks[i]->answer.take(must(*std::move(left[i])), true);
  }
  const auto finish = [&](Talk& talk, const MemoryInfo& memory, uint32_t seed) {
    write(decoder, {&talk, 1}, answer_tokens + 1 - talk.answer.logits.size());
    expect_same(talk.answer, expected(source(memory), seed));
  };
  finish(waits, n_, 1);
  finish(same, n_, 1);
  finish(goes_on, m_, 2);
}

TEST_F(GpuDecoderTest, AStreamThatIsClosedWhileItsChunksAreReadLeavesNothingBehind) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&m_, 2}, {&n_, 1}}) + 32);
  GpuDecoder decoder(*store_, *model_, *gpu);
  Talk same = begin(decoder, source(n_), 1);
  auto [waits, goes_on] = stall(decoder, *gpu);
  const auto reads = decoder.write(std::array<Decoder::Written, 2>{
      {{same.stream.get(), same.answer.next_token()}, {goes_on.stream.get(), goes_on.answer.next_token()}}});
  EXPECT_FALSE(reads[0]) << "what it waits for will not come";
  ASSERT_TRUE(reads[1]);
  goes_on.answer.take(must(Expected<Decoder::Read>(*reads[1])), true);
  {
    const auto releasing = release_soon();
    ASSERT_TRUE(disk_->holds_a_read());
    waits.stream.reset();
    EXPECT_FALSE(disk_->holds_a_read()) << "it goes into memory that is the next stream's";
  }
  const uint64_t fetched = disk_->reads();
  write(decoder, {&same, 1}, answer_tokens);
  EXPECT_GT(disk_->reads(), fetched);
  expect_same(same.answer, expected(source(n_), 1));
  expect_same(ask(decoder, source(n_), 6), expected(source(n_), 6));
  write(decoder, {&goes_on, 1}, answer_tokens + 1 - goes_on.answer.logits.size());
  expect_same(goes_on.answer, expected(source(m_), 2));
}

TEST_F(GpuDecoderTest, ADecoderMayGoWhileNobodyWaitsForAReadAnyMore) {
  const auto gpu = open_gpu(slots_min({{&m_, 2}, {&n_, 1}}) + 16);
  {
    GpuDecoder decoder(*store_, *model_, *gpu);
    auto talks = stall(decoder, *gpu);
    const auto releasing = release_soon();
    talks = {};
  }
  EXPECT_EQ(gpu->usage().landmarks_bytes, 0u);
}

TEST_F(GpuDecoderTest, TheNinthStreamGetsBusyUntilOneIsClosed) {
  const auto gpu = open_gpu();
  GpuDecoder decoder(*store_, *model_, *gpu);
  EXPECT_EQ(decoder.streams_max(), 8u);
  std::vector<Talk> talks;
  for (uint32_t i = 0; i < 8; ++i) talks.push_back(begin(decoder, source(i % 2 == 0 ? m_ : n_), i));
  const auto ninth = decoder.open(source(m_));
  ASSERT_FALSE(ninth);
  EXPECT_EQ(ninth.error().kind, ErrorKind::busy);
  talks.erase(talks.begin() + 3);
  expect_same(ask(decoder, source(n_), 9), expected(source(n_), 9));
  write(decoder, talks, 5);
  expect_same(talks[0].answer, expected(source(m_), 0, 5));
}

// ---- Damage

TEST_F(GpuDecoderTest, DamagedChunksAreLeftOutAndToldToEachStreamOnceUntilTheyAreMended) {
  const Answer whole = expected(source(m_), 1);
  for (const uint32_t slots : {1000u, slots_min({{&m_, 1}, {&m_, 2}})}) {
    SCOPED_TRACE(std::to_string(slots) + " slots");
    const auto gpu = open_gpu(slots);
    GpuDecoder decoder(*store_, *model_, *gpu);
    std::map<uint64_t, std::string> before;
    for (const uint64_t chunk : whole.chunks())
      if (before.size() < 12) before[chunk] = overwrite_kv(m_, chunk, "rot");
    Answer damaged = expected(source(m_), 1);
    EXPECT_EQ(std::set<uint64_t>(damaged.told.begin(), damaged.told.end()).size(), damaged.told.size());
    EXPECT_GE(damaged.told.size(), 12u);
    {
      Talk first = begin(decoder, source(m_), 1), beside = begin(decoder, source(n_), 2);
      write(decoder, {&first, 1}, answer_tokens);
      expect_same(first.answer, damaged);
      // A stream that begins now knows of it at once.
      Answer later = ask(decoder, source(m_), 1);
      EXPECT_EQ(later.told.size(), damaged.told.size());
      expect_same(later, damaged);
      write(decoder, {&beside, 1}, answer_tokens);
      expect_same(beside.answer, expected(source(n_), 2));
    }
    for (const auto& [chunk, bytes] : before) overwrite_kv(m_, chunk, bytes);
    expect_same(ask(decoder, source(m_), 1), whole);
  }
}

TEST_F(GpuDecoderTest, AStreamThatWaitsForAChunkOfAnotherGoesOnWithoutItWhereItIsDamaged) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&n_, 2}}) + 64);
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer whole = expected(source(m_), 1);
  std::set<uint64_t> of_tokens;
  for (size_t i = 1; i < whole.attended.size(); ++i)
    for (const auto& [chunk, share] : whole.attended[i]) of_tokens.insert(chunk);
  std::vector<Talk> talks;
  for (int i = 0; i < 3; ++i) talks.push_back(begin(decoder, source(m_), 1));
  begin(decoder, source(n_), 2);  // takes their places
  for (const uint64_t chunk : of_tokens) overwrite_kv(m_, chunk, "rot");
  disk_->delay(std::chrono::microseconds(200));
  write(decoder, talks, answer_tokens);
  for (size_t i = 1; i < talks.size(); ++i) expect_same(talks[i].answer, talks[0].answer);
  EXPECT_THAT(talks[0].answer.told, ::testing::Not(IsEmpty()));
}

TEST_F(GpuDecoderTest, DamagedLandmarkPagesAreLeftOutAndTold) {
  const MemoryInfo big = make("big", 1100, 5);
  ASSERT_LT(store_->page_chunks(), big.encoded_chunks);
  damage_landmarks(big);
  const auto gpu = open_gpu();
  GpuDecoder decoder(*store_, *model_, *gpu);
  for (int round = 0; round < 2; ++round) {
    const Answer answer = ask(decoder, source(big), 1);
    expect_same(answer, expected(source(big), 1));
    EXPECT_THAT(answer.told, ElementsAre(0u));
    EXPECT_GE(*answer.chunks().begin(), store_->page_chunks());
  }
  damage_landmarks(m_);
  GpuDecoder again(*store_, *model_, *gpu);
  const Answer nothing = ask(again, source(m_), 1);
  expect_same(nothing, expected(source(m_), 1));
  EXPECT_THAT(nothing.told, ElementsAre(0u));
  EXPECT_THAT(nothing.chunks(), IsEmpty());
}

// ---- Alone, while the disk works

TEST_F(GpuDecoderTest, TheGpuKnowsWhatFollowsWhileTheChunksOfAStreamThatIsAloneAreRead) {
  const auto gpu = open_gpu(slots_min({{&m_, 2}, {&n_, 1}}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  Talk talk = begin(decoder, source(n_), 1);
  crowd_out(decoder, *gpu, n_, m_);
  hold_reads_of(n_);
  const uint64_t steps = gpu->calls(Call::step), fills = gpu->calls(Call::fill);
  std::jthread writing([&] { write(decoder, {&talk, 1}, 1); });
  EngineDriver::wait_for("a read to be held", [&] { return disk_->holds_a_read(); });
  EXPECT_TRUE(gpu->is_prepared());
  disk_->release();
  writing.join();
  EXPECT_FALSE(gpu->is_prepared());
  EXPECT_EQ(gpu->calls(Call::step), steps + 1) << "it goes on without another one";
  EXPECT_EQ(gpu->calls(Call::fill), fills);
  EXPECT_EQ(gpu->calls(Call::go_on), gpu->calls(Call::prepare));
  const GpuDecoder::Times& times = decoder.times();
  EXPECT_LE(times.begun, times.chosen);
  EXPECT_LE(times.chosen, times.reading);
  EXPECT_LE(times.reading, times.prepared);
  EXPECT_LE(times.prepared, times.arrived);
  EXPECT_LE(times.arrived, times.resumed);
  EXPECT_LE(times.resumed, times.done);
  write(decoder, {&talk, 1}, answer_tokens - 1);
  expect_same(talk.answer, expected(source(n_), 1));
}

TEST_F(GpuDecoderTest, ChunksThatAreNotStoredYetComeWithThoseThatAreRead) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&n_, 2}}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer of_m = expected(source(m_), 1);
  for (const uint64_t tail : {1, 100, 299}) expect_same(ask(decoder, source(m_, tail), 1), of_m);
  EXPECT_GT(gpu->calls(Call::go_on), 0u);
}

TEST_F(GpuDecoderTest, AReadThatFailsWhileTheGpuWaitsEndsTheStreamAndLeavesNothingBehind) {
  const auto gpu = open_gpu(slots_min({{&m_, 2}, {&n_, 1}}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer of_n = expected(source(n_), 1), of_m = expected(source(m_), 2);
  for (const uint64_t one_in : {1, 2, 3}) {
    SCOPED_TRACE("one read in " + std::to_string(one_in) + " fails");
    Talk talk = begin(decoder, source(n_), 1), beside = begin(decoder, source(m_), 2);
    crowd_out(decoder, *gpu, n_, m_);
    const uint64_t prepared = gpu->calls(Call::prepare);
    disk_->fail_one_in(one_in);
    const Error error = error_of(decoder, talk);
    disk_->fail_one_in(0);
    EXPECT_EQ(error.kind, ErrorKind::io);
    EXPECT_EQ(gpu->calls(Call::prepare), prepared + 1);
    EXPECT_EQ(gpu->calls(Call::go_on), gpu->calls(Call::prepare));
    EXPECT_EQ(chunks_in(gpu->cache(), n_), 0u) << "those that arrived before";
    talk.stream.reset();
    write(decoder, {&beside, 1}, answer_tokens);
    expect_same(beside.answer, of_m);
    expect_same(ask(decoder, source(n_), 1), of_n);
  }
}

TEST_F(GpuDecoderTest, AGpuThatLostPatienceWithTheDiskGetsTheChunksAgain) {
  const auto gpu = open_gpu(slots_min({{&m_, 2}, {&n_, 1}}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  for (const int times : {1, 1000}) {
    Talk talk = begin(decoder, source(n_), 1);
    crowd_out(decoder, *gpu, n_, m_);
    gpu->lose_patience_next(times);
    const uint64_t fills = gpu->calls(Call::fill);
    write(decoder, {&talk, 1}, answer_tokens);
    gpu->lose_patience_next(0);
    EXPECT_GT(gpu->calls(Call::fill), fills);
    expect_same(talk.answer, expected(source(n_), 1));
  }
  gpu->lose_patience_next();  // and then nothing can be taken back
  Talk talk = begin(decoder, source(n_), 1);
  crowd_out(decoder, *gpu, n_, m_);
  gpu->fail_next(Call::unmap, 2);
  EXPECT_EQ(error_of(decoder, talk).kind, ErrorKind::busy);
  gpu->fail_next(Call::unmap, 0);
  gpu->lose_patience_next(0);
  talk.stream.reset();
  expect_same(ask(decoder, source(n_), 1), expected(source(n_), 1));
  expect_same(ask(decoder, source(m_), 2), expected(source(m_), 2));
}

TEST_F(GpuDecoderTest, ChunksThatArrivedBeforeAGpuLostPatienceComeOnceMoreWithTheOthers) {
  const auto gpu = open_gpu(slots_min({{&m_, 2}, {&n_, 1}}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer undisturbed = expected(source(n_), 1);
  for (const size_t arrivals : {1, 2, 3}) {
    SCOPED_TRACE(std::to_string(arrivals) + " arrive");
    Talk talk = begin(decoder, source(n_), 1);
    crowd_out(decoder, *gpu, n_, m_);
    gpu->lose_patience_next(1000, arrivals);
    const uint64_t fills = gpu->calls(Call::fill);
    write(decoder, {&talk, 1}, answer_tokens);
    gpu->lose_patience_next(0);
    EXPECT_GT(gpu->calls(Call::fill), fills);
    expect_same(talk.answer, undisturbed);
  }
}

// Some reads fail, others have arrived; since turns came and went meanwhile, all are read again.
TEST_F(GpuDecoderTest, ChunksThatAreReadAgainSinceTheMemoryWasChangedGiveTheSameAnswer) {
  constexpr size_t few = 10;  // tokens: of no whole chunk
  make("again", 200, 6);
  const MemoryInfo memory = must(store_->memory(append("again", few)));
  ASSERT_EQ(memory.encoded_chunks, 200u);
  const auto gpu = open_gpu(slots_min({{&m_, 2}, {&memory, 1}}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer undisturbed = expected(source(memory), 1);
  for (const uint64_t turn : {1, 2, 3}) {
    SCOPED_TRACE(std::to_string(turn) + " reads fail");
    Talk talk = begin(decoder, source(memory), 1);
    crowd_out(decoder, *gpu, memory, m_);
    hold_reads_of(memory);
    const uint64_t prepared = gpu->calls(Call::prepare), fills = gpu->calls(Call::fill), reads = disk_->reads();
    std::jthread writing([&] { write(decoder, {&talk, 1}, 1); });
    EngineDriver::wait_for("a read to be held", [&] { return disk_->holds_a_read(); });
    EXPECT_TRUE(gpu->is_prepared());
    append("again", few);
    must(store_->forget(memory.id, std::array{TurnRange{turn, turn}}));
    disk_->fail_next(turn);
    disk_->release();
    writing.join();
    EXPECT_GT(disk_->reads(), reads + turn + 1) << "some arrive before the second read";
    EXPECT_GT(gpu->calls(Call::prepare), prepared);
    EXPECT_EQ(gpu->calls(Call::fill), fills + 1) << "what was copied is any of both";
    write(decoder, {&talk, 1}, answer_tokens - 1);
    expect_same(talk.answer, undisturbed);
  }
}

TEST_F(GpuDecoderTest, ADeviceThatFailsWhileChunksAreReadEndsTheStreamAlone) {
  const Answer of_n = expected(source(n_), 1), of_m = expected(source(m_), 2);
  for (const std::vector<Call>& calls :
       {std::vector{Call::prepare}, {Call::go_on}, {Call::prepare, Call::unmap}, {Call::go_on, Call::unmap}}) {
    SCOPED_TRACE("call " + std::to_string(static_cast<int>(calls[0])) + " of " + std::to_string(calls.size()));
    const auto gpu = open_gpu(slots_min({{&m_, 2}, {&n_, 1}}));
    GpuDecoder decoder(*store_, *model_, *gpu);
    Talk talk = begin(decoder, source(n_), 1), beside = begin(decoder, source(m_), 2);
    crowd_out(decoder, *gpu, n_, m_);
    for (const Call call : calls) gpu->fail_next(call, 2);
    EXPECT_EQ(error_of(decoder, talk).kind, ErrorKind::device);
    for (const Call call : calls) gpu->fail_next(call, 0);
    EXPECT_FALSE(gpu->is_prepared());
    talk.stream.reset();
    if (calls.size() == 1) {
      write(decoder, {&beside, 1}, answer_tokens);
      expect_same(beside.answer, of_m);
    } else {
      beside.stream.reset();  // the memory whose chunks were to make way may be lost with it
    }
    expect_same(ask(decoder, source(n_), 1), of_n);
    expect_same(ask(decoder, source(m_), 2), of_m);
  }
}

TEST_F(GpuDecoderTest, AStreamThatBecomesAloneAndIsJoinedAgainGoesOn) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&n_, 2}}) + 16);
  GpuDecoder decoder(*store_, *model_, *gpu);
  disk_->delay(std::chrono::microseconds(200));
  std::vector<Talk> talks;
  talks.push_back(begin(decoder, source(m_), 1));
  talks.push_back(begin(decoder, source(n_), 2));
  for (size_t round = 0; round < answer_tokens / 3; ++round) {
    write(decoder, talks, 1);
    write(decoder, std::span(talks).first(1), 2);
    write(decoder, std::span(talks).last(1), 2);
  }
  EXPECT_GT(gpu->calls(Call::go_on), 0u);
  expect_same(talks[0].answer, expected(source(m_), 1));
  expect_same(talks[1].answer, expected(source(n_), 2));
}

// ---- Forgetting

TEST_F(GpuDecoderTest, WhatIsForgottenIsOverwrittenItsStreamsEndAndOthersGoOn) {
  for (const bool tight : {false, true}) {
    const auto gpu = open_gpu(tight ? slots_min({{&m_, 1}, {&n_, 2}}) + 16 : 1000);
    GpuDecoder decoder(*store_, *model_, *gpu);
    Talk gone = begin(decoder, source(m_), 1), stays = begin(decoder, source(n_), 2);
    write(decoder, {&stays, 1}, 3);
    write(decoder, {&gone, 1}, 3);
    ASSERT_GT(chunks_in(gpu->cache(), m_), 0u);
    ASSERT_GT(chunks_in(gpu->staging(), m_), 0u);
    const size_t others = chunks_in(gpu->cache(), n_);
    decoder.forget(m_.id);
    EXPECT_EQ(chunks_in(gpu->cache(), m_), 0u);
    EXPECT_EQ(chunks_in(gpu->staging(), m_), 0u);
    EXPECT_EQ(chunks_in(gpu->cache(), n_), others);
    EXPECT_EQ(error_of(decoder, gone).kind, ErrorKind::busy);
    expect_same(ask(decoder, source(m_), 3), expected(source(m_), 3));  // it is there in the store
    EXPECT_EQ(error_of(decoder, gone).kind, ErrorKind::busy);
    const auto read = decoder.read(*gone.stream, std::array{1u}, true);
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().kind, ErrorKind::busy);
    gone.stream.reset();
    write(decoder, {&stays, 1}, answer_tokens - 3);
    expect_same(stays.answer, expected(source(n_), 2));
  }
}

TEST_F(GpuDecoderTest, WhatIsForgottenAmidAReadIsOverwrittenToo) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&m_, 2}, {&n_, 1}}) + 32);
  GpuDecoder decoder(*store_, *model_, *gpu);
  auto [waits, goes_on] = stall(decoder, *gpu);
  {
    const auto releasing = release_soon();
    decoder.forget(n_.id);
  }
  EXPECT_EQ(chunks_in(gpu->cache(), n_), 0u);
  EXPECT_EQ(chunks_in(gpu->staging(), n_), 0u);
  EXPECT_EQ(error_of(decoder, waits).kind, ErrorKind::busy);
  write(decoder, {&goes_on, 1}, answer_tokens - 1);
  expect_same(goes_on.answer, expected(source(m_), 2));
}

TEST_F(GpuDecoderTest, WhatWasOnlyEncodedOrMadeWayIsForgottenToo) {
  const uint64_t of_m = m_.encoded_chunks * (model_->landmark_dim() * sizeof(Bf16) + sizeof(uint32_t));
  const auto gpu = open_gpu(0, of_m);
  GpuDecoder decoder(*store_, *model_, *gpu);
  ask(decoder, source(n_), 1);
  begin(decoder, source(m_), 2, 10);  // a block of a few tokens: staging memory has chunks of n still
  ASSERT_GT(chunks_in(gpu->staging(), n_), 0u);
  decoder.forget(n_.id);
  EXPECT_EQ(chunks_in(gpu->staging(), n_), 0u);

  RecurrentState state = must(gpu->zero_state());
  const std::vector<uint32_t> tokens(chunk_tokens, 7);
  std::vector<Bf16> landmark(model_->landmark_dim());
  std::vector<std::byte> record(model_->kv_bytes());
  must(gpu->encode(std::array{Backend::Segment{&state, tokens, landmark, record}}));
  ASSERT_TRUE(gpu->holds(record));
  decoder.forget(12345);
  EXPECT_FALSE(gpu->holds(record));
}

TEST_F(GpuDecoderTest, ForgettingFailsUntilAllIsOverwritten) {
  for (const Call call : {Call::erase, Call::erase_scratch, Call::reset}) {
    SCOPED_TRACE("call " + std::to_string(static_cast<int>(call)));
    const auto gpu = open_gpu(1000);
    GpuDecoder decoder(*store_, *model_, *gpu);
    Talk gone = begin(decoder, source(m_), 1), stays = begin(decoder, source(n_), 2);
    for (int attempt = 0; attempt < 2; ++attempt) {
      gpu->fail_next(call);
      const auto forgotten = decoder.forget(m_.id);
      ASSERT_FALSE(forgotten) << "attempt " << attempt;
      EXPECT_EQ(forgotten.error().kind, ErrorKind::device);
      EXPECT_GT(chunks_in(gpu->cache(), m_) + chunks_in(gpu->staging(), m_) + !gpu->is_clear(0), 0u);
    }
    must(decoder.forget(m_.id));
    EXPECT_EQ(chunks_in(gpu->cache(), m_), 0u);
    EXPECT_EQ(chunks_in(gpu->staging(), m_), 0u);
    EXPECT_TRUE(gpu->is_clear(0));
    write(decoder, {&stays, 1}, answer_tokens);
    expect_same(stays.answer, expected(source(n_), 2));
  }
}

TEST_F(GpuDecoderTest, WhatCouldNotBeOverwrittenBeforeIsForgottenWithTheRest) {
  const uint64_t of_m = m_.encoded_chunks * (model_->landmark_dim() * sizeof(Bf16) + sizeof(uint32_t));
  const auto talk_of_m = [&](Decoder& decoder) { return begin(decoder, source(m_), 2, 2); };  // of few chunks
  CpuDecoder cpu(*store_, *model_, pool_);
  Talk on_cpu = talk_of_m(cpu);
  write(cpu, {&on_cpu, 1}, answer_tokens);
  const Answer answer_of_n = expected(source(n_), 1);
  for (const uint32_t slots : {1000u, slots_min({{&m_, 2}, {&n_, 1}}) + 16}) {
    const auto gpu = open_gpu(slots, of_m);
    GpuDecoder decoder(*store_, *model_, *gpu);
    ask(decoder, source(n_), 1);
    gpu->fail_next(Call::erase);
    Talk reads_m = talk_of_m(decoder);  // n makes way
    gpu->fail_next(Call::erase, 0);
    ASSERT_TRUE(slots < 1000 || chunks_in(gpu->cache(), n_) > 0);
    must(decoder.forget(n_.id));
    EXPECT_EQ(chunks_in(gpu->cache(), n_), 0u);
    // Slots that others have taken meanwhile are theirs.
    write(decoder, {&reads_m, 1}, answer_tokens);
    expect_same(reads_m.answer, on_cpu.answer);
    expect_same(ask(decoder, source(n_), 1), answer_of_n);
  }

  const auto gpu = open_gpu();
  GpuDecoder decoder(*store_, *model_, *gpu);
  Talk talk = begin(decoder, source(m_), 2);
  gpu->fail_next(Call::reset);
  talk.stream.reset();
  ASSERT_FALSE(gpu->is_clear(0));
  must(decoder.forget(m_.id));
  EXPECT_TRUE(gpu->is_clear(0));
}

TEST_F(GpuDecoderTest, AnotherGenerationOfAMemoryTakesThePlaceOfTheOld) {
  const auto gpu = open_gpu();
  GpuDecoder decoder(*store_, *model_, *gpu);
  Talk old = begin(decoder, source(m_), 1);
  Decoder::Source next = source(m_);
  ++next.memory.serving.edition;
  expect_same(ask(decoder, next, 2), expected(source(m_), 2));
  EXPECT_EQ(error_of(decoder, old).kind, ErrorKind::busy);
  EXPECT_EQ(gpu->calls(Call::open_memory), 2u);
}

// ---- A device that fails

TEST_F(GpuDecoderTest, ADeviceThatFailsEndsTheStreamAndNoLaterOne) {
  const Answer of_m = expected(source(m_), 1), of_n = expected(source(n_), 2);
  const uint32_t slots = slots_min({{&m_, 1}, {&n_, 2}}) + 32;
  // What a fill() that failed would have taken out of the cache is taken out by unmap(), which may fail too.
  const std::vector<std::vector<Call>> failing = {
      {Call::step},    {Call::fill},       {Call::fill, Call::unmap}, {Call::reset}, {Call::write_landmarks},
      {Call::reserve}, {Call::open_memory}};
  for (const std::vector<Call>& calls : failing) {
    for (const int times : {1, 2}) {
      SCOPED_TRACE("call " + std::to_string(static_cast<int>(calls[0])) + ", " + std::to_string(times) + " times, " +
                   std::to_string(calls.size()) + " in all");
      const auto fail_next = [&](CpuGpu& gpu, int n) {
        for (const Call call : calls) gpu.fail_next(call, n);
      };
      const auto gpu = open_gpu(slots);
      GpuDecoder decoder(*store_, *model_, *gpu);
      Talk beside = begin(decoder, source(n_), 2);
      begin(decoder, source(n_), 3);  // the cache is full
      int failed = 0;
      for (int attempt = 0; attempt < 4; ++attempt) {
        fail_next(*gpu, times);
        auto stream = decoder.open(source(m_));
        if (!stream) {
          EXPECT_EQ(stream.error().kind, ErrorKind::device);
          ++failed;
          fail_next(*gpu, 0);
          continue;
        }
        const std::vector<uint32_t> block(chunk_tokens, static_cast<uint32_t>(attempt));
        if (const auto read = decoder.read(**stream, block, true); !read) {
          EXPECT_EQ(read.error().kind, ErrorKind::device);
          ++failed;
        }
        fail_next(*gpu, 0);
      }
      EXPECT_GT(failed, 0);
      expect_same(ask(decoder, source(m_), 1), of_m);
      if (calls.size() == 1) {
        write(decoder, {&beside, 1}, answer_tokens);
        expect_same(beside.answer, of_n);
      } else {
        beside.stream.reset();  // the memory whose chunks were to make way may be lost with it
      }
      expect_same(ask(decoder, source(n_), 2), of_n);
      expect_same(ask(decoder, source(m_), 1), of_m);
    }
  }
}

TEST_F(GpuDecoderTest, ADeviceThatFailsWhileSeveralWriteEndsThoseItWorkedFor) {
  const Answer of_m = expected(source(m_), 1), of_n = expected(source(n_), 2);
  const uint32_t slots = slots_min({{&m_, 1}, {&n_, 2}}) + 32;
  for (const Call call : {Call::step, Call::fill, Call::unmap}) {
    size_t failed = 0;
    for (int skipped = 0; skipped < 6; ++skipped) {
      SCOPED_TRACE("call " + std::to_string(static_cast<int>(call)) + " after " + std::to_string(skipped));
      const auto gpu = open_gpu(slots);
      GpuDecoder decoder(*store_, *model_, *gpu);
      std::vector<Talk> talks;
      for (int i = 0; i < 2; ++i) {
        talks.push_back(begin(decoder, source(m_), 1));
        talks.push_back(begin(decoder, source(n_), 2));
      }
      disk_->delay(std::chrono::microseconds(100));
      std::vector<bool> ended(talks.size());
      // Those that failed stay open, and the others go on beside them.
      for (size_t round = 0; !std::ranges::all_of(ended, std::identity{}); ++round) {
        ASSERT_LT(round, 1000u);
        if (round == static_cast<size_t>(skipped)) gpu->fail_next(call, 2);
        std::vector<Decoder::Written> next;
        std::vector<size_t> of;
        for (size_t i = 0; i < talks.size(); ++i) {
          if (ended[i]) continue;
          next.push_back({talks[i].stream.get(), talks[i].answer.next_token()});
          of.push_back(i);
        }
        auto reads = decoder.write(next);
        for (size_t i = 0; i < reads.size(); ++i) {
          if (!reads[i]) continue;
          if (auto& read = *reads[i]; read)
            talks[of[i]].answer.take(*std::move(read), true);
          else
            EXPECT_TRUE(read.error().kind == ErrorKind::device || read.error().kind == ErrorKind::busy);
          failed += !*reads[i];
          ended[of[i]] = !*reads[i] || talks[of[i]].answer.logits.size() == answer_tokens + 1;
        }
      }
      disk_->delay(std::chrono::microseconds(0));
      gpu->fail_next(call, 0);
      for (size_t i = 0; i < talks.size(); ++i) {
        const Answer& all = i % 2 == 0 ? of_m : of_n;
        const Answer& told = talks[i].answer;
        for (size_t token = 0; token < told.logits.size(); ++token)
          EXPECT_TRUE(told.logits[token] == all.logits[token]) << "stream " << i << ", token " << token;
      }
      talks.clear();
      expect_same(ask(decoder, source(n_), 2), of_n);
      expect_same(ask(decoder, source(m_), 1), of_m);
    }
    EXPECT_GT(failed, 0u);
  }
}

TEST_F(GpuDecoderTest, AMemoryThatIsGoneFromTheStoreEndsItsStreamAlone) {
  const auto gpu = open_gpu(slots_min({{&m_, 1}, {&n_, 2}}) + 32);
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer of_n = expected(source(n_), 2);
  std::vector<Talk> talks;
  talks.push_back(begin(decoder, source(m_), 1));
  talks.push_back(begin(decoder, source(n_), 2));
  talks.push_back(begin(decoder, source(m_), 1));
  must(store_->erase("m"));
  std::vector<bool> ended(3);
  for (size_t round = 0; !std::ranges::all_of(ended, std::identity{}); ++round) {
    ASSERT_LT(round, 1000u);
    std::vector<Decoder::Written> next;
    std::vector<size_t> of;
    for (size_t i = 0; i < talks.size(); ++i) {
      if (ended[i]) continue;
      next.push_back({talks[i].stream.get(), talks[i].answer.next_token()});
      of.push_back(i);
    }
    auto reads = decoder.write(next);
    for (size_t i = 0; i < reads.size(); ++i) {
      if (!reads[i]) continue;
      if (*reads[i])
        talks[of[i]].answer.take(**std::move(reads[i]), true);
      else
        EXPECT_EQ(reads[i]->error().kind, ErrorKind::not_found);
      ended[of[i]] = !*reads[i] || talks[of[i]].answer.logits.size() == answer_tokens + 1;
    }
  }
  expect_same(talks[1].answer, of_n);
}

// ---- Room for landmarks

TEST_F(GpuDecoderTest, MemoriesThatNobodyReadsMakeWayAndOthersMoveToOtherPlaces) {
  const uint64_t of_chunk = model_->landmark_dim() * sizeof(Bf16) + sizeof(uint32_t);
  const uint64_t room = m_.encoded_chunks * of_chunk;  // for m, or for n, not for both
  const auto gpu = open_gpu(0, room);
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer of_m = expected(source(m_), 1), of_n = expected(source(n_), 2);
  expect_same(ask(decoder, source(n_), 2), of_n);
  EXPECT_EQ(gpu->usage().landmarks_bytes, n_.encoded_chunks * of_chunk);
  Talk reads_m = begin(decoder, source(m_), 1);
  EXPECT_EQ(gpu->usage().landmarks_bytes, room) << "nobody read n any more";
  EXPECT_EQ(gpu->usage().host_landmarks_bytes, 0u);
  EXPECT_EQ(chunks_in(gpu->cache(), n_), 0u);
  Talk reads_n = begin(decoder, source(n_), 2);
  EXPECT_EQ(gpu->usage().landmarks_bytes, room);
  EXPECT_GT(gpu->usage().host_landmarks_bytes, 0u) << "m is being read: n lies elsewhere";
  write(decoder, {&reads_m, 1}, answer_tokens);
  write(decoder, {&reads_n, 1}, answer_tokens);
  expect_same(reads_m.answer, of_m);
  expect_same(reads_n.answer, of_n);
  reads_m.stream.reset();

  // It grows out of its room while it is read.
  reads_m = begin(decoder, source(m_), 1);
  const MemoryInfo more = make("m", 200, 9);
  expect_same(ask(decoder, source(more), 4), expected(source(more), 4));
  EXPECT_LE(gpu->usage().landmarks_bytes, room);
  write(decoder, {&reads_m, 1}, answer_tokens);
  expect_same(reads_m.answer, of_m);
}

TEST_F(GpuDecoderTest, LandmarksInTheHostsMemoryHaveABoundToo) {
  const uint64_t on_host = model_->landmark_dim() * sizeof(Bf16) + sizeof(uint32_t);
  const auto gpu = must(CpuGpu::open({.model = variant_checkpoint(),
                                      .landmarks_bytes_max = 0,
                                      .host_landmarks_bytes_max = m_.encoded_chunks * on_host}));
  GpuDecoder decoder(*store_, *model_, *gpu);
  const Answer of_m = expected(source(m_), 1), of_n = expected(source(n_), 2);
  expect_same(ask(decoder, source(n_), 2), of_n);
  Talk reads_m = begin(decoder, source(m_), 1);
  EXPECT_EQ(gpu->usage().host_landmarks_bytes, m_.encoded_chunks * on_host) << "n has made way";
  const auto refused = decoder.open(source(n_));
  ASSERT_FALSE(refused) << "m is being read";
  EXPECT_EQ(refused.error().kind, ErrorKind::full);
  write(decoder, {&reads_m, 1}, answer_tokens);
  expect_same(reads_m.answer, of_m);
  reads_m.stream.reset();
  expect_same(ask(decoder, source(n_), 2), of_n);
}

// ---- Through the engine

TEST(EngineOnAGpu, AnswersAsOnTheCpu) {
  const TempDir directory;
  EngineDriver cpu(directory.path() / "cpu"), gpu(directory.path() / "gpu");
  CpuGpu* device = nullptr;
  gpu.use_gpu([&device](const GpuOptions& options) -> Expected<std::unique_ptr<Gpu>> {
    RECALLD_TRY(auto opened, CpuGpu::open({.model = options.model, .slots = 128, .landmarks_bytes_max = 40'000}));
    device = opened.get();
    return opened;
  });
  auto log = harbour_log(0, 200);
  log[70] = fact;
  const auto generate = [](EngineDriver& engine, const std::string& memory, const std::string& prompt, double heat) {
    GenerateRequest request;
    request.memory = memory;
    request.prompt = prompt;
    request.max_tokens = 24;
    request.temperature = heat;
    request.seed = 5;
    auto promise = std::make_shared<std::promise<Expected<GenerateReply>>>();  // shared with the answer
    auto future = promise->get_future();
    engine->generate(std::move(request),
                     [promise](Expected<GenerateReply> reply) { promise->set_value(std::move(reply)); });
    return future;
  };
  const auto compare = [&](const std::string& memory, const std::string& prompt, double heat) {
    const GenerateReply expected = must(generate(cpu, memory, prompt, heat).get());
    const GenerateReply found = must(generate(gpu, memory, prompt, heat).get());
    EXPECT_EQ(found.text, expected.text);
    EXPECT_EQ(found.tokens, expected.tokens);
    EXPECT_EQ(found.searchable_through, expected.searchable_through);
    EXPECT_EQ(found.unreadable.size(), expected.unreadable.size());
    EXPECT_EQ(found.chunks.size(), expected.chunks.size());
    for (size_t i = 0; i < std::min(found.chunks.size(), expected.chunks.size()); ++i) {
      EXPECT_EQ(found.chunks[i].chunk, expected.chunks[i].chunk);
      EXPECT_EQ(found.chunks[i].weight, expected.chunks[i].weight);
      EXPECT_EQ(found.chunks[i].passage.text, expected.chunks[i].passage.text);
    }
    return found;
  };
  for (EngineDriver* engine : {&cpu, &gpu}) {
    engine->open();
    engine->append("m", log, true);
    engine->append("n", harbour_log(500, 560), true);
    engine->append("m", harbour_log(200, 215));  // and asked at once
  }
  EXPECT_EQ(gpu->device(), "cuda (CPU in place of a GPU)");
  EXPECT_EQ(compare("m", question, 0).text, "60417");
  compare("n", "What did the boats bring?", 1.5);
  compare("m", "Tell me of the sea.", 2);
  const SearchReply found = must(gpu.try_search("m", question)), expected = must(cpu.try_search("m", question));
  EXPECT_EQ(device->calls(Call::late_scores), 1u) << "all chunks in one call";
  ASSERT_EQ(found.results.size(), expected.results.size());
  for (size_t i = 0; i < found.results.size(); ++i) {
    EXPECT_EQ(found.results[i].chunk, expected.results[i].chunk);
    EXPECT_EQ(found.results[i].score, expected.results[i].score);
    EXPECT_EQ(found.results[i].passage.text, expected.results[i].passage.text);
    ASSERT_TRUE(found.results[i].why->token_score);
    EXPECT_EQ(found.results[i].why->token_score, expected.results[i].why->token_score);
    EXPECT_EQ(found.results[i].why->matches.size(), expected.results[i].why->matches.size());
    ASSERT_EQ(found.results[i].why->pairs.size(), expected.results[i].why->pairs.size());
    for (size_t p = 0; p < found.results[i].why->pairs.size(); ++p)
      EXPECT_EQ(found.results[i].why->pairs[p].weight, expected.results[i].why->pairs[p].weight);
  }
  device->fail_next(Call::late_scores);
  const auto failed = gpu.try_search("m", question);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind, ErrorKind::device);
  must(gpu.try_search("m", question, 16, SearchMode::landmark));
  EXPECT_EQ(device->calls(Call::late_scores), 2u) << "landmarks alone compare no tokens";

  // Many at once, more than there are lanes.
  std::vector<std::pair<std::future<Expected<GenerateReply>>, std::string>> together;
  for (int i = 0; i < 12; ++i) {
    const std::string memory = i % 3 == 0 ? "n" : "m", prompt = log_entry(static_cast<size_t>(i));
    together.emplace_back(generate(gpu, memory, prompt, i), must(generate(cpu, memory, prompt, i).get()).text);
  }
  for (auto& [reply, text] : together) EXPECT_EQ(must(reply.get()).text, text);

  // What is forgotten is gone from the GPU when the forgetting is done.
  gpu.settle();
  const ChunkDetail chunk = gpu.chunk("m", must(generate(gpu, "m", question, 0).get()).chunks[0].chunk);
  std::string record(chunk.kv_bytes, '\0');
  std::ifstream(gpu.data() / "kv" / segment_name(chunk.view.entry.segment), std::ios::binary)
      .seekg(static_cast<std::streamoff>(chunk.view.entry.slot * chunk.kv_bytes))
      .read(record.data(), static_cast<std::streamsize>(record.size()));
  ASSERT_TRUE(device->holds(as_bytes(record).first(512)));
  for (EngineDriver* engine : {&cpu, &gpu}) {
    engine->forget("m", {{70, 70}});
    engine->settle();
  }
  EXPECT_FALSE(device->holds(as_bytes(record).first(512)));
  EXPECT_THAT(compare("m", question, 0).text, ::testing::Not(HasSubstr("60417")));

  // Damage is told, and mended.
  const GenerateReply whole = compare("m", "What did the boats bring?", 0);
  const ChunkDetail damaged = gpu.chunk("m", whole.chunks[0].chunk);
  gpu.forget("n", {{0, 0}});  // and the cache of n, not that of m
  std::fstream segment(gpu.data() / "kv" / segment_name(damaged.view.entry.segment),
                       std::ios::in | std::ios::out | std::ios::binary);
  segment.seekp(static_cast<std::streamoff>(damaged.view.entry.slot * damaged.kv_bytes + 100)) << "rot";
  segment.close();
  gpu.close();
  gpu.open();
  const GenerateReply without = must(generate(gpu, "m", "What did the boats bring?", 0).get());
  ASSERT_EQ(without.unreadable.size(), 1u);
  EXPECT_EQ(without.unreadable[0].first, damaged.view.chunk);
  must(answer<VerifyReply>(
      [&](auto done) { gpu->verify({.memory = "m", .repair = true, .wait = true}, std::move(done)); }));
  compare("m", "What did the boats bring?", 0);
}

TEST(EngineOnAGpu, AnErasureThatFailsIsTriedAgainAndLoggedOnce) {
  const TempDir directory;
  std::ostringstream log;
  const struct Restored {
    std::shared_ptr<spdlog::logger> logger = spdlog::default_logger();
    ~Restored() { spdlog::set_default_logger(logger); }
  } restored;
  EngineDriver engine(directory.path() / "data");
  CpuGpu* device = nullptr;
  engine.use_gpu([&device](const GpuOptions& options) -> Expected<std::unique_ptr<Gpu>> {
    RECALLD_TRY(auto opened, CpuGpu::open({.model = options.model}));
    device = opened.get();
    return opened;
  });
  engine.open();
  engine.append("m", harbour_log(0, 100), true);
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  device->fail_next(Call::erase_scratch, 2);
  const auto told =
      engine.try_forget({.memory = "m", .turns = {{70, 70}}, .filter = {}, .dry_run = false, .wait = true});
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().kind, ErrorKind::device);
  EngineDriver::wait_for("the erasure", [&] { return device->calls(Call::erase_scratch) >= 3; });
  engine.settle();
  spdlog::set_default_logger(restored.logger);
  const std::string text = log.str(), message = "erase what was forgotten of memory";
  const size_t first = text.find(message);
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(text.find(message, first + 1), std::string::npos) << text;
}

}  // namespace
}  // namespace recalld
