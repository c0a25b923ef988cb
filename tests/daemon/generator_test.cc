// Answers in the model's own words, through the engine and over decoders that wait and fail.
#include "daemon/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "daemon/decoder_cpu.h"
#include "model/ramba.h"
#include "tests/daemon/decoder_fixture.h"
#include "tests/daemon/engine_fixture.h"

namespace recalld {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Unread = GenerateReply::Unread::Reason;

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
  // A long request whose answer does not end soon: on CPUs with other products the same seed may write a newline at
  // once.
  GenerateRequest lasting_request(uint64_t caller) {
    for (uint64_t seed = 1000 * caller;; ++seed) {
      GenerateRequest endless = long_request(seed);
      endless.caller = {1, std::to_string(caller)};
      GenerateRequest probe = endless;
      probe.max_tokens = 100;
      if (ask(std::move(probe)).finish == Finish::max_tokens) return endless;
    }
  }

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
  ASSERT_TRUE(reply.unread);
  EXPECT_EQ(reply.unread->turns, (TurnRange{299, 299}));
  EXPECT_EQ(reply.unread->reason, Unread::open_chunk);
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

TEST_F(GeneratorTest, TurnsThatNoChunkWasReadOfAreToldAndWhy) {
  engine_.append("many", harbour_log(0, 500));  // and asked at once
  GenerateRequest of_many = request(question);
  of_many.memory = "many";
  const GenerateReply behind = ask(std::move(of_many));
  ASSERT_TRUE(behind.unread);
  EXPECT_EQ(behind.unread->reason, Unread::encoding);
  EXPECT_EQ(behind.unread->turns, (TurnRange{behind.searchable_through.value() + 1, 499}));

  // A turn is read whole where its newline alone lies in the open chunk.
  uint64_t tokens = 0;
  const auto append_until = [&](size_t open_tokens) {
    do {
      tokens +=
          engine_.append("m", {"Rain at " + std::to_string(tokens) + std::string(1 + tokens % 7, '.')}, true).tokens;
    } while (tokens % chunk_tokens != open_tokens);
  };
  append_until(1);
  EXPECT_FALSE(ask(request(question, 1)).unread);
  append_until(0);
  EXPECT_FALSE(ask(request(question, 1)).unread);
  const uint64_t newest = engine_.append("m", {"It clears up."}, true).last_turn;
  const GenerateReply open = ask(request(question, 1));
  ASSERT_TRUE(open.unread);
  EXPECT_EQ(open.unread->turns, (TurnRange{newest, newest}));
  EXPECT_EQ(open.unread->reason, Unread::open_chunk);
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
  GenerateRequest endless = lasting_request(1), another = lasting_request(2);
  endless.on_text = [&pieces](const std::string&) { ++pieces; };
  auto one = start(std::move(endless));
  auto other = start(std::move(another));
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
    if (asked == 0) {
      ASSERT_TRUE(reply.unread);
      EXPECT_EQ(reply.unread->reason, Unread::forgetting);
      EXPECT_LE(reply.unread->turns.first, 101u);
      EXPECT_EQ(reply.unread->turns.last, 400u);
    }
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
  ASSERT_TRUE(reply.unread);
  EXPECT_EQ(reply.unread->turns, (TurnRange{0, 0}));
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

// ---- Over decoders that wait and fail

// The CPU's, but for what a test makes of its calls. It watches what may be asked of a decoder.
class FakeDecoder : public Decoder {
 public:
  explicit FakeDecoder(Decoder& real, size_t streams_max = Ramba::streams_max)
      : real_(real), streams_max_(streams_max) {}
  ~FakeDecoder() override { EXPECT_EQ(open_, 0u); }

  // Decides by the number of the stream, from 0 on in the order of their opening, and of the write.
  std::function<bool(size_t stream, size_t write)> waits = [](size_t, size_t) { return false; };
  std::function<std::optional<Error>(size_t stream, size_t write)> fails = [](size_t, size_t) { return std::nullopt; };
  std::function<std::optional<Error>(size_t stream)> fails_to_read = [](size_t) { return std::nullopt; };
  std::function<std::optional<Error>(size_t stream)> fails_to_open = [](size_t) { return std::nullopt; };
  size_t waited = 0;  // calls in which a stream did
  size_t opened = 0;

  size_t streams_max() const override { return streams_max_; }
  Expected<std::unique_ptr<Stream>> open(Source source) override {
    const Call call(*this);
    const size_t number = opened++;
    if (auto error = fails_to_open(number)) return std::unexpected(*std::move(error));
    RECALLD_TRY(auto stream, real_.open(std::move(source)));
    EXPECT_LT(open_, streams_max_);
    return std::make_unique<FakeStream>(*this, number, std::move(stream));
  }
  Expected<Read> read(Stream& stream, std::span<const uint32_t> tokens, bool last) override {
    const Call call(*this);
    auto& reader = static_cast<FakeStream&>(stream);
    EXPECT_TRUE(reader.good && !reader.read_all);
    EXPECT_TRUE(last ? !tokens.empty() && tokens.size() <= chunk_tokens : tokens.size() == chunk_tokens);
    reader.read_all = last;
    if (auto error = fails_to_read(reader.number)) {
      reader.good = false;
      return std::unexpected(*std::move(error));
    }
    return real_.read(*reader.real, tokens, last);
  }
  std::vector<std::optional<Expected<Read>>> write(std::span<const Written> tokens) override {
    const Call call(*this);
    EXPECT_FALSE(tokens.empty());
    EXPECT_LE(tokens.size(), streams_max_);
    std::vector<std::optional<Expected<Read>>> reads(tokens.size());
    std::vector<Written> passed;
    std::vector<size_t> places;
    for (size_t i = 0; i < tokens.size(); ++i) {
      auto& writer = static_cast<FakeStream&>(*tokens[i].stream);
      EXPECT_TRUE(writer.good && writer.read_all);
      if (writer.waiting) {
        EXPECT_EQ(writer.waiting, tokens[i].token);
      }
      writer.waiting.reset();
      const size_t number = writer.writes++;
      if (auto error = fails(writer.number, number)) {
        writer.good = false;
        reads[i] = std::unexpected(*std::move(error));
      } else if (waits(writer.number, number)) {
        writer.waiting = tokens[i].token;
        ++waited;
      } else {
        passed.push_back({writer.real.get(), tokens[i].token});
        places.push_back(i);
      }
    }
    auto written = real_.write(passed);
    for (size_t i = 0; i < passed.size(); ++i) reads[places[i]] = std::move(written[i]);
    return reads;
  }
  Expected<void> forget(MemoryId memory) override { return real_.forget(memory); }

 private:
  struct FakeStream : Stream {
    FakeStream(FakeDecoder& of, size_t number_, std::unique_ptr<Stream> stream)
        : decoder(of), number(number_), real(std::move(stream)) {
      ++decoder.open_;
    }
    ~FakeStream() override {
      EXPECT_FALSE(decoder.called_);
      --decoder.open_;
    }
    FakeDecoder& decoder;
    const size_t number;
    const std::unique_ptr<Stream> real;
    size_t writes = 0;
    std::optional<uint32_t> waiting;  // the token that it was given
    bool read_all = false;
    bool good = true;  // it has not failed
  };
  // That one is under way.
  struct Call {
    explicit Call(FakeDecoder& of) : decoder(of) { decoder.called_ = true; }
    ~Call() { decoder.called_ = false; }
    FakeDecoder& decoder;
  };

  Decoder& real_;
  const size_t streams_max_;
  size_t open_ = 0;
  bool called_ = false;
};

class GeneratorOverADecoderTest : public DecoderFixture {
 protected:
  void SetUp() override {
    DecoderFixture::SetUp();
    cpu_ = std::make_unique<CpuDecoder>(*store_, *model_, pool_);
    auto log = harbour_log(0, 80);
    log[30] = fact;
    memory_ = append(log);
    for (uint64_t seed = 0; seed < 6; ++seed) {
      GenerateRequest request;
      request.memory = "m";
      request.prompt = seed % 3 == 0 ? question : "What did the boats bring, and when?";
      request.max_tokens = 6 + seed;
      request.temperature = seed % 2 == 0 ? 0.0 : 1.5;
      request.top_p = 0.95;
      request.seed = seed;
      request.caller = {1, std::to_string(seed)};
      requests_.push_back(std::move(request));
    }
  }

  Generator over(Decoder& decoder) { return Generator(*store_, shape_, *tokenizer_, *encoder_, decoder); }
  void start(Generator& generator, const GenerateRequest& request, std::optional<Expected<Generated>>& answer) {
    must(generator.announce(request.caller));
    generator.start(request, tokenizer_->encode_query(request.prompt),
                    [&answer](Expected<Generated> generated) { answer = std::move(generated); });
  }
  static void step_to_the_end(Generator& generator) {
    for (int steps = 0; generator.step(); ++steps)
      if (steps == 10'000) throw std::runtime_error("the answers do not come to an end");
  }
  std::vector<Expected<Generated>> answers(Decoder& decoder) {
    Generator generator = over(decoder);
    std::vector<std::optional<Expected<Generated>>> answers(requests_.size());
    for (size_t i = 0; i < requests_.size(); ++i) start(generator, requests_[i], answers[i]);
    step_to_the_end(generator);
    std::vector<Expected<Generated>> given;
    for (auto& answer : answers) given.push_back(*std::move(answer));
    return given;
  }
  static void expect_same(const Expected<Generated>& answer, const Expected<Generated>& expected) {
    ASSERT_TRUE(answer) << answer.error().message;
    EXPECT_EQ(answer->tokens, expected->tokens);
    EXPECT_EQ(answer->text, expected->text);
    EXPECT_EQ(answer->finish, expected->finish);
    EXPECT_EQ(answer->attended, expected->attended);
    EXPECT_EQ(answer->end_token, expected->end_token);
  }
  static Error broken() { return {ErrorKind::device, "generate: the GPU fell off the bus; restart recalld"}; }

  std::unique_ptr<CpuDecoder> cpu_;
  MemoryInfo memory_;
  std::vector<GenerateRequest> requests_;
};

TEST_F(GeneratorOverADecoderTest, AnswersAreTheSameWhoeverHasToWaitForChunks) {
  const auto expected = answers(*cpu_);
  ASSERT_EQ(expected[0]->text, "60417");
  std::mt19937_64 random(5);
  const std::vector<std::function<bool(size_t, size_t)>> manners = {
      [](size_t, size_t write) { return write % 3 != 2; },                    // all of them at once
      [](size_t stream, size_t write) { return stream == 1 && write < 40; },  // one until the others are answered
      [&random](size_t, size_t) { return random() % 2 == 0; }};
  for (const size_t streams_max : {Ramba::streams_max, size_t{2}, size_t{1}}) {
    for (size_t manner = 0; manner < manners.size(); ++manner) {
      FakeDecoder decoder(*cpu_, streams_max);
      decoder.waits = manners[manner];
      const auto given = answers(decoder);
      for (size_t i = 0; i < given.size(); ++i) {
        SCOPED_TRACE(std::to_string(i) + " of " + std::to_string(streams_max) + ", manner " + std::to_string(manner));
        expect_same(given[i], expected[i]);
      }
      EXPECT_GT(decoder.waited, 5u);
      EXPECT_EQ(decoder.opened, requests_.size());
    }
  }
}

TEST_F(GeneratorOverADecoderTest, AStreamThatFailsEndsItsAnswerAlone) {
  const auto expected = answers(*cpu_);
  for (const std::string when : {"opened", "read", "written to"}) {
    FakeDecoder decoder(*cpu_, 4);
    const auto second = [](size_t stream) { return stream == 1 ? std::optional(broken()) : std::nullopt; };
    if (when == "opened") decoder.fails_to_open = second;
    if (when == "read") decoder.fails_to_read = second;
    if (when == "written to")
      decoder.fails = [&](size_t stream, size_t write) { return write == 2 ? second(stream) : std::nullopt; };
    const auto given = answers(decoder);
    for (size_t i = 0; i < given.size(); ++i) {
      SCOPED_TRACE(std::to_string(i) + " while one is " + when);
      if (i != 1) {
        expect_same(given[i], expected[i]);
        continue;
      }
      ASSERT_FALSE(given[i]);
      EXPECT_EQ(given[i].error().kind, ErrorKind::device);
      EXPECT_EQ(given[i].error().message, broken().message);
    }
    EXPECT_EQ(decoder.opened, requests_.size()) << "no second attempt";
  }
}

TEST_F(GeneratorOverADecoderTest, WhoWaitsForChunksIsStillCancelledOrStoppedOrBeginsAnew) {
  FakeDecoder decoder(*cpu_);
  bool held = true;
  decoder.waits = [&held](size_t, size_t) { return held; };
  Generator generator = over(decoder);
  std::optional<Expected<Generated>> cancelled, other;
  start(generator, requests_[1], cancelled);
  start(generator, requests_[3], other);
  for (int steps = 0; steps < 40; ++steps) EXPECT_TRUE(generator.step());
  EXPECT_TRUE(generator.cancel(requests_[1].caller));
  EXPECT_TRUE(generator.step());
  ASSERT_TRUE(cancelled && *cancelled);
  EXPECT_EQ((*cancelled)->finish, Finish::cancelled);
  EXPECT_EQ((*cancelled)->tokens.size(), 1u) << "which the prompt gave";
  EXPECT_FALSE(other);

  must(store_->forget(memory_.id, std::array{TurnRange{3, 3}}));
  held = false;
  step_to_the_end(generator);
  ASSERT_TRUE(other && *other) << (*other).error().message;
  EXPECT_EQ(decoder.opened, 3u);
  EXPECT_TRUE((*other)->memory.next) << "it is of what is left";

  held = true;
  std::optional<Expected<Generated>> stopped;
  start(generator, requests_[5], stopped);
  for (int steps = 0; steps < 40; ++steps) EXPECT_TRUE(generator.step());
  generator.interrupt();
  EXPECT_FALSE(generator.step());
  ASSERT_TRUE(stopped && !*stopped);
  EXPECT_EQ((*stopped).error().kind, ErrorKind::busy);
}

TEST_F(GeneratorOverADecoderTest, WhatADecoderCouldNotReadIsToldOnce) {
  FakeDecoder whole(*cpu_);
  const auto expected = answers(whole);
  const auto& attended = expected[0]->attended;
  const uint64_t chunk = std::ranges::max_element(attended, {}, [](const auto& each) { return each.second; })->first;
  damage_kv(memory_.id, chunk);
  FakeDecoder decoder(*cpu_);
  decoder.waits = [](size_t, size_t write) { return write % 2 == 0; };
  const auto given = answers(decoder);
  ASSERT_TRUE(given[0]);
  ASSERT_EQ(given[0]->unreadable.size(), 1u);
  EXPECT_EQ(given[0]->unreadable[0].first, chunk);
  EXPECT_FALSE(given[0]->attended.contains(chunk));
  EXPECT_THAT(given[0]->text, Not(HasSubstr("60417")));
}

// ---- The choice of a token

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
