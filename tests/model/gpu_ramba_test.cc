// The model on a GPU appends and searches as its twin on the CPU does, and gives the same bits however a stream is cut
// and whatever else is computed beside it. Skipped where there is no GPU.
#include "model/gpu_ramba.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/cpu_isa.h"
#include "tests/model/gpu_ramba_fixture.h"

namespace recalld {
namespace {

TEST_F(GpuRambaTest, EncodesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  constexpr size_t chunks = 37;
  const auto tokens = text_tokens(chunks * chunk_size, 0);
  const Encoding found = encode(*gpu, tokens, {chunks}), expected = encode_on_cpu(tokens);
  expect_near(floats(found.landmarks), floats(expected.landmarks), tolerance);
  expect_near(floats(found.kv), floats(expected.kv), tolerance);
  expect_near(floats(found.state), floats(expected.state), tolerance);
}

TEST_F(GpuRambaTest, GivesTheSameBitsHoweverTheStreamWasCutAndWhateverElseIsEncoded) {
  const auto gpu = open(roomy);
  constexpr size_t chunks = 150, others = 3;
  const auto tokens = random_tokens(chunks * chunk_size, 2);
  const Encoding whole = encode(*gpu, tokens, {chunks});
  for (const auto& cuts : std::vector<std::vector<size_t>>{{1}, {16}, {3, 64, 1, 7}})
    EXPECT_TRUE(encode(*gpu, tokens, cuts) == whole) << "first cut " << cuts[0];

  // Beside other streams, more tokens at once than go through in one pass.
  std::vector<std::vector<uint32_t>> of_others;
  std::vector<Encoding> found(others + 1, room_for(chunks));
  std::vector<RecurrentState> states;
  for (uint32_t i = 0; i <= others; ++i) {
    of_others.push_back(i == 2 ? tokens : random_tokens(chunks * chunk_size, 100 + i));
    states.push_back(must_have(gpu->zero_state()));
  }
  std::vector<Gpu::Segment> segments;
  for (uint32_t i = 0; i <= others; ++i) segments.push_back(segment(found[i], states[i], of_others[i], 0, chunks));
  must_have(gpu->encode(segments));
  found[2].state = must_have(gpu->bytes_of(states[2]));
  EXPECT_TRUE(found[2] == whole);
  EXPECT_FALSE(found[1].kv == whole.kv);
}

TEST_F(GpuRambaTest, KeepsAStateThatWasCopiedAndTakesBackItsBytes) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(8 * chunk_size, 3);
  RecurrentState state = must_have(gpu->zero_state());
  Encoding into = room_for(8);
  must_have(gpu->encode(std::array{segment(into, state, tokens, 0, 4)}));
  const RecurrentState copy = state;
  const std::string bytes = must_have(gpu->bytes_of(copy));
  Gpu::Segment alone = segment(into, state, tokens, 4, 4);
  const Encoding first = into;
  alone.landmarks = {};
  alone.kv = {};
  must_have(gpu->encode(std::array{alone}));  // the state alone
  EXPECT_TRUE(into == first);
  EXPECT_EQ(must_have(gpu->bytes_of(copy)), bytes);
  EXPECT_NE(must_have(gpu->bytes_of(state)), bytes);
  RecurrentState again = must_have(gpu->state_from(as_bytes(bytes)));
  must_have(gpu->encode(std::array{segment(into, again, tokens, 4, 4)}));
  EXPECT_EQ(must_have(gpu->bytes_of(again)), must_have(gpu->bytes_of(state)));
}

TEST_F(GpuRambaTest, SaysWhenNoStateIsFreeAndGoesOnWhenOneIs) {
  const auto gpu = open(roomy);
  std::vector<RecurrentState> states;
  for (size_t i = 0; i < gpu->states_max(); ++i) states.push_back(must_have(gpu->zero_state()));
  const auto refused = gpu->zero_state();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::device);
  states.pop_back();
  EXPECT_TRUE(gpu->zero_state());
}

