// The parts of tools/bench/kernels. Each prints its figures and says whether every kernel agreed with its CPU twin.
#pragma once

namespace recalld::bench {

bool bench_landmarks(double bytes_per_us);  // kernels_landmarks.cu: the top-k of landmarks
bool bench_hsa();                           // kernels_hsa.cu: attention to the chunks
bool bench_mamba2(double bytes_per_us);     // kernels_mamba2.cu: scan, single token, convolution

}  // namespace recalld::bench
