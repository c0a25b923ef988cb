#include "model/ramba.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <fstream>
#include <random>

#include "kernels/cpu_isa.h"
#include "kernels/hsa_attention.h"
#include "model/backend_cpu.h"
#include "model/block.h"
#include "tests/support/checkpoints.h"
#include "tests/support/random_model.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tensor_file.h"
#include "tests/support/tensor_near.h"

namespace recalld {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr size_t chunk_size = 64;

// What a stream leaves behind: K, V and landmarks as stored, and the state at its end.
struct Encoding {
  std::vector<std::byte> kv;
  std::vector<uint16_t> landmarks;
  RecurrentState state;

  bool operator==(const Encoding& other) const {
    return kv == other.kv && landmarks == other.landmarks && state.values.size() == other.state.values.size() &&
           std::memcmp(state.values.data(), other.state.values.data(), state.values.size() * sizeof(float)) == 0;
  }
};

struct Case {
  Precision precision;
  BlockFamily family;
};

// The default checkpoint, or a small random model of the other family.
class RambaTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (precision() == Precision::bf16 && !cpu_multiplies_bf16()) GTEST_SKIP() << "this CPU does not multiply bf16";
    if (GetParam().family == BlockFamily::swa_hsa) {
      RandomModel(random_model_config()).write(directory_.path());
      model_ = directory_.path();
    }
    std::mt19937 random(1);
    for (uint32_t& token : tokens_) token = static_cast<uint32_t>(random() % 8192);
  }

  // The stream in calls of these many chunks, the last number again and again.
  Encoding encode(const std::vector<size_t>& cuts, size_t threads) {
    WorkerPool pool(threads);
    auto model = Ramba::open(model_, precision(), Parts::lower, pool);
    EXPECT_TRUE(model.has_value());
    Ramba& ramba = **model;
    CpuBackend backend(ramba);
    Encoding out{{}, {}, *backend.zero_state()};
    for (size_t first = 0, call = 0; first < chunks; ++call) {
      const size_t count = std::min(chunks - first, cuts[std::min(call, cuts.size() - 1)]);
      // The state goes through its stored form between calls, as it does when a memory leaves RAM.
      out.state = *backend.state_from(as_bytes(*backend.bytes_of(out.state)));
      const auto tokens = std::span(tokens_).subspan(first * chunk_size, count * chunk_size);
      RecurrentState alone = out.state;
      std::vector<Bf16> landmarks(count * ramba.landmark_dim());
      std::vector<std::byte> kv(count * ramba.kv_bytes());
      EXPECT_TRUE(backend.encode(std::array{Backend::Segment{&out.state, tokens, landmarks, kv}}).has_value());
      EXPECT_TRUE(backend.encode(std::array{Backend::Segment{&alone, tokens, {}, {}}}).has_value());
      EXPECT_TRUE(*backend.bytes_of(alone) == *backend.bytes_of(out.state));
      out.kv.insert(out.kv.end(), kv.begin(), kv.end());
      for (const Bf16 x : landmarks) out.landmarks.push_back(x.bits);
      first += count;
    }
    return out;
  }

  Precision precision() const { return GetParam().precision; }

  static constexpr size_t chunks = 13;
  TempDir directory_;
  fs::path model_ = default_checkpoint();
  std::vector<uint32_t> tokens_ = std::vector<uint32_t>(chunks * chunk_size);
};

TEST_P(RambaTest, GivesTheSameBitsHoweverTheStreamWasCutAndOnAnyNumberOfThreads) {
  const Encoding whole = encode({chunks}, 1);
  EXPECT_EQ(whole.landmarks.size() % chunks, 0u);
  EXPECT_GE(whole.landmarks.size(), chunks * 64);
  for (const size_t threads : {1, 2, 3})
    for (const auto& cuts : std::vector<std::vector<size_t>>{{1}, {2}, {1, 3}, {5, 4, 2}, {chunks}})
      EXPECT_TRUE(encode(cuts, threads) == whole) << threads << " threads, first cut " << cuts[0];
  tokens_.back() ^= 1;
  EXPECT_FALSE(encode({chunks}, 1) == whole);
}

