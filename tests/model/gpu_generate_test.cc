// The model on a GPU writes as its twin on the CPU does, and with the same bits whatever the other lanes do and
// wherever landmarks and chunks lie. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "tests/model/gpu_generate_fixture.h"

namespace recalld {
namespace {

TEST_F(GpuGenerateTest, GivesTheLogitsOfTheCpu) {
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto tokens = random_tokens(150, 6);
  const auto found = run(*gpu, pager, 0, tokens, 10), expected = run_on_cpu(*cpu_, memory_, tokens, 10);
  ASSERT_EQ(found.size(), expected.size());
  // Chunks whose scores are nearly equal may change places: not in most tokens.
  size_t near = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    double difference = 0, size = 0;
    for (size_t v = 0; v < found[i].size(); ++v) {
      difference = std::max<double>(difference, std::abs(found[i][v] - expected[i][v]));
      size = std::max<double>(size, std::abs(expected[i][v]));
    }
    std::printf("block or token %zu: logits differ by at most %.2e of the largest\n", i, difference / size);
    near += difference <= 0.03 * size ? 1 : 0;
  }
  EXPECT_GE(near, found.size() - 3);
}

TEST_F(GpuGenerateTest, PagedLogitsHaveTheBitsOfResidentOnes) {
  const auto tokens = random_tokens(300, 7);
  std::vector<std::vector<float>> resident;
  {
    const auto gpu = open(roomy);
    ASSERT_GT(gpu->slots(), chunks);
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    pager.page_all(0);
    const size_t before = pager.misses();
    resident = run(*gpu, pager, 0, tokens, 40);
    EXPECT_EQ(pager.misses(), before) << "all is there";
  }
  // As little as goes, at another lane: every token pages.
  const uint64_t least = least_budget();
  const auto gpu = open(least);
  ASSERT_LT(gpu->slots(), chunks / 2);
  EXPECT_LE(gpu->usage().weights_bytes + gpu->usage().states_bytes + gpu->usage().cache_bytes +
                gpu->usage().workspace_bytes + gpu->usage().landmarks_bytes,
            least);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto paged = run(*gpu, pager, 3, tokens, 40);
  EXPECT_GT(pager.misses(), gpu->slots());
  EXPECT_TRUE(paged == resident);
}

TEST_F(GpuGenerateTest, ALaneThatIsPreparedGoesOnWithTheBitsOfOneThatIsNot) {
  const auto tokens = random_tokens(130, 17);
  constexpr size_t singles = 60;
  std::vector<std::vector<float>> expected;
  for (const bool tight : {false, true}) {  // no chunk is cached before a token; others are, and make way
    const auto gpu = open(tight ? least_budget() : roomy);
    if (!tight) {
      Pager resident(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
      expected = run(*gpu, resident, 0, tokens, singles);
    }
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    constexpr uint32_t lane = 2;
    if (tight) pager.page_all(lane);
    const size_t evictions = pager.evictions();
    must_have(gpu->reset(lane));
    size_t resumed = 0;
    for (size_t done = 0, of = 0; done < tokens.size(); ++of) {
      const size_t left = tokens.size() - done, count = left > singles ? std::min(left - singles, chunk_size) : 1;
      const auto part = std::span(tokens).subspan(done, count);
      done += count;
      if (count > 1) {
        EXPECT_TRUE(run_one(*gpu, pager, lane, part, chunks) == expected[of]) << "block " << of;
        continue;
      }
      if (!tight) pager.drop_all();
      Gpu::LaneWork work{.lane = lane, .memory = &pager.memory(), .chunks = chunks, .tokens = part};
      auto result = std::move(must_have(gpu->step(std::array{work})).front());
      EXPECT_TRUE(tight || !result.done);
      work.tokens = {};
      while (!result.done) {
        ++resumed;
        const Pager::Reads reads = resumed % 20 == 0  ? Pager::Reads::too_late
                                   : resumed % 5 == 0 ? Pager::Reads::late
                                   : resumed % 5 == 2 ? Pager::Reads::done_again
                                                      : Pager::Reads::good;
        result = pager.resume(work, result.selections.back(), reads);
      }
      EXPECT_TRUE(result.logits == expected[of]) << "token " << of;
    }
    if (tight) {
      EXPECT_GT(resumed, 0u);
      EXPECT_GT(pager.evictions(), evictions);
    } else {
      EXPECT_GE(resumed, singles);
    }
  }
}

// Slots as a step finds them through a page table that still has them, and the host's memory.
TEST_F(GpuGenerateTest, WhatIsErasedIsZeroAndNothingElseIs) {
  const auto tokens = random_tokens(76, 9);
  constexpr size_t singles = 12;
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto whole = run(*gpu, pager, 0, tokens, singles);
  const size_t misses = pager.misses();

  Encoding rest = memory_;
  std::vector<uint32_t> erased;  // runs of four slots and single ones, in no order
  for (const auto& [chunk, slot] : pager.slot_of()) {
    if (slot % 7 == 1 || slot % 7 == 6) continue;
    erased.push_back(slot);
    std::ranges::fill(std::span(rest.kv).subspan(chunk * cpu_->kv_bytes(), cpu_->kv_bytes()), std::byte{0});
  }
  must_have(gpu->erase(erased));
  const auto found = run(*gpu, pager, 0, tokens, singles);
  EXPECT_EQ(pager.misses(), misses);
  EXPECT_FALSE(found == whole);
  {
    Pager fresh(*gpu, rest, cpu_->landmark_dim(), cpu_->kv_bytes());
    EXPECT_TRUE(found == run(*gpu, fresh, 0, tokens, singles));
  }

  const auto is_clear = [](ByteView bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
  };
  EXPECT_FALSE(is_clear(gpu->block_staging()));
  for (uint32_t lane = 0; lane < Gpu::lanes_max; ++lane) std::ranges::fill(gpu->staging(lane), std::byte{1});
  must_have(gpu->erase_scratch());
  EXPECT_TRUE(is_clear(gpu->block_staging()));
  for (uint32_t lane = 0; lane < Gpu::lanes_max; ++lane) EXPECT_TRUE(is_clear(gpu->staging(lane))) << lane;
}

TEST_F(GpuGenerateTest, AnswersDoNotDependOnWhereTheLandmarksLie) {
  const auto tokens = random_tokens(200, 8);
  const auto gpu = open(roomy);
  std::map<Placement, std::vector<std::vector<float>>> logits;
  {
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    ASSERT_EQ(pager.memory().placement(), Placement::device);
    logits[Placement::device] = run(*gpu, pager, 0, tokens, 20);
  }
  // Another memory takes all room but some: enough for 8 bits a number, and for nothing.
  const uint64_t row_bytes = cpu_->landmark_dim() * sizeof(Bf16) + sizeof(uint32_t);
  for (const uint64_t left : {uint64_t{chunks} * row_bytes * 6 / 10, row_bytes}) {
    const auto filler = must_have(gpu->open_memory());
    constexpr uint64_t step = 256;
    uint64_t filled = (gpu->usage().cache_bytes - left) / row_bytes / step * step;
    while (!gpu->has_room(*filler, filled)) filled -= step;
    must_have(gpu->reserve(*filler, filled));
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    const Placement placement = pager.memory().placement();
    EXPECT_NE(placement, Placement::device);
    EXPECT_GT(gpu->usage().host_landmarks_bytes, 0u);
    logits[placement] = run(*gpu, pager, 0, tokens, 20);
    EXPECT_TRUE(logits[placement] == logits[Placement::device]) << "placement " << static_cast<int>(placement);
  }
  EXPECT_TRUE(logits.contains(Placement::device_int8));
  EXPECT_TRUE(logits.contains(Placement::host));
  EXPECT_EQ(gpu->usage().host_landmarks_bytes, 0u) << "given back";
}

TEST_F(GpuGenerateTest, ALaneDoesNotDependOnTheOthers) {
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  constexpr uint32_t used = 5;
  constexpr size_t read = 64, singles = 12;
  std::vector<std::vector<uint32_t>> tokens;
  std::vector<std::vector<std::vector<float>>> alone;
  for (uint32_t lane = 0; lane < used; ++lane) {
    tokens.push_back(random_tokens(read + singles, 20 + lane));
    alone.push_back(run(*gpu, pager, lane, tokens[lane], singles, chunks - lane));
  }
  // All of them side by side from an empty cache: some wait for chunks while others go on.
  Pager fresh(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  for (uint32_t lane = 0; lane < used; ++lane) {
    must_have(gpu->reset(lane));
    EXPECT_TRUE(run_one(*gpu, fresh, lane, std::span(tokens[lane]).first(read), chunks - lane) == alone[lane][0]);
  }
  std::vector<size_t> done(used);
  std::vector<std::optional<Gpu::Selection>> missing(used);
  std::mt19937 random(9);
  size_t waited = 0;
  while (std::ranges::min(done) < singles) {
    std::vector<Gpu::LaneWork> work;
    for (uint32_t lane = 0; lane < used; ++lane) {
      if (done[lane] == singles) continue;
      if (missing[lane] && random() % 2 == 0) continue;  // its read takes longer
      const bool resumes = missing[lane].has_value();
      if (resumes) fresh.page(*missing[lane], gpu->staging(lane));
      missing[lane].reset();
      work.push_back({.lane = lane,
                      .memory = &fresh.memory(),
                      .chunks = chunks - lane,
                      .tokens = resumes ? std::span<const uint32_t>()
                                        : std::span<const uint32_t>(tokens[lane]).subspan(read + done[lane], 1)});
    }
    if (work.empty()) continue;
    auto results = must_have(gpu->step(work));
    for (size_t i = 0; i < work.size(); ++i) {
      const uint32_t lane = work[i].lane;
      if (!results[i].done) {
        missing[lane] = results[i].selections.back();
        ++waited;
        continue;
      }
      ++done[lane];
      EXPECT_TRUE(results[i].logits == alone[lane][done[lane]]) << "lane " << lane << " token " << done[lane];
    }
  }
  EXPECT_GT(waited, 0u);
}

TEST_F(GpuGenerateTest, NothingAttendsToAHiddenChunk) {
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto tokens = random_tokens(1, 10);
  const auto select = [&] {
    must_have(gpu->reset(0));
    const Gpu::LaneWork work{.lane = 0, .memory = &pager.memory(), .chunks = chunks, .tokens = tokens};
    return must_have(gpu->step(std::array{work})).front().selections.back();
  };
  const auto before = select();
  ASSERT_TRUE(std::ranges::is_sorted(before.chunks, std::ranges::greater{}));
  const uint32_t gone = before.chunks[3];
  must_have(gpu->hide(pager.memory(), gone));
  const auto after = select();
  EXPECT_EQ(std::ranges::count(after.chunks, gone), 0);
  EXPECT_EQ(std::ranges::count(after.chunks, Gpu::no_chunk), 0) << "another one takes its place";
  for (size_t i = 0; i < before.chunks.size(); ++i)
    EXPECT_EQ(std::ranges::count(after.chunks, before.chunks[i]), before.chunks[i] == gone ? 0 : 1);
}

TEST_F(GpuGenerateTest, AMemoryWithFewChunksOrNoneIsReadToo) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(70, 11);
  for (const uint64_t visible : {0, 1, 3}) {
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    const auto logits = run(*gpu, pager, 2, tokens, 6, visible);
    for (const auto& each : logits)
      EXPECT_TRUE(std::ranges::all_of(each, [](float logit) { return std::isfinite(logit); })) << visible;
    EXPECT_LE(pager.misses(), visible);
  }
}

}  // namespace
}  // namespace recalld
