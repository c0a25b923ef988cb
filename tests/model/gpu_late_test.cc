// What the comparison of a question's tokens with chunks leaves behind on the way to the GPU and there. Its scores are
// tested in gpu_ramba_test.cc. Skipped where there is no GPU.
#include "model/gpu_late.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/bf16.h"
#include "tests/support/checkpoints.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

class GpuLateTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    const auto config = Config::read(default_checkpoint() / "config.json");
    ASSERT_TRUE(config);
    record_numbers_ = 2 * config->chunk_size * config->num_kv_heads * config->attention_head_dim;
    token_floats_ = config->num_attention_heads * config->attention_head_dim;
    must(late_.open(*config));
    must(late_.erase());
  }

  // Records of so many chunks, one after the other.
  std::vector<Bf16> make_records(size_t chunks) const { return rounded(random_floats(chunks * record_numbers_, 1)); }
  std::vector<float> score(const std::vector<Bf16>& records, size_t tokens) {
    const std::vector<float> question = random_floats(tokens * token_floats_, 2);
    std::vector<ByteView> each;
    for (size_t first = 0; first < records.size(); first += record_numbers_)
      each.push_back(std::as_bytes(std::span(records).subspan(first, record_numbers_)));
    std::vector<float> scores(each.size());
    must(late_.score(question, each, scores));
    return scores;
  }
  bool is_clear() {
    const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
    std::vector<std::byte> on_device(late_.on_device().bytes());
    must(cudaMemcpy(on_device.data(), late_.on_device().data(), on_device.size(), cudaMemcpyDeviceToHost));
    return std::ranges::all_of(late_.pinned(), is_zero) && std::ranges::all_of(on_device, is_zero);
  }

  GpuLate late_;
  size_t record_numbers_ = 0, token_floats_ = 0;
};

TEST_F(GpuLateTest, NothingOfTheQuestionOrTheChunksStaysInPinnedMemoryOrOnTheDevice) {
  ASSERT_GT(late_.pinned().size(), 128 * record_numbers_ * sizeof(Bf16) / 2) << "the keys of 128 chunks";
  for (const size_t chunks : {300, 1, 128, 2}) {  // more than one call takes, and then fewer
    const std::vector<float> scores = score(make_records(chunks), chunks == 1 ? 128 : 9);
    EXPECT_TRUE(std::ranges::any_of(scores, [](float score) { return score != 0; }));
    EXPECT_TRUE(is_clear()) << chunks << " chunks";
  }
}

// As a call leaves it that failed, where the device did not let it be overwritten.
TEST_F(GpuLateTest, WhatACallHasLeftIsOverwrittenByErasing) {
  const std::vector<Bf16> records = make_records(300);
  const ByteSpan pinned = late_.pinned();
  const ByteView left = std::as_bytes(std::span(records));
  ASSERT_GE(left.size(), pinned.size());
  std::ranges::copy(left.first(pinned.size()), pinned.begin());
  ASSERT_FALSE(is_clear());
  must(late_.erase());
  EXPECT_TRUE(is_clear());
  must(cudaMemset(late_.on_device().data(), 1, late_.on_device().bytes()));
  must(cudaDeviceSynchronize());
  ASSERT_FALSE(is_clear());
  must(late_.erase());
  EXPECT_TRUE(is_clear());
}

}  // namespace
}  // namespace recalld
