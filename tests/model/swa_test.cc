// Blocks of sliding-window attention against loops in f64 that know no state, no blocks of tokens and no kernels.
#include "model/swa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/cpu_isa.h"
#include "model/ramba.h"
#include "tests/support/random_model.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tensor_near.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
using Numbers = std::vector<double>;

Numbers operator+(Numbers a, const Numbers& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// The lower half of a random model over one stream.
class PlainLower {
 public:
  explicit PlainLower(const RandomModel& model) : model_(model) {}

  std::vector<Numbers> run(const std::vector<uint32_t>& tokens) const {
    const Numbers embeddings = weights("backbone.embeddings.weight");
    const auto width = static_cast<std::ptrdiff_t>(size("hidden_size"));
    std::vector<Numbers> x;
    for (const uint32_t token : tokens)
      x.emplace_back(embeddings.begin() + token * width, embeddings.begin() + (token + 1) * width);
    for (size_t layer = 0; layer < size("num_lower_layers"); ++layer)
      block("backbone.layers." + std::to_string(layer), x);
    return x;
  }

 private:
  size_t size(const char* key) const { return model_.config().at(key).get<size_t>(); }
  Numbers weights(const std::string& name) const {
    const std::vector<float> values = model_.floats(name);
    EXPECT_FALSE(values.empty()) << name;
    return {values.begin(), values.end()};
  }
  Numbers norm(const Numbers& x, const Numbers& weight) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(x.size()) + model_.config().at("rms_norm_eps").get<double>());
    Numbers y;
    for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * weight[i]);
    return y;
  }
  static Numbers multiply(const Numbers& matrix, const Numbers& x) {
    Numbers y(matrix.size() / x.size());
    for (size_t row = 0; row < y.size(); ++row)
      for (size_t i = 0; i < x.size(); ++i) y[row] += matrix[row * x.size() + i] * x[i];
    return y;
  }
  static Numbers head_of(const Numbers& x, size_t head, size_t width) {
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(head * width);
    return {first, first + static_cast<std::ptrdiff_t>(width)};
  }
  // Turned by a position of the whole stream.
  static Numbers rotated(const Numbers& x, size_t position) {
    const size_t half = x.size() / 2;
    Numbers y(x.size());
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) /
                           std::pow(10000.0, 2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
      y[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
      y[i + half] = x[i] * std::sin(angle) + x[i + half] * std::cos(angle);
    }
    return y;
  }

  void block(const std::string& name, std::vector<Numbers>& x) const {
    const size_t heads = size("num_attention_heads"), kv_heads = size("swa_kv_heads"),
                 width = size("attention_head_dim");
    const size_t window = size("sliding_window");
    const std::string attention = name + ".self_attn.";
    const Numbers q_proj = weights(attention + "q_proj.weight"), k_proj = weights(attention + "k_proj.weight"),
                  v_proj = weights(attention + "v_proj.weight"), o_proj = weights(attention + "o_proj.weight"),
                  q_norm = weights(attention + "q_norm.weight"), k_norm = weights(attention + "k_norm.weight"),
                  norm_weight = weights(name + ".norm.weight"),
                  post_norm = weights(name + ".post_attention_layernorm.weight"),
                  gate = weights(name + ".mlp.gate_proj.weight"), up = weights(name + ".mlp.up_proj.weight"),
                  down = weights(name + ".mlp.down_proj.weight");
    std::vector<Numbers> q, k, v;
    for (const Numbers& token : x) {
      const Numbers normed = norm(token, norm_weight);
      q.push_back(multiply(q_proj, normed));
      k.push_back(multiply(k_proj, normed));
      v.push_back(multiply(v_proj, normed));
    }
    for (size_t token = 0; token < x.size(); ++token) {
      Numbers read;
      for (size_t head = 0; head < heads; ++head) {
        const size_t kv_head = head / (heads / kv_heads);
        const Numbers query = rotated(norm(head_of(q[token], head, width), q_norm), token);
        Numbers o(width);
        double sum = 0;
        for (size_t other = token - std::min(token, window); other <= token; ++other) {
          const Numbers key = rotated(norm(head_of(k[other], kv_head, width), k_norm), other);
          double dot = 0;
          for (size_t i = 0; i < width; ++i) dot += query[i] * key[i];
          const double share = std::exp(dot / std::sqrt(static_cast<double>(width)));
          sum += share;
          for (size_t i = 0; i < width; ++i) o[i] += share * v[other][kv_head * width + i];
        }
        for (const double value : o) read.push_back(value / sum);
      }
      x[token] = x[token] + multiply(o_proj, read);
      const Numbers normed = norm(x[token], post_norm);
      Numbers inner = multiply(gate, normed);
      const Numbers factor = multiply(up, normed);
      for (size_t i = 0; i < inner.size(); ++i) inner[i] = inner[i] / (1 + std::exp(-inner[i])) * factor[i];
      x[token] = x[token] + multiply(down, inner);
    }
  }

  const RandomModel& model_;
};

class SwaTest : public ::testing::Test {
 protected:
  Expected<std::unique_ptr<Ramba>> open(const RandomModel& model, Precision precision = Precision::f32) {
    std::filesystem::remove(directory_.path() / "model.safetensors");
    model.write(directory_.path());
    return Ramba::open(directory_.path(), precision, Parts::all, pool_);
  }

  TempDir directory_;
  WorkerPool pool_{2};
};

TEST_F(SwaTest, TheLowerHalfEqualsPlainLoops) {
  std::mt19937 random(5);
  std::vector<uint32_t> tokens(5 * 64 + 17);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % 300);
  for (const auto& [window, kv_heads] : {std::pair{64, 1}, std::pair{128, 2}, std::pair{192, 4}}) {
    nlohmann::json config = random_model_config();
    config["vocab_size"] = 300;
    config["sliding_window"] = window;
    config["swa_kv_heads"] = kv_heads;
    config["tokenizer"] = "none";
    const RandomModel model(config);
    std::vector<float> expected;
    for (const Numbers& token : PlainLower(model).run(tokens))
      expected.insert(expected.end(), token.begin(), token.end());
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      if (precision == Precision::bf16 && !cpu_multiplies_bf16()) continue;
      auto ramba = open(model, precision);
      ASSERT_TRUE(ramba) << ramba.error().message;
      EXPECT_TRUE(tensor_near((*ramba)->lower_from_zero(tokens), expected, precision == Precision::f32 ? 1e-4 : 2e-2))
          << "window " << window;
    }
  }
}

TEST_F(SwaTest, TheStateIsOfTheSizeThatTheWindowAsksFor) {
  auto ramba = open(RandomModel(random_model_config()));
  ASSERT_TRUE(ramba) << ramba.error().message;
  const size_t block_floats = 16 + 2 * (128 + 64) * 2 * 32;
  EXPECT_EQ((*ramba)->lower_state_bytes(), 2 * block_floats * sizeof(float));
  EXPECT_EQ((*ramba)->upper_zero_state().values.size(), 2 * block_floats);
}

TEST_F(SwaTest, TensorsThatAreMissingOrOfAnotherShapeAreNamed) {
  nlohmann::json config = random_model_config();
  const RandomModel model(config);
  ASSERT_TRUE(open(model));
  config["swa_kv_heads"] = 4;
  std::ofstream(directory_.path() / "config.json") << config.dump();
  const auto opened = Ramba::open(directory_.path(), Precision::f32, Parts::lower, pool_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(opened.error().message, HasSubstr("backbone.layers.0.self_attn.k_proj.weight"));
}

}  // namespace
}  // namespace recalld