TEST_F(GpuRambaTest, ReadsQueriesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  for (const size_t count : {1, 2, 63, 64, 65, 200}) {
    const auto tokens = text_tokens(count, 100);
    const auto found = must_have(gpu->query(tokens));
    const auto expected = cpu_->query(tokens);
    SCOPED_TRACE(count);
    // One row alone: its root mean square is not evened out over many.
    expect_near(floats(found.landmark), floats(expected.landmark), 2 * tolerance);
    expect_near(found.heads, expected.heads, 2 * tolerance);
    expect_near(found.tokens, expected.tokens, 2 * tolerance);
    const auto alone = must_have(gpu->query(tokens, QueryParts::landmark));
    EXPECT_TRUE(same_bits(std::span<const Bf16>(alone.landmark), std::span<const Bf16>(found.landmark)));
    EXPECT_TRUE(alone.heads.empty());
    EXPECT_TRUE(alone.tokens.empty());
  }
}

// In little memory, so that a long question goes through in parts.
TEST_F(GpuRambaTest, TheTokensOfALongQuestionAskAsThoseOfAShortOne) {
  const auto gpu = open(uint64_t{128} << 20);
  const auto tokens = text_tokens(5'000, 100);
  const auto whole = must_have(gpu->query(tokens)).tokens;
  const size_t width = cpu_->config().num_attention_heads * cpu_->config().attention_head_dim;
  ASSERT_EQ(whole.size(), (tokens.size() - 2) * width);
  for (const size_t count : {3, 66, 67, 300, 1'025, 4'999}) {
    const auto part = must_have(gpu->query(std::span(tokens).first(count))).tokens;
    expect_near(part, std::span(whole).first((count - 2) * width), tolerance);
  }
}

TEST_F(GpuRambaTest, ScoresChunksByTheTokensOfAQuestionWithTheBitsOfTheCpu) {
  const auto gpu = open(roomy);
  constexpr size_t chunks = 300;  // more than go through at once
  const Encoding memory = encode(*gpu, text_tokens(chunks * chunk_size, 0), {64});
  std::vector<ByteView> records;
  for (size_t i = 0; i < chunks; ++i)
    records.push_back(ByteView(memory.kv).subspan(i * cpu_->kv_bytes(), cpu_->kv_bytes()));
  const bool is_fused = std::string_view(cpu_isa_name()) != "SSE4";
  const auto compare = [&](std::span<const float> tokens, std::span<const ByteView> of) {
    const auto found = must_have(gpu->late_scores(tokens, of));
    ASSERT_EQ(found.size(), of.size());
    for (size_t i = 0; i < of.size(); ++i) {
      const float expected = cpu_->late_score(tokens, of[i]);
      if (is_fused)
        ASSERT_EQ(found[i], expected) << "chunk " << i << " of " << of.size();
      else
        ASSERT_NEAR(found[i], expected, 1e-4f * std::abs(expected));
    }
  };
  for (const size_t n : {1, 9, 128}) {
    const auto tokens = must_have(gpu->query(text_tokens(n + 2, 40))).tokens;
    for (const size_t count : {1, 2, 127, 128, 129, 300}) compare(tokens, std::span(records).first(count));
  }
  EXPECT_TRUE(must_have(gpu->late_scores(must_have(gpu->query(text_tokens(9, 0))).tokens, {})).empty());

  // From several threads at once, beside encoding and erasing.
  const auto tokens = must_have(gpu->query(text_tokens(30, 40))).tokens;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      for (int call = 0; call < 20; ++call) compare(tokens, std::span(records).first(100));
    });
  for (int call = 0; call < 10; ++call) {
    EXPECT_TRUE(encode(*gpu, text_tokens(64 * chunk_size, 0), {64}).kv ==
                std::vector(memory.kv.begin(), memory.kv.begin() + static_cast<ptrdiff_t>(64 * cpu_->kv_bytes())));
    must_have(gpu->erase_scratch());
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace recalld
