#include "daemon/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "daemon/encoder.h"
#include "memstore/catalog.h"
#include "memstore/kv_file.h"
#include "memstore/rows.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/fake_gpu.h"

namespace recalld {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override { engine_.open(); }

  Expected<SearchReply> search(const std::string& memory, const std::string& query, size_t limit = 8,
                               SearchMode mode = SearchMode::hybrid) {
    return engine_.try_search(memory, query, limit, mode);
  }

  TempDir directory_;
  EngineDriver engine_{directory_.path() / "data"};
};

TEST(EngineOpen, RefusesACheckpointWhoseTokenizerIsMissingOrAnothers) {
  const TempDir directory;
  const std::filesystem::path model = directory.path() / "model";
  std::filesystem::copy(variant_checkpoint(), model);
  const auto refusal = [&] {
    EngineOptions options;
    options.data = directory.path() / "data";
    options.model = model;
    const auto engine = Engine::open(std::move(options));
    return engine ? Error{ErrorKind::internal, "opened"} : engine.error();
  };
  EXPECT_EQ(refusal().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refusal().message, HasSubstr("names no SentencePiece tokenizer"));

  std::filesystem::copy(starter_checkpoint() / "tokenizer.model", model);
  std::stringstream text;
  text << std::ifstream(model / "config.json").rdbuf();
  std::string config = text.str();
  const std::string none = R"("tokenizer": "none")";
  ASSERT_NE(config.find(none), std::string::npos);
  config.replace(config.find(none), none.size(),
                 R"("tokenizer": "sentencepiece", "recall_token_id": 3, "newline_token_id": 6)");
  std::ofstream(model / "config.json") << config;
  EXPECT_EQ(refusal().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refusal().message, HasSubstr("8192 pieces"));
}

// An engine that is told what to compute on, what it logs, and how often it asked for the GPU.
class EngineDevice : public ::testing::Test {
 protected:
  EngineDevice() { spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink_)); }
  ~EngineDevice() override { spdlog::set_default_logger(logger_); }

  // `error`: what opening the GPU says; none: it opens.
  Expected<std::unique_ptr<Engine>> open(Device device, std::optional<Error> error = {}) {
    EngineOptions options;
    options.data = directory_.path() / "data";
    options.model = default_checkpoint();
    options.device = device;
    options.gpu_budget_bytes = uint64_t{64} << 20;
    options.open_gpu = [this, error](const GpuOptions& gpu) -> Expected<std::unique_ptr<Gpu>> {
      ++asked_;
      EXPECT_EQ(gpu.model, default_checkpoint());
      EXPECT_EQ(gpu.budget_bytes, uint64_t{64} << 20);
      EXPECT_EQ(gpu.host_landmarks_bytes_max, EngineOptions().memory_budget_bytes / 8);
      if (error) return std::unexpected(*error);
      return std::make_unique<FakeGpu>("NVIDIA Fake", &open_);
    };
    return Engine::open(std::move(options));
  }
  static StatsReply stats(Engine& engine) {
    return must(answer<StatsReply>([&](auto done) { engine.stats(std::move(done)); }));
  }

  TempDir directory_;
  std::shared_ptr<spdlog::logger> logger_ = spdlog::default_logger();
  std::ostringstream log_;
  std::shared_ptr<spdlog::sinks::ostream_sink_mt> sink_ = std::make_shared<spdlog::sinks::ostream_sink_mt>(log_);
  int asked_ = 0;
  std::atomic<int> open_ = 0;
};

TEST_F(EngineDevice, TheCpuIsTakenWithoutALookAtTheGpu) {
  const auto engine = must(open(Device::cpu));
  EXPECT_EQ(asked_, 0);
  EXPECT_EQ(engine->device(), "cpu");
  EXPECT_EQ(stats(*engine).device, "cpu");
  EXPECT_FALSE(stats(*engine).gpu);
}

TEST_F(EngineDevice, AutomaticTakesAGpuThatOpensAndClosesItWithTheEngine) {
  auto engine = must(open(Device::automatic));
  EXPECT_EQ(engine->device(), "cuda (NVIDIA Fake)");
  const StatsReply reply = stats(*engine);
  EXPECT_EQ(reply.device, "cuda");
  ASSERT_TRUE(reply.gpu);
  EXPECT_EQ(reply.gpu->name, "NVIDIA Fake");
  EXPECT_EQ(reply.gpu->usage.weights_bytes, 200u);
  EXPECT_EQ(reply.gpu->cache_slots, 8u);
  EXPECT_EQ(open_, 1);
  engine.reset();
  EXPECT_EQ(open_, 0);
}

