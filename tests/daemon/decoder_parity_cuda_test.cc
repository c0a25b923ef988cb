// Answers on a GPU and on the CPU, from one store that the GPU encoded. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "daemon/decoder_cpu.h"
#include "daemon/encoder.h"
#include "daemon/gpu_decoder.h"
#include "daemon/reencoder.h"
#include "kernels/chunk_selection_cuda.h"
#include "model/gpu_ramba.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/device_array.h"
#include "tests/support/slow_file_io.h"

namespace recalld {
namespace {

constexpr float margin = 0.15f;  // between the two best logits, from which on the devices must agree

// With the starter and with what is shipped.
class DecoderParityTest : public GpuTest, public ::testing::WithParamInterface<GoldenCheckpoint> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    LoadedModel loaded = must(load_model(GetParam().model, Precision::automatic, Parts::all, pool_));
    model_ = std::move(loaded.model);
    tokenizer_.emplace(std::move(loaded.tokenizer));
    StoreOptions options;
    options.shape = loaded.shape;
    options.memory_budget_bytes = uint64_t{64} << 20;
    options.file_io = [this]() -> Expected<std::unique_ptr<FileIo>> {
      auto disk = std::make_unique<SlowFileIo>(open_file_io_posix(DirectIo::never));
      disk_ = disk.get();
      return disk;
    };
    store_ = must(Store::open(directory_.path() / "data", std::move(options)));
    gpu_ = must(open_gpu_ramba({.model = GetParam().model, .budget_bytes = uint64_t{512} << 20, .encode_states = 64}));
    encoder_ = std::make_unique<Encoder>(*store_, *gpu_, loaded.shape, *tokenizer_, uint64_t{64} << 20,
                                         gpu_->states_max() - 1);
  }

  // Another GPU with as few slots as go.
  static std::unique_ptr<Gpu> open_with_least_budget() {
    GpuOptions options{.model = GetParam().model, .budget_bytes = 1 << 20, .encode_states = 8};
    const auto refused = open_gpu_ramba(options);
    if (refused) throw std::runtime_error("a budget of 1 MiB was taken");
    const std::string &message = refused.error().message, advice = "raise --gpu-budget to ";
    const size_t found = message.find(advice);
    if (found == std::string::npos) throw std::runtime_error(message);
    options.budget_bytes = std::stoull(message.substr(found + advice.size())) << 20;
    return must(open_gpu_ramba(options));
  }

  NewTurn turn_of(std::string content) const {
    Turn turn{.role = Role::user, .name = {}, .content = std::move(content), .time_us = 0, .metadata = {}};
    Tokens tokens = tokenizer_->encode_turn(turn_prefix(turn), turn.content);
    return {std::move(turn), std::move(tokens.ids), std::move(tokens.ends)};
  }
  // A short turn, that is not encoded.
  void append_few() {
    AppendBatch batch;
    batch.memory = "m";
    batch.turns.push_back(turn_of("It rains."));
    must(must(store_->append(std::array{batch})).front());
  }

  // A fact in every tenth turn, between small talk that says nothing.
  MemoryInfo append_facts(size_t facts) {
    const std::array places{"harbour", "garden", "library", "kitchen", "station", "tower", "market", "bridge"};
    const std::array weathers{"bright", "windy", "quiet", "cold", "golden", "wet"};
    std::mt19937 random(17);
    AppendBatch batch;
    batch.memory = "m";
    const auto add = [&](std::string content) { batch.turns.push_back(turn_of(std::move(content))); };
    for (size_t fact = 0; fact < facts; ++fact) {
      for (int i = 0; i < 9; ++i)
        add("We walked past the " + std::string(places[random() % places.size()]) + " on a " +
            weathers[random() % weathers.size()] + " morning, and then sat by the " + places[random() % places.size()] +
            " until it grew dark, telling each other what we had read.");
      const std::string thing = std::string(places[fact % places.size()]) + " number " + std::to_string(fact);
      add("The special magic number for the " + thing + " is " + std::to_string(1000000 + random() % 9000000) + ".");
      questions_.push_back("What is the special magic number for the " + thing + "?");
    }
    const MemoryId id = must(must(store_->append(std::array{batch})).front()).id;
    while (must(encoder_->encode_segments(std::array{id}).front()) > 0) {
    }
    return must(store_->memory(id));
  }

  std::vector<uint32_t> prompt(const MemoryInfo& memory, const std::string& question) const {
    const uint64_t first = memory.tokens - std::min<uint64_t>(memory.tokens, 192);
    auto tokens = must(store_->tokens(memory.serving, first, memory.tokens - first));
    const auto asked = tokenizer_->encode_query(question);
    tokens.insert(tokens.end(), asked.begin(), asked.end());
    return tokens;
  }

