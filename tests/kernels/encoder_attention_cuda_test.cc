// The GPU's attention of the chunk encoder against its definition and its CPU twin; a chunk's bits whatever else is in
// a call. Skipped where there is no GPU.
#include "kernels/encoder_attention_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/encoder_attention.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"
#include "tests/support/values_near.h"

namespace recalld {
namespace {

constexpr float eps = 1e-5f, theta = 10000;

// q, k, v and the shares are rounded to bf16 on the way, which the definition does not do.
constexpr float tolerance = 2e-2f;

std::vector<float> widen(const std::vector<Bf16>& values) {
  std::vector<float> wide;
  for (const Bf16 value : values) wide.push_back(to_float(value));
  return wide;
}

struct Problem {
  size_t chunks;
  EncoderAttentionShape shape;
  std::vector<float> qkv;  // [chunks, rows, 3 * width]
  std::vector<float> bias, q_norm, k_norm;

  Problem(size_t of_chunks, const EncoderAttentionShape& of_shape, bool with_bias, uint32_t seed = 1)
      : chunks(of_chunks),
        shape(of_shape),
        qkv(random_floats(chunks * shape.rows * 3 * shape.width(), seed, 2)),
        bias(with_bias ? random_floats(3 * shape.width(), seed + 1) : std::vector<float>()),
        q_norm(random_floats(shape.head_dim, seed + 2)),
        k_norm(random_floats(shape.head_dim, seed + 3)) {}

  std::string name() const {
    return "chunks " + std::to_string(chunks) + " rows " + std::to_string(shape.rows) + " heads " +
           std::to_string(shape.heads) + " x " + std::to_string(shape.head_dim) + (bias.empty() ? "" : " with bias");
  }
  size_t chunk_floats() const { return shape.rows * shape.width(); }

  // Of some of the chunks, with `gap` NaNs behind each row.
  std::vector<Bf16> on_gpu(size_t first, size_t count, size_t gap = 0) const {
    const size_t row = 3 * shape.width(), stride = row + gap;
    std::vector<float> spread(count * shape.rows * stride, std::numeric_limits<float>::quiet_NaN());
    for (size_t i = 0; i < count * shape.rows; ++i)
      std::copy_n(qkv.data() + (first * shape.rows + i) * row, row, spread.data() + i * stride);
    std::vector<float> cos, sin;
    rope_table(shape.rows, shape.head_dim, theta, cos, sin);
    const DeviceArray<float> device_qkv(spread), device_bias(bias), device_q_norm(q_norm), device_k_norm(k_norm);
    const DeviceArray<float> device_cos(cos), device_sin(sin);
    const size_t elements = count * chunk_floats(), behind = 64;
    const DeviceArray<Bf16> out(elements + behind);
    must(cuda::encoder_attention({.qkv = device_qkv.data(),
                                  .qkv_stride = static_cast<uint32_t>(stride),
                                  .bias = bias.empty() ? nullptr : device_bias.data(),
                                  .q_norm = device_q_norm.data(),
                                  .k_norm = device_k_norm.data(),
                                  .cos = device_cos.data(),
                                  .sin = device_sin.data(),
                                  .chunks = static_cast<uint32_t>(count),
                                  .rows = static_cast<uint32_t>(shape.rows),
                                  .heads = static_cast<uint32_t>(shape.heads),
                                  .head_dim = static_cast<uint32_t>(shape.head_dim),
                                  .eps = eps},
                                 out.data(), nullptr));
    std::vector<Bf16> values = out.host();
    for (size_t i = elements; i < values.size(); ++i) EXPECT_EQ(values[i].bits, 0xffff) << "behind the last row";
    values.resize(elements);
    return values;
  }

  EncoderAttentionWeights weights() const {
    return {bias.empty() ? nullptr : bias.data(), q_norm.data(), k_norm.data(), eps};
  }

  // One chunk, by the definition and by the twin.
  std::vector<float> defined(size_t chunk) const {
    std::vector<float> out(chunk_floats());
    encoder_attention_reference(shape, theta, qkv.data() + chunk * 3 * chunk_floats(), weights(), out.data());
    return out;
  }
  std::vector<float> on_cpu(size_t chunk) const {
    std::vector<Bf16> out(chunk_floats());
    EncoderAttention::make(ProductType::bf16, shape, theta)
        .run(qkv.data() + chunk * 3 * chunk_floats(), weights(), out.data());
    return widen(out);
  }

