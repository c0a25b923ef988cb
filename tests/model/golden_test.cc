// The model against tensors that the reference mathematics computed in fp32, stage by stage.
//
// GoldenShipped reads the starter and the shipped checkpoints with their files in tests/golden, and, when
// RECALLD_GOLDEN_DIR names a directory at run time, the checkpoint there with its golden.safetensors. GoldenVariant
// reads tests/golden/variant.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <tuple>

#include "kernels/cpu_isa.h"
#include "kernels/landmark_topk.h"
#include "model/ramba.h"
#include "model/weights.h"
#include "tests/support/checkpoints.h"
#include "tests/support/tensor_near.h"

namespace recalld {
namespace {

namespace fs = std::filesystem;

constexpr size_t chunk_size = 64;

// The whole model over one sequence, every intermediate kept.
struct Forward {
  std::vector<float> lower_hidden;  // [n, hidden]
  RecurrentState lower_state;
  std::vector<EncodedChunk> chunks;
  // By group, then by token * retrieval heads + head; scores of all chunks, chosen ones newest first.
  struct Retrieved {
    std::vector<float> scores;  // [chunks]
    std::vector<uint64_t> chosen;
    std::vector<float> weights;
  };
  std::vector<std::vector<Retrieved>> retrieved;
  std::vector<float> final_hidden;  // [n, hidden]
};

class Golden : public ::testing::Test {
 protected:
  void open(const fs::path& model, const fs::path& golden, Precision precision) {
    precision_ = precision;
    if (precision == Precision::bf16 && !cpu_multiplies_bf16()) GTEST_SKIP() << "this CPU does not multiply bf16";
    auto weights = Weights::open(golden / "golden.safetensors");
    ASSERT_TRUE(weights.has_value()) << weights.error().message;
    golden_.emplace(*std::move(weights));
    auto ramba = Ramba::open(model, precision, Parts::all, pool_);
    ASSERT_TRUE(ramba.has_value()) << ramba.error().message;
    model_ = *std::move(ramba);
    run();
  }

  double tolerance() const { return precision_ == Precision::f32 ? 1e-3 : 2e-2; }
  size_t width() const { return model_->config().hidden_size; }

  std::vector<float> floats(const std::string& name) const {
    auto values = golden_->all_floats(name);
    EXPECT_TRUE(values.has_value()) << (values ? "" : values.error().message);
    return values ? *std::move(values) : std::vector<float>();
  }
  // Compares with the golden tensor of this name, and prints how far they are apart.
  ::testing::AssertionResult near(std::span<const float> got, const std::string& name) const {
    return near(got, name, tolerance());
  }
  ::testing::AssertionResult near(std::span<const float> got, const std::string& name, double tolerance) const {
    const std::vector<float> expected = floats(name);
    const auto result = tensor_near(got, expected, tolerance);
    if (got.size() == expected.size())
      std::printf("%-24s relative error %.1e, at most %.0e\n", name.c_str(), relative_error(got, expected), tolerance);
    return result;
  }
  std::vector<int32_t> ints(const std::string& name) const {
    auto values = golden_->all_ints(name);
    EXPECT_TRUE(values.has_value()) << (values ? "" : values.error().message);
    return values ? *std::move(values) : std::vector<int32_t>();
  }
  std::vector<uint32_t> ids(const std::string& name) const {
    const auto signed_ids = ints(name);
    return {signed_ids.begin(), signed_ids.end()};
  }

  void run() {
    const Config& config = model_->config();
    const std::vector<uint32_t> tokens = ids("input_ids");
    ASSERT_EQ(tokens.size() % chunk_size, 0u);
    forward_.lower_hidden.resize(tokens.size() * width());
    forward_.lower_state = model_->lower_zero_state();
    model_->lower(forward_.lower_state, tokens, forward_.lower_hidden);
    forward_.chunks = model_->encode_chunks(forward_.lower_hidden);

    std::vector<std::vector<Bf16>> stored;
    for (const EncodedChunk& chunk : forward_.chunks) {
      stored.emplace_back(model_->kv_bytes() / sizeof(Bf16));
      model_->pack_kv(chunk, std::as_writable_bytes(std::span(stored.back())));
    }

    std::vector<float> hidden = forward_.lower_hidden;
    RecurrentState upper_state = model_->upper_zero_state();
    for (size_t group = 0; group < config.num_upper_groups; ++group) {
      forward_.retrieved.push_back(retrieve(group, hidden));
      std::vector<std::vector<AttendedChunk>> attended;
      for (const Forward::Retrieved& token : forward_.retrieved.back()) {
        attended.emplace_back();
        for (size_t i = 0; i < token.chosen.size(); ++i)
          attended.back().push_back({stored[token.chosen[i]].data(), token.weights[i]});
      }
      model_->upper(group, upper_state, hidden, attended);
    }
    forward_.final_hidden = model_->final_norm(hidden);
  }

