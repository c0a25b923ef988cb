// Answers in the model's own words, through the engine.
#include "daemon/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "tests/daemon/engine_fixture.h"

namespace recalld {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class GeneratorTest : public ::testing::Test {
 protected:
  void SetUp() override { engine_.open(); }

  static GenerateRequest request(const std::string& prompt, size_t max_tokens = 16) {
    GenerateRequest request;
    request.memory = "m";
    request.prompt = prompt;
    request.max_tokens = max_tokens;
    return request;
  }
  // Of many tokens: at this temperature all are about equally likely, a newline as seldom as any.
  static GenerateRequest long_request(uint64_t seed) {
    GenerateRequest endless = request("Tell me of the sea.", generate_tokens_max);
    endless.temperature = temperature_max;
    endless.seed = seed;
    endless.caller = {1, std::to_string(seed)};
    return endless;
  }
  std::future<Expected<GenerateReply>> start(GenerateRequest request) {
    auto promise = std::make_shared<std::promise<Expected<GenerateReply>>>();  // shared with the answer
    auto future = promise->get_future();
    engine_->generate(std::move(request),
                      [promise](Expected<GenerateReply> reply) { promise->set_value(std::move(reply)); });
    return future;
  }
  GenerateReply ask(GenerateRequest request) { return must(start(std::move(request)).get()); }

  void append_log(size_t turns, size_t fact_at) {
    auto log = harbour_log(0, turns);
    log[fact_at] = fact;
    engine_.append("m", log, true);
  }

