// The small kernels between a model's products on an NVIDIA GPU. Twins: kernels/rmsnorm.h (Zhang and Sennrich 2019; its
// gated form: Mamba-2, arXiv 2405.21060, section 7), kernels/swiglu.h (Shazeer 2020) and kernels/elementwise.h.
//
// All pointers are to device memory, at multiples of 16 bytes. Widths and strides are in elements: widths multiples of
// 16, strides of 4. Each call enqueues one kernel, or nothing if it has no rows. A row's bits do not depend on the
// other rows of the call. cudaErrorInvalidValue: a shape out of bounds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t elementwise_rows_max = 1u << 24;   // of a call; with heads, of rows x heads
inline constexpr uint32_t elementwise_width_max = 1u << 16;  // of a row, or of one head of it

struct RmsNorm {
  const float* x = nullptr;       // [rows] rows of heads * width, x_stride apart
  uint32_t x_stride = 0;          // at least heads * width
  const float* weight = nullptr;  // [width], the same for each head
  uint32_t rows = 0;
  uint32_t heads = 1;  // at least 1; each is normed by itself
  uint32_t width = 0;
  float eps = 0;
};

// y = weight · x / sqrt(mean(x²) + eps), head by head, in f32; bf16 rounds the result. y: [rows, heads, width]; it may
// be x itself if x_stride is heads * width.
cudaError_t rmsnorm(const RmsNorm& norm, float* y, cudaStream_t stream);
cudaError_t rmsnorm(const RmsNorm& norm, Bf16* y, cudaStream_t stream);

struct GatedRmsNorm {
  const float* z = nullptr;       // [rows] rows of width, z_stride apart
  uint32_t z_stride = 0;          // at least width
  const float* weight = nullptr;  // [width]
  uint32_t rows = 0;
  uint32_t width = 0;  // heads * head_dim
  float eps = 0;
};

// out = RMSNorm(y · silu(z)), over a whole row, in f32 and then rounded.
// y: [rows, width], bf16 as ssd_scan() leaves it or f32 as ssd_state_update() does · out: [rows, width], not over y
cudaError_t gated_rmsnorm(const GatedRmsNorm& norm, const Bf16* y, Bf16* out, cudaStream_t stream);
cudaError_t gated_rmsnorm(const GatedRmsNorm& norm, const float* y, Bf16* out, cudaStream_t stream);

// out = silu(gate) · up, in f32 and then rounded. gate_up: [rows, 2 * width] gate then up · out: [rows, width]
cudaError_t swiglu(const float* gate_up, uint32_t rows, uint32_t width, Bf16* out, cudaStream_t stream);

// y[i] = table[tokens[i]]. table: [vocabulary, width] · tokens: [rows], each below the vocabulary's size, which is not
// checked; at a multiple of 4 bytes · y: [rows, width]
cudaError_t embedding_lookup(const Bf16* table, const uint32_t* tokens, uint32_t rows, uint32_t width, float* y,
                             cudaStream_t stream);

// y += x. x, y: [rows, width]
cudaError_t add(const float* x, uint32_t rows, uint32_t width, float* y, cudaStream_t stream);

// y = x, rounded to nearest, ties to even. x, y: [rows, width]
cudaError_t to_bf16(const float* x, uint32_t rows, uint32_t width, Bf16* y, cudaStream_t stream);

}  // namespace recalld::cuda