  static Decoder::Read read_prompt(Decoder& decoder, Decoder::Stream& stream, std::span<const uint32_t> tokens) {
    Decoder::Read read;
    for (size_t done = 0; done < tokens.size(); done += chunk_tokens) {
      const size_t count = std::min<size_t>(chunk_tokens, tokens.size() - done);
      read = must(decoder.read(stream, tokens.subspan(done, count), done + count == tokens.size()));
    }
    return read;
  }

  static Decoder::Read write_token(Decoder& decoder, Decoder::Stream& stream, uint32_t token) {
    while (true) {
      auto read = decoder.write(std::array{Decoder::Written{&stream, token}});
      if (read.front()) return must(std::move(*read.front()));
    }
  }

  TempDir directory_;
  WorkerPool pool_{4};
  std::unique_ptr<Ramba> model_;
  std::optional<Tokenizer> tokenizer_;
  std::unique_ptr<Store> store_;
  SlowFileIo* disk_ = nullptr;
  std::unique_ptr<Gpu> gpu_;
  std::unique_ptr<Encoder> encoder_;
  std::vector<std::string> questions_;
};

uint32_t best_of(const std::vector<float>& logits) {
  return static_cast<uint32_t>(std::ranges::max_element(logits) - logits.begin());
}

// The best logit before the second best.
float lead_of(std::vector<float> logits) {
  std::ranges::nth_element(logits, logits.begin() + 1, std::ranges::greater{});
  return *std::ranges::max_element(logits) - logits[1];
}

TEST_P(DecoderParityTest, GreedyTokensAreTheSameUntilTheTwoBestAreNearlyEqual) {
  const MemoryInfo memory = append_facts(24);
  CpuDecoder cpu(*store_, *model_, pool_);
  GpuDecoder gpu(*store_, *model_, *gpu_);
  constexpr int tokens_max = 64;
  size_t compared = 0, parted = 0;
  for (const std::string& question : questions_) {
    const Decoder::Source source{
        .memory = memory, .stored_chunks = memory.encoded_chunks, .tail_landmarks = {}, .tail_kv = {}};
    const auto on_cpu = must(cpu.open(source)), on_gpu = must(gpu.open(source));
    const auto tokens = prompt(memory, question);
    Decoder::Read by_cpu = read_prompt(cpu, *on_cpu, tokens), by_gpu = read_prompt(gpu, *on_gpu, tokens);
    for (int i = 0; i < tokens_max; ++i) {
      const uint32_t token = best_of(by_cpu.logits);
      ++compared;
      if (best_of(by_gpu.logits) != token) {
        std::printf("\"%s\": the devices part at token %d, where the CPU's two best logits are %.4f apart\n",
                    question.c_str(), i, static_cast<double>(lead_of(by_cpu.logits)));
        EXPECT_LE(std::min(lead_of(by_cpu.logits), lead_of(by_gpu.logits)), margin);
        ++parted;
        break;
      }
      by_cpu = write_token(cpu, *on_cpu, token);
      by_gpu = write_token(gpu, *on_gpu, token);
    }
  }
  std::printf("%zu tokens compared, %zu of %zu answers parted\n", compared, parted, questions_.size());
  EXPECT_GT(compared, questions_.size() * 8);
  EXPECT_GT(gpu.counts().misses, 0u);
  EXPECT_GT(gpu.counts().hits, gpu.counts().misses);
}

// From the store with eviction all the time, and several streams beside it: the bits of a stream alone with all cached.
TEST_P(DecoderParityTest, LogitsDoNotDependOnTheCacheNorOnOtherStreams) {
  const MemoryInfo memory = append_facts(600);  // several times as many chunks as there are slots
  const Decoder::Source source{
      .memory = memory, .stored_chunks = memory.encoded_chunks, .tail_landmarks = {}, .tail_kv = {}};
  constexpr int tokens_max = 24;
  std::vector<std::vector<std::vector<float>>> alone;
  {
    GpuDecoder decoder(*store_, *model_, *gpu_);
    for (size_t q = 0; q < 6; ++q) {
      const auto stream = must(decoder.open(source));
      Decoder::Read read = read_prompt(decoder, *stream, prompt(memory, questions_[q]));
      alone.emplace_back();
      for (int i = 0; i < tokens_max; ++i) {
        alone.back().push_back(read.logits);
        read = write_token(decoder, *stream, best_of(read.logits));
      }
    }
  }
  const auto gpu = open_with_least_budget();
  ASSERT_GT(memory.encoded_chunks, 2 * gpu->slots());
  GpuDecoder decoder(*store_, *model_, *gpu);
  // The memory's own text from anywhere until no slot is free: what is missing from here on evicts.
  std::mt19937 random(5);
  for (int prompts = 0; decoder.counts().misses <= gpu->slots(); ++prompts) {
    ASSERT_LT(prompts, 50);
    const uint64_t any = random() % (memory.tokens - 256);
    const auto stream = must(decoder.open(source));
    static_cast<void>(read_prompt(decoder, *stream, must(store_->tokens(memory.serving, any, 256))));
  }
  const uint64_t misses = decoder.counts().misses;
  std::vector<std::unique_ptr<Decoder::Stream>> streams;
  std::vector<Decoder::Read> reads;
  for (size_t q = 0; q < alone.size(); ++q) {
    streams.push_back(must(decoder.open(source)));
    reads.push_back(read_prompt(decoder, *streams[q], prompt(memory, questions_[q])));
    EXPECT_TRUE(reads[q].logits == alone[q][0]);
  }
  std::vector<int> written(streams.size());
  while (std::ranges::min(written) + 1 < tokens_max) {
    std::vector<Decoder::Written> tokens;
    std::vector<size_t> of_token;
    for (size_t q = 0; q < streams.size(); ++q) {
      if (written[q] + 1 == tokens_max) continue;
      tokens.push_back({streams[q].get(), best_of(reads[q].logits)});
      of_token.push_back(q);
    }
    auto results = decoder.write(tokens);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i]) continue;
      const size_t q = of_token[i];
      reads[q] = must(std::move(*results[i]));
      ++written[q];
      EXPECT_TRUE(reads[q].logits == alone[q][static_cast<size_t>(written[q])]) << "stream " << q;
    }
  }
  EXPECT_GT(decoder.counts().misses, misses);
}

