// The small GPU kernels against their CPU twins, over awkward shapes; a row's bits whatever else is in a call. Skipped
// where there is no GPU.
#include "kernels/elementwise_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"
#include "tests/support/values_near.h"

namespace recalld {
namespace {

constexpr float eps = 1e-5f;

// Rows of `width` that are `stride` apart, without the gaps.
std::vector<float> dense(const std::vector<float>& values, size_t rows, size_t width, size_t stride) {
  std::vector<float> result;
  for (size_t row = 0; row < rows; ++row)
    result.insert(result.end(), values.begin() + row * stride, values.begin() + row * stride + width);
  return result;
}

std::string shape_name(size_t rows, size_t heads, size_t width) {
  return "rows " + std::to_string(rows) + " heads " + std::to_string(heads) + " width " + std::to_string(width);
}

using ElementwiseCuda = GpuTest;

// x at different sizes, row by row, so that a wrong scale shows.
std::vector<float> rows_of_sizes(size_t rows, size_t stride, uint32_t seed) {
  std::vector<float> x = random_floats(rows * stride, seed);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= std::exp2(static_cast<float>(i / stride % 21) - 10);
  return x;
}

template <class T>
std::vector<T> norm_on_gpu(const std::vector<float>& x, size_t stride, const std::vector<float>& weight, size_t rows,
                           size_t heads) {
  const DeviceArray<float> device_x(x), device_weight(weight);
  const DeviceArray<T> y(rows * heads * weight.size());
  must(cuda::rmsnorm({.x = device_x.data(),
                      .x_stride = static_cast<uint32_t>(stride),
                      .weight = device_weight.data(),
                      .rows = static_cast<uint32_t>(rows),
                      .heads = static_cast<uint32_t>(heads),
                      .width = static_cast<uint32_t>(weight.size()),
                      .eps = eps},
                     y.data(), nullptr));
  return y.host();
}

template <class T>
void expect_norm_parity(size_t rows, size_t heads, size_t width) {
  SCOPED_TRACE(shape_name(rows, heads, width));
  const size_t stride = heads * width + 4;
  const auto x = rows_of_sizes(rows, stride, 1), weight = random_floats(width, 2);
  std::vector<T> expected(rows * heads * width);
  rmsnorm_cpu(dense(x, rows, heads * width, stride).data(), weight.data(), rows * heads, width, eps, expected.data());
  expect_each_near(norm_on_gpu<T>(x, stride, weight, rows, heads), expected);
}

TEST_F(ElementwiseCuda, RmsNormIsNearItsTwin) {
  for (const size_t width : {16, 64, 112, 128, 144, 384, 768, 2560, 5136})
    for (const size_t rows : {1, 7, 8, 9, 130})
      for (const size_t heads : {1, 3}) {
        expect_norm_parity<float>(rows, heads, width);
        expect_norm_parity<Bf16>(rows, heads, width);
      }
}

TEST_F(ElementwiseCuda, RmsNormMayWriteOverItsInput) {
  const size_t rows = 65, heads = 6, width = 384;
  const auto x = rows_of_sizes(rows, heads * width, 3), weight = random_floats(width, 4);
  const DeviceArray<float> in_place(x), device_weight(weight);
  must(cuda::rmsnorm({.x = in_place.data(),
                      .x_stride = heads * width,
                      .weight = device_weight.data(),
                      .rows = rows,
                      .heads = heads,
                      .width = width,
                      .eps = eps},
                     in_place.data(), nullptr));
  EXPECT_TRUE(same_bits<float>(in_place.host(), norm_on_gpu<float>(x, heads * width, weight, rows, heads)));
}

TEST_F(ElementwiseCuda, RowsOfZerosStayZero) {
  const std::vector<float> zeros(2 * 64), ones(64, 1.0f);
  EXPECT_EQ(norm_on_gpu<float>(zeros, 64, ones, 2, 1), zeros);
}

TEST_F(ElementwiseCuda, ANormedRowHasTheSameBitsAmongOthers) {
  const size_t rows = 4096, width = 384;
  const auto x = rows_of_sizes(rows, width, 5), weight = random_floats(width, 6);
  const std::vector<float> together = norm_on_gpu<float>(x, width, weight, rows, 1);
  for (const size_t row : {0, 1, 7, 8, 2047, 4095}) {
    const std::vector<float> alone(x.begin() + row * width, x.begin() + (row + 1) * width);
    EXPECT_TRUE(same_bits<float>(norm_on_gpu<float>(alone, width, weight, 1, 1),
                                 std::span(together).subspan(row * width, width)));
  }
}

template <class In>
std::vector<Bf16> gated_on_gpu(const std::vector<In>& y, const std::vector<float>& z, size_t z_stride,
                               const std::vector<float>& weight, size_t rows) {
  const DeviceArray<In> device_y(y);
  const DeviceArray<float> device_z(z), device_weight(weight);
  const DeviceArray<Bf16> out(rows * weight.size());
  must(cuda::gated_rmsnorm({.z = device_z.data(),
                            .z_stride = static_cast<uint32_t>(z_stride),
                            .weight = device_weight.data(),
                            .rows = static_cast<uint32_t>(rows),
                            .width = static_cast<uint32_t>(weight.size()),
                            .eps = eps},
                           device_y.data(), out.data(), nullptr));
  return out.host();
}

TEST_F(ElementwiseCuda, GatedRmsNormIsNearItsTwin) {
  for (const size_t heads : {1, 2, 12, 32, 80})
    for (const size_t rows : {1, 7, 8, 9, 65}) {
      SCOPED_TRACE(shape_name(rows, heads, 64));
      const size_t width = heads * 64, stride = 2 * width + 140;
      const std::vector<Bf16> y = rounded(rows_of_sizes(rows, width, 11));
      const auto z = random_floats(rows * stride, 12, 4), weight = random_floats(width, 13);
      std::vector<float> y_floats, y_by_head(rows * width);
      for (const Bf16 value : y) y_floats.push_back(to_float(value));
      for (size_t row = 0; row < rows; ++row)  // the twin's layout is [heads, rows, head_dim]
        for (size_t head = 0; head < heads; ++head)
          std::copy_n(y_floats.data() + row * width + head * 64, 64, y_by_head.data() + (head * rows + row) * 64);
      std::vector<Bf16> expected(rows * width);
      gated_rmsnorm_cpu(y_by_head.data(), z.data(), stride, weight.data(), rows, heads, 64, eps, expected.data());
      const std::vector<Bf16> found = gated_on_gpu(y, z, stride, weight, rows);
      expect_each_near(found, expected);
      EXPECT_TRUE(same_bits<Bf16>(gated_on_gpu(y_floats, z, stride, weight, rows), found));
    }
}

TEST_F(ElementwiseCuda, AGatedRowHasTheSameBitsAmongOthers) {
  const size_t rows = 4096, width = 768, stride = 1676;
  const std::vector<Bf16> y = rounded(rows_of_sizes(rows, width, 14));
  const auto z = random_floats(rows * stride, 15, 4), weight = random_floats(width, 16);
  const std::vector<Bf16> together = gated_on_gpu(y, z, stride, weight, rows);
  for (const size_t row : {0, 1, 7, 8, 2047, 4095}) {
    const std::vector<Bf16> y_alone(y.begin() + row * width, y.begin() + (row + 1) * width);
    const std::vector<float> z_alone(z.begin() + row * stride, z.begin() + (row + 1) * stride);
    EXPECT_TRUE(same_bits<Bf16>(gated_on_gpu(y_alone, z_alone, stride, weight, 1),
                                std::span(together).subspan(row * width, width)));
  }
}

TEST_F(ElementwiseCuda, SwigluIsNearItsTwin) {
  for (const size_t width : {16, 1024, 1040, 5120})
    for (const size_t rows : {1, 3, 64, 65}) {
      SCOPED_TRACE(shape_name(rows, 1, width));
      const auto gate_up = random_floats(rows * 2 * width, 21, 4);
      const DeviceArray<float> device(gate_up);
      const DeviceArray<Bf16> out(rows * width);
      must(cuda::swiglu(device.data(), static_cast<uint32_t>(rows), static_cast<uint32_t>(width), out.data(), nullptr));
      std::vector<Bf16> expected(rows * width);
      swiglu_cpu(gate_up.data(), rows, width, expected.data());
      expect_each_near(out.host(), expected);
    }
}

TEST_F(ElementwiseCuda, GatesFarFromZeroAreShutOrOpen) {
  std::vector<float> gate_up(32, 2.0f);
  for (size_t i = 0; i < 16; ++i) gate_up[i] = i < 8 ? -200.0f : 200.0f;
  const DeviceArray<float> device(gate_up);
  const DeviceArray<Bf16> out(16);
  must(cuda::swiglu(device.data(), 1, 16, out.data(), nullptr));
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(to_float(out.host()[i]), i < 8 ? 0.0f : 400.0f);
}

TEST_F(ElementwiseCuda, LookupsAreRowsOfTheTable) {
  const size_t vocabulary = 301;
  for (const size_t width : {16, 384, 2560})
    for (const size_t rows : {1, 5, 64, 1000}) {
      SCOPED_TRACE(shape_name(rows, 1, width));
      const std::vector<Bf16> table = rounded(random_floats(vocabulary * width, 31));
      std::vector<uint32_t> tokens;
      for (size_t i = 0; i < rows; ++i) tokens.push_back(static_cast<uint32_t>((vocabulary - 1 + i * 7) % vocabulary));
      const DeviceArray<Bf16> device_table(table);
      const DeviceArray<uint32_t> device_tokens(tokens);
      const DeviceArray<float> y(rows * width);
      must(cuda::embedding_lookup(device_table.data(), device_tokens.data(), static_cast<uint32_t>(rows),
                                  static_cast<uint32_t>(width), y.data(), nullptr));
      std::vector<float> expected;
      for (const uint32_t token : tokens)
        for (size_t i = 0; i < width; ++i) expected.push_back(to_float(table[token * width + i]));
      EXPECT_EQ(y.host(), expected);
    }
}

TEST_F(ElementwiseCuda, SumsAreExactlyTheTwins) {
  for (const size_t width : {16, 384, 1040})
    for (const size_t rows : {1, 3, 1000}) {
      SCOPED_TRACE(shape_name(rows, 1, width));
      const auto x = random_floats(rows * width, 41);
      auto y = random_floats(rows * width, 42);
      const DeviceArray<float> device_x(x), device_y(y);
      must(cuda::add(device_x.data(), static_cast<uint32_t>(rows), static_cast<uint32_t>(width), device_y.data(),
                     nullptr));
      add_cpu(x.data(), y.size(), y.data());
      EXPECT_TRUE(same_bits<float>(device_y.host(), y));
    }
}

TEST_F(ElementwiseCuda, RoundsExactlyAsItsTwin) {
  for (const size_t width : {16, 384, 1040})
    for (const size_t rows : {1, 3, 1000}) {
      SCOPED_TRACE(shape_name(rows, 1, width));
      std::vector<float> x = rows_of_sizes(rows, width, 51);
      // Ties to either side, what rounds up to the next power of two, the ends of the range.
      const float special[] = {0.0f,    -0.0f,  1.00390625f, 1.01171875f, -1.00390625f, 1.99609375f,
                               FLT_MIN, 1e-40f, FLT_MAX,     -FLT_MAX,    INFINITY,     -INFINITY};
      std::ranges::copy(special, x.begin() + 2);
      const DeviceArray<float> device(x);
      const DeviceArray<Bf16> y(x.size());
      must(cuda::to_bf16(device.data(), static_cast<uint32_t>(rows), static_cast<uint32_t>(width), y.data(), nullptr));
      std::vector<Bf16> expected(x.size());
      to_bf16_cpu(x.data(), x.size(), expected.data());
      EXPECT_TRUE(same_bits<Bf16>(y.host(), expected));
    }
}

TEST_F(ElementwiseCuda, ShapesThatAreOutOfBoundsAreRefused) {
  float* const floats = nullptr;
  Bf16* const halves = nullptr;
  const auto norm = [&](const cuda::RmsNorm& shape) { return cuda::rmsnorm(shape, floats, nullptr); };
  EXPECT_EQ(norm({.x_stride = 24, .rows = 1, .width = 24}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 16, .rows = 1, .width = 0}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 18, .rows = 1, .width = 16}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 28, .rows = 1, .heads = 2, .width = 16}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 16, .rows = 1, .heads = 0, .width = 16}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 32, .rows = cuda::elementwise_rows_max, .heads = 2, .width = 16}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 1 << 17, .rows = 1, .width = 1 << 17}), cudaErrorInvalidValue);
  EXPECT_EQ(norm({.x_stride = 16, .rows = 0, .width = 16}), cudaSuccess);
  EXPECT_EQ(cuda::gated_rmsnorm({.z_stride = 12, .rows = 1, .width = 16}, halves, halves, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::gated_rmsnorm({.z_stride = 24, .rows = 1, .width = 24}, floats, halves, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::gated_rmsnorm({.z_stride = 16, .rows = 0, .width = 16}, halves, halves, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::swiglu(floats, 1, 8, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::swiglu(floats, cuda::elementwise_rows_max + 1, 16, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::swiglu(floats, 0, 16, halves, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::embedding_lookup(halves, nullptr, 1, 8, floats, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::embedding_lookup(halves, nullptr, 0, 16, floats, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::add(floats, 1, 8, floats, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::add(floats, 0, 16, floats, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::to_bf16(floats, 1, 8, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::to_bf16(floats, cuda::elementwise_rows_max + 1, 16, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::to_bf16(floats, 0, 16, halves, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace recalld
