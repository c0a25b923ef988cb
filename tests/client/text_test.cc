#include "client/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/messages.h"

namespace recalld::client {
namespace {

using ::testing::ElementsAre;

TEST(Text, WellFormedUtf8IsCountedToTheFirstBadByte) {
  EXPECT_EQ(valid_utf8_bytes("añ☃😀"), std::string_view("añ☃😀").size());
  EXPECT_EQ(valid_utf8_bytes("ab\xff"), 2u);
  EXPECT_EQ(valid_utf8_bytes("ab\xe2\x98"), 2u) << "cut character";
  EXPECT_EQ(valid_utf8_bytes("\xc0\xaf"), 0u) << "overlong";
  EXPECT_EQ(valid_utf8_bytes("\xe0\x80\xaf"), 0u) << "overlong";
  EXPECT_EQ(valid_utf8_bytes("\xed\xa0\x80"), 0u) << "surrogate";
  EXPECT_EQ(valid_utf8_bytes("\xf4\x90\x80\x80"), 0u) << "beyond U+10FFFF";
}

TEST(Text, NothingThatSteersATerminalIsPrinted) {
  EXPECT_EQ(printable("red \x1b[31m"), "red \\x1b[31m");
  EXPECT_EQ(printable("bell\a del\x7f"), "bell\\x07 del\\x7f");
  EXPECT_EQ(printable("csi \xc2\x9b end"), "csi \\u009b end");
  EXPECT_EQ(printable("a\xe2\x80\xae"
                      "b"),
            "a\\u202eb");
  EXPECT_EQ(printable("bad \xfe"), "bad \\xfe");
  EXPECT_EQ(printable("tab\tline\nñ☃"), "tab\tline\nñ☃");
}

TEST(Text, WrapBreaksAtSpacesAndCutsLongWords) {
  EXPECT_THAT(wrap("the quick brown fox", 10), ElementsAre("the quick", "brown fox"));
  EXPECT_THAT(wrap("abcdefgh", 3), ElementsAre("abc", "def", "gh"));
  EXPECT_THAT(wrap("one\n\ntwo", 10), ElementsAre("one", "", "two"));
  EXPECT_THAT(wrap("not wrapped at all", 0), ElementsAre("not wrapped at all"));
  EXPECT_THAT(wrap("ñandú ñandú", 5), ElementsAre("ñandú", "ñandú"));
}

TEST(Text, ShortenKeepsWholeCharactersOnOneLine) {
  EXPECT_EQ(shorten("two\nlines", 20), "two lines");
  EXPECT_EQ(shorten("ñandú", 3), "ña…");
  EXPECT_EQ(shorten("", 5), "");
}

TEST(Text, NumbersAreReadable) {
  EXPECT_EQ(with_thousands(0), "0");
  EXPECT_EQ(with_thousands(999), "999");
  EXPECT_EQ(with_thousands(1'000), "1,000");
  EXPECT_EQ(with_thousands(1'234'567), "1,234,567");
  EXPECT_EQ(readable_bytes(1'023), "1023 B");
  EXPECT_EQ(readable_bytes(16'384), "16.0 KiB");
  EXPECT_EQ(readable_bytes(uint64_t{3} << 30), "3.0 GiB");
  EXPECT_EQ(fixed(3.14159, 2), "3.14");
}

TEST(Text, CountsTakeTheirNounInTheRightNumber) {
  EXPECT_EQ(counted(0, "turn"), "0 turns");
  EXPECT_EQ(counted(1, "turn"), "1 turn");
  EXPECT_EQ(counted(1'234, "turn"), "1,234 turns");
}

TEST(Text, JsonIsMadeHarmlessAndSaysTheSame) {
  const Json json{{"text", "a\u009b31m \u202eb\x7f \u00e9\n"}};
  const std::string harmless = printable_json(json.dump());
  EXPECT_EQ(harmless, R"({"text":"a\u009b31m \u202eb\u007f é\n"})");
  EXPECT_EQ(Json::parse(harmless), json);
}

}  // namespace
}  // namespace recalld::client
