#include "daemon/line_framer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace recalld {
namespace {

using ::testing::ElementsAre;

// All lines of `input`, fed in pieces of `piece_bytes`; an overlong one as "<overlong>".
std::vector<std::string> lines_of(LineFramer& framer, std::string_view input, size_t piece_bytes) {
  std::vector<std::string> lines;
  while (!input.empty()) {
    std::string_view piece = input.substr(0, piece_bytes);
    input.remove_prefix(piece.size());
    while (auto line = framer.next(piece)) lines.push_back(line->overlong ? "<overlong>" : line->text);
    EXPECT_TRUE(piece.empty());
  }
  return lines;
}

TEST(LineFramer, CutsTheSameLinesHoweverTheBytesArrive) {
  const std::string input = "one\n\ntwo\r\n\r\nthree\rfour\nfive bytes over\n" + std::string(12, 'x') + "\r\nlast\n";
  for (size_t piece = 1; piece <= input.size(); ++piece) {
    LineFramer framer(12);
    EXPECT_THAT(lines_of(framer, input, piece),
                ElementsAre("one", "two", "three\rfour", "<overlong>", std::string(12, 'x'), "last"))
        << "in pieces of " << piece;
  }
}

TEST(LineFramer, ALineWithoutItsEndIsNoLine) {
  LineFramer framer(100);
  EXPECT_THAT(lines_of(framer, "half a li", 3), ElementsAre());
  EXPECT_THAT(lines_of(framer, "ne\n", 3), ElementsAre("half a line"));
}

TEST(LineFramer, ALineOfExactlyTheBoundPassesAndOneByteMoreDoesNot) {
  for (const std::string_view end : {"\n", "\r\n"}) {
    LineFramer framer(1000);
    EXPECT_THAT(lines_of(framer, std::string(1000, 'a').append(end), 64), ElementsAre(std::string(1000, 'a')));
    EXPECT_THAT(lines_of(framer, std::string(1001, 'a').append(end), 64), ElementsAre("<overlong>"));
  }
}

TEST(LineFramer, AnOverlongLineIsReportedAtOnceAndItsRestSkipped) {
  LineFramer framer(8);
  EXPECT_THAT(lines_of(framer, "123456789", 100), ElementsAre("<overlong>"));
  for (int i = 0; i < 1000; ++i) EXPECT_THAT(lines_of(framer, "more of the same", 100), ElementsAre());
  EXPECT_THAT(lines_of(framer, "the end\nnext\n", 100), ElementsAre("next"));
}

TEST(LineFramer, KeepsNulBytes) {
  LineFramer framer(8);
  EXPECT_THAT(lines_of(framer, std::string_view("a\0b\n", 4), 2), ElementsAre(std::string("a\0b", 3)));
}

}  // namespace
}  // namespace recalld
