// The causal depthwise convolution of a Mamba-2 block, with SiLU (arXiv 2405.21060, section 7).
#pragma once

#include <cstddef>

#include "kernels/bf16.h"

namespace recalld {

// y[t, c] = silu(bias[c] + Σ_k weight[k, c] · input[t - taps + 1 + k, c]); rows before the first are the history,
// oldest first, which becomes the last taps - 1 inputs. Sums run over k in rising order.
// input: [rows] rows of `channels`, `input_stride` apart · weight: [taps, channels] · bias: [channels]
// history: [taps - 1, channels] in and out · y: [rows, channels] f32 or bf16 · channels % 16 == 0
void conv1d_silu_cpu(const float* input, size_t input_stride, size_t rows, size_t channels, size_t taps,
                     const float* weight, const float* bias, float* history, float* y);
void conv1d_silu_cpu(const float* input, size_t input_stride, size_t rows, size_t channels, size_t taps,
                     const float* weight, const float* bias, float* history, Bf16* y);

}  // namespace recalld
