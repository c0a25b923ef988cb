// What the CUDA kernels take, beside what the card could do at best in the same run.
//
// Usage: kernels [landmarks | hsa | mamba2]
// Checks every kernel against its CPU twin (landmark_topk_batch and landmark_topk_int8 against landmark_topk), then
// times it in CUDA graphs: medians over several replays of a graph of many calls. "cold" takes its inputs in turn from
// more than the card's L2 cache holds, "warm" the same ones again. Floors: the bytes that a call must read and write,
// each once, at the rate at which a kernel that only reads goes through 2 GiB here, and the products' operations at
// the rates that the parts name. Ends with 1 when a kernel disagreed.
#include <cstdio>
#include <string>

#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

using namespace recalld::bench;

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string part = argc > 1 ? argv[1] : "";
  if (argc > 2 || (!part.empty() && part != "landmarks" && part != "hsa" && part != "mamba2")) {
    std::fprintf(stderr, "kernels: expected landmarks, hsa, mamba2 or nothing\n");
    return 2;
  }
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "find a GPU");
  const double rate = read_rate();
  std::printf("%s, %d multiprocessors, L2 %d MiB; reading 2 GiB: %.0f GB/s\n", card.name, card.multiProcessorCount,
              card.l2CacheSize >> 20, rate / 1e3);
  std::printf("graphs of %d calls, medians of %d replays\n", calls_of_graph, replays);
  bool right = true;
  if (part.empty() || part == "landmarks") right &= bench_landmarks(rate);
  if (part.empty() || part == "hsa") right &= bench_hsa();
  if (part.empty() || part == "mamba2") right &= bench_mamba2(rate);
  return right ? 0 : 1;
}
