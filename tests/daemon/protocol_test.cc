#include "daemon/protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/support/exchanges.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// The error that a method's arguments get, or "fine".
std::string verdict(const std::string& method, Json params) {
  const auto judge = [&params](auto read) -> std::string {
    const auto request = read(params);
    if (request) return "fine";
    EXPECT_EQ(request.error().kind, ErrorKind::invalid_request);
    return request.error().message;
  };
  if (method == "append") return judge(append_request);
  if (method == "search") return judge(search_request);
  if (method == "generate") return judge(generate_request);
  if (method == "cancel") return judge(cancel_request);
  if (method == "memories.list") return judge(memories_list_request);
  if (method == "memories.get") return judge(memory_request);
  if (method == "memories.delete") return judge(delete_request);
  if (method == "forget") return judge(forget_request);
  if (method == "verify") return judge(verify_request);
  if (method == "export") return judge(export_request);
  if (method == "import") return judge(import_request);
  if (method == "backup") return judge(backup_request);
  if (method == "reencode") return judge(reencode_request);
  if (method == "turns.list") return judge(turns_list_request);
  if (method == "chunks.list") return judge(chunks_list_request);
  if (method == "chunks.get") return judge(chunks_get_request);
  if (method == "stats" || method == "health") return judge(no_arguments);
  return "no such method in this test";
}

Json with_turn(Json turn) {
  return {{"memory", "m"}, {"turns", Json::array({std::move(turn)})}};
}

// Parsed as the daemon parses it: numbers keep the kind that their text has.
Json parsed(const std::string& line) {
  Json out;
  serve_line(R"({"jsonrpc":"2.0","id":1,"method":"m","params":)" + line + "}",
             [&out](std::string_view, Json& params, const RequestId&, Answer answer) {
               out = std::move(params);
               answer("0");
             },
             [](std::string) {});
  return out;
}

TEST(Protocol, EveryMistakeIsNamedAsTheTableSays) {
  for (const auto& [sent, received] : read_exchanges("tests/daemon/argument_mistakes.txt")) {
    const size_t space = sent.find(' ');
    EXPECT_EQ(verdict(sent.substr(0, space), parsed(sent.substr(space + 1))), received) << sent;
  }
}

TEST(Protocol, SizesAreBounded) {
  const auto text = [](size_t bytes) { return std::string(bytes, 'x'); };
  EXPECT_EQ(verdict("append", with_turn({{"role", "user"}, {"content", text(content_bytes_max)}})), "fine");
  EXPECT_EQ(verdict("append", with_turn({{"role", "user"}, {"content", text(content_bytes_max + 1)}})),
            "turns[0].content: expected a string of 1 to 1048576 bytes, got 1048577");
  EXPECT_EQ(verdict("append", with_turn({{"role", "user"}, {"content", "x"}, {"name", text(name_bytes_max + 1)}})),
            "turns[0].name: expected a string of 1 to 200 bytes, got 201");
  const auto metadata = [&](size_t bytes) {
    return with_turn({{"role", "user"}, {"content", "x"}, {"metadata", {{"k", text(bytes - 8)}}}});
  };
  EXPECT_EQ(verdict("append", metadata(metadata_bytes_max)), "fine");
  EXPECT_EQ(verdict("append", metadata(metadata_bytes_max + 1)),
            "turns[0].metadata: expected an object of at most 16384 bytes as JSON, got 16385");
  EXPECT_EQ(verdict("search", {{"memory", "m"}, {"query", text(query_bytes_max)}}), "fine");
  EXPECT_THAT(verdict("search", {{"memory", "m"}, {"query", text(query_bytes_max + 1)}}), StartsWith("query: "));
  EXPECT_EQ(verdict("memories.get", {{"memory", text(200)}}), "fine");
  EXPECT_THAT(verdict("memories.get", {{"memory", text(201)}}), StartsWith("memory: "));

  Json many = {{"memory", "m"}, {"turns", Json::array()}};
  for (size_t i = 0; i <= append_turns_max; ++i) many["turns"].push_back({{"role", "user"}, {"content", "x"}});
  EXPECT_EQ(verdict("append", many), "turns: expected an array of 1 to 10000, got an array of 10001");
  many["turns"].erase(0);
  EXPECT_EQ(verdict("append", many), "fine");
}

