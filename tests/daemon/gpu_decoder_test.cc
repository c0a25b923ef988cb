// Answers through a GPU's cache have the bits of the CPU's, whatever is cached or waited for, and wherever landmarks
// lie. The GPU is one that computes on the CPU; what the memories hold is made up.
#include "daemon/gpu_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/daemon/gpu_decoder_fixture.h"

namespace recalld {
namespace {

using ::testing::IsEmpty;

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

}  // namespace
}  // namespace recalld