TEST_F(EngineDevice, AutomaticGoesOnWithTheCpuAndSaysWhy) {
  const auto engine = must(open(Device::automatic, Error{ErrorKind::not_found, "there is no NVIDIA driver"}));
  EXPECT_EQ(asked_, 1);
  EXPECT_EQ(engine->device(), "cpu");
  EXPECT_EQ(stats(*engine).device, "cpu");
  EXPECT_THAT(log_.str(), HasSubstr("[info] the CPU computes: there is no NVIDIA driver"));
}

TEST_F(EngineDevice, AutomaticWarnsOfAGpuThatIsThereButOfNoUse) {
  for (const ErrorKind kind : {ErrorKind::device, ErrorKind::invalid_request}) {
    const auto engine = must(open(Device::automatic, Error{kind, "the driver is old"}));
    EXPECT_EQ(engine->device(), "cpu");
    EXPECT_THAT(log_.str(), HasSubstr("[warning] the CPU computes: the driver is old"));
    log_.str("");
  }
}

TEST_F(EngineDevice, CudaOpensTheGpuOrNothing) {
  for (const ErrorKind kind : {ErrorKind::not_found, ErrorKind::device}) {
    const auto refused = open(Device::cuda, Error{kind, "there is no GPU"});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, kind);
    EXPECT_EQ(refused.error().message, "there is no GPU; --device cpu does without a GPU");
  }
  EXPECT_FALSE(std::filesystem::exists(directory_.path() / "data"));  // no store is made for nothing
  EXPECT_EQ(must(open(Device::cuda))->device(), "cuda (NVIDIA Fake)");
}

