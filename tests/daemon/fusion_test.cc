#include "daemon/fusion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
  made.landmark_rank = made.lexical_rank = 1;
  return made;
}

double feature(const Candidate& of, Feature which) {
  return of.features[static_cast<size_t>(which)];
}

std::string weights(const std::string& order_member = R"("tokens": 0.5)", const std::string& depth = "64") {
  return R"({"format": 1, "depth": )" + depth + R"(, "order": {"bm25": 0.5, "context_bm25": 0.25, "landmark": 1, )" +
         order_member +
         R"(, "near_landmark": 0.125, "near_tokens": 0, "landmark_top": 1, "lexical_top": 2},
             "score": {"slope": 1.5, "rivals": -1, "best_bm25": 0.125, "best_tokens": 0.5, "best_landmark": 0, "bias": -3}})";
}

Fusion learned() {
  auto fusion = Fusion::parse(weights());
  EXPECT_TRUE(fusion) << fusion.error().message;
  return *fusion;
}

TEST(Fusion, WithoutLearnedWeightsAddsWordsAndHowFarTheLandmarkStandsAboveTheOthers) {
  std::vector<Candidate> two{candidate(1, 5, 0, 2), candidate(2, 1, 10, 8)};
  Fusion().rank(two);
  EXPECT_THAT(order(two), ElementsAre(2, 1));
  const double tells = 1 - std::exp(-1.0);  // the best BM25 is 10
  EXPECT_DOUBLE_EQ(two[0].score, 1 / (1 + std::exp(-(tells * (0.2 * 10 + 0.2 * 8) - 0.5))));
  EXPECT_DOUBLE_EQ(two[1].score, 1 / (1 + std::exp(-(tells * 0.2 * 2 + 0.5))));
}

TEST(Fusion, LeavesOutWhatIsTheSameForAll) {
  std::vector<Candidate> found{candidate(7, 3, 0, 0), candidate(4, 3, 0, 0), candidate(5, 4, 0, 0)};
  Fusion().rank(found);
  EXPECT_THAT(order(found), ElementsAre(5, 4, 7));  // of equals the lower chunk
  std::vector<Candidate> one{candidate(7, 3, 2, 1)}, none;
  Fusion().rank(one);
  Fusion().rank(none);
  EXPECT_DOUBLE_EQ(one[0].score, 1 / (1 + std::exp(-((1 - std::exp(-0.04)) * (0.2 * 2 + 0.2 * 1)))));
}

TEST(Fusion, AnExactMatchOfWordsOutweighsALandmark) {
  for (const Fusion& fusion : {Fusion(), learned()}) {
    std::vector<Candidate> found;
    for (uint64_t i = 0; i < 100; ++i) found.push_back(candidate(3 * i, std::sin(static_cast<double>(i)), 0, 0));
    found[40].bm25 = 9;
    found[40].context = 7;
    fusion.rank(found);
    EXPECT_EQ(found[0].chunk, 120u);
  }
}

TEST(Fusion, ABetterPartOfOneOfFortyChunksMakesItNoWorse) {
  for (double Candidate::*part : {&Candidate::bm25, &Candidate::context, &Candidate::landmark}) {
    size_t before = 100;
    for (const double value : {0.5, 1.0, 2.0, 4.0, 8.0, 1000.0}) {
      std::vector<Candidate> found;
      for (uint64_t i = 0; i < 40; ++i) {
        const auto x = static_cast<double>(i);
        found.push_back(candidate(2 * i, 2 + std::sin(x), 2 + std::cos(2 * x), 3 + std::cos(3 * x)));
        found.back().tokens = 1 + std::sin(5 * x);
      }
      found[17].*part = value;
      learned().rank(found);
      const auto place = static_cast<size_t>(std::ranges::find(found, 34u, &Candidate::chunk) - found.begin());
      EXPECT_LE(place, before) << value;
      before = place;
    }
    EXPECT_EQ(before, 0u);
  }
}

TEST(Fusion, AChunkWithoutATokenScoreStandsWhereTheLowestDoes) {
  std::vector<Candidate> found{candidate(10, 1, 1, 1), candidate(20, 1, 1, 1), candidate(30, 1, 1, 1)};
  found[0].tokens = 4;
  found[1].tokens = 2;
  learned().rank(found);
  EXPECT_THAT(order(found), ElementsAre(10, 20, 30));
  EXPECT_EQ(feature(found[1], Feature::tokens), feature(found[2], Feature::tokens));
  EXPECT_GT(feature(found[0], Feature::tokens), 0);
}

TEST(Fusion, ChunksBesideAGoodOneAreToldSo) {
  std::vector<Candidate> found{candidate(9, 1, 1, 1), candidate(10, 9, 1, 1), candidate(30, 1, 1, 1)};
  learned().rank(found);
  EXPECT_THAT(order(found), ElementsAre(10, 9, 30));
  EXPECT_EQ(feature(found[1], Feature::near_landmark), feature(found[0], Feature::landmark));
  EXPECT_EQ(feature(found[2], Feature::near_landmark), feature(found[2], Feature::landmark));
}

