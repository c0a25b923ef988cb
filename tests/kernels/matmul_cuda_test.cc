// The GPU's products against plain loops, and a row's bits whatever else is in a call. Skipped where there is no GPU.
#include "kernels/matmul_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

struct Shape {
  uint32_t in, out;
  std::string name() const { return std::to_string(in) + " to " + std::to_string(out); }
};

// The starter's: in_proj, out_proj, and the MLP's down and gate|up.
const Shape starter_shapes[] = {{384, 1676}, {768, 384}, {1024, 384}, {384, 2048}};

class MatmulCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!have_gpu()) GTEST_SKIP() << "there is no NVIDIA GPU";
    must(cuda::Matmul::open(matmul));
  }
  cuda::MatmulPlan plan_of(const Shape& shape) const {
    cuda::MatmulPlan plan;
    must(matmul.choose(shape.out, shape.in, plan));
    return plan;
  }

  cuda::Matmul matmul;
};

// A matrix of weights and some rows for it.
struct Problem {
  Shape shape;
  uint32_t rows;
  std::vector<Bf16> x, w;
  DeviceArray<Bf16> device_x, device_w;

  Problem(const Shape& of_shape, uint32_t of_rows)
      : shape(of_shape),
        rows(of_rows),
        x(rounded(random_floats(size_t{rows} * shape.in, 1))),
        w(rounded(random_floats(size_t{shape.out} * shape.in, 2))),
        device_x(x),
        device_w(w) {}

  // Of rows first to first + count, in a call of their own.
  std::vector<float> run(const cuda::Matmul& matmul, const cuda::MatmulPlan& plan, uint32_t first,
                         uint32_t count) const {
    const DeviceArray<float> y(size_t{count} * shape.out);
    const DeviceArray<char> workspace(cuda::matmul_workspace);
    must(matmul.run(plan, device_x.data() + size_t{first} * shape.in, device_w.data(), count, y.data(),
                    workspace.data(), nullptr));
    return y.host();
  }
};

// Of the sum of the magnitudes that are summed; the products are exact and the sums are f32.
constexpr double tolerance = 4e-6;

void expect_product(const Problem& problem, uint32_t row, std::span<const float> found) {
  const Shape& shape = problem.shape;
  for (size_t column = 0; column < shape.out; ++column) {
    double sum = 0, magnitude = 0;
    for (size_t i = 0; i < shape.in; ++i) {
      const double term =
          double{to_float(problem.x[size_t{row} * shape.in + i])} * to_float(problem.w[column * shape.in + i]);
      sum += term;
      magnitude += std::abs(term);
    }
    ASSERT_NEAR(found[column], sum, tolerance * magnitude) << "row " << row << " column " << column;
  }
}

TEST_F(MatmulCuda, ProductsAreNearPlainLoops) {
  for (const Shape& shape : {starter_shapes[0], starter_shapes[1], starter_shapes[2], starter_shapes[3], Shape{8, 4},
                             Shape{24, 20}, Shape{392, 1036}, Shape{5120, 132}})
    for (const uint32_t rows : {1, 5, 64, 131}) {
      SCOPED_TRACE(shape.name() + " rows " + std::to_string(rows));
      const Problem problem(shape, rows);
      const std::vector<float> y = problem.run(matmul, plan_of(shape), 0, rows);
      for (uint32_t row = 0; row < rows; row += std::max(1u, std::min(13u, rows - 1 - row)))
        expect_product(problem, row, std::span(y).subspan(size_t{row} * shape.out, shape.out));
    }
}

