#include "kernels/ssd_scan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu_isa.h"
#include "tests/support/random_floats.h"
#include "tests/support/tensor_near.h"

namespace recalld {
namespace {

struct Inputs {
  SsdShape shape;
  size_t dt_stride;
  std::vector<float> xbc, dt, dt_bias, a, d, state;

  Inputs(SsdShape s, uint32_t seed, float steps) : shape(s), dt_stride(s.heads + 5) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](size_t n, float scale, float shift = 0) {
      std::vector<float> values(n);
      for (float& x : values) x = to_float(to_bf16(shift + scale * normal(random)));  // exact in both input types
      return values;
    };
    xbc = fill(ssd_block * shape.channels(), 0.7f);
    dt = fill(ssd_block * dt_stride, steps);
    dt_bias = fill(shape.heads, 1, -3);
    d = fill(shape.heads, 1);
    state = fill(shape.state_floats(), 1);
    for (size_t head = 0; head < shape.heads; ++head) a.push_back(-static_cast<float>(head % 16 + 1));
  }
  SsdWeights weights() const { return {dt_bias.data(), a.data(), d.data()}; }
};

const SsdShape shapes[] = {{12, 64, 64}, {4, 64, 32}, {1, 16, 16}, {5, 32, 128}, {7, 64, 64}};

TEST(SsdScan, ProductsAgreeWithTheRecurrence) {
  for (const SsdShape& shape : shapes) {
    for (const float steps : {0.5f, 4.0f}) {  // the latter forgets within a few tokens
      Inputs in(shape, 1, steps);
      auto state = in.state, state_reference = in.state;
      std::vector<float> y(shape.heads * ssd_block * shape.head_dim), y_reference(y.size());
      SsdScan::make(ProductType::f32, shape)
          .run(in.xbc.data(), in.dt.data(), in.dt_stride, in.weights(), state.data(), y.data());
      ssd_scan_reference(shape, in.xbc.data(), in.dt.data(), in.dt_stride, in.weights(), state_reference.data(),
                         y_reference.data());
      EXPECT_TRUE(tensor_near(y, y_reference, 1e-5));
      EXPECT_TRUE(tensor_near(state, state_reference, 1e-5));
    }
  }
}

TEST(SsdScan, Bf16ProductsStayWithinTheirRounding) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << "this CPU has no bf16 products";
  for (const SsdShape& shape : shapes) {
    Inputs in(shape, 2, 0.5f);
    auto state = in.state, state_reference = in.state;
    std::vector<float> y(shape.heads * ssd_block * shape.head_dim), y_reference(y.size());
    const std::vector<Bf16> xbc = rounded(in.xbc);
    SsdScan::make(ProductType::bf16, shape)
        .run(xbc.data(), in.dt.data(), in.dt_stride, in.weights(), state.data(), y.data());
    ssd_scan_reference(shape, in.xbc.data(), in.dt.data(), in.dt_stride, in.weights(), state_reference.data(),
                       y_reference.data());
    EXPECT_TRUE(tensor_near(y, y_reference, 5e-3));
    EXPECT_TRUE(tensor_near(state, state_reference, 5e-3));
  }
}

// A part of a block, and then tokens one by one, as a generation goes.
TEST(SsdScan, APartOfABlockAndSingleTokensContinueTheState) {
  for (const SsdShape& shape : shapes) {
    for (const size_t rows : {size_t{1}, size_t{2}, size_t{40}, size_t{63}}) {
      Inputs in(shape, 4, 0.5f);
      auto state = in.state, state_reference = in.state;
      std::vector<float> y(shape.heads * ssd_block * shape.head_dim), y_reference(y.size());
      ssd_scan_reference(shape, in.xbc.data(), in.dt.data(), in.dt_stride, in.weights(), state_reference.data(),
                         y_reference.data());
      SsdScan::make(ProductType::f32, shape)
          .run(in.xbc.data(), in.dt.data(), in.dt_stride, in.weights(), state.data(), y.data(), rows);
      for (size_t t = rows; t < ssd_block; ++t) {
        std::vector<float> of_token(shape.heads * shape.head_dim);
        ssd_state_update_cpu(shape, in.xbc.data() + t * shape.channels(), in.dt.data() + t * in.dt_stride, in.weights(),
                             state.data(), of_token.data());
        for (size_t i = 0; i < of_token.size(); ++i)
          y[(i / shape.head_dim * ssd_block + t) * shape.head_dim + i % shape.head_dim] = of_token[i];
      }
      EXPECT_TRUE(tensor_near(y, y_reference, 1e-5)) << rows << " rows";
      EXPECT_TRUE(tensor_near(state, state_reference, 1e-5)) << rows << " rows";
    }
  }
}

TEST(SsdScan, ExtremeStepsGiveNoNaN) {
  Inputs in({4, 64, 64}, 3, 1.0f);
  for (size_t i = 0; i < in.dt.size(); ++i) in.dt[i] = i % 3 == 0 ? 200.0f : -200.0f;
  std::vector<float> y(4 * ssd_block * 64);
  SsdScan::make(ProductType::f32, in.shape)
      .run(in.xbc.data(), in.dt.data(), in.dt_stride, in.weights(), in.state.data(), y.data());
  for (const float v : y) ASSERT_TRUE(std::isfinite(v));
  for (const float v : in.state) ASSERT_TRUE(std::isfinite(v));
}

}  // namespace
}  // namespace recalld