  TempDir directory_;
  EngineDriver engine_{directory_.path() / "data"};
};

TEST_F(GeneratorTest, AFactIsReadOutOfItsChunk) {
  append_log(300, 70);
  std::string streamed;
  GenerateRequest r = request(question);
  r.on_text = [&streamed](const std::string& text) { streamed += text; };
  const GenerateReply reply = ask(std::move(r));
  EXPECT_EQ(reply.text, "60417");
  EXPECT_EQ(streamed, reply.text);
  EXPECT_EQ(reply.finish, Finish::newline);
  EXPECT_EQ(reply.searchable_through, 298u) << "of the last turn, a part is in the open chunk, which is not read";
  EXPECT_THAT(reply.unreadable, IsEmpty());
  EXPECT_EQ(reply.seed, std::nullopt);
  ASSERT_EQ(reply.chunks.size(), generate_sources_max);
  EXPECT_THAT(reply.chunks[0].passage.text, HasSubstr("60417"));
  double sum = 0;
  for (const auto& chunk : reply.chunks) sum += chunk.weight;
  EXPECT_GT(reply.chunks[0].weight, 0.5);
  EXPECT_LE(sum, 1.0 + 1e-4);
}

TEST_F(GeneratorTest, ChunksThatWaitToBeEncodedAreReadToo) {
  engine_.append("m", harbour_log(0, 5));
  auto log = harbour_log(5, 20);
  log[0] = fact;
  engine_.append("m", log);  // and asked at once
  EXPECT_EQ(ask(request(question)).text, "60417");
}

TEST_F(GeneratorTest, AnAnswerDoesNotDependOnTheOthersBesideIt) {
  append_log(120, 30);
  std::vector<GenerateRequest> requests;
  for (uint64_t seed = 0; seed < Ramba::streams_max + 4; ++seed) {  // more than are written at once
    GenerateRequest r = request(seed % 3 == 0 ? question : "What did the boats bring, and when?", 5 + seed);
    r.temperature = seed % 2 == 0 ? 0.0 : 1.5;
    r.top_p = 0.95;
    r.seed = seed;
    requests.push_back(r);
  }
  std::vector<std::string> alone;
  for (const GenerateRequest& r : requests) alone.push_back(ask(r).text);
  std::vector<std::future<Expected<GenerateReply>>> together;
  for (const GenerateRequest& r : requests) together.push_back(start(r));
  for (size_t i = 0; i < together.size(); ++i) EXPECT_EQ(must(together[i].get()).text, alone[i]) << i;
  engine_.close();
  engine_.use_threads(1);
  engine_.open();
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(ask(requests[i]).text, alone[i]) << i;
}

TEST_F(GeneratorTest, ASeedRepeatsWhatWasWrittenAndIsToldWhenItWasChosen) {
  append_log(40, 3);
  GenerateRequest r = request("Tell me of the sea.", 24);
  r.temperature = 1.5;
  const GenerateReply first = ask(r), second = ask(r);
  ASSERT_TRUE(first.seed && second.seed);
  EXPECT_NE(first.text, second.text);
  r.seed = first.seed;
  EXPECT_EQ(ask(r).text, first.text);
}

TEST_F(GeneratorTest, SearchesAreAnsweredAndOthersCancelledWhileOneIsWritten) {
  append_log(100, 30);
  std::atomic<size_t> pieces = 0;
  GenerateRequest endless = long_request(1);
  endless.on_text = [&pieces](const std::string&) { ++pieces; };
  auto one = start(std::move(endless));
  auto other = start(long_request(2));
  EngineDriver::wait_for("the first words", [&] { return pieces > 2; });
  const size_t before = pieces;
  must(engine_.try_search("m", question));
  EXPECT_LT(pieces - before, 50u) << "a search does not wait for a whole answer";
  EXPECT_EQ(one.wait_for(std::chrono::seconds(0)), std::future_status::timeout);

  EXPECT_FALSE(engine_->cancel({7, "1"}).cancelled) << "another connection's";
  EXPECT_TRUE(engine_->cancel({1, "1"}).cancelled);
  const GenerateReply cancelled = must(one.get());
  EXPECT_EQ(cancelled.finish, Finish::cancelled);
  EXPECT_GT(cancelled.tokens, 2u);
  EXPECT_THAT(cancelled.text, Not(IsEmpty()));
  EXPECT_FALSE(engine_->cancel({1, "1"}).cancelled) << "it has ended";
  engine_->connection_closed(1);
  EXPECT_EQ(must(other.get()).finish, Finish::cancelled);
  EXPECT_NE(must(start(long_request(1)).get()).finish, Finish::cancelled) << "the same id may come again";
}

TEST_F(GeneratorTest, AStopEndsWhatIsBeingWrittenWithBusy) {
  append_log(40, 3);
  std::vector<std::future<Expected<GenerateReply>>> open;
  for (uint64_t i = 0; i < 2 * Ramba::streams_max; ++i) open.push_back(start(long_request(i)));
  engine_.close();
  for (auto& each : open) {
    const auto reply = each.get();
    ASSERT_FALSE(reply);
    EXPECT_EQ(reply.error().kind, ErrorKind::busy);
    EXPECT_THAT(reply.error().message, HasSubstr("the daemon stops"));
  }
}

TEST_F(GeneratorTest, WhatIsForgottenIsNotReadNotEvenWhileTheRestIsEncodedAnew) {
  append_log(400, 100);
  engine_.append("m", {"The keeper sleeps."}, true);
  ASSERT_EQ(ask(request(question)).text, "60417");
  const Receipt receipt = engine_.forget("m", {{100, 100}}, false);
  ASSERT_TRUE(receipt.job);
  int asked = 0;
  do {
    const GenerateReply reply = ask(request(question));
    EXPECT_THAT(reply.text, Not(HasSubstr("60417")));
    for (const auto& chunk : reply.chunks) EXPECT_THAT(chunk.passage.text, Not(HasSubstr("60417")));
    ++asked;
  } while (engine_.job(*receipt.job).state == "running");
  EXPECT_THAT(ask(request(question)).text, Not(HasSubstr("60417")));
}

TEST_F(GeneratorTest, WhenTurnsAreForgottenAnAnswerBeginsAnewUnlessAPartIsToldAndEndsWithItsMemory) {
  append_log(200, 50);
  const auto telling = [this](uint64_t seed) {
    GenerateRequest told = long_request(seed);
    auto pieces = std::make_shared<std::atomic<size_t>>(0);  // shared with the request
    told.on_text = [pieces](const std::string&) { ++*pieces; };
    auto streamed = start(std::move(told));
    EngineDriver::wait_for("the first words", [&] { return *pieces > 2; });
    return streamed;
  };
  auto quiet = start(long_request(1));
  auto streamed = telling(2);
  ASSERT_EQ(quiet.wait_for(std::chrono::seconds(0)), std::future_status::timeout) << "it is to be met amid its answer";
  engine_.forget("m", {{3, 3}}, false);
  const auto broken = streamed.get();
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().kind, ErrorKind::busy);
  EXPECT_THAT(broken.error().message, HasSubstr("were forgotten meanwhile"));
  EXPECT_TRUE(quiet.get());
  engine_.settle();

  streamed = telling(2);
  engine_.remove("m", false);
  const auto gone = streamed.get();
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().kind, ErrorKind::not_found);
  EXPECT_THAT(gone.error().message, HasSubstr("deleted meanwhile"));
}

TEST_F(GeneratorTest, WhoCancelsAfterAForgetIsNotToldWhatWasWrittenFromIt) {
  append_log(200, 50);
  for (const bool remove : {false, true}) {
    auto pieces = std::make_shared<std::atomic<size_t>>(0);  // shared with the request
    GenerateRequest endless = long_request(2);
    endless.on_text = [pieces](const std::string&) { ++*pieces; };
    auto streamed = start(std::move(endless));
    EngineDriver::wait_for("the first words", [&] { return *pieces > 2; });
    if (remove)
      engine_.remove("m", false);
    else
      engine_.forget("m", {{3, 3}}, false);
    engine_->cancel({1, "2"});
    const auto reply = streamed.get();
    EXPECT_EQ(reply ? reply->text : "", "");
    if (!remove) engine_.settle();
  }
}

