// The model on a GPU against its twin on the CPU, and against itself: the same bits however a stream is cut, whatever
// else is computed beside it, and wherever landmarks and chunks lie. Skipped where there is no GPU.
#include "model/gpu_ramba.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string_view>
#include <thread>

#include "kernels/chunk_selection_cuda.h"
#include "kernels/cpu_isa.h"
#include "kernels/landmark_topk.h"
#include "model/ramba.h"
#include "model/swa.h"
#include "model/weights.h"
#include "tests/support/checkpoints.h"
#include "tests/support/device_array.h"
#include "tests/support/random_model.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

constexpr size_t chunk_size = 64;
constexpr float tolerance = 2e-2f;  // across devices

template <class T>
T must_have(Expected<T> value) {
  if (!value) throw std::runtime_error(value.error().message);
  if constexpr (!std::is_void_v<T>) return *std::move(value);
}

// What a stream leaves behind, as stored.
struct Encoding {
  std::vector<Bf16> landmarks;
  std::vector<std::byte> kv;
  std::string state;

  bool operator==(const Encoding& other) const {
    return same_bits(std::span<const Bf16>(landmarks), std::span<const Bf16>(other.landmarks)) && kv == other.kv &&
           state == other.state;
  }
};

class GpuRambaTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    cpu_ = must_have(Ramba::open(model_, Precision::f32, Parts::all, pool_));
  }

  std::unique_ptr<Gpu> open(uint64_t budget_bytes) const {
    return must_have(open_gpu_ramba({.model = model_, .budget_bytes = budget_bytes, .encode_states = 32}));
  }

  // The least budget that opens, with few slots.
  uint64_t least_budget() const {
    const auto refused = open_gpu_ramba({.model = model_, .budget_bytes = 1 << 20, .encode_states = 8});
    if (refused) throw std::runtime_error("a budget of 1 MiB was taken");
    const std::string &message = refused.error().message, advice = "raise --gpu-budget to ";
    const size_t found = message.find(advice);
    if (found == std::string::npos) throw std::runtime_error(message);
    return std::stoull(message.substr(found + advice.size())) << 20;
  }

  // Words that the model knows, beginning at this one.
  static std::vector<uint32_t> text_tokens(size_t count, size_t first) {
    const auto golden = must_have(Weights::open(golden_files("default") / "golden.safetensors"));
    const auto ids = must_have(golden.all_ints("input_ids"));
    std::vector<uint32_t> tokens(count);
    for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<uint32_t>(ids[(first + i) % ids.size()]);
    return tokens;
  }
  static std::vector<uint32_t> random_tokens(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint32_t> tokens(count);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % 8192);
    return tokens;
  }

  Encoding room_for(size_t chunks) const {
    return {std::vector<Bf16>(chunks * cpu_->landmark_dim()), std::vector<std::byte>(chunks * cpu_->kv_bytes()), {}};
  }

  Gpu::Segment segment(Encoding& into, RecurrentState& state, std::span<const uint32_t> tokens, size_t first,
                       size_t count) const {
    return {.state = &state,
            .tokens = tokens.subspan(first * chunk_size, count * chunk_size),
            .landmarks = std::span(into.landmarks).subspan(first * cpu_->landmark_dim(), count * cpu_->landmark_dim()),
            .kv = std::span(into.kv).subspan(first * cpu_->kv_bytes(), count * cpu_->kv_bytes())};
  }

  // One stream alone, in segments of these many chunks, the last number again and again.
  Encoding encode(Gpu& gpu, std::span<const uint32_t> tokens, const std::vector<size_t>& cuts) const {
    const size_t chunks = tokens.size() / chunk_size;
    Encoding out = room_for(chunks);
    RecurrentState state = must_have(gpu.zero_state());
    for (size_t first = 0, call = 0; first < chunks; ++call) {
      const size_t count = std::min(chunks - first, cuts[std::min(call, cuts.size() - 1)]);
      must_have(gpu.encode(std::array{segment(out, state, tokens, first, count)}));
      first += count;
    }
    out.state = must_have(gpu.bytes_of(state));
    return out;
  }

  // The same stream on the CPU.
  Encoding encode_on_cpu(std::span<const uint32_t> tokens) const {
    const size_t chunks = tokens.size() / chunk_size;
    RecurrentState state = cpu_->lower_zero_state();
    std::vector<float> hidden(tokens.size() * cpu_->config().hidden_size);
    cpu_->lower(state, tokens, hidden);
    Encoding out = room_for(chunks);
    const auto encoded = cpu_->encode_chunks(hidden);
    for (size_t i = 0; i < chunks; ++i) {
      const auto landmark = cpu_->pack_landmark(encoded[i]);
      std::ranges::copy(landmark, out.landmarks.begin() + static_cast<ptrdiff_t>(i * cpu_->landmark_dim()));
      cpu_->pack_kv(encoded[i], std::span(out.kv).subspan(i * cpu_->kv_bytes(), cpu_->kv_bytes()));
    }
    out.state.assign(reinterpret_cast<const char*>(state.values.data()), state.values.size() * sizeof(float));
    return out;
  }

  std::filesystem::path model_ = default_checkpoint();
  WorkerPool pool_{2};
  std::unique_ptr<Ramba> cpu_;
};

