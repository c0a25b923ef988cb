// The small operations around the scan: RMSNorm, its gated form, the convolution, and the products.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/conv1d_silu.h"
#include "kernels/cpu_isa.h"
#include "kernels/matmul.h"
#include "kernels/rmsnorm.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

double silu(double x) {
  return x / (1 + std::exp(-x));
}

TEST(RmsNorm, AgreesWithItsDefinitionInF32AndRoundsOnceToBf16) {
  for (const size_t width : {16u, 384u, 2560u}) {
    const size_t rows = 3;
    const auto x = random_floats(rows * width, 1, 5), w = random_floats(width, 2);
    std::vector<float> y(x.size());
    std::vector<Bf16> y_bf16(x.size());
    rmsnorm_cpu(x.data(), w.data(), rows, width, 1e-5f, y.data());
    rmsnorm_cpu(x.data(), w.data(), rows, width, 1e-5f, y_bf16.data());
    for (size_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (size_t i = 0; i < width; ++i) squares += std::pow(static_cast<double>(x[r * width + i]), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
      for (size_t i = 0; i < width; ++i) {
        const double expected = static_cast<double>(x[r * width + i]) * scale * static_cast<double>(w[i]);
        EXPECT_NEAR(y[r * width + i], expected, 1e-5 * (1 + std::abs(expected)));
        EXPECT_EQ(y_bf16[r * width + i].bits, to_bf16(y[r * width + i]).bits);
      }
    }
  }
}

TEST(GatedRmsNorm, GatesBeforeTheNormOverAllHeads) {
  const size_t heads = 3, rows = 5, head_dim = 32, width = heads * head_dim, stride = width + 40;
  const auto y = random_floats(heads * rows * head_dim, 1), z = random_floats(rows * stride, 2, 3),
             w = random_floats(width, 3);
  std::vector<float> out(rows * width);
  gated_rmsnorm_cpu(y.data(), z.data(), stride, w.data(), rows, heads, head_dim, 1e-5f, out.data());
  for (size_t r = 0; r < rows; ++r) {
    std::vector<double> gated(width);
    double squares = 0;
    for (size_t i = 0; i < width; ++i) {
      gated[i] = static_cast<double>(y[(i / head_dim * rows + r) * head_dim + i % head_dim]) *
                 silu(static_cast<double>(z[r * stride + i]));
      squares += gated[i] * gated[i];
    }
    for (size_t i = 0; i < width; ++i) {
      const double expected =
          gated[i] / std::sqrt(squares / static_cast<double>(width) + 1e-5) * static_cast<double>(w[i]);
      EXPECT_NEAR(out[r * width + i], expected, 1e-5 * (1 + std::abs(expected)));
    }
  }
}

TEST(Conv1dSilu, CarriesItsHistoryFromBlockToBlock) {
  const size_t channels = 48, stride = 60, rows = 64;
  for (const size_t taps : {4, 2, 3, 5}) {
    const auto input = random_floats(2 * rows * stride, 1), w = random_floats(taps * channels, 2),
               bias = random_floats(channels, 3);
    std::vector<float> history = random_floats((taps - 1) * channels, 4), first_history = history;
    std::vector<float> y(2 * rows * channels);
    // A block, and then as many tokens at a time as the next number says: some fewer than the history holds.
    for (size_t done = 0, part = rows; done < 2 * rows; done += part, part = std::min(done % 3 + 1, 2 * rows - done))
      conv1d_silu_cpu(input.data() + done * stride, stride, part, channels, taps, w.data(), bias.data(), history.data(),
                      y.data() + done * channels);
    for (size_t t = 0; t < 2 * rows; ++t) {
      for (size_t c = 0; c < channels; ++c) {
        double sum = static_cast<double>(bias[c]);
        for (size_t k = 0; k < taps; ++k) {
          const float x =
              t + k >= taps - 1 ? input[(t + k - (taps - 1)) * stride + c] : first_history[(t + k) * channels + c];
          sum += static_cast<double>(w[k * channels + c]) * static_cast<double>(x);
        }
        ASSERT_NEAR(y[t * channels + c], silu(sum), 1e-5 * (1 + std::abs(sum)));
      }
    }
  }
}

TEST(Silu, IsRightFromOneEndOfTheRangeToTheOther) {
  // The convolution with one non-zero tap is silu alone.
  const size_t channels = 16, rows = 64;
  std::vector<float> input(rows * channels), w(2 * channels, 0.0f), bias(channels, 0.0f), history(channels),
      y(input.size());
  for (size_t i = 0; i < channels; ++i) w[channels + i] = 1;
  for (size_t i = 0; i < input.size(); ++i)
    input[i] = -120.0f + 240.0f * static_cast<float>(i) / static_cast<float>(input.size());
  input[5] = -1e4f;
  input[6] = 1e30f;
  conv1d_silu_cpu(input.data(), channels, rows, channels, 2, w.data(), bias.data(), history.data(), y.data());
  for (size_t i = 0; i < input.size(); ++i) {
    const double expected = silu(static_cast<double>(input[i]));
    EXPECT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-30) << input[i];
  }
}