  std::vector<float> landmark(size_t chunk, size_t group) const {
    std::vector<float> scaled = forward_.chunks[chunk].landmark;
    const auto gain = model_->landmark_gain(group);
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= gain[i];
    return scaled;
  }

  std::vector<Forward::Retrieved> retrieve(size_t group, std::span<const float> hidden) const {
    const Config& config = model_->config();
    const size_t heads = config.retrieval_heads(), head_width = config.retrieval_dim / heads;
    const std::vector<float> queries = model_->retrieval_embedding(hidden, group);
    std::vector<std::vector<float>> landmarks;
    for (size_t chunk = 0; chunk < forward_.chunks.size(); ++chunk) landmarks.push_back(landmark(chunk, group));

    std::vector<Forward::Retrieved> retrieved(hidden.size() / width() * heads);
    for (size_t i = 0; i < retrieved.size(); ++i) {
      Forward::Retrieved& out = retrieved[i];
      const size_t complete = i / heads / chunk_size;  // chunks strictly before the token's own
      for (const auto& chunk : landmarks) {
        const float* l = chunk.data() + i % heads * head_width;
        out.scores.push_back(std::inner_product(l, l + head_width, queries.data() + i * head_width, 0.0f) *
                             model_->score_scale());
      }
      out.chosen.resize(complete);
      std::iota(out.chosen.begin(), out.chosen.end(), 0);
      std::ranges::stable_sort(out.chosen, std::ranges::greater{}, [&](uint64_t chunk) { return out.scores[chunk]; });
      out.chosen.resize(std::min(complete, config.chunk_topk));
      std::ranges::sort(out.chosen, std::ranges::greater{});
      std::vector<float> scores;
      for (const uint64_t chunk : out.chosen) scores.push_back(out.scores[chunk]);
      out.weights = model_->chunk_weights(scores, group);
    }
    return retrieved;
  }

  // The same chunks; with bf16 products those whose scores lie within the tolerance of the cut may swap.
  void expect_chosen(const Forward::Retrieved& got, std::vector<uint64_t> expected, const std::string& what) const {
    SCOPED_TRACE(what);
    if (precision_ == Precision::f32) {
      EXPECT_EQ(got.chosen, expected);
      return;
    }
    ASSERT_EQ(got.chosen.size(), expected.size());
    float cut = INFINITY;
    for (const uint64_t chunk : got.chosen) cut = std::min(cut, got.scores[chunk]);
    for (const uint64_t chunk : expected)
      EXPECT_GE(got.scores[chunk], cut - 2e-2f) << "chunk " << chunk << " was left out";
  }

  static std::vector<float> every(std::span<const float> rows, size_t step, size_t width) {
    std::vector<float> picked;
    for (size_t row = 0; row * width < rows.size(); row += step)
      picked.insert(picked.end(), rows.begin() + static_cast<ptrdiff_t>(row * width),
                    rows.begin() + static_cast<ptrdiff_t>((row + 1) * width));
    return picked;
  }