constexpr uint64_t roomy = uint64_t{1} << 30;

std::vector<float> floats(std::span<const Bf16> values) {
  std::vector<float> result(values.size());
  std::ranges::transform(values, result.begin(), to_float);
  return result;
}
std::vector<float> floats(const std::vector<std::byte>& values) {
  return floats(std::span(reinterpret_cast<const Bf16*>(values.data()), values.size() / sizeof(Bf16)));
}

std::vector<float> floats(const std::string& state) {
  std::vector<float> result(state.size() / sizeof(float));
  std::memcpy(result.data(), state.data(), state.size());
  return result;
}

// ---- Appending and searching

TEST_F(GpuRambaTest, EncodesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  constexpr size_t chunks = 37;
  const auto tokens = text_tokens(chunks * chunk_size, 0);
  const Encoding found = encode(*gpu, tokens, {chunks}), expected = encode_on_cpu(tokens);
  expect_near(floats(found.landmarks), floats(expected.landmarks), tolerance);
  expect_near(floats(found.kv), floats(expected.kv), tolerance);
  expect_near(floats(found.state), floats(expected.state), tolerance);
}

TEST_F(GpuRambaTest, GivesTheSameBitsHoweverTheStreamWasCutAndWhateverElseIsEncoded) {
  const auto gpu = open(roomy);
  constexpr size_t chunks = 150, others = 3;
  const auto tokens = random_tokens(chunks * chunk_size, 2);
  const Encoding whole = encode(*gpu, tokens, {chunks});
  for (const auto& cuts : std::vector<std::vector<size_t>>{{1}, {16}, {3, 64, 1, 7}})
    EXPECT_TRUE(encode(*gpu, tokens, cuts) == whole) << "first cut " << cuts[0];

  // Beside other streams, more tokens at once than go through in one pass.
  std::vector<std::vector<uint32_t>> of_others;
  std::vector<Encoding> found(others + 1, room_for(chunks));
  std::vector<RecurrentState> states;
  for (uint32_t i = 0; i <= others; ++i) {
    of_others.push_back(i == 2 ? tokens : random_tokens(chunks * chunk_size, 100 + i));
    states.push_back(must_have(gpu->zero_state()));
  }
  std::vector<Gpu::Segment> segments;
  for (uint32_t i = 0; i <= others; ++i) segments.push_back(segment(found[i], states[i], of_others[i], 0, chunks));
  must_have(gpu->encode(segments));
  found[2].state = must_have(gpu->bytes_of(states[2]));
  EXPECT_TRUE(found[2] == whole);
  EXPECT_FALSE(found[1].kv == whole.kv);
}

TEST_F(GpuRambaTest, KeepsAStateThatWasCopiedAndTakesBackItsBytes) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(8 * chunk_size, 3);
  RecurrentState state = must_have(gpu->zero_state());
  Encoding into = room_for(8);
  must_have(gpu->encode(std::array{segment(into, state, tokens, 0, 4)}));
  const RecurrentState copy = state;
  const std::string bytes = must_have(gpu->bytes_of(copy));
  Gpu::Segment alone = segment(into, state, tokens, 4, 4);
  const Encoding first = into;
  alone.landmarks = {};
  alone.kv = {};
  must_have(gpu->encode(std::array{alone}));  // the state alone
  EXPECT_TRUE(into == first);
  EXPECT_EQ(must_have(gpu->bytes_of(copy)), bytes);
  EXPECT_NE(must_have(gpu->bytes_of(state)), bytes);
  RecurrentState again = must_have(gpu->state_from(as_bytes(bytes)));
  must_have(gpu->encode(std::array{segment(into, again, tokens, 4, 4)}));
  EXPECT_EQ(must_have(gpu->bytes_of(again)), must_have(gpu->bytes_of(state)));
}

TEST_F(GpuRambaTest, SaysWhenNoStateIsFreeAndGoesOnWhenOneIs) {
  const auto gpu = open(roomy);
  std::vector<RecurrentState> states;
  for (size_t i = 0; i < gpu->states_max(); ++i) states.push_back(must_have(gpu->zero_state()));
  const auto refused = gpu->zero_state();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::device);
  states.pop_back();
  EXPECT_TRUE(gpu->zero_state());
}