  void expect_parity(size_t gap = 0) const {
    SCOPED_TRACE(name());
    const std::vector<float> found = widen(on_gpu(0, chunks, gap));
    for (size_t chunk = 0; chunk < chunks; ++chunk)
      expect_near(std::span(found).subspan(chunk * chunk_floats(), chunk_floats()), defined(chunk), tolerance);
  }
};

using EncoderAttentionCuda = GpuTest;

TEST_F(EncoderAttentionCuda, IsNearItsDefinitionForAnyHeads) {
  for (const size_t head_dim : {32, 64, 128})
    for (const size_t heads : {1, 2, 6})
      for (const size_t rows : {17, 64, 65})
        for (const bool with_bias : {false, true})
          for (const size_t chunks : {1, 3}) Problem(chunks, {rows, heads, head_dim}, with_bias).expect_parity();
}

TEST_F(EncoderAttentionCuda, IsNearItsDefinitionForAnyWidthOfAHead) {
  for (const size_t head_dim : {16, 48, 80, 96, 112}) Problem(2, {65, 3, head_dim}, true).expect_parity();
}

TEST_F(EncoderAttentionCuda, IsNearItsDefinitionForAnyNumberOfRows) {
  for (size_t rows = 1; rows <= cuda::encoder_rows_max; ++rows)
    Problem(2, {rows, 2, 64}, rows % 2 == 0).expect_parity();
}

TEST_F(EncoderAttentionCuda, RowsMayLieApart) {
  for (const size_t gap : {4, 96}) Problem(3, {65, 2, 64}, true).expect_parity(gap);
}

TEST_F(EncoderAttentionCuda, IsNearerItsTwinThatRoundsAlike) {
  if (!cpu_multiplies_bf16()) GTEST_SKIP() << "this CPU does not multiply bf16";
  for (const size_t head_dim : {32, 64, 128})
    for (const size_t rows : {17, 64, 65}) {
      const Problem problem(3, {rows, 6, head_dim}, true);
      SCOPED_TRACE(problem.name());
      const std::vector<float> found = widen(problem.on_gpu(0, 3));
      for (size_t chunk = 0; chunk < 3; ++chunk)
        expect_near(std::span(found).subspan(chunk * problem.chunk_floats(), problem.chunk_floats()),
                    problem.on_cpu(chunk), tolerance / 2);
    }
}

// Where q is k, a row's score with itself is the greatest: normed, all rows are of one length. Scores of thousands, and
// of 1e13, leave no share to any other row.
TEST_F(EncoderAttentionCuda, HugeScoresGiveAllWeightToOneRow) {
  for (const float gain : {30.0f, 1e6f})
    for (const size_t rows : {17, 65}) {
      Problem problem(2, {rows, 2, 64}, false);
      const size_t width = problem.shape.width();
      std::ranges::fill(problem.q_norm, gain);
      std::ranges::fill(problem.k_norm, gain);
      std::vector<float> v;
      for (size_t row = 0; row < 2 * rows; ++row) {
        float* const of_row = problem.qkv.data() + row * 3 * width;
        std::copy_n(of_row, width, of_row + width);
        v.insert(v.end(), of_row + 2 * width, of_row + 3 * width);
      }
      EXPECT_TRUE(same_bits<Bf16>(problem.on_gpu(0, 2), rounded(v))) << "gain " << gain << " rows " << rows;
    }
}

// Rows of zeros have zeros as q and k, so that all shares are the same.
TEST_F(EncoderAttentionCuda, RowsOfZerosAttendToAllAlike) {
  Problem problem(1, {64, 1, 32}, false);
  for (size_t row = 0; row < 64; ++row) {
    std::fill_n(problem.qkv.data() + row * 96, 64, 0.0f);
    std::fill_n(problem.qkv.data() + row * 96 + 64, 32, static_cast<float>(row));
  }
  for (const float value : widen(problem.on_gpu(0, 1))) ASSERT_EQ(value, 31.5f);
}

TEST_F(EncoderAttentionCuda, AChunkHasTheSameBitsAmongOthers) {
  for (const size_t rows : {64, 65}) {
    const Problem problem(130, {rows, 6, 64}, true);
    SCOPED_TRACE(problem.name());
    const std::vector<Bf16> together = problem.on_gpu(0, 130);
    EXPECT_TRUE(same_bits<Bf16>(problem.on_gpu(0, 130), together));
    for (const size_t chunk : {0, 1, 64, 129}) {
      const auto among = std::span(together).subspan(chunk * problem.chunk_floats(), problem.chunk_floats());
      EXPECT_TRUE(same_bits<Bf16>(problem.on_gpu(chunk, 1), among)) << "chunk " << chunk;
      EXPECT_TRUE(same_bits<Bf16>(problem.on_gpu(chunk, 1, 8), among)) << "chunk " << chunk << ", rows apart";
      expect_near(widen({among.begin(), among.end()}), problem.defined(chunk), tolerance);
    }
  }
}

TEST_F(EncoderAttentionCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const cuda::EncoderAttention good{.qkv_stride = 1152, .chunks = 0, .rows = 65, .heads = 6, .head_dim = 64};
  EXPECT_EQ(cuda::encoder_attention(good, nullptr, nullptr), cudaSuccess);
  const auto refused = [&](auto change) {
    cuda::EncoderAttention bad = good;
    change(bad);
    return cuda::encoder_attention(bad, nullptr, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused([](auto& bad) { bad.qkv_stride = 1148; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.qkv_stride = 1154; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.chunks = cuda::encoder_chunks_max + 1; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.rows = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.rows = cuda::encoder_rows_max + 1; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.heads = 0; }));
  EXPECT_TRUE(refused([](auto& bad) {
    bad.heads = cuda::encoder_heads_max + 1;
    bad.qkv_stride = 3 * bad.heads * bad.head_dim;
  }));
  EXPECT_TRUE(refused([](auto& bad) { bad.head_dim = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.head_dim = 40; }));
  EXPECT_TRUE(refused([](auto& bad) {
    bad.head_dim = 144;
    bad.qkv_stride = 3 * bad.heads * bad.head_dim;
  }));
}

}  // namespace
}  // namespace recalld
