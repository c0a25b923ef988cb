// What the CUDA kernels take, beside what the card could do at best in the same run: all but select_chunks_for, which
// is select_chunks in a graph of its own kind.
//
// Usage: kernels [landmarks | hsa | mamba2 | encoder | small | late | matmul | selection | swa]
//        kernels model-selections CHUNKS K FILE
// Checks every kernel that it times against its CPU twin, or the loops that define it (landmark_topk_batch and
// landmark_topk_int8 against landmark_topk), then times it in CUDA graphs: medians over several replays of a graph of
// many calls. "cold" finds none of its inputs in the card's L2 cache, "warm" takes the same ones again and again.
// Floors: the bytes that a call must read and write, each once, at the rate at which a kernel that only reads goes
// through 2 GiB here (over the bus: that of one large copy), and the products' operations at the rates that the parts
// name. Ends with 1 when a kernel disagreed, or int8 codes with rescoring find less than 0.999 of the best landmarks of
// the shipped model. The second form writes what the shipped model selects in the prefill of 4096 tokens to a file for
// hsa_reference.py: uint32 [4096, K].
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>

#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"
#include "tools/bench/model_selections.h"

using namespace recalld::bench;

namespace {

struct Part {
  const char* name;
  bool (*run)(double bytes_per_us);
};
constexpr Part parts[] = {{"landmarks", bench_landmarks},
                          {"hsa", [](double) { return bench_hsa(); }},
                          {"mamba2", bench_mamba2},
                          {"encoder", bench_encoder},
                          {"small", bench_small},
                          {"late", bench_late},
                          {"matmul", bench_matmul},
                          {"selection", bench_selection},
                          {"swa", bench_swa}};

int write_selections(const std::string& chunks, const std::string& k, const std::string& file) {
  const unsigned long of_chunks = std::stoul(chunks), of_k = std::stoul(k);
  if (of_k == 0 || of_k > of_chunks || of_chunks > 1 << 20)
    throw std::invalid_argument("K must be 1 to CHUNKS, and CHUNKS at most 1048576");
  const ModelSelections chosen =
      select_by_model(static_cast<uint32_t>(of_chunks), prefill_tokens, static_cast<uint32_t>(of_k));
  std::ofstream out(file, std::ios::binary);
  out.write(reinterpret_cast<const char*>(chosen.chunks.data()),
            static_cast<std::streamsize>(chosen.chunks.size() * sizeof(uint32_t)));
  if (!out.flush()) throw std::runtime_error("cannot write " + file);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string wanted = argc > 1 ? argv[1] : "";
  if (wanted == "model-selections" && argc == 5) return write_selections(argv[2], argv[3], argv[4]);
  const auto is_wanted = [&](const Part& part) { return wanted.empty() || wanted == part.name; };
  if (argc > 2 || std::ranges::none_of(parts, is_wanted)) {
    std::fprintf(stderr, "kernels: expected");
    for (const Part& part : parts) std::fprintf(stderr, " %s,", part.name);
    std::fprintf(stderr, " model-selections CHUNKS K FILE, or nothing\n");
    return 2;
  }
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "find a GPU");
  const double rate = read_rate();
  std::printf("%s, %d multiprocessors, L2 %d MiB; reading 2 GiB: %.0f GB/s\n", card.name, card.multiProcessorCount,
              card.l2CacheSize >> 20, rate / 1e3);
  std::printf("graphs of %d calls, medians of %d replays; an empty kernel in a graph %.2f us\n", calls_of_graph,
              replays, empty_us());
  bool right = true;
  for (const Part& part : parts)
    if (is_wanted(part)) right &= part.run(rate);
  return right ? 0 : 1;
} catch (const std::exception& reason) {
  std::fprintf(stderr, "kernels: %s\n", reason.what());
  return 1;
}
