#include "daemon/passages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace recalld {
namespace {

using ::testing::ElementsAre;

TEST(Passages, NarrowingTakesFromBothSidesAsFarAsTheyReach) {
  EXPECT_EQ(narrowed({0, 500}, {200, 264}, 500), (TokenSpan{0, 500}));
  EXPECT_EQ(narrowed({0, 500}, {200, 264}, 164), (TokenSpan{150, 314}));
  EXPECT_EQ(narrowed({190, 500}, {200, 264}, 164), (TokenSpan{190, 354}));
  EXPECT_EQ(narrowed({0, 270}, {200, 264}, 164), (TokenSpan{106, 270}));
  EXPECT_EQ(narrowed({0, 500}, {200, 264}, 65), (TokenSpan{200, 265}));
  EXPECT_EQ(narrowed({0, 500}, {200, 264}, 64), (TokenSpan{200, 264}));
}

std::vector<TokenSpan> spans(Passages& passages) {
  std::vector<TokenSpan> out;
  for (const auto& each : passages.all()) out.push_back(each.tokens);
  return out;
}

TEST(Passages, ThoseThatTouchAreJoinedWhereThatIsAskedFor) {
  for (const bool touching : {true, false}) {
    Passages passages(touching);
    passages.add(0, {64, 128}, 1, 0);
    passages.add(0, {512, 576}, 8, 1);
    passages.add(1, {128, 192}, 2, 2);  // of another memory
    passages.add(0, {128, 192}, 2, 3);
    if (touching) {
      EXPECT_THAT(spans(passages), ElementsAre(TokenSpan{64, 192}, TokenSpan{512, 576}, TokenSpan{128, 192}));
      EXPECT_THAT(passages.all()[0].chunks, ElementsAre(1, 2));
      EXPECT_EQ(passages.all()[0].best, 0u);
    } else {
      EXPECT_EQ(passages.size(), 4u);
    }
  }
}

TEST(Passages, OverlappingOnesAreJoinedInThePlaceOfTheBest) {
  Passages passages(false);
  passages.add(0, {0, 100}, 0, 0);
  passages.add(0, {400, 500}, 7, 1);
  passages.add(0, {200, 300}, 4, 2);
  passages.all()[2].duplicates = 2;
  EXPECT_EQ(passages.added_tokens(0, {250, 450}), 100u);
  EXPECT_EQ(passages.added_tokens(1, {250, 450}), 200u);
  EXPECT_EQ(passages.that_has(0, {450, 520}), nullptr);
  passages.add(0, {250, 450}, 5, 3);
  EXPECT_THAT(spans(passages), ElementsAre(TokenSpan{0, 100}, TokenSpan{200, 500}));
  EXPECT_EQ(passages.all()[1].best, 1u);
  EXPECT_EQ(passages.all()[1].duplicates, 2u);
  EXPECT_THAT(passages.all()[1].chunks, ElementsAre(4, 5, 7));
  EXPECT_EQ(passages.that_has(0, {450, 500}), &passages.all()[1]);
  EXPECT_EQ(passages.that_has(1, {450, 500}), nullptr);
}

}  // namespace
}  // namespace recalld
