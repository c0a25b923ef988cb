// What is forgotten is overwritten in the cache, in staging memory and in the lanes, and ends its streams alone.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "tests/daemon/gpu_decoder_fixture.h"

namespace recalld {
namespace {

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

}  // namespace
}  // namespace recalld