TEST(Fusion, MeaningAndTopicOrderWhereTheWeightsSaySoAndTopicOnlyWhereWordsTellLittle) {
  const auto fusion = Fusion::parse(weights(R"("tokens": 0, "meaning": 2, "topic": 1)"));
  ASSERT_TRUE(fusion) << fusion.error().message;
  for (std::optional<double> Candidate::*part : {&Candidate::meaning, &Candidate::topic}) {
    std::vector<Candidate> found{candidate(10, 1, 1, 1), candidate(20, 1, 1, 1), candidate(30, 1, 1, 1)};
    found[1].*part = 0.25;
    found[2].*part = 0.5;
    fusion->rank(found);
    EXPECT_THAT(order(found), ElementsAre(30, 10, 20));  // without one as with the lowest
    learned().rank(found);                               // its weights have neither
    EXPECT_THAT(order(found), ElementsAre(10, 20, 30));
  }
  std::vector<Candidate> found{candidate(10, 1, 30, 30), candidate(20, 1, 30, 30)};
  found[0].topic = found[0].meaning = 0.25;
  found[1].topic = found[1].meaning = 0.5;
  fusion->rank(found);
  EXPECT_NEAR(feature(found[0], Feature::topic), std::exp(-4.0), 1e-12);  // (30 / 15) squared
  EXPECT_NEAR(feature(found[0], Feature::meaning), 1, 1e-12);
  EXPECT_THAT(Fusion::parse(weights(R"("tokens": 0, "topic": -1)")).error().message, HasSubstr("order.topic"));
}

TEST(Fusion, ScoresAreProbabilitiesInTheOrderOfTheChunksWhateverTheirPlace) {
  std::vector<Candidate> found;
  for (uint64_t i = 0; i < 200; ++i) {
    const auto x = static_cast<double>(i);
    found.push_back(candidate(i, 1e3 * std::sin(x), i % 7 == 0 ? 1e4 : 0, 20 * std::cos(x)));
    found.back().landmark_rank = i + 1;
    found.back().lexical_rank.reset();
    if (i % 3 == 0 && i < Fusion::depth) found.back().tokens = std::cos(x);
  }
  std::vector<Candidate> turned(found.rbegin(), found.rend());
  learned().rank(found);
  learned().rank(turned);
  EXPECT_EQ(order(found), order(turned));
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i].score, turned[i].score, 1e-12);
    EXPECT_TRUE(found[i].score >= 0 && found[i].score <= 1) << found[i].score;
    EXPECT_LE(found[i].score, found[i - std::min<size_t>(i, 1)].score);
  }
}

TEST(Fusion, HowManyResultsAreWantedDoesNotChangeAScore) {
  std::vector<Candidate> few, many;
  for (uint64_t i = 0; i < 100; ++i) {
    const auto x = static_cast<double>(i);
    many.push_back(candidate(2 * i, 100 - x, std::cos(x), 0));
    many.back().landmark_rank = i + 1;
    many.back().lexical_rank.reset();
    if (i < Fusion::depth) few.push_back(many.back());
  }
  learned().rank(few);
  learned().rank(many);
  for (const Candidate& each : few) {
    const auto same = std::ranges::find(many, each.chunk, &Candidate::chunk);
    EXPECT_EQ(feature(*same, Feature::bm25), feature(each, Feature::bm25));
    EXPECT_NEAR(same->score, each.score, 1e-12);
  }
}

TEST(Fusion, TellsWhatAFileOfWeightsHasWrong) {
  const auto problem = [](const std::string& text) {
    const auto fusion = Fusion::parse(text);
    EXPECT_FALSE(fusion) << text;
    return fusion ? "" : fusion.error().message;
  };
  EXPECT_THAT(problem("{"), HasSubstr("not a JSON object"));
  EXPECT_THAT(problem("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(problem("{}"), HasSubstr("format: this version reads format 1"));
  EXPECT_THAT(problem(weights(R"("tokens": 1)", "50")),
              HasSubstr("depth: the weights must be learned from the best 64"));
  EXPECT_THAT(problem(R"({"format": 1, "depth": 64, "order": []})"), HasSubstr("order: expected an object"));
  EXPECT_THAT(problem(weights(R"("token": 1)")), HasSubstr("order.tokens: the member is missing"));
  EXPECT_THAT(problem(weights(R"("tokens": 1, "topci": 1)")), HasSubstr("order.topci: there is no such weight"));
  EXPECT_THAT(problem(weights(R"("tokens": "1")")), HasSubstr("order.tokens: expected a number"));
  EXPECT_THAT(problem(weights(R"("tokens": -0.1)")), HasSubstr("order.tokens: expected a number that is not below 0"));
  // Sums of such weights might be no numbers, and chunks in no order.
  EXPECT_THAT(problem(weights(R"("tokens": 1e308)")), HasSubstr("order.tokens: expected a number from -1000000 to"));
  std::string bias = weights();
  bias.replace(bias.find("-3}"), 2, "-1e7");
  EXPECT_THAT(problem(bias), HasSubstr("score.bias: expected a number from -1000000 to 1000000"));
}

TEST(Fusion, ReadsTheFileOfACheckpointIfThereIsOne) {
  const TempDir directory;
  EXPECT_TRUE(Fusion::of_checkpoint(directory.path()));
  std::ofstream(directory.path() / "fusion.json") << weights();
  EXPECT_TRUE(Fusion::of_checkpoint(directory.path()));
  std::ofstream(directory.path() / "fusion.json") << weights(R"("tokens": null)");
  const auto refused = Fusion::of_checkpoint(directory.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refused.error().message, HasSubstr("fusion.json"));
  EXPECT_THAT(refused.error().message, HasSubstr("order.tokens: expected a number; tools/train/fusion.py makes it"));
}

}  // namespace
}  // namespace recalld