class Products : public ::testing::TestWithParam<ProductType> {
 protected:
  void SetUp() override {
    if (GetParam() == ProductType::bf16 && !cpu_multiplies_bf16()) GTEST_SKIP() << "this CPU has no bf16 products";
  }
  // The operand as the product wants it.
  static std::vector<std::byte> operand(const std::vector<float>& values) {
    std::vector<std::byte> bytes;
    if (GetParam() == ProductType::bf16) {
      const auto halves = rounded(values);
      bytes.resize(halves.size() * sizeof(Bf16));
      std::memcpy(bytes.data(), halves.data(), bytes.size());
    } else {
      bytes.resize(values.size() * sizeof(float));
      std::memcpy(bytes.data(), values.data(), bytes.size());
    }
    return bytes;
  }
};

TEST_P(Products, LinearMultipliesByTheTransposedWeights) {
  for (const size_t rows : {1u, 64u, 65u}) {
    const size_t out = 52, in = 96;
    std::vector<float> x = random_floats(rows * in, 1), w = random_floats(out * in, 2);
    for (float& v : x) v = to_float(to_bf16(v));
    const auto weights = rounded(w);
    std::vector<float> y(rows * out);
    const Linear layer = Linear::pack(GetParam(), rows, out, in, weights.data());
    layer.run(operand(x).data(), y.data());
    std::vector<float> few_x(x);
    few_x.resize(Linear::rows_few * in);
    std::vector<float> few(Linear::rows_few * out);
    layer.run(operand(few_x).data(), few.data(), Linear::rows_few);
    for (size_t i = 0; i < std::min(few.size(), y.size()); ++i) ASSERT_NEAR(few[i], y[i], 1e-4);
    for (size_t r = 0; r < rows; ++r)
      for (size_t o = 0; o < out; ++o) {
        double sum = 0;
        for (size_t i = 0; i < in; ++i)
          sum += static_cast<double>(x[r * in + i]) * static_cast<double>(to_float(weights[o * in + i]));
        ASSERT_NEAR(y[r * out + o], sum, 1e-4);
      }
  }
}

TEST_P(Products, ARowOfAFewHasTheSameBitsInEachPlaceBesideAnyOthers) {
  constexpr size_t rows = Linear::rows_few;
  for (const auto& [out, in] : {std::pair<size_t, size_t>{52, 96}, {1676, 384}, {384, 768}, {128, 64}, {8192, 384}}) {
    const Linear layer = Linear::pack(GetParam(), 64, out, in, rounded(random_floats(out * in, 5)).data());
    const std::vector<float> row = random_floats(in, 6);
    std::vector<float> expected;
    for (size_t place = 0; place < rows; ++place) {
      std::vector<float> x = random_floats(rows * in, 10 + place), y(rows * out);
      std::ranges::copy(row, x.begin() + place * in);
      layer.run(operand(x).data(), y.data(), rows);
      const std::vector<float> found(y.begin() + place * out, y.begin() + (place + 1) * out);
      if (place == 0) expected = found;
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), out * sizeof(float)), 0)
          << out << " x " << in << ", row " << place;
    }
  }
}

TEST_P(Products, BatchedProductsTakeTheSecondOperandEitherWay) {
  const size_t batch = 3, m = 20, n = 24, k = 40;
  auto a = random_floats(batch * m * k, 1), b = random_floats(batch * k * n, 2);
  for (float& v : a) v = to_float(to_bf16(v));
  for (float& v : b) v = to_float(to_bf16(v));
  std::vector<float> b_transposed(b.size());
  for (size_t g = 0; g < batch; ++g)
    for (size_t i = 0; i < k; ++i)
      for (size_t j = 0; j < n; ++j) b_transposed[(g * n + j) * k + i] = b[(g * k + i) * n + j];
  std::vector<float> c(batch * m * n), c_transposed(c.size());
  Product::make(GetParam(), batch, m, n, k, false).run(operand(a).data(), operand(b).data(), c.data());
  Product::make(GetParam(), batch, m, n, k, true)
      .run(operand(a).data(), operand(b_transposed).data(), c_transposed.data());
  for (size_t g = 0; g < batch; ++g)
    for (size_t i = 0; i < m; ++i)
      for (size_t j = 0; j < n; ++j) {
        double sum = 0;
        for (size_t l = 0; l < k; ++l)
          sum += static_cast<double>(a[(g * m + i) * k + l]) * static_cast<double>(b[(g * k + l) * n + j]);
        ASSERT_NEAR(c[(g * m + i) * n + j], sum, 1e-4);
        ASSERT_NEAR(c_transposed[(g * m + i) * n + j], sum, 1e-4);
      }
}

TEST_P(Products, OneLayerRunsOnSeveralThreadsAtOnce) {
  const size_t rows = 64, out = 128, in = 64;
  const auto weights = rounded(random_floats(out * in, 1));
  const Linear layer = Linear::pack(GetParam(), rows, out, in, weights.data());
  const auto x = operand(random_floats(rows * in, 2));
  std::vector<float> alone(rows * out);
  layer.run(x.data(), alone.data());
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> results(4, std::vector<float>(rows * out));
  for (auto& result : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) layer.run(x.data(), result.data());
    });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, alone);
}

INSTANTIATE_TEST_SUITE_P(Types, Products, ::testing::Values(ProductType::f32, ProductType::bf16),
                         [](const auto& type) { return type.param == ProductType::bf16 ? "bf16" : "f32"; });

}  // namespace
}  // namespace recalld
