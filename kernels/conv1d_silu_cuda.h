// The causal depthwise convolution of a Mamba-2 block, with SiLU, on an NVIDIA GPU (arXiv 2405.21060, section 7). Twin:
// conv1d_silu_cpu() in kernels/conv1d_silu.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t conv_streams_max = 64;  // memories in one call

// The tokens of one memory in a convolution. The struct is read on the host, when the call is made.
struct ConvStream {
  float* history = nullptr;  // device, [taps - 1, channels] the last inputs, oldest first; in and out
  uint32_t first = 0;        // its first row in input and y
  uint32_t tokens = 0;       // at least 1
};

// All pointers are to device memory, at multiples of 16 bytes.
struct Conv1dSilu {
  const float* input = nullptr;   // [rows] rows of `channels`, input_stride apart
  uint32_t input_stride = 0;      // a multiple of 4
  const float* weight = nullptr;  // [taps, channels]
  const float* bias = nullptr;    // [channels]
  uint32_t channels = 0;          // a positive multiple of 4
  uint32_t taps = 0;              // 2 to 4
};

// y[t, c] = silu(bias[c] + Σ_k weight[k, c] · input[t - taps + 1 + k, c]), rows before a stream's first from its
// history, summed as the twin sums. y: [rows, channels]; bf16 rounds the f32 result. Up to conv_streams_max streams; no
// two share a history or a row. One kernel. cudaErrorInvalidValue: a shape out of bounds.
cudaError_t conv1d_silu(const Conv1dSilu& conv, const ConvStream* streams, uint32_t count, float* y,
                        cudaStream_t stream);
cudaError_t conv1d_silu(const Conv1dSilu& conv, const ConvStream* streams, uint32_t count, Bf16* y,
                        cudaStream_t stream);

// One token of each of `count` memories: row i of input and y with histories[i]. The table is in device memory, so that
// a captured graph can serve other memories. The same bits as conv1d_silu().
cudaError_t conv1d_silu_step(const Conv1dSilu& conv, float* const* histories, uint32_t count, float* y,
                             cudaStream_t stream);
cudaError_t conv1d_silu_step(const Conv1dSilu& conv, float* const* histories, uint32_t count, Bf16* y,
                             cudaStream_t stream);

}  // namespace recalld::cuda
