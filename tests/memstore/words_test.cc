// Which words a text has, and that it may be read in parts.
#include "memstore/words.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace recalld {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<Word> words(std::string_view text) {
  std::vector<Word> found;
  WordReader().read(text, 0, text.size(), found);
  return found;
}

std::vector<size_t> begins(std::string_view text) {
  std::vector<size_t> out;
  for (const Word& word : words(text)) out.push_back(word.begin);
  return out;
}

// The one word of a text.
Term term(std::string_view text) {
  const auto found = words(text);
  EXPECT_EQ(found.size(), 1u) << text;
  return found.empty() ? 0 : found[0].term;
}

bool operator==(const Word& a, const Word& b) {
  return a.begin == b.begin && a.term == b.term;
}

TEST(WordsTest, AreRunsOfLettersAndDigits) {
  EXPECT_THAT(begins("The tide turned, at six."), ElementsAre(0, 4, 9, 17, 20));
  EXPECT_THAT(begins("sea-ice foo_bar a/b x@y"), ElementsAre(0, 4, 8, 12, 16, 18, 20, 22));
  EXPECT_THAT(begins(""), IsEmpty());
  EXPECT_THAT(begins(" \n.,:'-- \t"), IsEmpty());
  EXPECT_THAT(begins("größe über Ωmega"), ElementsAre(0, 8, 14));
}

TEST(WordsTest, AreComparedWithoutCaseAndForm) {
  EXPECT_EQ(term("HARBOUR"), term("harbour"));
  EXPECT_EQ(term("STRASSE"), term("straße"));
  EXPECT_EQ(term("ΟΔΟΣ"), term("οδος"));
  EXPECT_EQ(term("caf\xc3\xa9"), term("cafe\xcc\x81"));                               // composed, decomposed
  EXPECT_EQ(term("\xef\xbc\xb2\xef\xbd\x8f\xef\xbd\x90\xef\xbd\x85"), term("rope"));  // of full width
  EXPECT_EQ(term("co\xc2\xadoperate"), term("cooperate"));                            // a soft hyphen
  EXPECT_NE(term("harbour"), term("harbours1"));
}

TEST(WordsTest, ATextOfWhiteSpaceAndCharactersThatAreNotDrawnIsBlank) {
  using namespace std::string_view_literals;
  for (const auto blank :
       {""sv, " \t\r\n\v\f"sv, "\u00a0"sv, "\u3000 \u2003"sv, "\u2028\u2029\u0085"sv, "\0"sv, "\x1b"sv, "\u200b"sv,
        "\u200d \ufeff"sv, "\u202e\u2066"sv, "\u00ad"sv, "\u3164\ufe0f"sv, "\u0090"sv})
    EXPECT_TRUE(is_blank(blank)) << blank;
  // U+0601, a format character, is drawn under a number; a byte that is no UTF-8 is something, too.
  for (const auto text : {"a"sv, " ?"sv, "\u3000\u96ea"sv, "\u200bx"sv, "\0x"sv, "\u0601"sv, "\u0301"sv, "\U0001f60a"sv,
                          "\xff"sv, " \xc2"sv})
    EXPECT_FALSE(is_blank(text)) << text;
}

TEST(WordsTest, OfEnglishAreStemmed) {
  EXPECT_EQ(term("boats"), term("boat"));
  EXPECT_EQ(term("Running"), term("run"));
  EXPECT_EQ(term("pilot's"), term("pilots"));
  EXPECT_NE(term("boats2"), term("boat2"));  // a code is what it is
  EXPECT_NE(term("boat"), term("boot"));
}

TEST(WordsTest, KeepNumbersAndCodesWhole) {
  EXPECT_THAT(begins("3.14 and 1,200 at 10:30."), ElementsAre(0, 5, 9, 15, 18));
  EXPECT_EQ(term("3.14"), term("(3.14)"));
  EXPECT_EQ(term("3.14."), term("3.14"));
  EXPECT_NE(term("3.14"), term("3"));
  EXPECT_NE(term("51234"), term("51235"));
  EXPECT_EQ(term("EH7TX"), term("eh7tx"));
  EXPECT_EQ(begins("v1.2.3 192.168.0.1").size(), 2u);
  EXPECT_THAT(begins("end.Start 5.x"), ElementsAre(0, 4, 10, 12));
}

TEST(WordsTest, KeepApostrophesInsideLetters) {
  EXPECT_EQ(term("don't"), term("don\xe2\x80\x99t"));
  EXPECT_EQ(term("'quoted'"), term("quoted"));
  EXPECT_THAT(begins("the pilots' office"), ElementsAre(0, 4, 12));
}

TEST(WordsTest, OfScriptsWithoutSpacesArePairsOfCharacters) {
  const auto city = words("東京都");
  ASSERT_EQ(city.size(), 2u);
  EXPECT_EQ(city[0].term, term("東京"));
  EXPECT_EQ(city[1].term, term("京都"));
  EXPECT_EQ(begins("第3章 あ").size(), 4u);
  EXPECT_EQ(words("コーヒー").size(), 3u);
  EXPECT_EQ(words("สวัสดี").size(), 5u);
}

