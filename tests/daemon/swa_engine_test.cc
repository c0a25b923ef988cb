// A model with sliding windows in place of Mamba-2 behind the engine. Its weights are random, so what it says is noise,
// but everything on the way is as with a trained one.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "model/ramba.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/cpu_gpu.h"
#include "tests/support/random_model.h"

namespace recalld {
namespace {

class SwaEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(model_);
    RandomModel(random_model_config()).write(model_, starter_checkpoint() / "tokenizer.model");
  }

  static GenerateReply ask(EngineDriver& engine, const std::string& prompt) {
    GenerateRequest request;
    request.memory = "m";
    request.prompt = prompt;
    request.max_tokens = 24;
    request.temperature = 0.8;
    request.seed = 5;
    return must(answer<GenerateReply>([&](auto done) { engine->generate(std::move(request), std::move(done)); }));
  }
  static void expect_same(const GenerateReply& a, const GenerateReply& b) {
    EXPECT_EQ(a.text, b.text);
    EXPECT_EQ(a.tokens, b.tokens);
    ASSERT_EQ(a.chunks.size(), b.chunks.size());
    for (size_t i = 0; i < a.chunks.size(); ++i) {
      EXPECT_EQ(a.chunks[i].chunk, b.chunks[i].chunk);
      EXPECT_DOUBLE_EQ(a.chunks[i].weight, b.chunks[i].weight);
    }
  }

  TempDir directory_;
  std::filesystem::path model_ = directory_.path() / "model";
};

// Recurrent states go to disk and come back wherever the engine is restarted.
TEST_F(SwaEngine, AppendsInPiecesAndRestartsMakeTheSameBits) {
  const auto log = harbour_log(0, 160);
  const MemoryContents whole = contents_made_of(log, model_);
  EXPECT_GT(whole.info.encoded_chunks, 64u);  // beyond the first checkpoint, and the ring many times over
  EngineDriver engine(directory_.path() / "data", model_);
  size_t done = 0;
  for (const size_t turns : {1, 70, 9, 80}) {
    engine.use_threads(turns % 2 + 1);
    engine.open();
    engine.append("m", {log.begin() + static_cast<ptrdiff_t>(done), log.begin() + static_cast<ptrdiff_t>(done + turns)},
                  true);
    engine.settle();
    engine.close();
    done += turns;
  }
  ASSERT_EQ(done, log.size());
  const MemoryContents pieces = contents_of(engine.data(), "m");
  EXPECT_EQ(pieces.tokens, whole.tokens);
  EXPECT_TRUE(pieces.landmarks == whole.landmarks);
  EXPECT_TRUE(pieces.kv == whole.kv);
  ASSERT_FALSE(pieces.states.empty());
  EXPECT_EQ(pieces.states.back().bytes.size(), size_t{2 * (16 + 2 * (128 + 64) * 2 * 32)} * sizeof(float));
}

TEST_F(SwaEngine, SearchesAndAnswersTheSameOnAnyDeviceAndAfterForgetting) {
  EngineDriver cpu(directory_.path() / "cpu", model_), gpu(directory_.path() / "gpu", model_);
  gpu.use_gpu([](const GpuOptions& options) -> Expected<std::unique_ptr<Gpu>> {
    return CpuGpu::open({.model = options.model, .slots = 600, .landmarks_bytes_max = UINT64_MAX});
  });
  auto log = harbour_log(0, 120);
  log[40] = secret;
  for (EngineDriver* engine : {&cpu, &gpu}) {
    engine->open();
    engine->append("m", log, true);
    engine->settle();
  }
  const auto both = [&](const std::string& text) {
    const SearchReply found = must(cpu.try_search("m", text)), also = must(gpu.try_search("m", text));
    EXPECT_FALSE(found.results.empty());
    EXPECT_EQ(found.results.size(), also.results.size());
    for (size_t i = 0; i < std::min(found.results.size(), also.results.size()); ++i)
      EXPECT_EQ(found.results[i].passage.text, also.results[i].passage.text);
    EXPECT_EQ(found.searchable_through, also.searchable_through);
    const GenerateReply reply = ask(cpu, text);
    EXPECT_GT(reply.tokens, 0u);
    EXPECT_FALSE(reply.chunks.empty());
    expect_same(ask(cpu, text), reply);
    expect_same(ask(gpu, text), reply);
  };
  both(secret_question);
  both("And what did the boats bring on the day after?");
  for (EngineDriver* engine : {&cpu, &gpu}) {
    EXPECT_NE(engine->found("m", secret_question, 64).find(secret_words), std::string::npos);
    EXPECT_TRUE(engine->forget("m", {{40, 40}}).complete);
    EXPECT_EQ(engine->found("m", secret_question, 64).find(secret_words), std::string::npos);
  }
  both(secret_question);
  cpu.close();
  log.erase(log.begin() + 40);
  const MemoryContents left = contents_of(cpu.data(), "m"), fresh = contents_made_of(log, model_);
  EXPECT_TRUE(left.landmarks == fresh.landmarks);
  EXPECT_TRUE(left.kv == fresh.kv);
}

}  // namespace
}  // namespace recalld
