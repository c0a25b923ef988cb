// The engine with a GPU that computes on the CPU: answers and searches as without one, and what is forgotten is gone
// from the GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "memstore/kv_file.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/cpu_gpu.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
using Call = CpuGpu::Call;

TEST(EngineOnAGpu, AnswersAsOnTheCpu) {
  const TempDir directory;
  EngineDriver cpu(directory.path() / "cpu"), gpu(directory.path() / "gpu");
  CpuGpu* device = nullptr;
  gpu.use_gpu([&device](const GpuOptions& options) -> Expected<std::unique_ptr<Gpu>> {
    RECALLD_TRY(auto opened, CpuGpu::open({.model = options.model, .slots = 128, .landmarks_bytes_max = 40'000}));
    device = opened.get();
    return opened;
  });
  auto log = harbour_log(0, 200);
  log[70] = fact;
  const auto generate = [](EngineDriver& engine, const std::string& memory, const std::string& prompt, double heat) {
    GenerateRequest request;
    request.memory = memory;
    request.prompt = prompt;
    request.max_tokens = 24;
    request.temperature = heat;
    request.seed = 5;
    auto promise = std::make_shared<std::promise<Expected<GenerateReply>>>();  // shared with the answer
    auto future = promise->get_future();
    engine->generate(std::move(request),
                     [promise](Expected<GenerateReply> reply) { promise->set_value(std::move(reply)); });
    return future;
  };
  const auto compare = [&](const std::string& memory, const std::string& prompt, double heat) {
    const GenerateReply expected = must(generate(cpu, memory, prompt, heat).get());
    const GenerateReply found = must(generate(gpu, memory, prompt, heat).get());
    EXPECT_EQ(found.text, expected.text);
    EXPECT_EQ(found.tokens, expected.tokens);
    EXPECT_EQ(found.searchable_through, expected.searchable_through);
    EXPECT_EQ(found.unreadable.size(), expected.unreadable.size());
    EXPECT_EQ(found.chunks.size(), expected.chunks.size());
    for (size_t i = 0; i < std::min(found.chunks.size(), expected.chunks.size()); ++i) {
      EXPECT_EQ(found.chunks[i].chunk, expected.chunks[i].chunk);
      EXPECT_EQ(found.chunks[i].weight, expected.chunks[i].weight);
      EXPECT_EQ(found.chunks[i].passage.text, expected.chunks[i].passage.text);
    }
    return found;
  };
  for (EngineDriver* engine : {&cpu, &gpu}) {
    engine->open();
    engine->append("m", log, true);
    engine->append("n", harbour_log(500, 560), true);
    engine->append("m", harbour_log(200, 215));  // and asked at once
  }
  EXPECT_EQ(gpu->device(), "cuda (CPU in place of a GPU)");
  EXPECT_EQ(compare("m", question, 0).text, "60417");
  compare("n", "What did the boats bring?", 1.5);
  compare("m", "Tell me of the sea.", 2);
  const SearchReply found = must(gpu.try_search("m", question)), expected = must(cpu.try_search("m", question));
  EXPECT_EQ(device->calls(Call::late_scores), 1u) << "all chunks in one call";
  ASSERT_EQ(found.results.size(), expected.results.size());
  for (size_t i = 0; i < found.results.size(); ++i) {
    EXPECT_EQ(found.results[i].chunk, expected.results[i].chunk);
    EXPECT_EQ(found.results[i].score, expected.results[i].score);
    EXPECT_EQ(found.results[i].passage.text, expected.results[i].passage.text);
    ASSERT_TRUE(found.results[i].why->token_score);
    EXPECT_EQ(found.results[i].why->token_score, expected.results[i].why->token_score);
    EXPECT_EQ(found.results[i].why->matches.size(), expected.results[i].why->matches.size());
    ASSERT_EQ(found.results[i].why->pairs.size(), expected.results[i].why->pairs.size());
    for (size_t p = 0; p < found.results[i].why->pairs.size(); ++p)
      EXPECT_EQ(found.results[i].why->pairs[p].weight, expected.results[i].why->pairs[p].weight);
  }
  device->fail_next(Call::late_scores);
  const auto failed = gpu.try_search("m", question);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().kind, ErrorKind::device);
  must(gpu.try_search("m", question, 16, SearchMode::landmark));
  EXPECT_EQ(device->calls(Call::late_scores), 2u) << "landmarks alone compare no tokens";

  // Many at once, more than there are lanes.
  std::vector<std::pair<std::future<Expected<GenerateReply>>, std::string>> together;
  for (int i = 0; i < 12; ++i) {
    const std::string memory = i % 3 == 0 ? "n" : "m", prompt = log_entry(static_cast<size_t>(i));
    together.emplace_back(generate(gpu, memory, prompt, i), must(generate(cpu, memory, prompt, i).get()).text);
  }
  for (auto& [reply, text] : together) EXPECT_EQ(must(reply.get()).text, text);

  // What is forgotten is gone from the GPU when the forgetting is done.
  gpu.settle();
  const ChunkDetail chunk = gpu.chunk("m", must(generate(gpu, "m", question, 0).get()).chunks[0].chunk);
  std::string record(chunk.kv_bytes, '\0');
  std::ifstream(gpu.data() / "kv" / segment_name(chunk.view.entry.segment), std::ios::binary)
      .seekg(static_cast<std::streamoff>(chunk.view.entry.slot * chunk.kv_bytes))
      .read(record.data(), static_cast<std::streamsize>(record.size()));
  ASSERT_TRUE(device->holds(as_bytes(record).first(512)));
  for (EngineDriver* engine : {&cpu, &gpu}) {
    engine->forget("m", {{70, 70}});
    engine->settle();
  }
  EXPECT_FALSE(device->holds(as_bytes(record).first(512)));
  EXPECT_THAT(compare("m", question, 0).text, ::testing::Not(HasSubstr("60417")));

  // Damage is told, and mended.
  const GenerateReply whole = compare("m", "What did the boats bring?", 0);
  const ChunkDetail damaged = gpu.chunk("m", whole.chunks[0].chunk);
  gpu.forget("n", {{0, 0}});  // and the cache of n, not that of m
  std::fstream segment(gpu.data() / "kv" / segment_name(damaged.view.entry.segment),
                       std::ios::in | std::ios::out | std::ios::binary);
  segment.seekp(static_cast<std::streamoff>(damaged.view.entry.slot * damaged.kv_bytes + 100)) << "rot";
  segment.close();
  gpu.close();
  gpu.open();
  const GenerateReply without = must(generate(gpu, "m", "What did the boats bring?", 0).get());
  ASSERT_EQ(without.unreadable.size(), 1u);
  EXPECT_EQ(without.unreadable[0].first, damaged.view.chunk);
  must(answer<VerifyReply>(
      [&](auto done) { gpu->verify({.memory = "m", .repair = true, .wait = true}, std::move(done)); }));
  compare("m", "What did the boats bring?", 0);
}

TEST(EngineOnAGpu, AnErasureThatFailsIsTriedAgainAndLoggedOnce) {
  const TempDir directory;
  std::ostringstream log;
  const struct Restored {
    std::shared_ptr<spdlog::logger> logger = spdlog::default_logger();
    ~Restored() { spdlog::set_default_logger(logger); }
  } restored;
  EngineDriver engine(directory.path() / "data");
  CpuGpu* device = nullptr;
  engine.use_gpu([&device](const GpuOptions& options) -> Expected<std::unique_ptr<Gpu>> {
    RECALLD_TRY(auto opened, CpuGpu::open({.model = options.model}));
    device = opened.get();
    return opened;
  });
  engine.open();
  engine.append("m", harbour_log(0, 100), true);
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  device->fail_next(Call::erase_scratch, 2);
  const auto told =
      engine.try_forget({.memory = "m", .turns = {{70, 70}}, .filter = {}, .dry_run = false, .wait = true});
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().kind, ErrorKind::device);
  EngineDriver::wait_for("the erasure", [&] { return device->calls(Call::erase_scratch) >= 3; });
  engine.settle();
  spdlog::set_default_logger(restored.logger);
  const std::string text = log.str(), message = "erase what was forgotten of memory";
  const size_t first = text.find(message);
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(text.find(message, first + 1), std::string::npos) << text;
}

}  // namespace
}  // namespace recalld