TEST_F(EngineTest, ASearchEndsTheSegmentThatIsBeingEncoded) {
  engine_.append("m", harbour_log(0, 5), true);
  engine_.append("backlog", harbour_log(0, 4'000));
  // Without searches, segments end at multiples of segment_chunks.
  bool ended = false;
  for (MemoryInfo backlog = engine_.info("backlog"); !ended && backlog.waiting_chunks() > Encoder::segment_chunks;
       backlog = engine_.info("backlog")) {
    ASSERT_TRUE(search("m", question));
    ended = backlog.encoded_chunks % Encoder::segment_chunks != 0;
  }
  EXPECT_TRUE(ended);
}

TEST_F(EngineTest, FindsAFactAmongManyTurnsAndSaysWhereItStands) {
  auto log = harbour_log(0, 200);
  log[70] = fact;
  const AppendReply appended = engine_.append("harbour", log, true);
  EXPECT_EQ(appended.last_turn, 199u);
  EXPECT_EQ(appended.searchable_through, 199u);

  const auto found = search("harbour", question);
  ASSERT_TRUE(found) << found.error().message;
  ASSERT_EQ(found->results.size(), 8u);
  EXPECT_THAT(found->results[0].passage.text, HasSubstr("60417"));
  bool names_turn = false;
  for (const auto& source : found->results[0].passage.turns) names_turn |= source.turn == 70;
  EXPECT_TRUE(names_turn);
  EXPECT_TRUE(found->results[0].why->stored);
  for (size_t i = 1; i < found->results.size(); ++i) EXPECT_GE(found->results[i - 1].score, found->results[i].score);
}

TEST_F(EngineTest, RanksByLandmarksByWordsOrByBoth) {
  auto log = harbour_log(0, 300);
  log[70] = fact;
  log[90] = "Parcel QX7-9 weighs 31.5 kg.";
  engine_.append("harbour", log, true);
  engine_.append("harbour", {"The ketch Walrus needs a new jib."});  // in the open chunk
  const auto by_words = must(search("harbour", "Which parcel weighs 31.5?", 8, SearchMode::lexical));
  ASSERT_FALSE(by_words.results.empty());
  EXPECT_THAT(by_words.results[0].passage.text, HasSubstr("QX7-9"));
  for (size_t i = 0; i < by_words.results.size(); ++i) {
    const double score = by_words.results[i].score;
    const auto& why = by_words.results[i].why;
    EXPECT_FLOAT_EQ(score, *why->bm25 + *why->context_bm25);
    EXPECT_EQ(why->lexical_rank, i + 1);
    EXPECT_FALSE(why->landmark_score || why->landmark_rank);
    EXPECT_THAT(why->matches, ::testing::IsEmpty());
  }
  EXPECT_THAT(must(search("harbour", "jibs of the Walrus", 1, SearchMode::lexical)).results[0].passage.text,
              HasSubstr("ketch"));
  EXPECT_THAT(must(search("harbour", "zeppelin", 8, SearchMode::lexical)).results, ::testing::IsEmpty());
  EXPECT_EQ(search("nobody", "zeppelin", 8, SearchMode::lexical).error().kind, ErrorKind::not_found);

  const auto by_landmark = must(search("harbour", question, 8, SearchMode::landmark));
  for (size_t i = 0; i < by_landmark.results.size(); ++i) {
    const auto& why = *by_landmark.results[i].why;
    EXPECT_EQ(by_landmark.results[i].score, *why.landmark_score);
    EXPECT_EQ(why.landmark_rank, i + 1);
    EXPECT_FALSE(why.bm25 || why.lexical_rank);
  }

  const auto by_both = must(search("harbour", "Which parcel weighs 31.5?", 128));
  EXPECT_EQ(by_both.results[0].chunk, by_words.results[0].chunk);
  EXPECT_EQ(by_both.unindexed_chunks, 0u);
  size_t in_both = 0;
  for (const auto& result : by_both.results) {
    const auto& why = *result.why;
    EXPECT_TRUE(why.landmark_score && why.bm25 && why.context_bm25);
    EXPECT_TRUE(why.landmark_rank || why.lexical_rank);
    in_both += why.landmark_rank && why.lexical_rank;
    for (const auto& of_words : by_words.results)
      EXPECT_TRUE(of_words.chunk != result.chunk || *why.bm25 == *of_words.why->bm25);
  }
  EXPECT_GT(in_both, 0u);
  const auto all = must(search("harbour", "Which parcel weighs 31.5?", 128, SearchMode::landmark));
  for (const auto& result : by_both.results) {
    for (const auto& other : all.results)
      EXPECT_TRUE(other.chunk != result.chunk || *result.why->landmark_score == *other.why->landmark_score);
  }
}

TEST_F(EngineTest, IndexesTheWordsOfWhatAnEarlierVersionEncoded) {
  auto log = harbour_log(0, 200);
  log[70] = fact;
  engine_.append("harbour", log, true);
  engine_.append("small", {"Runa sails to Bergen on Friday."}, true);
  const auto before = must(search("harbour", question, 8, SearchMode::lexical));
  engine_.close();
  {
    const auto catalog = must(Catalog::open({directory_.path() / "data" / "catalog", 8 << 20, 4 << 20}));
    Catalog::Batch rows(*catalog);
    rows.remove_range(Family::postings, row_key(0), row_key(UINT64_MAX));
    must(catalog->write(rows));
    ASSERT_FALSE(must(catalog->cursor(Family::postings, "").first()));
  }
  engine_.open();
  // It goes on behind the replies, which tell how much is left.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (must(search("harbour", question, 8, SearchMode::lexical)).unindexed_chunks > 0) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const auto after = must(search("harbour", question, 8, SearchMode::lexical));
  ASSERT_EQ(after.results.size(), before.results.size());
  for (size_t i = 0; i < after.results.size(); ++i) {
    EXPECT_EQ(after.results[i].chunk, before.results[i].chunk);
    EXPECT_EQ(after.results[i].score, before.results[i].score);
  }
}

TEST_F(EngineTest, AHybridSearchScoresTheBestChunksByTheirTokensToo) {
  auto log = harbour_log(0, 300);
  log[70] = fact;
  engine_.append("harbour", log, true);
  engine_.append("harbour", {"The ketch Walrus needs a new jib."});  // in the open chunk
  const auto found = must(search("harbour", question, 128));
  EXPECT_THAT(found.results[0].passage.text, HasSubstr("60417"));
  for (const auto& result : found.results) {
    const auto& why = *result.why;
    const bool deep =
        why.landmark_rank.value_or(1000) <= Fusion::depth || why.lexical_rank.value_or(1000) <= Fusion::depth;
    EXPECT_EQ(why.token_score.has_value(), deep) << result.chunk;
    EXPECT_TRUE(result.score >= 0 && result.score <= 1);
  }
  const auto newest = must(search("harbour", "new jib of the ketch Walrus", 8));
  EXPECT_FALSE(newest.results[0].why->stored);
  EXPECT_TRUE(newest.results[0].why->token_score);

  // What is asked for does not change what a chunk gets.
  const auto few = must(search("harbour", question, 3));
  for (size_t i = 0; i < few.results.size(); ++i) {
    EXPECT_EQ(few.results[i].chunk, found.results[i].chunk);
    EXPECT_DOUBLE_EQ(few.results[i].score, found.results[i].score);
  }
  EXPECT_FALSE(must(search("harbour", question, 1, SearchMode::landmark)).results[0].why->token_score);
}

TEST_F(EngineTest, AHybridSearchComparesMeaningWhereTheCheckpointHasIt) {
  auto log = harbour_log(0, 200);
  log[70] = fact;
  engine_.append("harbour", log, true);
  for (const auto& result : must(search("harbour", question, 4)).results) EXPECT_EQ(result.why->parts.size(), 4u);

  TempDir with;
  copy_starter_with_meaning(with.path());
  engine_.close();
  engine_.use_model(with.path());
  engine_.open();
  engine_.append("harbour", {"The ketch Walrus needs a new jib."});  // in the open chunk
  const auto part = [](const SearchReply::Result& result, std::string_view name) {
    const auto& parts = result.why->parts;
    const auto found = std::ranges::find(parts, name, &SearchReply::Why::Part::name);
    return found == parts.end() ? -2 : found->score;
  };
  const auto found = must(search("harbour", "Which number opens the lamp room?", 128));
  size_t deep = 0;
  for (const auto& result : found.results) {
    const auto& why = *result.why;
    const bool scored = part(result, "meaning") >= 0;
    EXPECT_EQ(scored, why.token_score.has_value()) << result.chunk;
    EXPECT_LE(part(result, "meaning"), 1.0001);
    deep += scored;
  }
  EXPECT_GT(deep, 1u);
  const auto newest = must(search("harbour", "ketch Walrus jib", 8));
  EXPECT_FALSE(newest.results[0].why->stored);
  EXPECT_GT(part(newest.results[0], "meaning"), 0.9);  // all pieces of the question stand there
  EXPECT_GT(part(newest.results[0], "topic"), part(newest.results[1], "topic"));
  EXPECT_GT((*newest.results[0].why->features)[static_cast<size_t>(Feature::meaning)], 1);
}

TEST_F(EngineTest, AChunkThatCannotBeReadTakesTheMeaningOfNoOther) {
  TempDir with;
  copy_starter_with_meaning(with.path());
  engine_.close();
  engine_.use_model(with.path());
  engine_.open();
  engine_.append("harbour", harbour_log(0, 80), true);
  ASSERT_LT(engine_.info("harbour").encoded_chunks, Fusion::depth);  // so that all are compared
  const StoredTurn lost = engine_.turns("harbour")[40];
  engine_.close();
  {
    const auto catalog = must(Catalog::open({directory_.path() / "data/catalog", 4 << 20, 1 << 20}));
    Catalog::Batch rows(*catalog);
    rows.put(Family::tokens, row_key(1, lost.first_token), "no tokens");
    must(catalog->write(rows));
  }
  engine_.open();
  size_t whole = 0;
  for (const auto& result : must(search("harbour", question, 128)).results) {
    const uint64_t first = result.passage.first_token;
    const bool has_lost = first < lost.first_token + lost.tokens && lost.first_token < first + chunk_tokens;
    const auto meaning = std::ranges::count(result.why->parts, "meaning", &SearchReply::Why::Part::name);
    EXPECT_EQ(meaning, has_lost ? 0 : 1) << result.chunk;
    whole += !has_lost;
  }
  EXPECT_GT(whole, 30u);
}

TEST_F(EngineTest, ResultsBelowMinScoreAreLeftOut) {
  auto log = harbour_log(0, 200);
  log[70] = fact;
  engine_.append("harbour", log, true);
  const auto all = must(search("harbour", question, 100));
  const double bar = all.results[3].score;
  SearchRequest request;
  request.memory = "harbour";
  request.query = question;
  request.limit = 100;
  request.explain = true;
  for (const double least : {0.0, bar, 1.0}) {
    request.min_score = least;
    const auto found = answer<SearchReply>([&](auto done) { engine_->search(request, std::move(done)); });
    ASSERT_TRUE(found) << found.error().message;
    const auto expected = std::ranges::count_if(all.results, [&](const auto& each) { return each.score >= least; });
    ASSERT_EQ(found->results.size(), static_cast<size_t>(expected));
    // Places by a part are those among all that were compared, too.
    for (size_t i = 0; i < found->results.size(); ++i) {
      const auto &parts = found->results[i].why->parts, &without = all.results[i].why->parts;
      ASSERT_EQ(parts.size(), without.size());
      for (size_t part = 0; part < parts.size(); ++part) EXPECT_EQ(parts[part].rank, without[part].rank) << i;
    }
  }
}

TEST_F(EngineTest, AChunkWhoseKeysAreDamagedKeepsItsPlaceByWordsAndIsToldOnce) {
  auto log = harbour_log(0, 200);
  log[70] = fact;
  engine_.append("harbour", log, true);
  const auto whole = must(search("harbour", question));
  const uint64_t chunk = whole.results[0].chunk;
  const auto detail =
      must(answer<ChunkDetail>([&](auto done) { engine_->chunks_get("harbour", chunk, std::move(done)); }));
  const std::string name = segment_name(detail.view.entry.segment);
  {
    std::fstream segment(directory_.path() / "data/kv" / name, std::ios::in | std::ios::out | std::ios::binary);
    ASSERT_TRUE(segment.is_open()) << name;
    segment.seekp(static_cast<std::streamoff>(uint64_t{detail.view.entry.slot} * detail.kv_bytes + 100));
    segment << "rot";
  }
  const auto found = must(search("harbour", question));
  ASSERT_EQ(found.unreadable.size(), 1u);
  EXPECT_EQ(found.unreadable[0].first, chunk);
  EXPECT_THAT(found.unreadable[0].message, HasSubstr("recall verify"));
  const auto same = std::ranges::find(found.results, chunk, &SearchReply::Result::chunk);
  ASSERT_NE(same, found.results.end());
  EXPECT_THAT(same->passage.text, HasSubstr("60417"));
}

TEST_F(EngineTest, FindsTheNewestTurnInTheOpenChunkOfAnEmptyMemory) {
  ASSERT_TRUE(engine_.try_append("small", {"Runa sails to Bergen on Friday."}));
  const auto found = search("small", "Where does Runa sail?");
  ASSERT_TRUE(found) << found.error().message;
  ASSERT_EQ(found->results.size(), 1u);
  EXPECT_EQ(found->results[0].passage.text, "User: Runa sails to Bergen on Friday.\n");
  EXPECT_EQ(found->searchable_through, 0u);
  EXPECT_FALSE(found->results[0].why->stored);
}

TEST_F(EngineTest, ASearchDoesNotChangeWhatIsStoredAfterwards) {
  // The same stream with searches in between, encoding open chunks on copies of the state, and without.
  const auto log = harbour_log(0, 120);
  for (const std::string& entry : log) {
    ASSERT_TRUE(engine_.try_append("searched", {entry}));
    ASSERT_TRUE(search("searched", "When did the tide turn?", 1));
  }
  engine_.append("searched", {"end"}, true);
  auto whole = log;
  whole.push_back("end");
  engine_.append("whole", whole, true);

  const auto chunks = [&](const std::string& memory) {
    auto reply = answer<ChunksListReply>(
        [&](auto done) { engine_->chunks_list({.memory = memory, .first = 0, .limit = 1000}, std::move(done)); });
    EXPECT_TRUE(reply);
    return std::move(reply)->chunks;
  };
  const auto a = chunks("searched"), b = chunks("whole");
  ASSERT_EQ(a.size(), b.size());
  ASSERT_GT(a.size(), 50u);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].passage.text, b[i].passage.text);
    EXPECT_EQ(a[i].landmark_norm, b[i].landmark_norm) << i;
  }
  const auto in_a = search("searched", "herring and wet sails on entry 77"),
             in_b = search("whole", "herring and wet sails on entry 77");
  ASSERT_TRUE(in_a && in_b);
  for (size_t i = 0; i < in_a->results.size(); ++i) {
    EXPECT_EQ(in_a->results[i].chunk, in_b->results[i].chunk);
    EXPECT_EQ(in_a->results[i].score, in_b->results[i].score);
  }
}

