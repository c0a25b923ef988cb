#include "daemon/decoder_cpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/daemon/decoder_fixture.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class CpuDecoderTest : public DecoderFixture {
 protected:
  void SetUp() override {
    DecoderFixture::SetUp();
    decoder_ = std::make_unique<CpuDecoder>(*store_, *model_, pool_);
    auto log = harbour_log(0, 60);
    log[20] = fact;
    memory_ = append(log);
  }

  std::unique_ptr<Decoder::Stream> open() {
    return must(decoder_->open(
        {.memory = memory_, .stored_chunks = memory_.encoded_chunks, .tail_landmarks = {}, .tail_kv = {}}));
  }
  // Reads a question in one block.
  Decoder::Read ask(Decoder::Stream& stream, const std::string& text) {
    const std::vector<uint32_t> prompt = tokenizer_->encode_query(text);
    EXPECT_LE(prompt.size(), chunk_tokens);
    return must(decoder_->read(stream, prompt, true));
  }
  Decoder::Read write(Decoder::Stream& stream, uint32_t token) {
    auto reads = decoder_->write(std::array{Decoder::Written{&stream, token}});
    return must(*std::move(reads.at(0)));
  }
  static uint32_t best(const Decoder::Read& read) {
    return static_cast<uint32_t>(std::ranges::max_element(read.logits) - read.logits.begin());
  }

  std::unique_ptr<CpuDecoder> decoder_;
  MemoryInfo memory_;
};

TEST_F(CpuDecoderTest, LogitsAndSharesAreOfTheLastTokenAndOnlyWhereTheyAreWanted) {
  const auto stream = open();
  const std::vector<uint32_t> block(chunk_tokens, tokenizer_->newline_id());
  const Decoder::Read unwanted = must(decoder_->read(*stream, block, false));
  EXPECT_THAT(unwanted.logits, IsEmpty());
  EXPECT_THAT(unwanted.attended, IsEmpty());
  const Decoder::Read read = ask(*stream, question), written = write(*stream, best(read));
  for (const Decoder::Read* each : {&read, &written}) {
    EXPECT_EQ(each->logits.size(), model_->config().vocab_size);
    EXPECT_THAT(each->attended, Not(IsEmpty()));
    double sum = 0;
    for (const auto& [chunk, share] : each->attended) {
      EXPECT_LT(chunk, memory_.encoded_chunks);
      sum += share;
    }
    EXPECT_GT(sum, 0.0);
    EXPECT_LE(sum, 1.0 + 1e-4);
  }
}

TEST_F(CpuDecoderTest, AStreamGetsTheSameAloneAndBesideAnyOthers) {
  const std::vector<std::string> questions = {question, "What did the boats bring?", "When did the tide turn?"};
  std::vector<std::unique_ptr<Decoder::Stream>> alone, together;
  std::vector<Decoder::Written> tokens;
  for (const std::string& each : questions) {
    alone.push_back(open());
    together.push_back(open());
    ask(*alone.back(), each);
    tokens.push_back({together.back().get(), best(ask(*together.back(), each))});
  }
  for (int step = 0; step < 4; ++step) {
    auto reads = decoder_->write(tokens);
    ASSERT_EQ(reads.size(), tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      ASSERT_TRUE(reads[i] && *reads[i]);
      const Decoder::Read expected = write(*alone[i], tokens[i].token);
      EXPECT_EQ((*reads[i])->logits, expected.logits) << i;
      EXPECT_EQ((*reads[i])->attended, expected.attended) << i;
      tokens[i].token = best(expected);
    }
  }
}

TEST_F(CpuDecoderTest, ADamagedChunkIsLeftOutAndToldToEachStreamOnce) {
  const Decoder::Read whole = ask(*open(), question);
  const uint64_t chunk =
      std::ranges::max_element(whole.attended, {}, [](const auto& each) { return each.second; })->first;
  damage_kv(memory_.id, chunk);
  for (int round = 0; round < 2; ++round) {
    const auto stream = open();
    Decoder::Read read = ask(*stream, question);
    ASSERT_EQ(read.unreadable.size(), 1u);
    EXPECT_EQ(read.unreadable[0].first, chunk);
    EXPECT_EQ(read.unreadable[0].last, chunk);
    EXPECT_THAT(read.unreadable[0].message, HasSubstr("recall verify"));
    EXPECT_FALSE(read.attended.contains(chunk));
    EXPECT_EQ(read.attended.size(), whole.attended.size()) << "others take its places";
    for (int step = 0; step < 3; ++step) {
      read = write(*stream, best(read));
      EXPECT_THAT(read.unreadable, IsEmpty());
      EXPECT_FALSE(read.attended.contains(chunk));
    }
  }
}

TEST_F(CpuDecoderTest, AStreamWhoseMemoryIsGoneFailsAlone) {
  const auto gone = open();
  const uint32_t first = best(ask(*gone, question));
  must(store_->erase("m"));
  auto log = harbour_log(0, 60);
  log[20] = fact;
  memory_ = append(log);
  const auto other = open(), expected = open();
  const uint32_t token = best(ask(*other, question));
  ask(*expected, question);
  const auto reads = decoder_->write(std::array<Decoder::Written, 2>{{{gone.get(), first}, {other.get(), token}}});
  ASSERT_TRUE(reads[0] && reads[1]);
  ASSERT_FALSE(*reads[0]);
  EXPECT_EQ((*reads[0]).error().kind, ErrorKind::not_found);
  ASSERT_TRUE(*reads[1]);
  EXPECT_EQ((*reads[1])->logits, write(*expected, token).logits);
}

}  // namespace
}  // namespace recalld