TEST(WordsTest, OfScriptsWithoutSpacesAreTheSameHoweverTheyAreComposed) {
  const auto terms_of = [](std::string_view text) {
    std::vector<Term> terms;
    for (const Word& word : words(text)) terms.push_back(word.term);
    return terms;
  };
  const auto guide = terms_of("ガイド");
  ASSERT_EQ(guide.size(), 2u);
  EXPECT_EQ(terms_of("カ\u3099イト\u3099"), guide);                   // as NFD has it
  EXPECT_EQ(terms_of("\uff76\uff9e\uff72\uff84\uff9e"), guide);       // half as wide
  EXPECT_EQ(terms_of("ハ\u309aン"), terms_of("\uff8a\uff9f\uff9d"));  // パン
  EXPECT_EQ(terms_of("ハ\u309aン"), terms_of("パン"));
  const auto korean = terms_of("한국어");
  ASSERT_EQ(korean.size(), 2u);
  EXPECT_EQ(terms_of("\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"), korean);
  EXPECT_EQ(terms_of("\ud558\u11ab국어"), korean);  // its first syllable half composed
  EXPECT_EQ(terms_of("葛\U000e0100城"), terms_of("葛城"));
  EXPECT_EQ(begins("カ\u3099 x").size(), 2u);
  EXPECT_EQ(terms_of("カ\u3099"), terms_of("ガ"));
  // Without a character before it a mark is one.
  EXPECT_EQ(words("a\u3099").size(), 2u);
  // Whatever else stands behind what has too many parts is found.
  std::string many = "カ";
  for (int i = 0; i < 40; ++i) many += "\u3099";
  EXPECT_THAT(terms_of(many + "東京都"), Contains(term("東京")));
  EXPECT_THAT(terms_of(many + "東京都"), Contains(term("京都")));
}

TEST(WordsTest, OfGreatLengthAreToldByTheirBeginning) {
  const std::string long_word(70, 'x'), longer = std::string(64, 'x') + "yz";
  EXPECT_EQ(words(long_word).size(), 1u);
  EXPECT_EQ(term(long_word), term(longer));
  EXPECT_NE(term(std::string(63, 'x') + "y"), term(longer));
}

// Letters of 1 to 4 bytes, marks, digits, what joins words and what is no text at all.
std::string any_text(std::mt19937_64& random, size_t characters) {
  const std::vector<std::string> parts{"a",
                                       "B",
                                       "z",
                                       "7",
                                       "0",
                                       " ",
                                       ".",
                                       ",",
                                       ":",
                                       "'",
                                       "\xe2\x80\x99",
                                       "é",
                                       "ß",
                                       "東",
                                       "京",
                                       "ー",
                                       "ส",
                                       "☃",
                                       "\xf0\x9d\x94\x98",
                                       "\xcc\x81",
                                       "\n",
                                       "\xff",
                                       "\xc3",
                                       "\xe2\x80",
                                       "_",
                                       "-",
                                       "wordsoflength",
                                       "٣",
                                       "カ",
                                       "\u3099",
                                       "\uff9e",
                                       "\u3099\u3099\u3099\u3099\u3099\u3099\u3099",
                                       "\U000e0100",
                                       "한",
                                       "하",
                                       "\u1100",
                                       "\u1161",
                                       "\u11a8"};
  std::string text;
  for (size_t i = 0; i < characters; ++i) {
    if (random() % 200 == 0) text.append(random() % 150, 'k');
    text += parts[random() % parts.size()];
  }
  return text;
}

TEST(WordsTest, AreTheSameInWhateverPartsATextIsRead) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    const std::string text = any_text(random, 300);
    const auto whole = words(text);
    WordReader reader;
    std::vector<Word> in_parts;
    for (size_t from = 0; from < text.size();) {
      const size_t to = std::min<size_t>(text.size(), from + 1 + random() % 40);
      // Only what words may depend on.
      const size_t begin = from - std::min(from, word_bytes_before);
      const std::string_view part = std::string_view(text).substr(begin, to - begin + word_bytes_max);
      std::vector<Word> found;
      reader.read(part, from - begin, to - begin, found);
      for (const Word& word : found) in_parts.push_back({word.begin + begin, word.term});
      from = to;
    }
    ASSERT_EQ(in_parts.size(), whole.size()) << "seed " << seed;
    for (size_t i = 0; i < whole.size(); ++i) ASSERT_TRUE(in_parts[i] == whole[i]) << "seed " << seed << " word " << i;
  }
}

TEST(WordsTest, OfAChunkAreCounted) {
  const ChunkWords chunk = ChunkWords::of({9, 3, 9, 9, 4});
  EXPECT_EQ(chunk.words, 5u);
  EXPECT_THAT(chunk.terms, ElementsAre(TermCount{3, 1}, TermCount{4, 1}, TermCount{9, 3}));
}

TEST(WordsTest, OfAQueryCountOnce) {
  EXPECT_EQ(WordReader().terms("the boat, THE boats").size(), 2u);
}

}  // namespace
}  // namespace recalld