TEST_F(GeneratorTest, CancelledOnesThatWaitAreAnsweredAtOnceAndTooManyAreRefused) {
  append_log(40, 3);
  std::vector<std::future<Expected<GenerateReply>>> open;
  for (uint64_t i = 0; i < Generator::open_of_connection_max; ++i) open.push_back(start(long_request(i)));
  const auto refused = start(long_request(1000)).get();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::busy);
  EXPECT_THAT(refused.error().message, HasSubstr("64 of them on this connection"));
  GenerateRequest other = request(question);
  other.caller = {2, "1"};
  EXPECT_TRUE(start(std::move(other)).get()) << "another connection's has its turn";
  EXPECT_TRUE(engine_->cancel({1, std::to_string(open.size() - 1)}).cancelled);
  EXPECT_EQ(must(open.back().get()).finish, Finish::cancelled);
  open.pop_back();
  const auto waits = [](const auto& each) {
    return each.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  };
  EXPECT_GT(std::ranges::count_if(open, waits), 20) << "it did not wait for those before it";
  engine_->connection_closed(1);
  for (auto& each : open) must(each.get());
}

TEST_F(GeneratorTest, AnUnknownMemoryIsNotFoundAndOneWithoutChunksIsAnsweredFromItsLastTokens) {
  const auto unknown = start(request(question)).get();
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().kind, ErrorKind::not_found);
  engine_.append("m", {"Short."}, true);
  const GenerateReply reply = ask(request(question));
  EXPECT_THAT(reply.chunks, IsEmpty());
  EXPECT_EQ(reply.searchable_through, std::nullopt);
  engine_.forget("m", {{0, 0}});
  EXPECT_THAT(ask(request(question)).chunks, IsEmpty()) << "of a memory without a token";
}

TEST_F(GeneratorTest, ADamagedChunkIsLeftOutAndTold) {
  append_log(60, 20);
  const GenerateReply whole = ask(request(question));
  ASSERT_EQ(whole.text, "60417");
  const uint64_t chunk = whole.chunks[0].chunk;
  const ChunkDetail stored = engine_.chunk("m", chunk);
  char name[16];
  std::snprintf(name, sizeof name, "%06u.seg", stored.view.entry.segment);
  std::fstream segment(engine_.data() / "kv" / name, std::ios::in | std::ios::out | std::ios::binary);
  segment.seekp(static_cast<std::streamoff>(stored.view.entry.slot * stored.kv_bytes + 100));
  segment << "rot";
  segment.close();
  const GenerateReply reply = ask(request(question));
  ASSERT_EQ(reply.unreadable.size(), 1u);
  EXPECT_EQ(reply.unreadable[0].first, chunk);
  EXPECT_THAT(reply.unreadable[0].message, HasSubstr("recall verify"));
  EXPECT_THAT(reply.text, Not(HasSubstr("60417")));
  for (const auto& source : reply.chunks) EXPECT_NE(source.chunk, chunk);
}

TEST(ChooseToken, TakesTheBestAndOfEqualsTheLowestWithoutATemperature) {
  std::mt19937_64 random(1);
  EXPECT_EQ(choose_token(std::vector<float>{1, 3, 2, 3}, 0, 1, random), 1u);
  EXPECT_EQ(choose_token(std::vector<float>{-1}, 0, 1, random), 0u);
}

TEST(ChooseToken, FollowsTheProbabilitiesOfTheFewestThatMakeUpTopP) {
  std::mt19937_64 random(2);
  // Probabilities 1/2, 1/8, 3/8 at temperature 1.
  const std::vector<float> logits = {std::log(4.0f), 0.0f, std::log(3.0f)};
  std::map<uint32_t, int> all, some;
  for (int i = 0; i < 8000; ++i)
    ++all[choose_token(logits, 1, 1, random)], ++some[choose_token(logits, 1, 0.8, random)];
  EXPECT_NEAR(all[0], 4000, 200);
  EXPECT_NEAR(all[1], 1000, 120);
  EXPECT_NEAR(all[2], 3000, 200);
  EXPECT_NEAR(some[0], 8000 * 4 / 7, 200);
  EXPECT_EQ(some[1], 0) << "the others make up 7/8";
  for (int i = 0; i < 100; ++i) EXPECT_EQ(choose_token(logits, 1, 0, random), 0u);
}

}  // namespace
}  // namespace recalld
