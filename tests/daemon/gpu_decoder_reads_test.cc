// A stream that is alone goes on with the chunks that its GPU waits for, however their reads come: late, in part, again
// or not at all.
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/daemon/gpu_decoder_fixture.h"

namespace recalld {
namespace {

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

}  // namespace
}  // namespace recalld