  WorkerPool pool_{2};
  Precision precision_ = Precision::f32;
  std::optional<Weights> golden_;
  std::unique_ptr<Ramba> model_;
  Forward forward_;
};

std::string name_of(Precision precision) {
  return precision == Precision::f32 ? "F32" : "Bf16";
}

// ---- Checkpoints that export.py wrote, or that were shipped before it

using ShippedCase = std::tuple<GoldenCheckpoint, Precision>;

class GoldenShipped : public Golden, public ::testing::WithParamInterface<ShippedCase> {
 protected:
  void SetUp() override {
    const auto& [checkpoint, precision] = GetParam();
    open(checkpoint.model, checkpoint.golden, precision);
  }
};

// Of the first architecture.
class GoldenMamba2 : public GoldenShipped {};

TEST_P(GoldenShipped, LowerHalf) {
  EXPECT_TRUE(near(every(forward_.lower_hidden, 16, width()), "lower_hidden"));
}

// What a state holds shows in what follows: in Mamba-2's as in the windows' keys and values.
TEST_P(GoldenShipped, LowerHalfGoesOnFromItsState) {
  const std::vector<uint32_t> tokens = ids("input_ids");
  std::vector<float> hidden(tokens.size() * width());
  RecurrentState state = model_->lower_zero_state();
  size_t begin = 0;
  for (const size_t end : {1 * chunk_size, 11 * chunk_size, tokens.size()}) {
    model_->lower(state, std::span(tokens).subspan(begin, end - begin),
                  std::span(hidden).subspan(begin * width(), (end - begin) * width()));
    begin = end;
  }
  EXPECT_TRUE(near(every(hidden, 16, width()), "lower_hidden"));
}

TEST_P(GoldenMamba2, RecurrentStates) {
  const Config& config = model_->config();
  const size_t channels = config.num_heads * config.head_dim + 2 * config.state_size;
  const size_t conv = (config.conv_kernel - 1) * channels, state = config.state_size, dim = config.head_dim;
  const auto values = std::span(forward_.lower_state.values);
  EXPECT_TRUE(near(values.first(conv), "conv_state.0"));
  // Ours is [state, heads, head_dim], the golden one [heads, head_dim, state].
  const size_t inner = config.num_heads * dim;
  std::vector<float> transposed(inner * state);
  for (size_t n = 0; n < state; ++n)
    for (size_t i = 0; i < inner; ++i) transposed[i * state + n] = values[conv + n * inner + i];
  EXPECT_TRUE(near(transposed, "ssm_state.0"));
}

TEST_P(GoldenShipped, ChunkEncoder) {
  std::vector<float> landmarks;
  for (size_t chunk = 0; chunk < forward_.chunks.size(); ++chunk) {
    const auto one = landmark(chunk, 0);
    landmarks.insert(landmarks.end(), one.begin(), one.end());
  }
  EXPECT_TRUE(near(landmarks, "landmarks"));
  EXPECT_TRUE(near(forward_.chunks[3].k, "chunk_k.3"));
  EXPECT_TRUE(near(forward_.chunks[3].v, "chunk_v.3"));
}

TEST_P(GoldenShipped, ChunksAndTheirWeights) {
  const auto& retrieved = forward_.retrieved[0];
  EXPECT_TRUE(near(retrieved[1023].scores, "retrieval_scores.1023"));
  const auto selected = ints("selected_chunks");
  const size_t tokens[] = {0, 63, 64, 300, 1023}, k = model_->config().chunk_topk;
  ASSERT_EQ(selected.size(), std::size(tokens) * k);
  for (size_t i = 0; i < std::size(tokens); ++i) {
    std::vector<uint64_t> expected;
    for (size_t j = 0; j < k; ++j)
      if (const int32_t chunk = selected[i * k + j]; chunk >= 0) expected.push_back(static_cast<uint64_t>(chunk));
    expect_chosen(retrieved[tokens[i]], expected, "token " + std::to_string(tokens[i]));
  }
  std::vector<float> dense(forward_.chunks.size());
  for (size_t i = 0; i < retrieved[1023].chosen.size(); ++i)
    dense[retrieved[1023].chosen[i]] = retrieved[1023].weights[i];
  EXPECT_TRUE(near(dense, "chunk_weights.1023",
                   precision_ == Precision::f32 ? tolerance() : std::get<0>(GetParam()).bf16_weights_error));

  // Of the golden scores they are the golden ones, whatever the products' precision.
  const std::vector<float> golden_scores = floats("retrieval_scores.1023");
  const auto chosen = std::span(selected).last(k);  // newest first
  std::vector<float> scores;
  for (const int32_t chunk : chosen) scores.push_back(golden_scores[static_cast<size_t>(chunk)]);
  const std::vector<float> weights = model_->chunk_weights(scores, 0);
  std::ranges::fill(dense, 0.0f);
  for (size_t i = 0; i < k; ++i) dense[static_cast<size_t>(chosen[i])] = weights[i];
  EXPECT_TRUE(tensor_near(dense, floats("chunk_weights.1023"), 1e-5));
}

TEST_P(GoldenShipped, UpperHalfAndLogits) {
  EXPECT_TRUE(near(every(forward_.final_hidden, 16, width()), "final_hidden"));
  const std::vector<float> logits = model_->logits(forward_.final_hidden);
  const size_t vocab = model_->config().vocab_size;
  EXPECT_TRUE(near(std::span(logits).last(vocab), "logits.1023"));

  const auto tokens = ids("input_ids");
  std::vector<float> nll;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    const auto row = std::span(logits).subspan(t * vocab, vocab);
    const float top = *std::ranges::max_element(row);
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit - top));
    nll.push_back(top + static_cast<float>(std::log(sum)) - row[tokens[t + 1]]);
  }
  EXPECT_TRUE(near(nll, "nll"));
}