// The first tokens of answers from an empty cache, and the same once more where the disk disturbs them.
TEST_P(DecoderParityTest, AnAnswerThatIsAloneDoesNotDependOnHowItsReadsGo) {
  const MemoryInfo memory = append_facts(200);
  uint64_t last_turn = memory.next_turn;
  append_few();
  const Decoder::Source source{
      .memory = memory, .stored_chunks = memory.encoded_chunks, .tail_landmarks = {}, .tail_kv = {}};
  constexpr int tokens_max = 8;
  // The logits after each token, and how many chunks it missed. disturb() is called before each.
  struct Run {
    std::vector<std::vector<float>> logits;
    std::vector<uint64_t> missed;
  };
  const auto run = [&](const std::string& question, auto disturb) {
    GpuDecoder decoder(*store_, *model_, *gpu_);
    const auto stream = must(decoder.open(source));
    Decoder::Read read = read_prompt(decoder, *stream, tokenizer_->encode_query(question));
    Run result;
    for (int i = 0; i < tokens_max; ++i) {
      const uint64_t before = decoder.counts().misses;
      {
        [[maybe_unused]] const auto disturbing = disturb();
        read = write_token(decoder, *stream, best_of(read.logits));
      }
      result.logits.push_back(read.logits);
      result.missed.push_back(decoder.counts().misses - before);
    }
    return result;
  };
  struct Restored {
    SlowFileIo* disk;
    ~Restored() { disk->delay(std::chrono::microseconds(0)); }
  };
  // Each read takes longer than half the time that the GPU waits: of two or more the last ones come too late.
  const auto slow = [&] {
    disk_->delay(std::chrono::microseconds(cuda::arrival_wait_ns_max / 1000 * 11 / 20));
    return Restored{disk_};
  };
  // While the first read is held a turn comes and another goes, and then that read fails: all are read again.
  const auto changed = [&] {
    disk_->hold([](uint64_t) { return true; });
    return std::jthread([&](const std::stop_token& ended) {
      while (!disk_->holds_a_read()) {
        if (ended.stop_requested()) return disk_->release();
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
      append_few();
      must(store_->forget(memory.id, std::array{TurnRange{last_turn, last_turn}}));
      ++last_turn;
      disk_->fail_next(1);
      disk_->release();
    });
  };
  int tokens_late = 0, tokens_read_again = 0;
  for (const std::string& question : questions_) {
    if (tokens_late >= 4 && tokens_read_again >= 4) break;
    const Run expected = run(question, [] { return 0; });
    const uint64_t turn = last_turn;
    const Run late = run(question, slow), again = run(question, changed);
    for (int i = 0; i < tokens_max; ++i) {
      EXPECT_TRUE(late.logits[i] == expected.logits[i]) << question << " token " << i;
      EXPECT_TRUE(again.logits[i] == expected.logits[i]) << question << " token " << i;
      tokens_late += expected.missed[i] >= 2 ? 1 : 0;
    }
    tokens_read_again += static_cast<int>(last_turn - turn);
  }
  std::printf("%d tokens whose last chunks came too late, %d whose chunks were read again\n", tokens_late,
              tokens_read_again);
  EXPECT_GE(tokens_late, 1);
  EXPECT_GE(tokens_read_again, 1);
}

INSTANTIATE_TEST_SUITE_P(, DecoderParityTest, ::testing::ValuesIn(golden_checkpoints()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace recalld
