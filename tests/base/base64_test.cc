#include "base/base64.h"

#include <gtest/gtest.h>

#include <random>

namespace recalld {
namespace {

// RFC 4648, section 10, has the lengths; the texts are ours.
TEST(Base64, EveryLengthOfALastGroupIsWrittenWithItsPadding) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("t"), "dA==");
  EXPECT_EQ(base64("ti"), "dGk=");
  EXPECT_EQ(base64("tid"), "dGlk");
  EXPECT_EQ(base64("tide"), "dGlkZQ==");
  EXPECT_EQ(base64(std::string("\0\xff\xfe", 3)), "AP/+");
}

TEST(Base64, BytesComeBackWhateverTheyAre) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (size_t size = 0; size < 200; ++size) {
    std::string bytes;
    for (size_t i = 0; i < size; ++i) bytes.push_back(static_cast<char>(random() & 0xff));
    EXPECT_EQ(from_base64(base64(bytes)), bytes);
  }
}

TEST(Base64, EveryOtherSpellingIsRefused) {
  for (const std::string_view text : {"d", "dA", "dA=", "dA===", "dB==", "dGl=", "====", "d===", "dA==dA==", "dG k",
                                      "dGk\n", "dGk=\n", "dGk-", "dGk_", "dG=k", "\xc3\xa9zz"})
    EXPECT_FALSE(from_base64(text)) << text;
}

}  // namespace
}  // namespace recalld