TEST(Protocol, MemoryNamesAreCheckedPartByPart) {
  for (const std::string_view name : {"a", "A-Z.0_9", "user/ana/2026", "...", "a/..b", "-", "a.b/c"})
    EXPECT_TRUE(is_memory_name(name)) << name;
  for (const std::string_view name : {"", "/", "/a", "a/", "a//b", ".", "..", "a/.", "../a", "a/../b", "a b", "a\\b",
                                      "a\n", "caf\xc3\xa9", "a:b", "~"})
    EXPECT_FALSE(is_memory_name(name)) << name;
  EXPECT_FALSE(is_memory_name(std::string_view("a\0b", 3)));
}

TEST(Protocol, AppendIsReadWhole) {
  Json params = parsed(
      R"({"memory":"a/b","turns":[{"role":"assistant","content":"a\u0000b <|recall|>","name":"Ana","time":"1970-01-01T00:00:01Z",)"
      R"("metadata":{"z":1,"a":"x"}},{"role":"user","content":"two"}],"operation_id":"op","wait":"searchable"})");
  const auto request = append_request(params);
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->memory, "a/b");
  EXPECT_EQ(request->operation_id, "op");
  EXPECT_TRUE(request->wait_searchable);
  ASSERT_EQ(request->turns.size(), 2u);
  const Turn& turn = request->turns[0].turn;
  EXPECT_EQ(turn.role, Role::assistant);
  EXPECT_EQ(turn.content, std::string("a\0b <|recall|>", 14));
  EXPECT_EQ(turn.name, "Ana");
  EXPECT_TRUE(request->turns[0].has_time);
  EXPECT_EQ(turn.time_us, 1'000'000);
  EXPECT_EQ(turn.metadata, R"({"a":"x","z":1})");
  EXPECT_FALSE(request->turns[1].has_time);
  EXPECT_FALSE(request->turns[1].turn.name);
  EXPECT_EQ(request->turns[1].turn.metadata, "");
}

TEST(Protocol, SearchIsReadWholeAndHasDefaults) {
  Json params = parsed(R"({"memory":"m","query":"who?","limit":3,"max_tokens":500,"min_score":0.25,"explain":true})");
  const auto request = search_request(params);
  ASSERT_TRUE(request);
  EXPECT_EQ(request->query, "who?");
  EXPECT_EQ(request->limit, 3u);
  EXPECT_EQ(request->max_tokens, 500u);
  EXPECT_EQ(request->min_score, 0.25);
  EXPECT_TRUE(request->explain);
  params = parsed(R"({"memory":"m","query":"who?"})");
  const auto plain = search_request(params);
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->limit, 8u);
  EXPECT_FALSE(plain->max_tokens);
  EXPECT_FALSE(plain->min_score);
  EXPECT_FALSE(plain->explain);
}

