// All of these are bound by memory: one warp per head of a row where there is a norm, else one thread per four
// elements.
#include <cuda_runtime.h>

#include "kernels/chunk_encoder_cuda.h"
#include "kernels/elementwise_device.cuh"

namespace recalld::cuda {
namespace {

using namespace elementwise;

// count: of x
__global__ void __launch_bounds__(threads)
    encoder_input_kernel(const float* hidden, const float* cls, size_t count, uint32_t width, float* x) {
  const size_t i = element_of_grid();
  if (i >= count) return;
  const uint32_t rows = encoder_chunk_tokens + (cls != nullptr ? 1 : 0);
  const uint32_t row = static_cast<uint32_t>(i / width), token = row % rows;
  const size_t column = i % width, hidden_row = static_cast<size_t>(row / rows) * encoder_chunk_tokens + token;
  store(load(token < encoder_chunk_tokens ? hidden + hidden_row * width + column : cls + column), x + i);
}

__global__ void __launch_bounds__(threads) kv_records_kernel(const KvRecords kv, Bf16* records) {
  const uint32_t index = warp_of_grid();  // of [chunks, tokens, K and V, kv_heads]
  const uint32_t head = index % kv.kv_heads, part = index / kv.kv_heads % 2;
  const uint32_t token = index / kv.kv_heads / 2 % encoder_chunk_tokens,
                 chunk = index / kv.kv_heads / 2 / encoder_chunk_tokens;
  if (chunk >= kv.chunks) return;
  const size_t width = static_cast<size_t>(kv.kv_heads) * kv.head_dim, column = head * kv.head_dim;
  const float* const from = kv.kv + ((static_cast<size_t>(chunk) * kv.rows + token) * 2 + part) * width + column;
  Bf16* const to = records + chunk * kv.record_stride + (part * encoder_chunk_tokens + token) * width + column;
  const bool norm = part == 0 && kv.k_norm != nullptr;
  const float scale = norm ? norm_scale([from](uint32_t i) { return load(from + i); }, kv.head_dim, kv.eps) : 1.0f;
  for (uint32_t i = threadIdx.x % warp * 4; i < kv.head_dim; i += warp * 4) {
    float4 value = load(from + i);
    if (norm) value = product(product(value, scale), load(kv.k_norm + i));
    store(value, to + i);
  }
}

// count: of out
__global__ void __launch_bounds__(threads)
    landmark_rows_kernel(const float* x, size_t count, uint32_t rows, uint32_t width, Bf16* out) {
  const size_t i = element_of_grid();
  if (i >= count) return;
  const float* const first = x + i / width * rows * width + i % width;
  if (rows > encoder_chunk_tokens) {
    store(load(first + static_cast<size_t>(encoder_chunk_tokens) * width), out + i);
    return;
  }
  float4 total{};
#pragma unroll 16
  for (uint32_t token = 0; token < encoder_chunk_tokens; ++token)
    total = sum(total, load(first + static_cast<size_t>(token) * width));
  store(product(total, 1.0f / encoder_chunk_tokens), out + i);  // exact: a power of two
}

__global__ void __launch_bounds__(threads) landmarks_kernel(const Landmarks landmarks, Bf16* out) {
  const uint32_t index = warp_of_grid();  // of [chunks, heads]
  if (index >= landmarks.chunks * landmarks.heads) return;
  const size_t first = static_cast<size_t>(index) * landmarks.width;
  const float* const from = landmarks.x + first;
  const float scale = norm_scale([from](uint32_t i) { return load(from + i); }, landmarks.width, landmarks.eps);
  for (uint32_t i = threadIdx.x % warp * 4; i < landmarks.width; i += warp * 4)
    store(product(load(from + i), scale), out + first + i);
}

bool chunks_in_bounds(uint32_t chunks, uint32_t rows, uint32_t width) {
  return chunks <= encoder_chunks_max && (rows == encoder_chunk_tokens || rows == encoder_chunk_tokens + 1) &&
         in_bounds(0, width);
}
static_assert(encoder_chunks_max * (encoder_chunk_tokens + 1) <= elementwise_rows_max);

}  // namespace

cudaError_t encoder_input(const float* hidden, const float* cls, uint32_t chunks, uint32_t width, float* x,
                          cudaStream_t stream) {
  const uint32_t rows = encoder_chunk_tokens + (cls != nullptr ? 1 : 0);
  if (!chunks_in_bounds(chunks, rows, width)) return cudaErrorInvalidValue;
  if (chunks == 0) return cudaSuccess;
  const uint64_t count = uint64_t{chunks} * rows * width;
  encoder_input_kernel<<<blocks_of_elements(count), threads, 0, stream>>>(hidden, cls, count, width, x);
  return cudaGetLastError();
}

cudaError_t kv_records(const KvRecords& kv, Bf16* records, cudaStream_t stream) {
  const uint64_t rows = uint64_t{kv.chunks} * encoder_chunk_tokens * 2;  // of K and of V
  const uint64_t numbers = uint64_t{2} * encoder_chunk_tokens * kv.kv_heads * kv.head_dim;
  if (!chunks_in_bounds(kv.chunks, kv.rows, kv.head_dim) || kv.kv_heads == 0 || kv.kv_heads > elementwise_rows_max ||
      rows * kv.kv_heads > elementwise_rows_max || kv.record_stride % 4 != 0 || kv.record_stride < numbers)
    return cudaErrorInvalidValue;
  if (kv.chunks == 0) return cudaSuccess;
  kv_records_kernel<<<blocks_of_rows(rows * kv.kv_heads), threads, 0, stream>>>(kv, records);
  return cudaGetLastError();
}

cudaError_t landmark_rows(const float* x, uint32_t chunks, uint32_t rows, uint32_t width, Bf16* out,
                          cudaStream_t stream) {
  if (!chunks_in_bounds(chunks, rows, width)) return cudaErrorInvalidValue;
  if (chunks == 0) return cudaSuccess;
  const uint64_t count = uint64_t{chunks} * width;
  landmark_rows_kernel<<<blocks_of_elements(count), threads, 0, stream>>>(x, count, rows, width, out);
  return cudaGetLastError();
}

cudaError_t landmarks_out(const Landmarks& landmarks, Bf16* out, cudaStream_t stream) {
  const uint64_t rows = uint64_t{landmarks.chunks} * landmarks.heads;
  if (landmarks.chunks > encoder_chunks_max || landmarks.heads == 0 || !in_bounds(rows, landmarks.width))
    return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  if (!landmarks.norm) return to_bf16(landmarks.x, static_cast<uint32_t>(rows), landmarks.width, out, stream);
  landmarks_kernel<<<blocks_of_rows(rows), threads, 0, stream>>>(landmarks, out);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
