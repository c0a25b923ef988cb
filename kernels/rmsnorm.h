// RMSNorm (Zhang and Sennrich 2019) and its gated form (Mamba-2, arXiv 2405.21060, section 7), in f32.
#pragma once

#include <cstddef>

#include "kernels/bf16.h"

namespace recalld {

// y = weight · x / sqrt(mean(x²) + eps), row by row.
// x: [rows, width] · weight: [width] · y: [rows, width] f32, or bf16 for the product that follows · width % 16 == 0
void rmsnorm_cpu(const float* x, const float* weight, size_t rows, size_t width, float eps, float* y);
void rmsnorm_cpu(const float* x, const float* weight, size_t rows, size_t width, float eps, Bf16* y);

// out = RMSNorm(y · silu(z)), row by row over all heads together.
// y: [heads, rows, head_dim] · z: rows of heads * head_dim, `z_stride` apart · weight: [heads * head_dim]
// out: [rows, heads * head_dim] · head_dim % 16 == 0
void gated_rmsnorm_cpu(const float* y, const float* z, size_t z_stride, const float* weight, size_t rows, size_t heads,
                       size_t head_dim, float eps, float* out);
void gated_rmsnorm_cpu(const float* y, const float* z, size_t z_stride, const float* weight, size_t rows, size_t heads,
                       size_t head_dim, float eps, Bf16* out);

}  // namespace recalld
