// What lies between the chunk encoder's products on the GPU against plain loops and the CPU's norm; a chunk's bits
// whatever else is in a call. Skipped where there is no GPU.
#include "kernels/chunk_encoder_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"
#include "tests/support/values_near.h"

namespace recalld {
namespace {

constexpr float eps = 1e-5f;
constexpr size_t tokens = cuda::encoder_chunk_tokens;

std::string shape_name(size_t chunks, size_t rows, size_t heads, size_t width) {
  return "chunks " + std::to_string(chunks) + " rows " + std::to_string(rows) + " heads " + std::to_string(heads) +
         " width " + std::to_string(width);
}

using ChunkEncoderCuda = GpuTest;

TEST_F(ChunkEncoderCuda, TheInputIsTheTokensAndTheClsEmbedding) {
  for (const size_t width : {16, 384, 1040})
    for (const size_t chunks : {1, 3, 130})
      for (const bool with_cls : {false, true}) {
        SCOPED_TRACE(shape_name(chunks, tokens + with_cls, 1, width));
        const auto hidden = random_floats(chunks * tokens * width, 1), cls = random_floats(width, 2);
        std::vector<float> expected;
        for (size_t chunk = 0; chunk < chunks; ++chunk) {
          const auto first = hidden.begin() + chunk * tokens * width;
          expected.insert(expected.end(), first, first + tokens * width);
          if (with_cls) expected.insert(expected.end(), cls.begin(), cls.end());
        }
        const DeviceArray<float> device_hidden(hidden), device_cls(cls), x(expected.size());
        must(cuda::encoder_input(device_hidden.data(), with_cls ? device_cls.data() : nullptr,
                                 static_cast<uint32_t>(chunks), static_cast<uint32_t>(width), x.data(), nullptr));
        EXPECT_EQ(x.host(), expected);
      }
}

// The product of all rows of chunks, each row of another size, so that a wrong scale or row shows.
struct Kv {
  size_t chunks, rows, kv_heads, head_dim;
  bool with_norm;
  std::vector<float> kv = sized(), k_norm = random_floats(head_dim, 12);

  std::vector<float> sized() const {
    std::vector<float> values = random_floats(chunks * rows * 2 * kv_heads * head_dim, 11);
    for (size_t i = 0; i < values.size(); ++i) values[i] *= std::exp2(static_cast<float>(i / head_dim % 21) - 10);
    return values;
  }
  size_t part() const { return tokens * kv_heads * head_dim; }

  // Of some of the chunks, each record with what lies behind it.
  std::vector<Bf16> on_gpu(size_t first, size_t count, size_t stride) const {
    const size_t chunk_floats = rows * 2 * kv_heads * head_dim;
    const DeviceArray<float> device_kv({kv.data() + first * chunk_floats, count * chunk_floats});
    const DeviceArray<float> device_norm(k_norm);
    const DeviceArray<Bf16> records(count * stride);
    must(cuda::kv_records({.kv = device_kv.data(),
                           .k_norm = with_norm ? device_norm.data() : nullptr,
                           .chunks = static_cast<uint32_t>(count),
                           .rows = static_cast<uint32_t>(rows),
                           .kv_heads = static_cast<uint32_t>(kv_heads),
                           .head_dim = static_cast<uint32_t>(head_dim),
                           .eps = eps,
                           .record_stride = stride},
                          records.data(), nullptr));
    return records.host();
  }