TEST_P(RambaTest, EndsASegmentAfterAPartAndGoesOnWithTheSameBits) {
  static_assert(chunks > Onward::part_chunks && chunks < 2 * Onward::part_chunks);
  const Encoding whole = encode({chunks}, 1);
  for (const size_t threads : {1, 2, 3, 9}) {
    WorkerPool pool(threads);
    auto model = Ramba::open(model_, precision(), Parts::lower, pool);
    ASSERT_TRUE(model.has_value());
    const size_t landmark_dim = (*model)->landmark_dim(), kv_bytes = (*model)->kv_bytes();
    CpuBackend backend(**model);
    Encoding out{std::vector<std::byte>(chunks * kv_bytes), {}, *backend.zero_state()};
    std::vector<Bf16> landmarks(chunks * landmark_dim);
    const auto rest = [&](size_t chunk) {
      return Backend::Segment{&out.state, std::span(tokens_).subspan(chunk * chunk_size),
                              std::span(landmarks).subspan(chunk * landmark_dim),
                              std::span(out.kv).subspan(chunk * kv_bytes)};
    };
    std::atomic<size_t> asked = 0;
    const auto yes = [&] { return ++asked > 0; };
    EXPECT_EQ(backend.encode_until(rest(0), yes).value_or(0), Onward::part_chunks * chunk_size) << threads;
    EXPECT_EQ(asked, 1u);
    // What is left is no more than a part: nobody is asked.
    EXPECT_EQ(backend.encode_until(rest(Onward::part_chunks), yes).value_or(0),
              (chunks - Onward::part_chunks) * chunk_size);
    EXPECT_EQ(asked, 1u);
    for (const Bf16 x : landmarks) out.landmarks.push_back(x.bits);
    EXPECT_TRUE(out == whole) << threads << " threads";

    out.state = *backend.zero_state();
    const auto no = [&] { return ++asked == 0; };
    EXPECT_EQ(backend.encode_until(rest(0), no).value_or(0), chunks * chunk_size);
    EXPECT_EQ(asked, 2u);
    EXPECT_TRUE(out == whole) << threads << " threads";
  }
}

TEST_P(RambaTest, SaysWhereTheHeadsOfTheFirstHsaLayerLook) {
  WorkerPool pool(1);
  auto model = Ramba::open(model_, precision(), Parts::lower, pool);
  ASSERT_TRUE(model.has_value());
  Ramba& ramba = **model;
  const SearchQuery query = ramba.query(std::span(tokens_).first(9));
  const size_t heads = ramba.config().num_attention_heads, dim = ramba.config().attention_head_dim;
  ASSERT_EQ(query.heads.size(), heads * dim);
  EXPECT_EQ(query.tokens.size(), 7 * heads * dim);
  const SearchQuery alone = ramba.query(std::span(tokens_).first(9), QueryParts::landmark);
  EXPECT_TRUE(std::ranges::equal(alone.landmark, query.landmark, {}, &Bf16::bits, &Bf16::bits));
  EXPECT_TRUE(alone.heads.empty());
  EXPECT_TRUE(alone.tokens.empty());
  // A key that equals head 2's query, among keys of zeros, draws that head's look.
  EncodedChunk chunk{std::vector<float>(256), std::vector<float>(chunk_size * dim),
                     std::vector<float>(chunk_size * dim)};
  std::copy_n(query.heads.begin() + static_cast<ptrdiff_t>(2 * dim), dim,
              chunk.k.begin() + static_cast<ptrdiff_t>(40 * dim));
  std::vector<std::byte> kv(ramba.kv_bytes());
  ramba.pack_kv(chunk, kv);
  const auto shares = ramba.head_shares(query.heads, kv);
  ASSERT_EQ(shares.size(), heads * chunk_size);
  const auto head = std::span(shares).subspan(2 * chunk_size, chunk_size);
  EXPECT_EQ(std::ranges::max_element(head) - head.begin(), 40);
  for (size_t h = 0; h < heads; ++h) {
    float sum = 0;
    for (size_t t = 0; t < chunk_size; ++t) sum += shares[h * chunk_size + t];
    EXPECT_NEAR(sum, 1.0f, 1e-4f);
  }
}