TEST_P(GoldenShipped, Query) {
  const auto hidden = model_->lower_from_zero(ids("query_ids"));
  const auto embedding = model_->retrieval_embedding(std::span(hidden).last(width()), 0);
  EXPECT_TRUE(near(embedding, "query_embedding"));
  std::vector<float> scores;
  for (size_t chunk = 0; chunk < forward_.chunks.size(); ++chunk) {
    const auto l = landmark(chunk, 0);
    scores.push_back(std::inner_product(l.begin(), l.end(), embedding.begin(), 0.0f) * model_->score_scale());
  }
  EXPECT_TRUE(near(scores, "query_scores"));

  // What a search uses: rounded to bf16, the gain folded in, against stored landmarks.
  const auto query = model_->query(ids("query_ids"));
  std::vector<float> stored(scores.size());
  for (size_t chunk = 0; chunk < stored.size(); ++chunk) {
    const auto packed = model_->pack_landmark(forward_.chunks[chunk]);
    landmark_dots_cpu(query.landmark, packed.data(), 1, &stored[chunk]);
    stored[chunk] *= model_->score_scale();
  }
  EXPECT_TRUE(tensor_near(stored, floats("query_scores"), 2e-2));
}

std::string name_of_case(const ::testing::TestParamInfo<ShippedCase>& test) {
  return std::get<0>(test.param).name + name_of(std::get<1>(test.param));
}

std::vector<GoldenCheckpoint> mamba2_checkpoints() {
  std::vector<GoldenCheckpoint> all = golden_checkpoints();
  std::erase_if(all, [](const GoldenCheckpoint& one) {
    const auto config = Config::read(one.model / "config.json");
    return config && config->family != BlockFamily::ramba;
  });
  return all;
}

INSTANTIATE_TEST_SUITE_P(, GoldenShipped,
                         ::testing::Combine(::testing::ValuesIn(golden_checkpoints()),
                                            ::testing::Values(Precision::f32, Precision::bf16)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(, GoldenMamba2,
                         ::testing::Combine(::testing::ValuesIn(mamba2_checkpoints()),
                                            ::testing::Values(Precision::f32, Precision::bf16)),
                         name_of_case);

// ---- The reference's other switches

class GoldenVariant : public Golden, public ::testing::WithParamInterface<Precision> {
 protected:
  void SetUp() override { open(variant_checkpoint(), variant_checkpoint(), GetParam()); }
};

TEST_P(GoldenVariant, LowerHalfAndChunkEncoder) {
  EXPECT_TRUE(near(forward_.lower_hidden, "lower_hidden"));
  std::vector<float> landmarks;
  for (const EncodedChunk& chunk : forward_.chunks)
    landmarks.insert(landmarks.end(), chunk.landmark.begin(), chunk.landmark.end());
  EXPECT_TRUE(near(landmarks, "landmarks"));
  EXPECT_TRUE(near(forward_.chunks[3].k, "chunk_k.3"));
  EXPECT_TRUE(near(forward_.chunks[3].v, "chunk_v.3"));
}

TEST_P(GoldenVariant, EachKvHeadRetrievesForItself) {
  const size_t heads = model_->config().retrieval_heads(), k = model_->config().chunk_topk;
  for (size_t group = 0; group < 2; ++group) {
    for (const size_t token : {100u, 300u, 511u}) {
      const std::string suffix = ".group" + std::to_string(group) + "." + std::to_string(token);
      const auto selected = ints("selected_chunks" + suffix);
      const auto weights = floats("chunk_weights" + suffix);
      ASSERT_EQ(selected.size(), heads * k);
      for (size_t head = 0; head < heads; ++head) {
        const Forward::Retrieved& got = forward_.retrieved[group][token * heads + head];
        std::vector<uint64_t> expected;  // entries beyond the complete chunks have weight 0 and any index
        std::vector<float> expected_weights;
        for (size_t i = head * k; i < (head + 1) * k && expected.size() < token / chunk_size; ++i) {
          if (weights[i] == 0) continue;
          expected.push_back(static_cast<uint64_t>(selected[i]));
          expected_weights.push_back(weights[i]);
        }
        expect_chosen(got, expected, suffix + " head " + std::to_string(head));
        if (got.chosen == expected) {
          EXPECT_TRUE(tensor_near(got.weights, expected_weights, tolerance())) << suffix;
        }
      }
    }
  }
}

TEST_P(GoldenVariant, UpperGroupsAndUntiedHead) {
  EXPECT_TRUE(near(forward_.final_hidden, "final_hidden"));
  const auto logits = model_->logits(std::span(forward_.final_hidden).last(8 * width()));
  EXPECT_TRUE(near(logits, "logits"));
}

INSTANTIATE_TEST_SUITE_P(, GoldenVariant, ::testing::Values(Precision::f32, Precision::bf16),
                         [](const auto& test) { return name_of(test.param); });

}  // namespace
}  // namespace recalld
