#include "daemon/fusion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace recalld {
namespace {

using ::testing::ElementsAre;

std::vector<uint64_t> order(const std::vector<Candidate>& candidates) {
  std::vector<uint64_t> chunks;
  for (const Candidate& each : candidates) chunks.push_back(each.chunk);
  return chunks;
}

Candidate candidate(uint64_t chunk, double landmark, double bm25, double context) {
  Candidate made;
  made.chunk = chunk;
  made.landmark = landmark;
  made.bm25 = bm25;
  made.context = context;
  return made;
}

TEST(Fusion, AddsHowFarEachPartStandsAboveTheOthers) {
  std::vector<Candidate> two{candidate(1, 5, 0, 2), candidate(2, 1, 10, 8)};
  fuse(two);
  EXPECT_THAT(order(two), ElementsAre(2, 1));
  EXPECT_DOUBLE_EQ(two[0].score, 1 + 1 - 0.3);
  EXPECT_DOUBLE_EQ(two[1].score, -(1 + 1 - 0.3));
}

TEST(Fusion, LeavesOutWhatIsTheSameForAll) {
  std::vector<Candidate> found{candidate(7, 3, 0, 0), candidate(4, 3, 0, 0), candidate(5, 4, 0, 0)};
  fuse(found);
  EXPECT_THAT(order(found), ElementsAre(5, 4, 7));  // of equals the lower chunk
  std::vector<Candidate> one{candidate(7, 3, 2, 1)}, none;
  fuse(one);
  fuse(none);
  EXPECT_EQ(one[0].score, 0);
}

TEST(Fusion, AnExactMatchOfWordsOutweighsALandmark) {
  std::vector<Candidate> found;
  for (uint64_t i = 0; i < 100; ++i) found.push_back(candidate(i, std::sin(static_cast<double>(i)), 0, 0));
  found[40].bm25 = 9;
  found[40].context = 7;
  fuse(found);
  EXPECT_EQ(found[0].chunk, 40u);
}

}  // namespace
}  // namespace recalld
