// Damaged chunks and landmarks are left out and told, and a device that fails ends the streams that it worked for: the
// others answer with the bits of the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/daemon/gpu_decoder_fixture.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

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

}  // namespace
}  // namespace recalld
