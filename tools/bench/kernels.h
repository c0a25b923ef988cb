// The parts of tools/bench/kernels. Each prints its figures and says whether its kernels agreed with their CPU twins.
#pragma once

#include <cstdint>

namespace recalld::bench {

inline constexpr uint32_t prefill_tokens = 4096;  // that attend to chunks in one call

// Products in bf16 of an H100 SXM or H200, by the data sheet.
inline constexpr double peak_flops_per_us = 989e6;

bool bench_landmarks(double bytes_per_us);  // kernels_landmarks.cu: the top-k of landmarks
bool bench_hsa();                           // kernels_hsa.cu: attention to the chunks
bool bench_mamba2(double bytes_per_us);     // kernels_mamba2.cu: scan, single token, convolution
bool bench_encoder(double bytes_per_us);    // kernels_encoder.cu: between the chunk encoder's products
bool bench_small(double bytes_per_us);      // kernels_small.cu: norms, gates and the like between all products
bool bench_late(double bytes_per_us);       // kernels_late.cu: a question's tokens and the keys of chunks
bool bench_matmul(double bytes_per_us);     // kernels_matmul.cu: the products
bool bench_selection(double bytes_per_us);  // kernels_selection.cu: slots of the chosen chunks, and what fills them
bool bench_swa(double bytes_per_us);        // kernels_swa.cu: attention to a window, of many tokens and of one

}  // namespace recalld::bench