  void expect_parity(size_t gap) const {
    SCOPED_TRACE(shape_name(chunks, rows, kv_heads, head_dim));
    const size_t stride = 2 * part() + gap, width = kv_heads * head_dim;
    const std::vector<Bf16> found = on_gpu(0, chunks, stride);
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
      std::vector<float> k, v;
      for (size_t token = 0; token < tokens; ++token) {
        const auto row = kv.begin() + (chunk * rows + token) * 2 * width;
        k.insert(k.end(), row, row + width);
        v.insert(v.end(), row + width, row + 2 * width);
      }
      if (with_norm) rmsnorm_cpu(k.data(), k_norm.data(), tokens * kv_heads, head_dim, eps, k.data());
      const auto record = found.begin() + chunk * stride;
      const std::vector<Bf16> found_k(record, record + part());
      if (with_norm)
        expect_each_near(found_k, rounded(k));
      else
        EXPECT_TRUE(same_bits<Bf16>(found_k, rounded(k)));
      EXPECT_TRUE(same_bits<Bf16>(std::span(found).subspan(chunk * stride + part(), part()), rounded(v)));
      for (size_t i = 2 * part(); i < stride; ++i) ASSERT_EQ(record[i].bits, 0xffff) << "behind the record";
    }
  }
};

TEST_F(ChunkEncoderCuda, RecordsAreNormedKAndThenV) {
  for (const size_t head_dim : {16, 64, 128, 144})
    for (const size_t kv_heads : {1, 2, 5})
      for (const size_t rows : {64, 65})
        for (const bool with_norm : {false, true})
          for (const size_t gap : {0, 4, 2048}) Kv{3, rows, kv_heads, head_dim, with_norm}.expect_parity(gap);
}

TEST_F(ChunkEncoderCuda, ARecordHasTheSameBitsAmongOthers) {
  const Kv kv{130, 65, 2, 64, true};
  const size_t stride = 2 * kv.part();
  const std::vector<Bf16> together = kv.on_gpu(0, 130, stride);
  for (const size_t chunk : {0, 1, 64, 129})
    EXPECT_TRUE(same_bits<Bf16>(kv.on_gpu(chunk, 1, stride), std::span(together).subspan(chunk * stride, stride)));
}

TEST_F(ChunkEncoderCuda, TheLandmarkIsOfTheClsRowOrOfTheMean) {
  for (const size_t width : {16, 384, 1040})
    for (const size_t chunks : {1, 3, 130})
      for (const size_t rows : {64, 65}) {
        SCOPED_TRACE(shape_name(chunks, rows, 1, width));
        const auto x = random_floats(chunks * rows * width, 21);
        std::vector<float> expected;
        for (size_t chunk = 0; chunk < chunks; ++chunk) {
          const float* const first = x.data() + chunk * rows * width;
          std::vector<float> summary(width);
          if (rows > tokens) {
            std::copy_n(first + tokens * width, width, summary.data());
          } else {
            for (size_t token = 0; token < tokens; ++token) add_cpu(first + token * width, width, summary.data());
            for (float& value : summary) value /= static_cast<float>(tokens);
          }
          expected.insert(expected.end(), summary.begin(), summary.end());
        }
        const DeviceArray<float> device(x);
        const DeviceArray<Bf16> out(expected.size());
        must(cuda::landmark_rows(device.data(), static_cast<uint32_t>(chunks), static_cast<uint32_t>(rows),
                                 static_cast<uint32_t>(width), out.data(), nullptr));
        EXPECT_TRUE(same_bits<Bf16>(out.host(), rounded(expected)));
      }
}

std::vector<Bf16> landmarks_on_gpu(const std::vector<float>& x, size_t chunks, size_t heads, size_t width, bool norm) {
  const DeviceArray<float> device(x);
  const DeviceArray<Bf16> out(x.size());
  must(cuda::landmarks_out({.x = device.data(),
                            .chunks = static_cast<uint32_t>(chunks),
                            .heads = static_cast<uint32_t>(heads),
                            .width = static_cast<uint32_t>(width),
                            .norm = norm,
                            .eps = eps},
                           out.data(), nullptr));
  return out.host();
}

TEST_F(ChunkEncoderCuda, LandmarksAreOfUnitSizeAHeadOrAsTheyAre) {
  for (const size_t width : {16, 64, 128, 144, 768})
    for (const size_t heads : {1, 2, 5})
      for (const size_t chunks : {1, 3, 130}) {
        SCOPED_TRACE(shape_name(chunks, 1, heads, width));
        std::vector<float> x = random_floats(chunks * heads * width, 31);
        for (size_t i = 0; i < x.size(); ++i) x[i] *= std::exp2(static_cast<float>(i / width % 21) - 10);
        std::vector<Bf16> normed(x.size());
        const std::vector<float> ones(width, 1.0f);
        rmsnorm_cpu(x.data(), ones.data(), chunks * heads, width, eps, normed.data());
        expect_each_near(landmarks_on_gpu(x, chunks, heads, width, true), normed);
        EXPECT_TRUE(same_bits<Bf16>(landmarks_on_gpu(x, chunks, heads, width, false), rounded(x)));
      }
}

TEST_F(ChunkEncoderCuda, ALandmarkHasTheSameBitsAmongOthers) {
  const size_t chunks = 1000, width = 128;
  const auto x = random_floats(chunks * width, 32);
  const std::vector<Bf16> together = landmarks_on_gpu(x, chunks, 1, width, true);
  for (const size_t chunk : {0, 1, 7, 8, 999}) {
    const std::vector<float> alone(x.begin() + chunk * width, x.begin() + (chunk + 1) * width);
    EXPECT_TRUE(
        same_bits<Bf16>(landmarks_on_gpu(alone, 1, 1, width, true), std::span(together).subspan(chunk * width, width)));
  }
}

TEST_F(ChunkEncoderCuda, ShapesThatAreOutOfBoundsAreRefused) {
  float* const floats = nullptr;
  Bf16* const halves = nullptr;
  constexpr uint32_t too_many = cuda::encoder_chunks_max + 1;
  EXPECT_EQ(cuda::encoder_input(floats, nullptr, 1, 24, floats, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::encoder_input(floats, nullptr, 1, 0, floats, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::encoder_input(floats, nullptr, too_many, 16, floats, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::encoder_input(floats, nullptr, 0, 16, floats, nullptr), cudaSuccess);

  const auto records = [&](const cuda::KvRecords& kv) { return cuda::kv_records(kv, halves, nullptr); };
  EXPECT_EQ(records({.chunks = 0, .rows = 65, .kv_heads = 1, .head_dim = 64, .record_stride = 8192}), cudaSuccess);
  EXPECT_EQ(records({.chunks = 1, .rows = 63, .kv_heads = 1, .head_dim = 64, .record_stride = 8192}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = 1, .rows = 66, .kv_heads = 1, .head_dim = 64, .record_stride = 8192}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = 1, .rows = 65, .kv_heads = 0, .head_dim = 64, .record_stride = 8192}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = 1, .rows = 65, .kv_heads = 1, .head_dim = 72, .record_stride = 1 << 20}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = 1, .rows = 65, .kv_heads = 1, .head_dim = 64, .record_stride = 8188}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = 1, .rows = 65, .kv_heads = 1, .head_dim = 64, .record_stride = 8194}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = too_many, .rows = 65, .kv_heads = 1, .head_dim = 64, .record_stride = 8192}),
            cudaErrorInvalidValue);
  EXPECT_EQ(records({.chunks = 1 << 16, .rows = 65, .kv_heads = 3, .head_dim = 64, .record_stride = 1 << 20}),
            cudaErrorInvalidValue);

  EXPECT_EQ(cuda::landmark_rows(floats, 1, 63, 16, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_rows(floats, 1, 66, 16, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_rows(floats, 1, 65, 8, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_rows(floats, too_many, 65, 16, halves, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::landmark_rows(floats, 0, 65, 16, halves, nullptr), cudaSuccess);

  for (const bool norm : {false, true}) {
    const auto landmarks = [&](uint32_t chunks, uint32_t heads, uint32_t width) {
      return cuda::landmarks_out({.chunks = chunks, .heads = heads, .width = width, .norm = norm}, halves, nullptr);
    };
    EXPECT_EQ(landmarks(1, 1, 24), cudaErrorInvalidValue);
    EXPECT_EQ(landmarks(1, 0, 16), cudaErrorInvalidValue);
    EXPECT_EQ(landmarks(too_many, 1, 16), cudaErrorInvalidValue);
    EXPECT_EQ(landmarks(1 << 16, 257, 16), cudaErrorInvalidValue);
    EXPECT_EQ(landmarks(0, 1, 16), cudaSuccess);
  }
}

}  // namespace
}  // namespace recalld