TEST_F(EngineTest, ResultsAreTheSameAfterReopeningWithAnotherNumberOfThreads) {
  engine_.append("harbour", harbour_log(0, 150), true);
  const auto before = search("harbour", "boats on entry 40");
  engine_.append("harbour", harbour_log(0, 90));  // part of it is encoded only after reopening
  engine_.close();
  engine_.use_threads(1);
  engine_.open();
  engine_.append("harbour", {"end"}, true);
  const auto again = search("harbour", "boats on entry 40", 128);
  ASSERT_TRUE(before && again);
  size_t found = 0;
  for (const auto& result : before->results)
    for (const auto& other : again->results)
      found += other.chunk == result.chunk &&
               (!result.why->stored || other.why->landmark_score == result.why->landmark_score);
  EXPECT_EQ(found, before->results.size());
}

TEST_F(EngineTest, AppendsOfOneCallerKeepTheirOrderAndTheirTimesFollowIt) {
  std::vector<std::future<Expected<AppendReply>>> replies;
  for (int i = 0; i < 200; ++i) {
    auto promise = std::make_shared<std::promise<Expected<AppendReply>>>();
    replies.push_back(promise->get_future());
    // Long and short ones in turn, so that tokenising ends out of order.
    const std::string content = std::to_string(i) + (i % 2 == 0 ? std::string(20'000, 'x') : "");
    engine_->append(EngineDriver::request("ordered", {content}),
                    [promise](Expected<AppendReply> reply) { promise->set_value(std::move(reply)); });
  }
  for (size_t i = 0; i < replies.size(); ++i) {
    const auto reply = replies[i].get();
    ASSERT_TRUE(reply) << reply.error().message;
    EXPECT_EQ(reply->first_turn, i);
  }
  const auto listed = answer<TurnsListReply>(
      [&](auto done) { engine_->turns_list({.memory = "ordered", .first = 0, .limit = 1000}, std::move(done)); });
  ASSERT_TRUE(listed) << listed.error().message;
  ASSERT_EQ(listed->turns.size(), replies.size());
  for (size_t i = 1; i < listed->turns.size(); ++i)
    EXPECT_LT(listed->turns[i - 1].value.time_us, listed->turns[i].value.time_us) << i;
}

TEST_F(EngineTest, TheSameOperationAgainChangesNothing) {
  AppendRequest r = EngineDriver::request("m", {"one", "two"});
  r.operation_id = "op";
  const auto first = engine_.append(r), second = engine_.append(r);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(second->first_turn, 0u);
  EXPECT_EQ(second->last_turn, 1u);
  EXPECT_EQ(second->tokens, first->tokens);
  AppendRequest other = EngineDriver::request("m", {"one", "three"});
  other.operation_id = "op";
  const auto refused = engine_.append(other);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(refused.error().message, HasSubstr("operation_id"));
}

TEST_F(EngineTest, ADeletedMemoryIsGoneAndItsNameStartsAfresh) {
  engine_.append("m", harbour_log(0, 60), true);
  const auto deleted =
      answer<DeleteReply>([&](auto done) { engine_->memories_delete({.memory = "m"}, std::move(done)); });
  ASSERT_TRUE(deleted) << deleted.error().message;
  EXPECT_EQ(deleted->memory.turns, 60u);
  EXPECT_EQ(deleted->receipt.turns, (std::vector<TurnRange>{{0, 59}}));
  EXPECT_TRUE(deleted->receipt.complete);
  EXPECT_EQ(search("m", "tide").error().kind, ErrorKind::not_found);
  EXPECT_EQ(engine_.append("m", {"Only this."}, true).first_turn, 0u);
  EXPECT_EQ(search("m", "tide")->results.size(), 1u);
}

TEST_F(EngineTest, AnUnknownMemoryIsNamedAsNotFound) {
  const auto found = search("nobody", "anything");
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind, ErrorKind::not_found);
  EXPECT_THAT(found.error().message, HasSubstr("memory"));
}

TEST_F(EngineTest, ResultsStayWithinTheTokenBound) {
  engine_.append("harbour", harbour_log(0, 100), true);
  SearchRequest r{.memory = "harbour", .query = "herring", .limit = 8, .max_tokens = 130, .min_score = {}};
  const auto found = answer<SearchReply>([&](auto done) { engine_->search(std::move(r), std::move(done)); });
  ASSERT_TRUE(found);
  uint64_t tokens = 0;
  for (const auto& result : found->results) tokens += result.passage.end_token - result.passage.first_token;
  EXPECT_LE(tokens, 130u);
  EXPECT_GT(tokens, 0u);
}

TEST_F(EngineTest, ChunksShowTextTokensLocationAndNorm) {
  engine_.append("harbour", harbour_log(0, 20), true);
  const auto detail = answer<ChunkDetail>([&](auto done) { engine_->chunks_get("harbour", 3, std::move(done)); });
  ASSERT_TRUE(detail) << detail.error().message;
  EXPECT_EQ(detail->token_ids.size(), 64u);
  std::string joined;
  for (const std::string& piece : detail->token_texts) joined += piece;
  EXPECT_EQ(joined, detail->view.passage.text);
  ASSERT_EQ(detail->token_pieces.size(), 64u);
  EXPECT_THAT(detail->token_pieces, Contains("."));
  EXPECT_GT(detail->view.landmark_norm, 0);
  EXPECT_GT(detail->kv_bytes, 0u);
  EXPECT_EQ(answer<ChunkDetail>([&](auto done) { engine_->chunks_get("harbour", 3000, std::move(done)); }).error().kind,
            ErrorKind::not_found);
}

TEST_F(EngineTest, AFailureToEncodeIsToldToWhoWaitsAndByHealthUntilItGoesOn) {
  const auto health = [&] { return answer<HealthReply>([&](auto done) { engine_->health(std::move(done)); }).value(); };
  const auto wait_for = [&](bool problem) {
    for (int i = 0; i < 2000 && health().problem.empty() == problem; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return health().problem.empty() != problem;
  };
  const auto in_the_way = directory_.path() / "data/kv/000000.seg";  // of the first segment
  std::filesystem::create_directory(in_the_way);
  ASSERT_TRUE(engine_.try_append("harbour", harbour_log(0, 100)));
  ASSERT_TRUE(wait_for(true));
  for (int i = 0; i < 150; ++i) {  // through at least one more try
    ASSERT_THAT(health().problem, HasSubstr("000000.seg"));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const auto waited = engine_.try_append("harbour", {"still there"}, true);
  ASSERT_FALSE(waited);
  EXPECT_THAT(waited.error().message, HasSubstr("the turns are durable, but not encoded yet: "));

  std::filesystem::remove(in_the_way);
  EXPECT_TRUE(wait_for(false));
  const auto last = engine_.try_append("harbour", {"end"}, true);
  ASSERT_TRUE(last) << last.error().message;
  EXPECT_EQ(last->last_turn, 101u);
  EXPECT_EQ(health().waiting_chunks, 0u);
}

TEST_F(EngineTest, ManyCallersAtOnceAreAllServed) {
  std::vector<std::thread> callers;
  std::atomic<int> failures = 0;
  for (int caller = 0; caller < 8; ++caller)
    callers.emplace_back([&, caller] {
      const std::string memory = "m/" + std::to_string(caller % 3);
      for (int i = 0; i < 12; ++i) {
        failures += !engine_.try_append(memory, harbour_log(0, 4));
        failures += !search(memory, "tide on entry 2", 4);
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failures, 0);
  const auto listed = answer<MemoriesListReply>([&](auto done) { engine_->memories_list({}, std::move(done)); });
  ASSERT_TRUE(listed);
  ASSERT_EQ(listed->memories.size(), 3u);
  uint64_t turns = 0;
  for (const MemoryView& view : listed->memories) turns += view.info.turns;
  EXPECT_EQ(turns, 8u * 12 * 4);
}

}  // namespace
}  // namespace recalld
