// The smallest loops over arrays, in f32. n % 16 == 0.
#pragma once

#include <cstddef>

#include "kernels/bf16.h"

namespace recalld {

void to_bf16_cpu(const float* x, size_t n, Bf16* y);  // rounds to nearest, ties to even
void add_cpu(const float* x, size_t n, float* y);     // y += x

}  // namespace recalld
