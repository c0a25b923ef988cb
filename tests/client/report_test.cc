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

TEST(Report, ATurnThatGoesOnBeyondTheTextIsShownAsCut) {
  SearchReply reply = one_result();
  reply.results[0].turns[1].cut_after = true;
  EXPECT_THAT(report(reply, Style{}), HasSubstr("      User: the key\n      Ana: is under the mat…\n"));
  reply.results[0].turns[0].cut_before = true;
  EXPECT_THAT(report(reply, Style{}), HasSubstr("      …User: the key\n      Ana: is under the mat…\n"));
  reply.results[0].why = {{"tokens", {{{"token", 455}, {"byte", 31}, {"text", " mat"}, {"weight", 0.5}}}}};
  const std::string painted = report(reply, Style{true, 80});
  EXPECT_THAT(painted, HasSubstr("      …User: the key\n      Ana: is under the\x1b["));
  EXPECT_THAT(painted, HasSubstr(" mat\x1b[0m…\n"));
  GenerateReply answer;
  answer.chunks = {{.chunk = 7, .weight = 1, .text = "is 47", .tokens = {}, .turns = reply.results[0].turns}};
  EXPECT_THAT(report(answer, Style{}), HasSubstr("      …is 47…\n"));
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

TEST(Report, ExplainNamesBytesOfCharactersAndTellsTheTimesOnce) {
  SearchReply reply = one_result();
  reply.results[0].why = {
      {"took", {{"query_ms", 6.5}, {"words_ms", 0.25}}},
      {"matches", {{{"text", ""}, {"piece", "<0x9E>"}, {"token", 500}, {"head", 2}, {"weight", 0.75}}}},
      {"pairs",
       {{{"query", "<0xF0>"}, {"text", ""}, {"piece", "<0x9F>"}, {"token", 501}, {"head", 3}, {"weight", 0.5}}}}};
  reply.results.push_back(reply.results[0]);
  const std::string text = report(reply, Style{});
  EXPECT_THAT(text, HasSubstr("head 2 reads <0x9E> (token 500, weight 0.750)"));
  EXPECT_THAT(text, HasSubstr("'<0xF0>' reads <0x9F> through head 3 (token 501, weight 0.500)"));
  const std::string took = "took  query_ms 6.500 · words_ms 0.250\n";
  EXPECT_EQ(text.find("took"), text.rfind("took")) << text;
  EXPECT_GT(text.find(took), text.find("2.  score")) << text;
}

SearchReply explained_result() {
  SearchReply reply = one_result();
  reply.results[0].why = {
      {"rank", 1},
      {"parts", {{{"part", "landmark"}, {"score", 2.0}, {"rank", 1}}, {{"part", "new"}, {"score", 0.5}, {"rank", 3}}}},
      {"pairs", {{{"query", " key"}, {"token", 450}, {"text", " key"}, {"head", 2}, {"layer", 4}, {"weight", 0.75}}}},
      {"tokens",
       {{{"token", 450}, {"byte", 9}, {"text", " key"}, {"weight", 0.4}},
        {{"token", 455}, {"byte", 31}, {"text", " mat"}, {"weight", 0.1}},
        {{"token", 456}, {"byte", 99}, {"text", " beyond"}, {"weight", 0.9}}}}};
  reply.results.push_back(reply.results[0]);
  reply.results[1].why["parts"][0]["score"] = 4.0;
  return reply;
}

TEST(Report, ExplainIsPlainWhenPiped) {
  const std::string text = report(explained_result(), Style{});
  EXPECT_THAT(text, HasSubstr("      User: the key\n      Ana: is under the mat\n"));
  EXPECT_THAT(text, HasSubstr("' key' reads ' key' through head 2 of layer 4 (token 450, weight 0.750)"));
  EXPECT_THAT(text, HasSubstr("landmark     2.000  rank 1"));
  EXPECT_THAT(text, HasSubstr("new          0.500  rank 3"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, Not(HasSubstr("█")));
}

TEST(Report, ExplainPaintsTokensByTheirWeightAndDrawsABarAPart) {
  const std::string text = report(explained_result(), Style{true, 80});
  EXPECT_THAT(text, HasSubstr("User: the\x1b[48;5;"));
  EXPECT_THAT(text, HasSubstr(" key\x1b[0m\n"));
  EXPECT_THAT(text, HasSubstr("█████░░░░░"));
  EXPECT_THAT(text, HasSubstr("██████████"));
  const std::string marks = report(explained_result(), Style{false, 80, true});
  EXPECT_THAT(marks, HasSubstr("under the"));
  EXPECT_THAT(marks, HasSubstr("\x1b["));
  EXPECT_THAT(marks, Not(HasSubstr("\x1b[48")));
}

TEST(Report, ABarIsFullForTheBestOfAllChunksAlone) {
  SearchReply reply = one_result();
  reply.results[0].why = {{"parts", {{{"part", "context"}, {"score", 3.0}, {"rank", 3}, {"best", 6.0}}}}};
  const std::string text = report(reply, Style{true, 80});
  EXPECT_THAT(text, HasSubstr("█████░░░░░"));
  EXPECT_THAT(text, Not(HasSubstr("██████")));
}

TEST(Report, ExplainSurvivesWhatItDoesNotExpect) {
  SearchReply reply = explained_result();
  for (const Json& odd : {Json(7), Json::array({7}), Json::array({{{"byte", -1}, {"text", 3}, {"weight", "x"}}}),
                          Json::array({{{"byte", 0}, {"text", "a"}}}), Json::object()}) {
    for (const char* member : {"tokens", "parts", "pairs", "matches"}) reply.results[0].why[member] = odd;
    EXPECT_THAT(report(reply, Style{true, 80}), HasSubstr("under the mat"));
  }
}

TEST(Report, SearchShowsMemoriesPassagesAndHowOftenTheyWereTold) {
  SearchReply reply = one_result();
  reply.results[0].memory = "user/alice";
  reply.results[0].chunks = {6, 7};
  reply.results[0].duplicates = 2;
  reply.memories = {{"user/alice", 9}, {"user/bob", std::nullopt}};
  reply.searchable_through = std::nullopt;
  const std::string text = report(reply, Style{});
  EXPECT_THAT(text, HasSubstr("user/alice · chunks 6, 7 (best: 7) · tokens 448-512"));
  EXPECT_THAT(text, HasSubstr("the same text was found 2 more times"));
  EXPECT_THAT(text, HasSubstr("1 passage in 2 memories, in 1.2 ms"));
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
  chunk.token_pieces = {"some", "▁text"};
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

TEST(Report, NothingFoundNamesATokenLimitThatIsTooSmall) {
  SearchReply reply;
  reply.searchable_through = 9;
  EXPECT_THAT(report(reply, Style{}, 10), HasSubstr("The best chunk has more than 10 tokens; a chunk has up to 64"));
  EXPECT_THAT(report(reply, Style{}), Not(HasSubstr("tokens;")));
  EXPECT_THAT(report(one_result(), Style{}, 10), Not(HasSubstr("tokens;")));
  reply.searchable_through = std::nullopt;
  EXPECT_THAT(report(reply, Style{}, 10), Not(HasSubstr("tokens;"))) << "there is nothing to find yet";
}

TEST(Report, ARepeatedLoadSaysThatNothingWasAdded) {
  AppendStream::Total total;
  total.turns = total.repeated_turns = 812;
  total.tokens = total.repeated_tokens = 9'000;
  total.first_turn = 0;
  total.last_turn = 811;
  EXPECT_EQ(report(total, "notes", 0.5),
            "Nothing was added: this load is in notes already, as turns 0-811, under the same operation id.\n");
  total.repeated_turns = 500;
  total.repeated_tokens = 6'000;
  EXPECT_THAT(report(total, "notes", 0.5),
              HasSubstr("Appended 312 turns (3,000 tokens) to notes, after 500 turns that were there"));
}

Receipt three_turns() {
  return {.memory = "notes",
          .turns = {{4, 4}, {10, 11}},
          .turn_count = 3,
          .tokens = 1'234,
          .content_bytes = 5'000,
          .chunks = 7,
          .files = {{"kv/000000.seg", 7, 114'688}, {"catalog", 1, 900}},
          .complete = true,
          .time = "2026-01-02T03:04:05Z",
          .job = std::nullopt};
}

TEST(Report, ReceiptSaysWhatIsGoneAndFromWhere) {
  Receipt receipt = three_turns();
  EXPECT_EQ(report(receipt, Style{}),
            "Forgot 3 turns (1,234 tokens, 4.9 KiB) of notes: 4, 10-11.\n"
            "Nothing of it is left on disk since 2026-01-02 03:04; erased:\n"
            "  kv/000000.seg  7 records, 112.0 KiB\n"
            "  catalog        1 record, 900 B\n");
  receipt.complete = false;
  receipt.job = 12;
  EXPECT_THAT(report(receipt, Style{}), HasSubstr("erased from the disk behind, as job 12: recall stats"));
  receipt.dry_run = true;
  receipt.job = std::nullopt;
  const std::string would = report(receipt, Style{});
  EXPECT_THAT(would, HasSubstr("Would forget 3 turns"));
  EXPECT_THAT(would, HasSubstr("7 encoded chunks"));
  EXPECT_THAT(would, HasSubstr("Nothing was changed"));
  EXPECT_THAT(would, Not(HasSubstr("erased:")));
  receipt.turn_count = 0;
  EXPECT_EQ(report(receipt, Style{}), "Nothing to forget: notes has no such turn.\n");
}

TEST(Report, LongReceiptsAreCutForPeople) {
  Receipt receipt = three_turns();
  receipt.turns.clear();
  for (uint64_t i = 0; i < 21; ++i) receipt.turns.push_back({2 * i, 2 * i});
  EXPECT_THAT(report(receipt, Style{}), HasSubstr("36, 38 and 1 ranges more.\n"));
  receipt.turns.pop_back();
  EXPECT_THAT(report(receipt, Style{}), HasSubstr("36, 38.\n"));
}

TEST(Report, VerifyTellsTheNextStepForWhatIsLeft) {
  VerifyReply reply{.memories = 2, .turns = 9, .chunks = 4, .states = 1, .bytes = 70'000, .problems = {}, .job = {}};
  EXPECT_EQ(report(reply, Style{}),
            "Checked 9 turns, 4 chunks and 1 state of 2 memories, 68.4 KiB: nothing is wrong.\n");
  reply.unindexed_chunks = 4;
  reply.unindexed_turns = 1;
  EXPECT_THAT(report(reply, Style{}),
              HasSubstr("nothing is wrong.\nBeing indexed still, which is no damage: 4 chunks by "
                        "their words and 1 turn by its attributes.\n"));
  reply.problems = {{"notes", "kv", 3, 3, "checksum mismatch\x1b", true, false}};
  reply.problem_count = 5;
  const std::string found = report(reply, Style{});
  EXPECT_THAT(found, HasSubstr("notes kv 3: checksum mismatch\\x1b\n... and 4 more\n"));
  EXPECT_THAT(found, HasSubstr("5 problems.\nrecall verify --repair"));
  EXPECT_THAT(found, Not(HasSubstr("backup")));
  reply.problems[0].repaired = true;
  reply.problems.push_back({"notes", "turn", 2, 4, "lost", false, false});
  reply.problem_count = 2;
  reply.repaired_count = 1;
  const std::string repaired = report(reply, Style{});
  EXPECT_THAT(repaired, HasSubstr("(repaired)"));
  EXPECT_THAT(repaired, HasSubstr("notes turn 2-4: lost"));
  EXPECT_THAT(repaired, HasSubstr("2 problems, 1 repaired.\nWhat cannot be made again needs a backup.\n"));
}

TEST(Report, StatsShowTheirJobsBelowTheFigures) {
  const Json stats{{"turns", 5},
                   {"jobs",
                    {{{"job", 3},
                      {"kind", "reencode"},
                      {"state", "running"},
                      {"done", 120},
                      {"total", 1970},
                      {"started", "2026-01-02T03:04:05Z"},
                      {"message", "then restart"}},
                     {{"job", 4},
                      {"kind", "forget"},
                      {"memory", "notes"},
                      {"state", "done"},
                      {"done", 2},
                      {"total", 2},
                      {"started", "2026-01-02T03:04:05Z"}},
                     {{"job", 5},
                      {"kind", "delete"},
                      {"state", "running"},
                      {"done", 0},
                      {"total", 0},
                      {"started", "2026-01-02T03:04:05Z"}}}}};
  EXPECT_EQ(report(stats, Style{}),
            "turns  5\n"
            "job 3  reencode  running  120 of 1,970  since 2026-01-02 03:04  then restart\n"
            "job 4  forget notes  done  2 of 2  since 2026-01-02 03:04\n"
            "job 5  delete (a memory deleted before the last start; its name is gone)  running  0 of 0  since "
            "2026-01-02 03:04\n");
}

TEST(Report, StatsNameTheFiguresOfTheGpuAsItsOwn) {
  const Json stats{{"device", "cuda"},
                   {"gpu", {{"name", "NVIDIA H100"}, {"cache_bytes", 5 << 20}, {"cache_slots", 1280}}}};
  const std::string shown = report(stats, Style{});
  EXPECT_THAT(shown, HasSubstr("gpu.name         NVIDIA H100\n"));
  EXPECT_THAT(shown, HasSubstr("gpu.cache_bytes  5,242,880 (5.0 MiB)\n"));
  EXPECT_THAT(shown, HasSubstr("gpu.cache_slots  1,280\n"));
}

TEST(Report, MemoryTellsHowManyTurnsWereForgotten) {
  Memory memory;
  memory.turns = 5;
  memory.next_turn = 5;
  EXPECT_THAT(report(memory, Style{}), Not(HasSubstr("forgotten")));
  memory.next_turn = 8;
  EXPECT_THAT(report(memory, Style{}), HasSubstr("5, 3 forgotten\n"));
}

}  // namespace
}  // namespace recalld::client