TEST(Protocol, ASearchNamesOneMemorySeveralOrTheBeginningOfNames) {
  const auto read = [](const std::string& memory) {
    Json params = parsed(R"({"query":"who?","expand":"chunks","memory":)" + memory + "}");
    return search_request(params).value();
  };
  EXPECT_EQ(read(R"("a")").memory, "a");
  EXPECT_FALSE(read(R"("a")").together());
  EXPECT_EQ(read(R"("a")").expand, Expand::chunks);
  EXPECT_EQ(read(R"(["a"])").memories, std::vector<std::string>{"a"});
  EXPECT_TRUE(read(R"(["a"])").together());
  EXPECT_EQ(read(R"("a/*")").prefix, "a/");
  EXPECT_TRUE(read(R"("*")").together());
  Json::array_t many;
  for (size_t i = 0; i < search_memories_max; ++i) many.emplace_back("m" + std::to_string(i));
  EXPECT_EQ(verdict("search", {{"memory", many}, {"query", "x"}}), "fine");
  many.emplace_back("one more");
  EXPECT_EQ(verdict("search", {{"memory", many}, {"query", "x"}}),
            "memory: expected an array of 1 to 64, got an array of 65");
}

TEST(Protocol, ACursorGoesOnWhereThePageEnded) {
  const auto next = [](std::string reply) {
    return Json{{"memory", "m"}, {"cursor", Json::parse(reply).at("next_cursor")}};
  };
  Json turns = next(json_text(TurnsListReply{.turns = {}, .next_first = 12}));
  EXPECT_EQ(turns_list_request(turns)->first, 12u);
  Json chunks = next(json_text(ChunksListReply{.chunks = {}, .next_first = 7}));
  EXPECT_EQ(chunks_list_request(chunks)->first, 7u);
  Json memories = next(json_text(MemoriesListReply{.memories = {}, .next_after = "a/b"}));
  memories.erase("memory");
  EXPECT_EQ(memories_list_request(memories)->after, "a/b");
  EXPECT_FALSE(Json::parse(json_text(TurnsListReply{})).contains("next_cursor"));
}

TEST(Protocol, ATurnThatGoesOnBeyondAResultIsToldToBeCut) {
  const auto shown = [](bool before, bool after) {
    SearchReply reply;
    reply.results.resize(1);
    reply.results[0].passage.turns = {{.turn = 1, .name = {}, .cut_before = before, .cut_after = after}};
    return json_text(reply);
  };
  EXPECT_THAT(shown(false, false), Not(HasSubstr("cut")));
  EXPECT_THAT(shown(true, false), HasSubstr(R"("time":"1970-01-01T00:00:00Z","cut":"before"}])"));
  EXPECT_THAT(shown(false, true), HasSubstr(R"("cut":"after"}])"));
  EXPECT_THAT(shown(true, true), HasSubstr(R"("cut":"both"}])"));
}

TEST(Protocol, RepliesAreWrittenInTheOrderOfTheirDescription) {
  EXPECT_EQ(json_text(AppendReply{"a/b", 3, 4, 17, {}}),
            R"({"memory":"a/b","first_turn":3,"last_turn":4,"tokens":17,"searchable_through":null})");
  EXPECT_EQ(json_text(AppendReply{"a/b", 3, 4, 17, 9}),
            R"({"memory":"a/b","first_turn":3,"last_turn":4,"tokens":17,"searchable_through":9})");

  const Passage passage{.first_token = 64,
                        .end_token = 128,
                        .text = "User: a\nAna: b\n",
                        .turns = {{1, Role::user, {}, 0}, {2, Role::assistant, "Ana", 1'500'000}}};
  SearchReply search;
  search.results = {{.chunk = 1, .score = 0.5, .passage = passage, .why = {}},
                    {.chunk = 0, .score = 0.25, .passage = passage, .why = {}}};
  SearchReply::Why why;
  why.landmark_score = 0.25;
  why.bm25 = 1.5;
  why.context_bm25 = 2;
  why.lexical_rank = 7;
  why.token_score = 3.5;
  why.features = Features{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  why.took = RankingTimes{.query_ms = 1,
                          .encode_ms = 8,
                          .landmarks_ms = 2,
                          .words_ms = 3,
                          .words_beside_ms = 7,
                          .meaning_ms = 6,
                          .fetch_ms = 4,
                          .tokens_ms = 5};
  why.rank = 2;
  why.stored = true;
  why.matches = {{"ide", 70, 3, 0.5, {}}};
  why.parts = {{"bm25", 1.5, 3, 6}};
  why.layer = 4;
  why.pairs = {{" who", "", 70, 2, 0.25, "<0x9E>"}};
  why.tokens = {{70, 5, "ide", 0.125}};
  search.results[1].why = why;
  search.searchable_through = 9;
  search.took_ms = 1.5;
  const std::string body =
      R"("text":"User: a\nAna: b\n","tokens":[64,128],"turns":[{"turn":1,"role":"user","time":"1970-01-01T00:00:00Z"},)"
      R"({"turn":2,"role":"assistant","name":"Ana","time":"1970-01-01T00:00:01.5Z"}])";
  EXPECT_EQ(
      json_text(search),
      R"({"results":[{"chunk":1,"score":0.5,)" + body + R"(},{"chunk":0,"score":0.25,)" + body +
          R"(,"why":{"rank":2,"stored":true,"landmark_score":0.25,"bm25":1.5,"context_bm25":2.0,"lexical_rank":7,)"
          R"("token_score":3.5,"features":{"bm25":0.0,"context_bm25":1.0,"landmark":2.0,"tokens":3.0,"near_landmark":4.0,)"
          R"("near_tokens":5.0,"landmark_top":6.0,"lexical_top":7.0,"meaning":8.0,"topic":9.0,)"
          R"("best_bm25":10.0,"best_tokens":11.0,"best_landmark":12.0},"took":{"query_ms":1.0,"encode_ms":8.0,"landmarks_ms":2.0,)"
          R"("words_ms":3.0,"words_beside_ms":7.0,"meaning_ms":6.0,"fetch_ms":4.0,"tokens_ms":5.0},)"
          R"("parts":[{"part":"bm25","score":1.5,"rank":3,"best":6.0}],)"
          R"("matches":[{"token":70,"text":"ide","head":3,"layer":4,"weight":0.5}],)"
          R"("pairs":[{"query":" who","token":70,"text":"","piece":"<0x9E>","head":2,"layer":4,"weight":0.25}],)"
          R"("tokens":[{"token":70,"byte":5,"text":"ide","weight":0.125}]}}],)"
          R"("searchable_through":9,"took_ms":1.5})");
  search.results.pop_back();
  search.results[0].memory = "b";
  search.results[0].chunks = {1, 2};
  search.results[0].duplicates = 3;
  search.memories = {{"a", {}, {}}, {"b", 9, {{4, 5, "lost"}}}};
  EXPECT_EQ(json_text(search), R"({"results":[{"memory":"b","chunk":1,"chunks":[1,2],"score":0.5,)" + body +
                                   R"(,"duplicates":3}],"searchable_through":{"a":null,"b":9},)"
                                   R"("unreadable":[{"memory":"b","chunks":[4,5],"message":"lost"}],"took_ms":1.5})");

  MemoryInfo info;
  info.name = "a";
  info.turns = 2;
  info.next_turn = 5;
  info.tokens = 130;
  info.encoded_chunks = 1;
  info.content_bytes = 400;
  const std::string memory =
      R"({"memory":"a","turns":2,"next_turn":5,"tokens":130,"chunks":2,"encoded_chunks":1,"content_bytes":400,)"
      R"("created":"1970-01-01T00:00:00Z","updated":"1970-01-01T00:00:00Z")";
  const Receipt nothing{.memory = "a", .complete = true, .time_us = 1'000'000};
  EXPECT_EQ(
      json_text(DeleteReply{info, nothing}),
      memory +
          R"(,"receipt":{"memory":"a","turns":[],"turn_count":0,"tokens":0,"content_bytes":0,"chunks":0,"files":[],)"
          R"("complete":true,"time":"1970-01-01T00:00:01Z"}})");
  EXPECT_EQ(json_text(MemoryView{info, 1}), memory + R"(,"searchable_through":1})");
  EXPECT_EQ(json_text(MemoriesListReply{{{info, {}}}, "a"}),
            R"({"memories":[)" + memory + R"(,"searchable_through":null}],"next_cursor":"m:a"})");

  const Turn turn{
      .role = Role::tool, .name = "grep", .content = std::string("\0\"\n", 3), .time_us = 0, .metadata = R"({"n":1})"};
  EXPECT_EQ(json_text(TurnsListReply{{{7, turn, 100, 5}}, {}}),
            R"({"turns":[{"turn":7,"role":"tool","name":"grep","content":"\u0000\"\n","time":"1970-01-01T00:00:00Z",)"
            R"("metadata":{"n":1},"tokens":[100,105]}]})");
  EXPECT_EQ(json_text(HealthReply{true, 3, ""}), R"({"ready":true,"waiting_chunks":3})");
  EXPECT_EQ(json_text(HealthReply{true, 3, "disk"}), R"({"ready":true,"waiting_chunks":3,"problem":"disk"})");
  EXPECT_EQ(json_text(VersionReply{"0.1.0", 1, "ab"}), R"({"version":"0.1.0","protocol":1,"model_hash":"ab"})");
}

TEST(Protocol, ChunksShowWhereTheirRecordLies) {
  ChunkView view;
  view.chunk = 2;
  view.passage = {
      .first_token = 128, .end_token = 192, .text = "t", .turns = {{4, Role::user, {}, 0}, {6, Role::user, {}, 0}}};
  view.entry.segment = 1;
  view.entry.slot = 5;
  view.entry.crc32c = 0xab;
  view.entry.generation = 3;
  view.landmark_norm = 8;
  const std::string chunk =
      R"({"chunk":2,"text":"t","tokens":[128,192],"turns":[4,6],"kv":{"segment":1,"slot":5,"crc32c":"000000ab"},)"
      R"("landmark_norm":8.0,"generation":3)";
  EXPECT_EQ(json_text(ChunksListReply{{view}, {}}), R"({"chunks":[)" + chunk + "}]}");
  EXPECT_EQ(json_text(ChunkDetail{view, {9, 10}, {"t", ""}, {"▁t", "<0x9E>"}, 16384}),
            chunk + R"(,"token_ids":[9,10],"token_texts":["t",""],"token_pieces":["▁t","<0x9E>"],"kv_bytes":16384})");
}

TEST(Protocol, ForgetReadsNumbersAndRanges) {
  Json params = parsed(R"({"memory":"m","turns":[7,[3,5],[9007199254740992,9007199254740992]]})");
  const auto request = forget_request(params);
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->turns, (std::vector<TurnRange>{{7, 7}, {3, 5}, {1ULL << 53, 1ULL << 53}}));
  EXPECT_FALSE(request->filter);
  EXPECT_FALSE(request->dry_run);
  EXPECT_TRUE(request->wait);
  params = parsed(R"({"memory":"m","filter":{"role":"tool"},"dry_run":true,"wait":"none"})");
  const auto filtered = forget_request(params);
  ASSERT_TRUE(filtered) << filtered.error().message;
  EXPECT_TRUE(filtered->turns.empty());
  ASSERT_TRUE(filtered->filter);
  EXPECT_TRUE(
      filtered->filter->matches(0, Turn{.role = Role::tool, .name = {}, .content = "x", .time_us = 0, .metadata = ""}));
  EXPECT_TRUE(filtered->dry_run);
  EXPECT_FALSE(filtered->wait);
}

TEST(Protocol, CountsOfTheUpkeepMethodsAreBounded) {
  Json forget = {{"memory", "m"}, {"turns", Json::array()}};
  for (size_t i = 0; i < forget_ranges_max; ++i) forget["turns"].push_back(i);
  EXPECT_EQ(verdict("forget", forget), "fine");
  forget["turns"].push_back(0);
  EXPECT_EQ(verdict("forget", forget), "turns: expected an array of 1 to 10000, got an array of 10001");

  Json import = {{"memory", "m"}, {"records", Json::array()}};
  for (size_t i = 0; i < import_records_max; ++i)
    import["records"].push_back({{"type", "end"}, {"turns", 0U}, { "chunks", 0U }});
  EXPECT_EQ(verdict("import", import), "fine");
  import["records"].push_back(0);
  EXPECT_EQ(verdict("import", import), "records: expected an array of 1 to 10000, got an array of 10001");

  EXPECT_EQ(verdict("backup", {{"directory", "/" + std::string(path_bytes_max - 1, 'x')}}), "fine");
  EXPECT_THAT(verdict("backup", {{"directory", "/" + std::string(path_bytes_max, 'x')}}), StartsWith("directory: "));
  EXPECT_THAT(verdict("reencode", {{"model", std::string("/a\0b", 4)}}), StartsWith("model: "));
}

TEST(Protocol, ReceiptsNameWhatWasRemovedAndFromWhere) {
  Receipt receipt{.memory = "m",
                  .turns = {{1, 1}, {4, 9}},
                  .turn_count = 7,
                  .tokens = 300,
                  .content_bytes = 1200,
                  .chunks = 5,
                  .files = {{"kv/000000.seg", 5, 81920}, {"catalog", 12, 4000}},
                  .dry_run = false,
                  .complete = true,
                  .time_us = 1'500'000,
                  .job = {}};
  const std::string removed =
      R"({"memory":"m","turns":[[1,1],[4,9]],"turn_count":7,"tokens":300,"content_bytes":1200,"chunks":5,"files":[)"
      R"({"file":"kv/000000.seg","records":5,"bytes":81920},{"file":"catalog","records":12,"bytes":4000}],"complete":)";
  EXPECT_EQ(json_text(receipt), removed + R"(true,"time":"1970-01-01T00:00:01.5Z"})");
  receipt.complete = false;
  receipt.job = 3;
  EXPECT_EQ(json_text(receipt), removed + R"(false,"time":"1970-01-01T00:00:01.5Z","job":3})");
  receipt.job = {};
  receipt.dry_run = true;
  EXPECT_EQ(json_text(receipt), removed + R"(false,"time":"1970-01-01T00:00:01.5Z","dry_run":true})");
}

TEST(Protocol, VerifyBackupAndJobsAreWrittenInTheOrderOfTheirDescription) {
  VerifyReply verify{.memories = 2,
                     .turns = 9,
                     .chunks = 4,
                     .states = 1,
                     .bytes = 70'000,
                     .problems = {{1, "m", "kv", 3, 3, "checksum mismatch", true, false}, {0, "", "table", 0, 0, "x"}},
                     .problem_count = 2,
                     .repaired_count = 0,
                     .job = {}};
  const std::string found =
      R"({"memories":2,"turns":9,"chunks":4,"states":1,"bytes":70000,"problems":[)"
      R"({"memory":"m","part":"kv","first":3,"last":3,"message":"checksum mismatch","repairable":true,"repaired":false},)"
      R"({"part":"table","first":0,"last":0,"message":"x","repairable":false,"repaired":false}],)"
      R"("problem_count":2,"repaired_count":0)";
  EXPECT_EQ(json_text(verify), found + "}");
  verify.job = 8;
  EXPECT_EQ(json_text(verify), found + R"(,"job":8})");
  verify.unindexed_chunks = 3;
  verify.unindexed_turns = 5;
  EXPECT_EQ(json_text(verify), found + R"(,"unindexed_chunks":3,"unindexed_turns":5,"job":8})");
  EXPECT_EQ(json_text(BackupReply{"/b", 3, 500, 400, 1.5}),
            R"({"directory":"/b","files":3,"bytes":500,"shared_bytes":400,"took_ms":1.5})");

  const JobView job{4, "reencode", "", "running", 7, 90, 0, "restart with --model /m"};
  const std::string view =
      R"({"job":4,"kind":"reencode","state":"running","done":7,"total":90,"started":"1970-01-01T00:00:00Z",)"
      R"("message":"restart with --model /m"})";
  EXPECT_EQ(json_text(job), view);
  StatsReply stats;
  stats.jobs = {job, {5, "forget", "a/b", "done", 2, 2, 0, ""}};
  EXPECT_THAT(json_text(stats),
              HasSubstr(R"("jobs":[)" + view +
                        R"(,{"job":5,"kind":"forget","memory":"a/b","state":"done","done":2,"total":2,)"
                        R"("started":"1970-01-01T00:00:00Z"}]})"));
}

TEST(Protocol, TheFiguresOfTheGpuAreThereWhereItComputes) {
  StatsReply stats;
  stats.device = "cpu";
  EXPECT_THAT(json_text(stats), Not(HasSubstr("gpu")));
  stats.device = "cuda";
  stats.gpu = GpuStats{.name = "NVIDIA H100",
                       .usage = {.budget_bytes = 1,
                                 .weights_bytes = 2,
                                 .states_bytes = 3,
                                 .landmarks_bytes = 4,
                                 .cache_bytes = 5,
                                 .workspace_bytes = 6,
                                 .host_landmarks_bytes = 7},
                       .cache_slots = 8,
                       .cache_hits = 9,
                       .cache_misses = 10,
                       .chunks_read_bytes = 11};
  EXPECT_THAT(
      json_text(stats),
      AllOf(HasSubstr(R"("device":"cuda",)"),
            HasSubstr(R"("gpu":{"name":"NVIDIA H100","budget_bytes":1,"weights_bytes":2,"states_bytes":3,)"
                      R"("landmarks_bytes":4,"cache_bytes":5,"workspace_bytes":6,"host_landmarks_bytes":7,)"
                      R"("cache_slots":8,"cache_hits":9,"cache_misses":10,"chunks_read_bytes":11},"jobs":[]})")));
}

// One record of each type, with bytes and texts that JSON cannot hold as they are.
std::vector<ExportRecord> every_record() {
  Hash128 digest{};
  digest[0] = std::byte{0xab};
  return {ExportHeader{"a/b", 1'000'001, 2'000'000, 9, "00112233445566778899aabbccddeeff"},
          ExportHeader{"a/b", 0, 0, 0, ""},
          StoredTurn{.turn = 7,
                     .value = {.role = Role::tool,
                               .name = "grep",
                               .content = std::string("\0\"\n\x7f", 4),
                               .time_us = 123'456,
                               .metadata = R"({"a":1.5,"b":null})"}},
          ExportOperation{"load-1", digest, 3, 7, 55},
          ExportChunk{2, std::string("\0\xff", 2), std::string(100, '\xfe')},
          ExportState{64, std::string("s\0s", 3)},
          ExportEnd{8, 1}};
}

TEST(Protocol, ExportedRecordsAreWrittenAsTheirDescriptionSays) {
  const Json written = Json::parse(json_text(ExportReply{every_record(), {}}));
  EXPECT_FALSE(written.contains("next_cursor"));
  const std::vector<std::string> expected{
      R"({"type":"memory","format":1,"memory":"a/b","created":"1970-01-01T00:00:01.000001Z","updated":"1970-01-01T00:00:02Z","next_turn":9,"model_hash":"00112233445566778899aabbccddeeff"})",
      R"({"type":"memory","format":1,"memory":"a/b","created":"1970-01-01T00:00:00Z","updated":"1970-01-01T00:00:00Z","next_turn":0})",
      R"({"type":"turn","turn":7,"role":"tool","name":"grep","content":"\u0000\"\n\u007f","time":"1970-01-01T00:00:00.123456Z","metadata":{"a":1.5,"b":null}})",
      R"({"type":"operation","operation_id":"load-1","digest":"ab000000000000000000000000000000","first_turn":3,"last_turn":7,"tokens":55})",
      R"({"type":"chunk","chunk":2,"landmark":"AP8=","kv":")" + std::string() +
          Json::parse(json_text(ExportReply{every_record(), {}}))["records"][4]["kv"].get<std::string>() + "\"}",
      R"({"type":"state","chunks":64,"state":"cwBz"})",
      R"({"type":"end","turns":8,"chunks":1})"};
  ASSERT_EQ(written["records"].size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(written["records"][i], Json::parse(expected[i])) << i;
  EXPECT_THAT(json_text(ExportReply{{ExportEnd{8, 1}}, {}}), StartsWith(R"({"records":[{"type":"end","turns":8)"));
}

TEST(Protocol, WhatExportWritesImportReadsBack) {
  const auto text = [](std::vector<ExportRecord> records) { return json_text(ExportReply{std::move(records), {}}); };
  const std::string written = text(every_record());
  Json params = {{"memory", "m"}, {"records", parsed(written)["records"]}};
  auto request = import_request(params);
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->memory, "m");
  ASSERT_EQ(request->records.size(), every_record().size());
  EXPECT_EQ(std::get<StoredTurn>(request->records[2]).value.content, std::string("\0\"\n\x7f", 4));
  EXPECT_EQ(std::get<ExportChunk>(request->records[4]).kv, std::string(100, '\xfe'));
  EXPECT_EQ(text(std::move(request->records)), written);
}

TEST(Protocol, AnExportGoesOnAtItsCursorWhateverBytesTheEngineChose) {
  const std::string after("o\0\xff/", 4);
  const Json reply = Json::parse(json_text(ExportReply{{}, after}));
  Json params = {{"memory", "m"}, {"cursor", reply["next_cursor"]}, {"encodings", true}};
  const auto request = export_request(params);
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->after, after);
  EXPECT_TRUE(request->encodings);
  EXPECT_EQ(request->limit, 1'000u);
}

TEST(Protocol, ImportTellsWhatItAdded) {
  ImportReply reply;
  reply.memory.name = "m";
  reply.imported = 3;
  reply.present = 2;
  EXPECT_THAT(json_text(reply), StartsWith(R"({"memory":"m","turns":0)"));
  EXPECT_THAT(json_text(reply), HasSubstr(R"(,"imported":3,"present":2,"ignored":0})"));
}

}  // namespace
}  // namespace recalld
