// A model with sliding windows in place of Mamba-2, on a GPU as on the CPU. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "model/swa.h"
#include "tests/model/gpu_generate_fixture.h"
#include "tests/support/random_model.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

// A small random model: errors do not average out as in one that is trained.
class GpuSwaTest : public GpuGenerateTest {
 protected:
  static constexpr float tolerance_random = 5e-2f;

  void SetUp() override {
    nlohmann::json config = random_model_config();
    config["attention_head_dim"] = 64;
    config["num_upper_groups"] = 1;
    RandomModel(config).write(directory_.path());
    model_ = directory_.path();
    GpuGenerateTest::SetUp();
  }

  TempDir directory_;
};

TEST_F(GpuSwaTest, EncodesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(37 * chunk_size, 12);
  const Encoding found = encode(*gpu, tokens, {37}), expected = encode_on_cpu(tokens);
  expect_near(floats(found.landmarks), floats(expected.landmarks), tolerance_random);
  expect_near(floats(found.kv), floats(expected.kv), tolerance_random);
  const auto found_state = floats(found.state), expected_state = floats(expected.state);
  ASSERT_EQ(found_state.size(), expected_state.size());
  const size_t block = swa_shape(cpu_->config()).state_floats();
  for (size_t first = 0; first < found_state.size(); first += block) {
    EXPECT_EQ(found_state[first], expected_state[first]);
    const auto ring = [&](const std::vector<float>& state) {
      return std::span(state).subspan(first + swa_head_floats, block - swa_head_floats);
    };
    expect_near(ring(found_state), ring(expected_state), tolerance_random);
  }
}

TEST_F(GpuSwaTest, GivesTheSameBitsHoweverTheStreamWasCut) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(150 * chunk_size, 13);
  const Encoding whole = encode(*gpu, tokens, {150});
  for (const auto& cuts : std::vector<std::vector<size_t>>{{1}, {16}, {3, 64, 1, 7}})
    EXPECT_TRUE(encode(*gpu, tokens, cuts) == whole) << "first cut " << cuts[0];
}

TEST_F(GpuSwaTest, ReadsQueriesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  for (const size_t count : {1, 20, 64, 300}) {
    const auto tokens = random_tokens(count, 14);
    const SearchQuery found = must_have(gpu->query(tokens)), expected = cpu_->query(tokens);
    expect_near(floats(found.landmark), floats(expected.landmark), tolerance_random);
    expect_near(found.heads, expected.heads, tolerance_random);
    expect_near(found.tokens, expected.tokens, tolerance_random);
  }
}

// As many chunks as a token attends to, so that none is chosen otherwise.
TEST_F(GpuSwaTest, GivesTheLogitsOfTheCpuWhateverTheOtherLanesDo) {
  const auto gpu = open(roomy);
  const size_t few = cpu_->config().chunk_topk;
  const Encoding memory = encode(*gpu, random_tokens(few * chunk_size, 15), {few});
  Pager pager(*gpu, memory, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto tokens = random_tokens(230, 16);
  const auto found = run(*gpu, pager, 0, tokens, 80, few), expected = run_on_cpu(*cpu_, memory, tokens, 80);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) expect_near(found[i], expected[i], tolerance_random);
  run(*gpu, pager, 5, random_tokens(90, 17), 20, few);
  EXPECT_TRUE(run(*gpu, pager, 3, tokens, 80, few) == found);
}

}  // namespace
}  // namespace recalld