TEST_F(MatmulCuda, ARowHasTheSameBitsHoweverManyRowsAreInTheCall) {
  const uint32_t rows = 20'000;  // more than any choice of a plan is for
  for (const Shape& shape : {starter_shapes[0], starter_shapes[1], starter_shapes[2], starter_shapes[3],
                             Shape{384, 1680}, Shape{384, 128}, Shape{392, 1036}}) {
    const Problem problem(shape, rows);
    const cuda::MatmulPlan plan = plan_of(shape);
    const std::vector<float> whole = problem.run(matmul, plan, 0, rows);
    const auto expect_same = [&](uint32_t first, uint32_t count) {
      SCOPED_TRACE(shape.name() + " rows " + std::to_string(first) + " and " + std::to_string(count - 1) + " more");
      const std::vector<float> part = problem.run(matmul, plan, first, count);
      EXPECT_EQ(0, std::memcmp(part.data(), whole.data() + size_t{first} * shape.out, part.size() * sizeof(float)));
    };
    for (uint32_t first = 0; first < rows; first += first < 1024 ? 64 : 960) expect_same(first, 64);
    for (const uint32_t count :
         {1, 2, 3, 7, 8, 9, 16, 33, 63, 65, 127, 128, 129, 255, 512, 1000, 2049, 4095, 8191, 8193, 16'385}) {
      expect_same(0, count);
      expect_same(rows - count, count);
      expect_same(std::min(37u, rows - count), count);
    }
  }
}

TEST_F(MatmulCuda, AllAlgorithmsOfAPlanGiveTheSameBits) {
  for (const Shape& shape : {starter_shapes[1], Shape{384, 1680}, Shape{5120, 132}}) {
    const Problem problem(shape, 300);
    const cuda::MatmulPlan plan = plan_of(shape);
    const std::vector<float> expected = problem.run(matmul, plan, 0, problem.rows);
    for (const cublasLtMatmulAlgo_t& algorithm : plan.algorithms) {
      cuda::MatmulPlan one{.out = plan.out, .in = plan.in};
      std::fill(std::begin(one.algorithms), std::end(one.algorithms), algorithm);
      EXPECT_EQ(problem.run(matmul, one, 0, problem.rows), expected) << shape.name();
    }
  }
}

TEST_F(MatmulCuda, TheMostRowsOfACallHaveTheSameBitsAsFew) {
  const uint32_t rows = cuda::matmul_rows_max, few = 64;
  const Problem problem({64, 256}, rows);
  const cuda::MatmulPlan plan = plan_of(problem.shape);
  const std::vector<float> whole = problem.run(matmul, plan, 0, rows);
  const std::vector<float> last = problem.run(matmul, plan, rows - few, few);
  EXPECT_EQ(0, std::memcmp(last.data(), whole.data() + whole.size() - last.size(), last.size() * sizeof(float)));
}

TEST_F(MatmulCuda, APlanChosenAgainHasTheSameBits) {
  const Problem problem(starter_shapes[0], 100);
  const std::vector<float> y = problem.run(matmul, plan_of(problem.shape), 0, 100);
  cuda::Matmul other;
  must(cuda::Matmul::open(other));
  const cuda::Matmul moved = std::move(other);
  cuda::MatmulPlan plan;
  must(moved.choose(problem.shape.out, problem.shape.in, plan));
  EXPECT_EQ(problem.run(moved, plan, 0, 100), y);
}

TEST_F(MatmulCuda, AProductCanBeCapturedInAGraph) {
  const Shape shape = starter_shapes[1];
  const Problem problem(shape, 64);
  const cuda::MatmulPlan plan = plan_of(shape);
  const DeviceArray<float> y(size_t{64} * shape.out);
  const DeviceArray<char> workspace(cuda::matmul_workspace);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  must(cudaStreamCreate(&stream));
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  must(matmul.run(plan, problem.device_x.data(), problem.device_w.data(), 64, y.data(), workspace.data(), stream));
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&executable, graph, 0));
  must(cudaGraphLaunch(executable, stream));
  must(cudaStreamSynchronize(stream));
  EXPECT_EQ(y.host(), problem.run(matmul, plan, 0, 64));
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(MatmulCuda, WhatIsOutOfBoundsIsRefused) {
  cuda::MatmulPlan plan;
  EXPECT_EQ(matmul.choose(0, 16, plan), cudaErrorInvalidValue);
  EXPECT_EQ(matmul.choose(16, 0, plan), cudaErrorInvalidValue);
  EXPECT_EQ(matmul.choose(18, 16, plan), cudaErrorInvalidValue);
  EXPECT_EQ(matmul.choose(16, 12, plan), cudaErrorInvalidValue);
  EXPECT_EQ(matmul.choose(cuda::matmul_width_max + 4, 16, plan), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::Matmul().choose(16, 16, plan), cudaErrorInvalidValue);

  const Problem problem({16, 16}, 4);
  const DeviceArray<float> y(4 * 16);
  const DeviceArray<char> workspace(cuda::matmul_workspace);
  const Bf16 *const x = problem.device_x.data(), *const w = problem.device_w.data();
  const auto run = [&](const Bf16* of_x, uint32_t rows, float* to, void* space) {
    return matmul.run(plan, of_x, w, rows, to, space, nullptr);
  };
  EXPECT_EQ(run(x, 4, y.data(), workspace.data()), cudaErrorInvalidValue);  // nothing chosen
  plan = plan_of({16, 16});
  EXPECT_EQ(cuda::Matmul().run(plan, x, w, 4, y.data(), workspace.data(), nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(run(x, cuda::matmul_rows_max + 1, y.data(), workspace.data()), cudaErrorInvalidValue);
  EXPECT_EQ(run(x + 1, 3, y.data(), workspace.data()), cudaErrorInvalidValue);
  EXPECT_EQ(run(x, 3, y.data() + 1, workspace.data()), cudaErrorInvalidValue);
  EXPECT_EQ(run(x, 4, y.data(), nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(run(x, 4, y.data(), workspace.data() + 128), cudaErrorInvalidValue);
  EXPECT_EQ(run(x, 0, y.data(), workspace.data()), cudaSuccess);
  EXPECT_EQ(run(x, 4, y.data(), workspace.data()), cudaSuccess);
}

}  // namespace
}  // namespace recalld
