// The GPU's queries of landmarks against the CPU's norm and plain loops; a row's bits whatever else is in a call.
// Skipped where there is no GPU.
#include "kernels/retrieval_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/elementwise_cuda.h"
#include "kernels/rmsnorm.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"
#include "tests/support/values_near.h"

namespace recalld {
namespace {

constexpr float eps = 1e-5f;

struct Problem {
  size_t rows, heads, dim;
  bool with_norm;
  std::vector<float> x = sized(), q_norm = random_floats(dim / heads, 2), gain = random_floats(dim, 3);

  // Each row is of another size, so that a wrong scale shows.
  std::vector<float> sized() const {
    std::vector<float> values = random_floats(rows * dim, 1);
    for (size_t i = 0; i < values.size(); ++i) values[i] *= std::exp2(static_cast<float>(i / dim % 21) - 10);
    return values;
  }
  std::string name() const {
    return "rows " + std::to_string(rows) + " heads " + std::to_string(heads) + " dim " + std::to_string(dim) +
           (with_norm ? " normed" : "");
  }

  // Of some of the rows, with `gap` NaNs behind each.
  std::vector<Bf16> on_gpu(size_t first, size_t count, size_t gap) const {
    const size_t stride = dim + gap;
    std::vector<float> spread(count * stride, std::numeric_limits<float>::quiet_NaN());
    for (size_t row = 0; row < count; ++row)
      std::copy_n(x.data() + (first + row) * dim, dim, spread.data() + row * stride);
    const DeviceArray<float> device_x(spread), device_norm(q_norm), device_gain(gain);
    const DeviceArray<Bf16> queries(count * heads * dim);
    must(cuda::retrieval_queries({.x = device_x.data(),
                                  .x_stride = static_cast<uint32_t>(stride),
                                  .q_norm = with_norm ? device_norm.data() : nullptr,
                                  .gain = device_gain.data(),
                                  .rows = static_cast<uint32_t>(count),
                                  .heads = static_cast<uint32_t>(heads),
                                  .dim = static_cast<uint32_t>(dim),
                                  .eps = eps},
                                 queries.data(), nullptr));
    return queries.host();
  }

  std::vector<Bf16> on_cpu() const {
    std::vector<float> normed = x;
    if (with_norm) rmsnorm_cpu(x.data(), q_norm.data(), rows * heads, dim / heads, eps, normed.data());
    std::vector<Bf16> queries(rows * heads * dim);
    for (size_t i = 0; i < normed.size(); ++i) {
      const size_t row = i / dim, at = i % dim, head = at / (dim / heads);
      queries[(row * heads + head) * dim + at] = to_bf16(normed[i] * gain[at]);
    }
    return queries;
  }
};

using RetrievalCuda = GpuTest;

TEST_F(RetrievalCuda, QueriesAreNearTheTwins) {
  for (const size_t head_width : {16, 32, 64, 128, 144})
    for (const size_t heads : {1, 2, 5})
      for (const size_t rows : {1, 7, 8, 9, 130})
        for (const size_t gap : {0, 4}) {
          const Problem problem{rows, heads, heads * head_width, true};
          SCOPED_TRACE(problem.name());
          expect_each_near(problem.on_gpu(0, rows, gap), problem.on_cpu());
        }
}

TEST_F(RetrievalCuda, QueriesWithoutANormAreExactlyTheTwins) {
  for (const size_t heads : {1, 3})
    for (const size_t rows : {1, 64}) {
      const Problem problem{rows, heads, heads * 128, false};
      SCOPED_TRACE(problem.name());
      EXPECT_TRUE(same_bits<Bf16>(problem.on_gpu(0, rows, 0), problem.on_cpu()));
    }
}

TEST_F(RetrievalCuda, ARowHasTheSameBitsAmongOthers) {
  const Problem problem{4096, 2, 256, true};
  const size_t query = problem.heads * problem.dim;
  const std::vector<Bf16> together = problem.on_gpu(0, problem.rows, 0);
  for (const size_t row : {0, 1, 3, 4, 2047, 4095})
    EXPECT_TRUE(same_bits<Bf16>(problem.on_gpu(row, 1, 4), std::span(together).subspan(row * query, query)));
}

TEST_F(RetrievalCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const auto queries = [](const cuda::RetrievalQueries& all) { return cuda::retrieval_queries(all, nullptr, nullptr); };
  EXPECT_EQ(queries({.x_stride = 128, .rows = 0, .heads = 1, .dim = 128}), cudaSuccess);
  EXPECT_EQ(queries({.x_stride = 124, .rows = 1, .heads = 1, .dim = 128}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 130, .rows = 1, .heads = 1, .dim = 128}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 128, .rows = 1, .heads = 0, .dim = 128}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 128, .rows = 1, .heads = 3, .dim = 128}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 128, .rows = 1, .heads = 16, .dim = 128}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 128, .rows = 1, .heads = 1, .dim = 0}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 1 << 17, .rows = 1, .heads = 1, .dim = 1 << 17}), cudaErrorInvalidValue);
  EXPECT_EQ(queries({.x_stride = 128, .rows = cuda::elementwise_rows_max, .heads = 2, .dim = 128}),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace recalld