TEST_P(RambaTest, EachTokenAsksAsTheQueryThatEndsWithIt) {
  WorkerPool pool(1);
  auto model = Ramba::open(model_, precision(), Parts::lower, pool);
  ASSERT_TRUE(model.has_value());
  Ramba& ramba = **model;
  const size_t width = ramba.config().num_attention_heads * ramba.config().attention_head_dim;
  const std::vector<float> each = ramba.query(std::span(tokens_).first(150)).tokens;  // without the first and the last
  ASSERT_EQ(each.size(), 148 * width);
  for (const size_t count : {2, 3, 9, 66, 149}) {
    const std::vector<float> last = ramba.query(std::span(tokens_).first(count)).heads;
    for (size_t i = 0; i < width; ++i) EXPECT_NEAR(each[(count - 2) * width + i], last[i], 1e-3f);
  }
  const std::vector<float> fewer = ramba.query(std::span(tokens_).first(9)).tokens;
  EXPECT_TRUE(std::ranges::equal(fewer, std::span(each).first(7 * width)));
  for (const size_t count : {1, 2}) EXPECT_TRUE(ramba.query(std::span(tokens_).first(count)).tokens.empty());
  EXPECT_EQ(ramba.first_hsa_layer(), ramba.config().num_lower_layers + 2);
}

