// The gate of a SwiGLU MLP (Shazeer 2020).
#pragma once

#include <cstddef>

#include "kernels/bf16.h"

namespace recalld {

// out = silu(gate) · up
// gate_up: [rows, 2 * width] gate then up · out: [rows, width] f32, or bf16 for the product that follows
// width % 16 == 0
void swiglu_cpu(const float* gate_up, size_t rows, size_t width, float* out);
void swiglu_cpu(const float* gate_up, size_t rows, size_t width, Bf16* out);

}  // namespace recalld