TEST_F(GpuRambaTest, ReadsQueriesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  for (const size_t count : {1, 2, 63, 64, 65, 200}) {
    const auto tokens = text_tokens(count, 100);
    const auto found = must_have(gpu->query(tokens));
    const auto expected = cpu_->query(tokens);
    SCOPED_TRACE(count);
    // One row alone: its root mean square is not evened out over many.
    expect_near(floats(found.landmark), floats(expected.landmark), 2 * tolerance);
    expect_near(found.heads, expected.heads, 2 * tolerance);
    expect_near(found.tokens, expected.tokens, 2 * tolerance);
    const auto alone = must_have(gpu->query(tokens, QueryParts::landmark));
    EXPECT_TRUE(same_bits(std::span<const Bf16>(alone.landmark), std::span<const Bf16>(found.landmark)));
    EXPECT_TRUE(alone.heads.empty());
    EXPECT_TRUE(alone.tokens.empty());
  }
}

// In little memory, so that a long question goes through in parts.
TEST_F(GpuRambaTest, TheTokensOfALongQuestionAskAsThoseOfAShortOne) {
  const auto gpu = open(uint64_t{128} << 20);
  const auto tokens = text_tokens(5'000, 100);
  const auto whole = must_have(gpu->query(tokens)).tokens;
  const size_t width = cpu_->config().num_attention_heads * cpu_->config().attention_head_dim;
  ASSERT_EQ(whole.size(), (tokens.size() - 2) * width);
  for (const size_t count : {3, 66, 67, 300, 1'025, 4'999}) {
    const auto part = must_have(gpu->query(std::span(tokens).first(count))).tokens;
    expect_near(part, std::span(whole).first((count - 2) * width), tolerance);
  }
}

TEST_F(GpuRambaTest, ScoresChunksByTheTokensOfAQuestionWithTheBitsOfTheCpu) {
  const auto gpu = open(roomy);
  constexpr size_t chunks = 300;  // more than go through at once
  const Encoding memory = encode(*gpu, text_tokens(chunks * chunk_size, 0), {64});
  std::vector<ByteView> records;
  for (size_t i = 0; i < chunks; ++i)
    records.push_back(ByteView(memory.kv).subspan(i * cpu_->kv_bytes(), cpu_->kv_bytes()));
  const bool is_fused = std::string_view(cpu_isa_name()) != "SSE4";
  const auto compare = [&](std::span<const float> tokens, std::span<const ByteView> of) {
    const auto found = must_have(gpu->late_scores(tokens, of));
    ASSERT_EQ(found.size(), of.size());
    for (size_t i = 0; i < of.size(); ++i) {
      const float expected = cpu_->late_score(tokens, of[i]);
      if (is_fused)
        ASSERT_EQ(found[i], expected) << "chunk " << i << " of " << of.size();
      else
        ASSERT_NEAR(found[i], expected, 1e-4f * std::abs(expected));
    }
  };
  for (const size_t n : {1, 9, 128}) {
    const auto tokens = must_have(gpu->query(text_tokens(n + 2, 40))).tokens;
    for (const size_t count : {1, 2, 127, 128, 129, 300}) compare(tokens, std::span(records).first(count));
  }
  EXPECT_TRUE(must_have(gpu->late_scores(must_have(gpu->query(text_tokens(9, 0))).tokens, {})).empty());

  // From several threads at once, beside encoding and erasing.
  const auto tokens = must_have(gpu->query(text_tokens(30, 40))).tokens;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      for (int call = 0; call < 20; ++call) compare(tokens, std::span(records).first(100));
    });
  for (int call = 0; call < 10; ++call) {
    EXPECT_TRUE(encode(*gpu, text_tokens(64 * chunk_size, 0), {64}).kv ==
                std::vector(memory.kv.begin(), memory.kv.begin() + static_cast<ptrdiff_t>(64 * cpu_->kv_bytes())));
    must_have(gpu->erase_scratch());
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- Generating

// Does what a decoder does, over chunks in RAM: pages what a lane misses into slots, in the order in which it comes.
class Pager {
 public:
  Pager(Gpu& gpu, const Encoding& from, size_t landmark_dim, size_t kv_bytes)
      : gpu_(gpu), from_(from), kv_bytes_(kv_bytes), memory_(must_have(gpu.open_memory())), in_slot_(gpu.slots()) {
    const size_t chunks = from.kv.size() / kv_bytes;
    for (size_t first = 0; first < chunks; first += 700) {  // it grows
      const size_t count = std::min<size_t>(700, chunks - first);
      must_have(gpu.write_landmarks(*memory_, first,
                                    std::span(from.landmarks).subspan(first * landmark_dim, count * landmark_dim)));
    }
  }

  GpuMemory& memory() { return *memory_; }
  size_t misses() const { return misses_; }
  size_t evictions() const { return evictions_; }
  const std::map<uint64_t, uint32_t>& slot_of() const { return slot_of_; }  // the chunks that are cached

  // Pages all chunks, at a lane that is free.
  void page_all(uint32_t lane) {
    const uint64_t chunks = from_.kv.size() / kv_bytes_;
    for (uint64_t first = 0; first < chunks; first += 8) {
      Gpu::Selection some;
      for (uint64_t chunk = first; chunk < std::min(chunks, first + 8); ++chunk)
        some.chunks.push_back(static_cast<uint32_t>(chunk));
      page(some, gpu_.block_staging());
      must_have(gpu_.reset(lane));
      must_have(gpu_.erase_scratch());
    }
  }

  // Makes the chunks of a selection cached.
  void page(const Gpu::Selection& selection, ByteSpan staging) {
    auto [fills, evicted] = plan(selection, staging);
    for (size_t i = 0; i < fills.size(); ++i) copy_record(fills, i, staging);
    // Both ways, by turns.
    if (++pagings_ % 2 == 0) {
      must_have(gpu_.unmap(evicted));
      evicted.clear();
    }
    must_have(gpu_.fill(*memory_, fills, evicted));
  }

  // How the records of a lane that waits alone come, the first one last.
  enum class Reads : uint8_t {
    good,        // when the GPU knows what follows
    late,        // the first one when the lane has been gone on with
    too_late,    // the first one after longer than the GPU waits
    done_again,  // the first one not at all, and all by another read, as where the memory was changed meanwhile
  };

  // The same for a lane that waits alone.
  Gpu::LaneResult resume(const Gpu::LaneWork& lane, const Gpu::Selection& selection, Reads reads) {
    const ByteSpan staging = gpu_.staging(lane.lane);
    const auto [fills, evicted] = plan(selection, staging);
    must_have(gpu_.prepare(lane, *memory_, fills, evicted));
    for (size_t i = fills.size(); i-- > 0;) {
      if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (i == 0 && reads == Reads::too_late)
        std::this_thread::sleep_for(std::chrono::nanoseconds(cuda::arrival_wait_ns_max) +
                                    std::chrono::milliseconds(50));
      if (i == 0 && (reads == Reads::late || reads == Reads::done_again)) break;
      copy_record(fills, i, staging);
      gpu_.arrived(i);
    }
    if (reads == Reads::done_again)
      for (size_t i = 0; i < fills.size(); ++i) copy_record(fills, i, staging);
    Gpu::LaneResult result = must_have(gpu_.go_on());
    if (reads == Reads::good) return result;
    EXPECT_FALSE(result.done);
    EXPECT_EQ(result.selections.size(), 1u);
    EXPECT_FALSE(result.selections.at(0).cached);
    EXPECT_EQ(result.selections.at(0).chunks, selection.chunks);
    if (reads == Reads::done_again) {  // nobody knows which of both reads was copied
      std::vector<Gpu::Mapped> filled;
      for (const Gpu::Fill& each : fills) filled.push_back({memory_.get(), each.chunk});
      must_have(gpu_.unmap(filled));
    }
    copy_record(fills, 0, staging);
    must_have(gpu_.fill(*memory_, fills, evicted));
    return std::move(must_have(gpu_.step(std::array{lane})).front());
  }

  // No chunk is cached any more.
  void drop_all() {
    std::vector<Gpu::Mapped> all;
    for (const auto& [chunk, slot] : slot_of_) all.push_back({memory_.get(), chunk});
    must_have(gpu_.unmap(all));
    slot_of_.clear();
    std::ranges::fill(in_slot_, std::nullopt);
  }

 private:
  struct Plan {
    std::vector<Gpu::Fill> fills;
    std::vector<Gpu::Mapped> evicted;
  };

  void copy_record(std::span<const Gpu::Fill> fills, size_t i, ByteSpan staging) const {
    std::memcpy(staging.data() + i * kv_bytes_, from_.kv.data() + fills[i].chunk * kv_bytes_, kv_bytes_);
  }

  Plan plan(const Gpu::Selection& selection, ByteSpan staging) {
    const std::set<uint64_t> wanted = [&] {
      std::set<uint64_t> chunks(selection.chunks.begin(), selection.chunks.end());
      chunks.erase(Gpu::no_chunk);
      return chunks;
    }();
    std::vector<Gpu::Fill> fills;
    std::vector<Gpu::Mapped> evicted;
    for (const uint64_t chunk : wanted) {
      if (slot_of_.contains(chunk)) continue;
      while (in_slot_[next_] && wanted.contains(*in_slot_[next_])) next_ = (next_ + 1) % gpu_.slots();
      if (in_slot_[next_]) {
        evicted.push_back({memory_.get(), *in_slot_[next_]});
        slot_of_.erase(*in_slot_[next_]);
      }
      in_slot_[next_] = chunk;
      slot_of_[chunk] = next_;
      fills.push_back({chunk, next_, staging.subspan(fills.size() * kv_bytes_, kv_bytes_)});
      next_ = (next_ + 1) % gpu_.slots();
    }
    misses_ += fills.size();
    evictions_ += evicted.size();
    return {std::move(fills), std::move(evicted)};
  }

  Gpu& gpu_;
  const Encoding& from_;
  const size_t kv_bytes_;
  std::unique_ptr<GpuMemory> memory_;
  std::vector<std::optional<uint64_t>> in_slot_;
  std::map<uint64_t, uint32_t> slot_of_;
  uint32_t next_ = 0;
  size_t misses_ = 0, evictions_ = 0, pagings_ = 0;
};

class GpuGenerateTest : public GpuRambaTest {
 protected:
  void SetUp() override {
    GpuRambaTest::SetUp();
    if (IsSkipped()) return;
    const auto gpu = open(roomy);
    memory_ = encode(*gpu, random_tokens(chunks * chunk_size, 5), {64});
  }

  // Reads tokens in blocks of 64 and then some one by one; all logits.
  std::vector<std::vector<float>> run(Gpu& gpu, Pager& pager, uint32_t lane, std::span<const uint32_t> tokens,
                                      size_t singles, uint64_t visible = chunks) const {
    std::vector<std::vector<float>> logits;
    must_have(gpu.reset(lane));
    for (size_t done = 0; done < tokens.size();) {
      const size_t left = tokens.size() - done;
      const size_t count = left > singles ? std::min(left - singles, chunk_size) : 1;
      logits.push_back(run_one(gpu, pager, lane, tokens.subspan(done, count), visible));
      done += count;
    }
    return logits;
  }

  static std::vector<float> run_one(Gpu& gpu, Pager& pager, uint32_t lane, std::span<const uint32_t> tokens,
                                    uint64_t visible) {
    Gpu::LaneWork work{.lane = lane, .memory = &pager.memory(), .chunks = visible, .tokens = tokens};
    while (true) {
      auto result = std::move(must_have(gpu.step(std::array{work})).front());
      if (result.done) return std::move(result.logits);
      pager.page(result.selections.back(), tokens.size() > 1 ? gpu.block_staging() : gpu.staging(lane));
      work.tokens = {};
    }
  }

  static constexpr size_t chunks = 1500;
  Encoding memory_;
};

// The same on the CPU, from the same chunks.
std::vector<std::vector<float>> run_on_cpu(Ramba& cpu, const Encoding& memory, std::span<const uint32_t> tokens,
                                           size_t singles) {
  const size_t dim = cpu.landmark_dim(), width = cpu.config().hidden_size, chunks = memory.landmarks.size() / dim;
  RecurrentState lower = cpu.lower_zero_state(), upper = cpu.upper_zero_state();
  std::vector<std::vector<float>> logits;
  for (size_t done = 0; done < tokens.size();) {
    const size_t left = tokens.size() - done;
    const size_t count = left > singles ? std::min(left - singles, chunk_size) : 1;
    std::vector<float> hidden(chunk_size * width);
    cpu.lower(lower, tokens.subspan(done, count), hidden);
    const auto queries = cpu.landmark_queries(std::span(hidden).first(count * width), 0);
    std::vector<std::vector<AttendedChunk>> attended(count);
    for (size_t i = 0; i < count; ++i) {
      std::vector<float> dots(chunks);
      landmark_dots_cpu(std::span(queries).subspan(i * dim, dim), memory.landmarks.data(), chunks, dots.data());
      TopK top(cpu.config().chunk_topk);
      for (size_t c = 0; c < chunks; ++c) top.offer({c, dots[c]});
      auto best = top.take();
      std::ranges::sort(best, std::ranges::greater{}, &ScoredChunk::chunk);
      std::vector<float> scores;
      for (const ScoredChunk& each : best) scores.push_back(each.dot * cpu.score_scale());
      const auto weights = cpu.chunk_weights(scores, 0);
      for (size_t c = 0; c < best.size(); ++c)
        attended[i].push_back(
            {reinterpret_cast<const Bf16*>(memory.kv.data() + best[c].chunk * cpu.kv_bytes()), weights[c]});
    }
    cpu.upper(0, upper, hidden, attended);
    logits.push_back(cpu.logits(cpu.final_norm(std::span(hidden).subspan((count - 1) * width, width))));
    done += count;
  }
  return logits;
}

TEST_F(GpuGenerateTest, GivesTheLogitsOfTheCpu) {
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto tokens = random_tokens(150, 6);
  const auto found = run(*gpu, pager, 0, tokens, 10), expected = run_on_cpu(*cpu_, memory_, tokens, 10);
  ASSERT_EQ(found.size(), expected.size());
  // Chunks whose scores are nearly equal may change places: not in most tokens.
  size_t near = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    double difference = 0, size = 0;
    for (size_t v = 0; v < found[i].size(); ++v) {
      difference = std::max<double>(difference, std::abs(found[i][v] - expected[i][v]));
      size = std::max<double>(size, std::abs(expected[i][v]));
    }
    std::printf("block or token %zu: logits differ by at most %.2e of the largest\n", i, difference / size);
    near += difference <= 0.03 * size ? 1 : 0;
  }
  EXPECT_GE(near, found.size() - 3);
}