// A prompt that ends amid a block, and then tokens of several streams side by side: as if each had been read in whole.
TEST_P(RambaTest, TokensThatAreGeneratedContinueWhatWasRead) {
  WorkerPool pool(2);
  auto model = Ramba::open(model_, precision(), Parts::all, pool);
  ASSERT_TRUE(model.has_value());
  Ramba& ramba = **model;
  const size_t width = ramba.config().hidden_size, streams = 3, steps = 9;
  const size_t prompt_tokens[streams] = {70, 1, 128};
  std::vector<std::vector<Bf16>> stored;
  std::vector<float> hidden(4 * chunk_size * width);
  RecurrentState before = ramba.lower_zero_state();
  ramba.lower(before, std::span(tokens_).first(4 * chunk_size), hidden);
  for (const EncodedChunk& chunk : ramba.encode_chunks(hidden)) {
    stored.emplace_back(ramba.kv_bytes() / sizeof(Bf16));
    ramba.pack_kv(chunk, std::as_writable_bytes(std::span(stored.back())));
  }
  const auto tokens_of = [&](size_t stream) { return std::span(tokens_).subspan(stream * 200); };
  // Which chunks a token attends to is up to the test here.
  const auto attended_at = [&](size_t stream, size_t first, size_t count) {
    std::vector<std::vector<AttendedChunk>> attended;
    for (size_t i = first; i < first + count; ++i)
      attended.push_back({{stored[(i + stream) % 4].data(), 0.75f}, {stored[(i / 4) % 4].data(), 0.25f}});
    return attended;
  };
  const auto read = [&](size_t stream, size_t count, RecurrentState& lower, RecurrentState& upper) {
    std::vector<float> x((count + chunk_size - 1) / chunk_size * chunk_size * width);
    ramba.lower(lower, tokens_of(stream).first(count), x);
    ramba.upper(0, upper, x, attended_at(stream, 0, count));
    return std::vector<float>(x.begin() + static_cast<ptrdiff_t>((count - 1) * width),
                              x.begin() + static_cast<ptrdiff_t>(count * width));
  };

  std::vector<RecurrentState> lower(streams, ramba.lower_zero_state()), upper(streams, ramba.upper_zero_state());
  std::vector<RecurrentState*> lower_states, upper_states;
  for (size_t s = 0; s < streams; ++s) {
    read(s, prompt_tokens[s], lower[s], upper[s]);
    lower_states.push_back(&lower[s]);
    upper_states.push_back(&upper[s]);
  }
  const float tolerance = precision() == Precision::f32 ? 1e-3f : 2e-2f;
  for (size_t step = 0; step < steps; ++step) {
    std::vector<uint32_t> tokens;
    std::vector<std::vector<AttendedChunk>> attended;
    for (size_t s = 0; s < streams; ++s) {
      tokens.push_back(tokens_of(s)[prompt_tokens[s] + step]);
      attended.push_back(attended_at(s, prompt_tokens[s] + step, 1)[0]);
    }
    std::vector<float> x = ramba.lower_step(lower_states, tokens);
    ramba.upper_step(0, upper_states, x, attended);
    for (size_t s = 0; s < streams; ++s) {
      RecurrentState whole_lower = ramba.lower_zero_state(), whole_upper = ramba.upper_zero_state();
      const auto whole = read(s, prompt_tokens[s] + step + 1, whole_lower, whole_upper);
      const auto stepped = std::span(x).subspan(s * width, width);
      EXPECT_TRUE(tensor_near(ramba.logits(ramba.final_norm(stepped)), ramba.logits(ramba.final_norm(whole)),
                              static_cast<double>(tolerance)))
          << "stream " << s << ", step " << step;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, RambaTest,
                         ::testing::Values(Case{Precision::f32, BlockFamily::ramba},
                                           Case{Precision::bf16, BlockFamily::ramba},
                                           Case{Precision::f32, BlockFamily::swa_hsa},
                                           Case{Precision::bf16, BlockFamily::swa_hsa}),
                         [](const auto& test) {
                           return std::string(test.param.precision == Precision::f32 ? "F32" : "Bf16") +
                                  (test.param.family == BlockFamily::swa_hsa ? "Swa" : "");
                         });

class RambaOpenTest : public ::testing::Test {
 protected:
  // A copy of the small checkpoint whose config can be changed.
  void SetUp() override {
    for (const char* name : {"config.json", "model.safetensors"})
      fs::copy_file(variant_checkpoint() / name, directory_.path() / name);
  }
  void replace(const std::string& from, const std::string& to) {
    const fs::path file = directory_.path() / "config.json";
    std::stringstream text;
    text << std::ifstream(file).rdbuf();
    std::string config = text.str();
    const size_t at = config.find(from);
    ASSERT_NE(at, std::string::npos);
    std::ofstream(file) << config.replace(at, from.size(), to);
  }
  std::string open_error(Parts parts = Parts::all) {
    auto model = Ramba::open(directory_.path(), Precision::f32, parts, pool_);
    return model ? "" : model.error().message;
  }

  WorkerPool pool_{1};
  TempDir directory_;
};

TEST_F(RambaOpenTest, NamesTheTensorThatTheConfigAsksForAndTheFileLacks) {
  EXPECT_EQ(open_error(), "");
  replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  EXPECT_EQ(open_error(), "");
  replace("\"hsa_mlp\": false", "\"hsa_mlp\": true");
  EXPECT_THAT(open_error(), HasSubstr("backbone.layers.4._mlp_norm.weight"));
  replace("\"encoder_layers\": 2", "\"encoder_layers\": 3");
  EXPECT_THAT(open_error(Parts::lower), HasSubstr("backbone.layers.2.encoder.layers.2."));
}

// Also where the upper half is not there, since the answers of a GPU are explained then.
TEST_F(RambaOpenTest, ScoresDecayByTheStepOfTheirGroup) {
  replace("\"enable_softmax\": false", "\"enable_softmax\": false, \"enable_pos_decay\": true");
  EXPECT_THAT(open_error(Parts::lower), HasSubstr("backbone.layers.3.pos_decay"));
  const float decays[] = {-0.25f, 0.5f};
  const std::vector<NewTensor> tensors{{"backbone.layers.3.pos_decay", {1}, {to_bf16(decays[0])}},
                                       {"backbone.layers.8.pos_decay", {1}, {to_bf16(decays[1])}}};
  add_tensors(directory_.path() / "model.safetensors", tensors);
  const std::vector<float> scores{1.5f, -0.5f, 0.75f, 2.0f};
  for (const Parts parts : {Parts::lower, Parts::all}) {
    auto model = Ramba::open(directory_.path(), Precision::f32, parts, pool_);
    ASSERT_TRUE(model) << model.error().message;
    for (const size_t group : {0u, 1u}) {
      std::vector<float> expected(scores.size());
      chunk_weights_cpu({.pos_decay = decays[group]}, scores, expected);
      EXPECT_EQ((*model)->chunk_weights(scores, group), expected);
    }
  }
}

TEST_F(RambaOpenTest, AnyChangeOfTheCheckpointChangesItsIdentity) {
  const auto hash = [&] { return (*Ramba::open(directory_.path(), Precision::f32, Parts::lower, pool_))->hash(); };
  const Hash128 before = hash();
  EXPECT_EQ(hash(), before);
  std::ofstream(directory_.path() / "tokenizer.model") << "other";
  EXPECT_NE(hash(), before);
}

}  // namespace
}  // namespace recalld
