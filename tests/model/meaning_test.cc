#include "model/meaning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "tests/support/checkpoints.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;

class MeaningTest : public ::testing::Test {
 protected:
  static constexpr size_t pieces = 5;

  // Pieces 0 and 1 point to the right, 2 up, 3 between, 4 to the left; 0 tells nothing.
  Expected<std::optional<Meaning>> open(const std::vector<float>& weights = {0, 0.25, 0.75, 0.25, 0.25},
                                        size_t expected = pieces, float scale = 0.25f) {
    std::string data;
    for (const float weight : weights) ByteWriter(data).u32(std::bit_cast<uint32_t>(weight));
    for (size_t i = 0; i < pieces; ++i) ByteWriter(data).u32(std::bit_cast<uint32_t>(scale));
    for (const int8_t code : {8, 0, 4, 0, 0, 4, 4, 4, -4, 0}) ByteWriter(data).u8(static_cast<uint8_t>(code));
    const std::string end = std::to_string(4 * weights.size()), scales = std::to_string(4 * weights.size() + 20);
    std::string header = R"({"weights":{"dtype":"F32","shape":[)" + std::to_string(weights.size()) +
                         R"(],"data_offsets":[0,)" + end +
                         R"(]},"vectors_scale":{"dtype":"F32","shape":[5],"data_offsets":[)" + end + "," + scales +
                         R"(]},"vectors":{"dtype":"I8","shape":[5,2],"data_offsets":[)" + scales + "," +
                         std::to_string(4 * weights.size() + 30) + "]}}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::string size;
    ByteWriter(size).u64(header.size());
    std::ofstream(directory_.path() / "meaning.safetensors", std::ios::binary) << size << header << data;
    return Meaning::of_checkpoint(directory_.path(), expected);
  }

  TempDir directory_;
};

const Meaning& opened(const Expected<std::optional<Meaning>>& meaning) {
  EXPECT_TRUE(meaning) << meaning.error().message;
  EXPECT_TRUE(*meaning);
  return **meaning;
}

TEST_F(MeaningTest, ACheckpointMayHaveNone) {
  const auto none = Meaning::of_checkpoint(directory_.path(), pieces);
  ASSERT_TRUE(none);
  EXPECT_FALSE(*none);
}

TEST_F(MeaningTest, AChunkHasTheShareOfTheQuestionThatItsBestPiecesComeNear) {
  const auto meaning = open();
  Meaning::Question question(opened(meaning), std::vector<uint32_t>{0, 1, 2, 2, 99});
  const float between = std::sqrt(0.5f);
  const Meaning::Chunk near = question.look(std::vector<uint32_t>{3, 4, 0}), nothing = question.look({});
  EXPECT_THAT(near.best, ElementsAre(FloatEq(between), FloatEq(between)));
  EXPECT_THAT(nothing.best, ElementsAre(0.0f, 0.0f));
  EXPECT_EQ(question.look(std::vector<uint32_t>{4}).best[0], 0.0f);  // opposite: no worse than nothing
  EXPECT_NEAR(question.share(near, nullptr, nullptr), between, 1e-6);
  // Piece 1 weighs a quarter, piece 2 the rest; what stands beside counts three quarters.
  const Meaning::Chunk right = question.look(std::vector<uint32_t>{1}), up = question.look(std::vector<uint32_t>{2});
  EXPECT_NEAR(question.share(right, nullptr, nullptr), 0.25, 1e-6);
  EXPECT_NEAR(question.share(right, &up, nullptr), 0.25 + 0.75 * 0.75, 1e-6);
  EXPECT_EQ(question.share(right, &up, nullptr), question.share(right, &nothing, &up));
  EXPECT_NEAR(question.share(up, &right, &near), 0.75 + 0.25 * 0.75, 1e-6);
}

TEST_F(MeaningTest, TheTopicIsTheCosineOfTheWeightedSums) {
  const auto meaning = open();
  Meaning::Question question(opened(meaning), std::vector<uint32_t>{1, 2, 2});  // (1, 6)
  EXPECT_NEAR(question.look(std::vector<uint32_t>{2, 0}).topic, 6 / std::sqrt(37.0), 1e-6);
  EXPECT_NEAR(question.look(std::vector<uint32_t>{3, 4}).topic, 6 / std::sqrt(37.0), 1e-6);
  EXPECT_EQ(question.look(std::vector<uint32_t>{0}).topic, 0);
}

TEST_F(MeaningTest, AQuestionOfPiecesThatTellNothingIsEmpty) {
  const auto meaning = open();
  Meaning::Question question(opened(meaning), std::vector<uint32_t>{0, 5});
  EXPECT_TRUE(question.empty());
  EXPECT_EQ(question.share(question.look(std::vector<uint32_t>{1, 2}), nullptr, nullptr), 0);
}

TEST_F(MeaningTest, WhatDoesNotFitIsRefusedByName) {
  EXPECT_THAT(open({0, 1, 1, 1, 1}, 6).error().message, HasSubstr("a row for each of the 6 pieces"));
  EXPECT_THAT(open({0, 1, 1, 1}).error().message, HasSubstr("weights"));
  for (const float weight : {-1.0f, 1.5f, NAN, INFINITY})
    EXPECT_THAT(open({0, 1, weight, 1, 1}).error().message, HasSubstr("weights: expected numbers from 0 to 1"));
  EXPECT_THAT(open({0, 1, 1, 1, 1}, pieces, NAN).error().message, HasSubstr("no finite number"));
  // Sums of such vectors would be no numbers, and chunks in no order.
  for (const float scale : {1e6f, 1e30f})
    EXPECT_THAT(open({0, 1, 1, 1, 1}, pieces, scale).error().message, HasSubstr("longer than 1000000"));
}

TEST_F(MeaningTest, TheDefaultCheckpointHasOneForItsTokenizer) {
  const auto meaning = Meaning::of_checkpoint(default_checkpoint(), 8192);
  EXPECT_EQ(opened(meaning).pieces(), 8192u);
}

}  // namespace
}  // namespace recalld
