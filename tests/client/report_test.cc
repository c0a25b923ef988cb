#include "client/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace recalld::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

SearchReply one_result() {
  SearchReply reply;
  SearchReply::Result result;
  result.chunk = 7;
  result.score = 2.5;
  result.text = "User: the key\nAna: is under the mat";
  result.tokens = {448, 512};
  result.turns = {{3, "user", std::nullopt, "2026-01-02T03:04:05Z"}, {4, "user", "Ana", "2026-01-02T03:05:00Z"}};
  reply.results.push_back(result);
  reply.took_ms = 1.25;
  reply.searchable_through = 9;
  return reply;
}

TEST(Report, SearchShowsRankScoreTurnsSpeakersAndTimes) {
  const std::string text = report(one_result(), Style{});
  EXPECT_THAT(text, HasSubstr("1.  score 2.500  turns 3-4 · user, Ana (user) · 2026-01-02 03:04 to 2026-01-02 03:05"));
  EXPECT_THAT(text, HasSubstr("chunk 7 · tokens 448-512"));
  EXPECT_THAT(text, HasSubstr("      User: the key\n      Ana: is under the mat\n"));
  EXPECT_THAT(text, HasSubstr("1 chunk in 1.2 ms, searchable through turn 9"));
}

TEST(Report, ColoursAppearOnlyWhenAskedFor) {
  EXPECT_THAT(report(one_result(), Style{}), Not(HasSubstr("\x1b")));
  EXPECT_THAT(report(one_result(), Style{true, 80}), HasSubstr("\x1b["));
}

TEST(Report, StoredTextCannotSteerTheTerminal) {
  SearchReply reply = one_result();
  reply.results[0].text = "evil \x1b]0;title\a";
  reply.results[0].turns[1].name = "Eve\x1b[2J";
  reply.results[0].turns[0].time = "\x1b[2J";
  EXPECT_THAT(report(reply, Style{}), Not(HasSubstr("\x1b")));
}

TEST(Report, ExplainNamesWhatEachHeadReads) {
  SearchReply reply = one_result();
  reply.results[0].why = {{"landmark_score", 1.5},
                          {"rank", 1},
                          {"stored", true},
                          {"matches", {{{"text", " mat\n"}, {"token", 500}, {"head", 2}, {"weight", 0.75}}}}};
  const std::string text = report(reply, Style{});
  EXPECT_THAT(text, HasSubstr("landmark_score  1.500"));
  EXPECT_THAT(text, HasSubstr("head 2 reads ' mat\\n' (token 500, weight 0.750)"));
}

TEST(Report, MatchesOfAnUnexpectedShapeAreShownAsFarAsTheyGo) {
  SearchReply reply = one_result();
  reply.results[0].why = {{"matches", {7, {{"head", "x"}}, Json::object()}}};
  EXPECT_THAT(report(reply, Style{}), HasSubstr("head x reads"));
}

TEST(Report, TimesOfAResultRunFromTheEarliestToTheLatest) {
  SearchReply reply;
  reply.results.resize(1);
  reply.results[0].turns = {{0, "user", std::nullopt, "2026-03-02T08:00:00Z"},
                            {1, "user", std::nullopt, "2026-01-02T08:00:00Z"},
                            {2, "user", std::nullopt, "2026-02-02T08:00:00Z"}};
  EXPECT_THAT(report(reply, Style{}), HasSubstr("2026-01-02 08:00 to 2026-03-02 08:00\n"));
}

TEST(Report, NothingFoundSaysSo) {
  EXPECT_THAT(report(SearchReply{}, Style{}), HasSubstr("Nothing found"));
}

TEST(Report, ChunkShowsPlaceNormAndTokens) {
  Chunk chunk;
  chunk.chunk = 12;
  chunk.text = "some text";
  chunk.tokens = {768, 832};
  chunk.first_turn = 5;
  chunk.last_turn = 6;
  chunk.kv_segment = 3;
  chunk.kv_slot = 44;
  chunk.kv_bytes = 16'384;
  chunk.landmark_norm = 15.5;
  chunk.token_ids = {17, 18};
  chunk.token_texts = {"some", " text\n"};
  const std::string text = report(chunk, Style{});
  EXPECT_THAT(text, HasSubstr("segment 3, slot 44, 16.0 KiB"));
  EXPECT_THAT(text, HasSubstr("15.500000"));
  EXPECT_THAT(text, HasSubstr("turns          5-6\n"));
  EXPECT_THAT(text, HasSubstr("'some'=17 ' text\\n'=18"));
}

TEST(Report, TokensAreNeverCutByTheEndOfALine) {
  Chunk chunk;
  chunk.token_ids = {17, 18, 19};
  chunk.token_texts = {"some", " text", " more"};
  EXPECT_THAT(report(chunk, Style{.columns = 30}), HasSubstr("\n    'some'=17 ' text'=18\n    ' more'=19\n"));
}

TEST(Report, ObjectIsFlattenedWithReadableSizes) {
  const std::string text = report(Json{{"store", {{"kv_bytes_on_disk", 16'384}}}, {"device", "cpu"}}, Style{});
  EXPECT_THAT(text, HasSubstr("store.kv_bytes_on_disk  16,384 (16.0 KiB)"));
  EXPECT_THAT(text, HasSubstr("device                  cpu"));
}

TEST(Report, AppendSaysWhatBecameSearchable) {
  AppendStream::Total total;
  EXPECT_THAT(report(total, "m", 0.1), HasSubstr("holds no turn"));
  total.turns = 2;
  total.tokens = 1'500;
  total.first_turn = 0;
  total.last_turn = 1;
  EXPECT_EQ(report(total, "m", 0.1),
            "Appended 2 turns (1,500 tokens) to m as turns 0-1 in 0.10 s; stored, encoding goes on behind.\n");
}

}  // namespace
}  // namespace recalld::client
