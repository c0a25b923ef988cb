#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class WeightsTest : public ::testing::Test {
 protected:
  Expected<Weights> open(const std::string& header, const std::string& data, uint64_t header_bytes = 0) {
    std::string file;
    ByteWriter out(file);
    out.u64(header_bytes == 0 ? header.size() : header_bytes);
    std::ofstream(path(), std::ios::binary) << file << header << data;
    return Weights::open(path());
  }
  std::filesystem::path path() const { return directory_.path() / "model.safetensors"; }

  TempDir directory_;
};

TEST_F(WeightsTest, ReadsTensorsByNameTypeAndShape) {
  std::string data;
  for (const float value : {1.0f, -2.5f}) {
    ByteWriter(data).u8(static_cast<uint8_t>(to_bf16(value).bits));
    ByteWriter(data).u8(static_cast<uint8_t>(to_bf16(value).bits >> 8));
  }
  ByteWriter(data).u32(std::bit_cast<uint32_t>(0.1f));
  // The header is padded with spaces, as the format's writers do, so that the data is aligned.
  std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const auto weights = open(header, data);
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_TRUE(weights->has("a"));
  EXPECT_FALSE(weights->has("c"));
  EXPECT_THAT(weights->floats("a", {2, 1}).value(), ElementsAre(1.0f, -2.5f));
  EXPECT_EQ(weights->bf16("a", {2, 1})->size(), 2u);
  EXPECT_THAT(weights->floats("b", {1}).value(), ElementsAre(0.1f));
  EXPECT_THAT(weights->floats("a", {1, 2}).error().message, HasSubstr("[1, 2], the checkpoint has [2, 1]"));
  EXPECT_THAT(weights->bf16("b", {1}).error().message, HasSubstr("BF16"));
  EXPECT_THAT(weights->floats("c", {1}).error().message, HasSubstr("no tensor c"));
}

TEST_F(WeightsTest, MatricesOfEightBitsAreExpandedByTheScalesOfTheirRows) {
  std::string data;
  for (const float scale : {0.5f, 0.003f}) ByteWriter(data).u32(std::bit_cast<uint32_t>(scale));
  for (const int8_t code : {127, -127, 3, 0, 1, -128}) ByteWriter(data).u8(static_cast<uint8_t>(code));
  const auto header = [](const std::string& scale) {
    std::string text = R"({"w_scale":{"dtype":"F32","shape":)" + scale + R"(,"data_offsets":[0,8]},)" +
                       R"("w":{"dtype":"I8","shape":[2,3],"data_offsets":[8,14]}})";
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  };
  auto opened = open(header("[2]"), data);
  ASSERT_TRUE(opened) << opened.error().message;
  const Weights weights = std::move(*opened);
  const auto values = weights.bf16("w", {2, 3});
  ASSERT_TRUE(values) << values.error().message;
  const float expected[] = {63.5f, -63.5f, 1.5f, 0.0f, 0.003f, -0.384f};
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ((*values)[i].bits, to_bf16(expected[i]).bits) << i;

  const auto other = open(header("[1,2]"), data);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(other.error().message, HasSubstr("w_scale"));
  std::string alone = R"({"w":{"dtype":"I8","shape":[2,3],"data_offsets":[0,6]}})";
  alone.resize((alone.size() + 7) / 8 * 8, ' ');
  EXPECT_THAT(open(alone, data.substr(8)).error().message, HasSubstr("w_scale"));

  for (const float damaged : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::string scale;
    ByteWriter(scale).u32(std::bit_cast<uint32_t>(damaged));
    const auto refused = open(header("[2]"), data.substr(0, 4) + scale + data.substr(8));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::corrupt);
    EXPECT_THAT(refused.error().message, HasSubstr("w_scale has a scale that is no finite number"));
  }
}

TEST_F(WeightsTest, EveryDamageToTheFileIsNamed) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  )";
  const std::string data(8, 'x');
  ASSERT_TRUE(open(good, data));
  const auto damaged = [&](const std::string& header, const std::string& bytes, uint64_t length = 0) {
    const auto weights = open(header, bytes, length);
    ASSERT_FALSE(weights) << header;
    EXPECT_EQ(weights.error().kind, ErrorKind::corrupt) << weights.error().message;
    EXPECT_THAT(weights.error().message, HasSubstr("model.safetensors"));
  };
  damaged(good, data, 1 << 20);
  damaged(good, data, ~uint64_t{0});
  damaged(good, data.substr(1));
  damaged(good, "");
  damaged("[]", data);
  damaged("{\"a\"", data);
  damaged("{\"a\":7}", data);
  damaged(R"({"a":{"dtype":"F32","shape":[2]}})", data);
  damaged(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", data);
  damaged(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", data);
  damaged(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", data);
  damaged(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", data);
  damaged(R"({"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}})", data);
  damaged(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}})", data);
  std::ofstream(path(), std::ios::binary | std::ios::trunc) << "abc";
  EXPECT_EQ(Weights::open(path()).error().kind, ErrorKind::corrupt);
  EXPECT_EQ(Weights::open(path().parent_path() / "none").error().kind, ErrorKind::io);
}

}  // namespace
}  // namespace recalld