TEST_F(GpuGenerateTest, PagedLogitsHaveTheBitsOfResidentOnes) {
  const auto tokens = random_tokens(300, 7);
  std::vector<std::vector<float>> resident;
  {
    const auto gpu = open(roomy);
    ASSERT_GT(gpu->slots(), chunks);
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    pager.page_all(0);
    const size_t before = pager.misses();
    resident = run(*gpu, pager, 0, tokens, 40);
    EXPECT_EQ(pager.misses(), before) << "all is there";
  }
  // As little as goes, at another lane: every token pages.
  const uint64_t least = least_budget();
  const auto gpu = open(least);
  ASSERT_LT(gpu->slots(), chunks / 2);
  EXPECT_LE(gpu->usage().weights_bytes + gpu->usage().states_bytes + gpu->usage().cache_bytes +
                gpu->usage().workspace_bytes + gpu->usage().landmarks_bytes,
            least);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto paged = run(*gpu, pager, 3, tokens, 40);
  EXPECT_GT(pager.misses(), gpu->slots());
  EXPECT_TRUE(paged == resident);
}

TEST_F(GpuGenerateTest, ALaneThatIsPreparedGoesOnWithTheBitsOfOneThatIsNot) {
  const auto tokens = random_tokens(130, 17);
  constexpr size_t singles = 60;
  std::vector<std::vector<float>> expected;
  for (const bool tight : {false, true}) {  // no chunk is cached before a token; others are, and make way
    const auto gpu = open(tight ? least_budget() : roomy);
    if (!tight) {
      Pager resident(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
      expected = run(*gpu, resident, 0, tokens, singles);
    }
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    constexpr uint32_t lane = 2;
    if (tight) pager.page_all(lane);
    const size_t evictions = pager.evictions();
    must_have(gpu->reset(lane));
    size_t resumed = 0;
    for (size_t done = 0, of = 0; done < tokens.size(); ++of) {
      const size_t left = tokens.size() - done, count = left > singles ? std::min(left - singles, chunk_size) : 1;
      const auto part = std::span(tokens).subspan(done, count);
      done += count;
      if (count > 1) {
        EXPECT_TRUE(run_one(*gpu, pager, lane, part, chunks) == expected[of]) << "block " << of;
        continue;
      }
      if (!tight) pager.drop_all();
      Gpu::LaneWork work{.lane = lane, .memory = &pager.memory(), .chunks = chunks, .tokens = part};
      auto result = std::move(must_have(gpu->step(std::array{work})).front());
      EXPECT_TRUE(tight || !result.done);
      work.tokens = {};
      while (!result.done) {
        ++resumed;
        const Pager::Reads reads = resumed % 20 == 0  ? Pager::Reads::too_late
                                   : resumed % 5 == 0 ? Pager::Reads::late
                                   : resumed % 5 == 2 ? Pager::Reads::done_again
                                                      : Pager::Reads::good;
        result = pager.resume(work, result.selections.back(), reads);
      }
      EXPECT_TRUE(result.logits == expected[of]) << "token " << of;
    }
    if (tight) {
      EXPECT_GT(resumed, 0u);
      EXPECT_GT(pager.evictions(), evictions);
    } else {
      EXPECT_GE(resumed, singles);
    }
  }
}

// Slots as a step finds them through a page table that still has them, and the host's memory.
TEST_F(GpuGenerateTest, WhatIsErasedIsZeroAndNothingElseIs) {
  const auto tokens = random_tokens(76, 9);
  constexpr size_t singles = 12;
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto whole = run(*gpu, pager, 0, tokens, singles);
  const size_t misses = pager.misses();

  Encoding rest = memory_;
  std::vector<uint32_t> erased;  // runs of four slots and single ones, in no order
  for (const auto& [chunk, slot] : pager.slot_of()) {
    if (slot % 7 == 1 || slot % 7 == 6) continue;
    erased.push_back(slot);
    std::ranges::fill(std::span(rest.kv).subspan(chunk * cpu_->kv_bytes(), cpu_->kv_bytes()), std::byte{0});
  }
  must_have(gpu->erase(erased));
  const auto found = run(*gpu, pager, 0, tokens, singles);
  EXPECT_EQ(pager.misses(), misses);
  EXPECT_FALSE(found == whole);
  {
    Pager fresh(*gpu, rest, cpu_->landmark_dim(), cpu_->kv_bytes());
    EXPECT_TRUE(found == run(*gpu, fresh, 0, tokens, singles));
  }

  const auto is_clear = [](ByteView bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
  };
  EXPECT_FALSE(is_clear(gpu->block_staging()));
  for (uint32_t lane = 0; lane < Gpu::lanes_max; ++lane) std::ranges::fill(gpu->staging(lane), std::byte{1});
  must_have(gpu->erase_scratch());
  EXPECT_TRUE(is_clear(gpu->block_staging()));
  for (uint32_t lane = 0; lane < Gpu::lanes_max; ++lane) EXPECT_TRUE(is_clear(gpu->staging(lane))) << lane;
}

TEST_F(GpuGenerateTest, AnswersDoNotDependOnWhereTheLandmarksLie) {
  const auto tokens = random_tokens(200, 8);
  const auto gpu = open(roomy);
  std::map<Placement, std::vector<std::vector<float>>> logits;
  {
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    ASSERT_EQ(pager.memory().placement(), Placement::device);
    logits[Placement::device] = run(*gpu, pager, 0, tokens, 20);
  }
  // Another memory takes all room but some: enough for 8 bits a number, and for nothing.
  const uint64_t row_bytes = cpu_->landmark_dim() * sizeof(Bf16) + sizeof(uint32_t);
  for (const uint64_t left : {uint64_t{chunks} * row_bytes * 6 / 10, row_bytes}) {
    const auto filler = must_have(gpu->open_memory());
    constexpr uint64_t step = 256;
    uint64_t filled = (gpu->usage().cache_bytes - left) / row_bytes / step * step;
    while (!gpu->has_room(*filler, filled)) filled -= step;
    must_have(gpu->reserve(*filler, filled));
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    const Placement placement = pager.memory().placement();
    EXPECT_NE(placement, Placement::device);
    EXPECT_GT(gpu->usage().host_landmarks_bytes, 0u);
    logits[placement] = run(*gpu, pager, 0, tokens, 20);
    EXPECT_TRUE(logits[placement] == logits[Placement::device]) << "placement " << static_cast<int>(placement);
  }
  EXPECT_TRUE(logits.contains(Placement::device_int8));
  EXPECT_TRUE(logits.contains(Placement::host));
  EXPECT_EQ(gpu->usage().host_landmarks_bytes, 0u) << "given back";
}

TEST_F(GpuGenerateTest, ALaneDoesNotDependOnTheOthers) {
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  constexpr uint32_t used = 5;
  constexpr size_t read = 64, singles = 12;
  std::vector<std::vector<uint32_t>> tokens;
  std::vector<std::vector<std::vector<float>>> alone;
  for (uint32_t lane = 0; lane < used; ++lane) {
    tokens.push_back(random_tokens(read + singles, 20 + lane));
    alone.push_back(run(*gpu, pager, lane, tokens[lane], singles, chunks - lane));
  }
  // All of them side by side from an empty cache: some wait for chunks while others go on.
  Pager fresh(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  for (uint32_t lane = 0; lane < used; ++lane) {
    must_have(gpu->reset(lane));
    EXPECT_TRUE(run_one(*gpu, fresh, lane, std::span(tokens[lane]).first(read), chunks - lane) == alone[lane][0]);
  }
  std::vector<size_t> done(used);
  std::vector<std::optional<Gpu::Selection>> missing(used);
  std::mt19937 random(9);
  size_t waited = 0;
  while (std::ranges::min(done) < singles) {
    std::vector<Gpu::LaneWork> work;
    for (uint32_t lane = 0; lane < used; ++lane) {
      if (done[lane] == singles) continue;
      if (missing[lane] && random() % 2 == 0) continue;  // its read takes longer
      const bool resumes = missing[lane].has_value();
      if (resumes) fresh.page(*missing[lane], gpu->staging(lane));
      missing[lane].reset();
      work.push_back({.lane = lane,
                      .memory = &fresh.memory(),
                      .chunks = chunks - lane,
                      .tokens = resumes ? std::span<const uint32_t>()
                                        : std::span<const uint32_t>(tokens[lane]).subspan(read + done[lane], 1)});
    }
    if (work.empty()) continue;
    auto results = must_have(gpu->step(work));
    for (size_t i = 0; i < work.size(); ++i) {
      const uint32_t lane = work[i].lane;
      if (!results[i].done) {
        missing[lane] = results[i].selections.back();
        ++waited;
        continue;
      }
      ++done[lane];
      EXPECT_TRUE(results[i].logits == alone[lane][done[lane]]) << "lane " << lane << " token " << done[lane];
    }
  }
  EXPECT_GT(waited, 0u);
}

TEST_F(GpuGenerateTest, NothingAttendsToAHiddenChunk) {
  const auto gpu = open(roomy);
  Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto tokens = random_tokens(1, 10);
  const auto select = [&] {
    must_have(gpu->reset(0));
    const Gpu::LaneWork work{.lane = 0, .memory = &pager.memory(), .chunks = chunks, .tokens = tokens};
    return must_have(gpu->step(std::array{work})).front().selections.back();
  };
  const auto before = select();
  ASSERT_TRUE(std::ranges::is_sorted(before.chunks, std::ranges::greater{}));
  const uint32_t gone = before.chunks[3];
  must_have(gpu->hide(pager.memory(), gone));
  const auto after = select();
  EXPECT_EQ(std::ranges::count(after.chunks, gone), 0);
  EXPECT_EQ(std::ranges::count(after.chunks, Gpu::no_chunk), 0) << "another one takes its place";
  for (size_t i = 0; i < before.chunks.size(); ++i)
    EXPECT_EQ(std::ranges::count(after.chunks, before.chunks[i]), before.chunks[i] == gone ? 0 : 1);
}

TEST_F(GpuGenerateTest, AMemoryWithFewChunksOrNoneIsReadToo) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(70, 11);
  for (const uint64_t visible : {0, 1, 3}) {
    Pager pager(*gpu, memory_, cpu_->landmark_dim(), cpu_->kv_bytes());
    const auto logits = run(*gpu, pager, 2, tokens, 6, visible);
    for (const auto& each : logits)
      EXPECT_TRUE(std::ranges::all_of(each, [](float logit) { return std::isfinite(logit); })) << visible;
    EXPECT_LE(pager.misses(), visible);
  }
}

// ---- Sliding windows in place of Mamba-2

// A small random model: errors do not average out as in one that is trained.
class GpuSwaTest : public GpuGenerateTest {
 protected:
  static constexpr float tolerance_random = 5e-2f;

  void SetUp() override {
    nlohmann::json config = random_model_config();
    config["attention_head_dim"] = 64;
    config["num_upper_groups"] = 1;
    RandomModel(config).write(directory_.path());
    model_ = directory_.path();
    GpuGenerateTest::SetUp();
  }

  TempDir directory_;
};

TEST_F(GpuSwaTest, EncodesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(37 * chunk_size, 12);
  const Encoding found = encode(*gpu, tokens, {37}), expected = encode_on_cpu(tokens);
  expect_near(floats(found.landmarks), floats(expected.landmarks), tolerance_random);
  expect_near(floats(found.kv), floats(expected.kv), tolerance_random);
  const auto found_state = floats(found.state), expected_state = floats(expected.state);
  ASSERT_EQ(found_state.size(), expected_state.size());
  const size_t block = swa_shape(cpu_->config()).state_floats();
  for (size_t first = 0; first < found_state.size(); first += block) {
    EXPECT_EQ(found_state[first], expected_state[first]);
    const auto ring = [&](const std::vector<float>& state) {
      return std::span(state).subspan(first + swa_head_floats, block - swa_head_floats);
    };
    expect_near(ring(found_state), ring(expected_state), tolerance_random);
  }
}

TEST_F(GpuSwaTest, GivesTheSameBitsHoweverTheStreamWasCut) {
  const auto gpu = open(roomy);
  const auto tokens = random_tokens(150 * chunk_size, 13);
  const Encoding whole = encode(*gpu, tokens, {150});
  for (const auto& cuts : std::vector<std::vector<size_t>>{{1}, {16}, {3, 64, 1, 7}})
    EXPECT_TRUE(encode(*gpu, tokens, cuts) == whole) << "first cut " << cuts[0];
}

TEST_F(GpuSwaTest, ReadsQueriesAsTheCpuDoes) {
  const auto gpu = open(roomy);
  for (const size_t count : {1, 20, 64, 300}) {
    const auto tokens = random_tokens(count, 14);
    const SearchQuery found = must_have(gpu->query(tokens)), expected = cpu_->query(tokens);
    expect_near(floats(found.landmark), floats(expected.landmark), tolerance_random);
    expect_near(found.heads, expected.heads, tolerance_random);
    expect_near(found.tokens, expected.tokens, tolerance_random);
  }
}

// As many chunks as a token attends to, so that none is chosen otherwise.
TEST_F(GpuSwaTest, GivesTheLogitsOfTheCpuWhateverTheOtherLanesDo) {
  const auto gpu = open(roomy);
  const size_t few = cpu_->config().chunk_topk;
  const Encoding memory = encode(*gpu, random_tokens(few * chunk_size, 15), {few});
  Pager pager(*gpu, memory, cpu_->landmark_dim(), cpu_->kv_bytes());
  const auto tokens = random_tokens(230, 16);
  const auto found = run(*gpu, pager, 0, tokens, 80, few), expected = run_on_cpu(*cpu_, memory, tokens, 80);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) expect_near(found[i], expected[i], tolerance_random);
  run(*gpu, pager, 5, random_tokens(90, 17), 20, few);
  EXPECT_TRUE(run(*gpu, pager, 3, tokens, 80, few) == found);
}

}  // namespace
}  // namespace recalld
