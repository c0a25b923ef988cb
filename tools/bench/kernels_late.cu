// Late interaction in the starter's shape: 6 query heads of 64 on one KV head. 128 chunks are what a hybrid search
// compares at most, 4096 what a search of many memories might. The floor is the greater of the bytes' and that of the
// products, which are fused f32 multiply-adds, at the rate at which a kernel that does nothing else makes them here.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/late_interaction.h"
#include "kernels/late_interaction_cuda.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

constexpr uint32_t heads = 6, kv_heads = 1, dim = cuda::late_head_dim, chunk_tokens = 64;
constexpr size_t of_token = heads * dim, of_chunk = size_t{chunk_tokens} * kv_heads * dim;
// Fused multiply-adds in registers, in independent chains.
__global__ void multiply_add_only(int rounds, float factor, float* sink) {
  constexpr int chains = 16;
  float sums[chains];
#pragma unroll
  for (int i = 0; i < chains; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (float& sum : sums) sum = fmaf(sum, factor, 1.0f);
  float all = 0;
#pragma unroll
  for (const float sum : sums) all += sum;
  if (all == -1) *sink = all;
}

double f32_flops_per_us() {
  constexpr int rounds = 2000, threads = 1024, blocks_of_each = 2, flops_of_round = 16 * 2;
  cudaDeviceProp card{};
  must(cudaGetDeviceProperties(&card, 0), "find a GPU");
  const int blocks = card.multiProcessorCount * blocks_of_each;
  const Array<float> sink(1);
  const double us = time_us([&](cudaStream_t stream, int) {
    multiply_add_only<<<blocks, threads, 0, stream>>>(rounds, 0.5f, sink.data());
    must(cudaGetLastError(), "launch multiply_add_only");
  });
  return static_cast<double>(blocks) * threads * rounds * flops_of_round / us;
}

bool time_late(uint32_t n, uint32_t chunks, double rate, double flops_rate) {
  const double bytes = static_cast<double>(n * of_token * sizeof(float) + chunks * (of_chunk * sizeof(Bf16) + 4));
  const double flops = 2.0 * n * heads * dim * chunk_tokens * chunks;
  const int places = places_of(bytes);
  const Array<float> q(places * n * of_token, 71), scores(size_t{chunks} * places);
  const Array<Bf16> k(places * chunks * of_chunk, 72);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::late_interaction({.q = q.data() + place * n * of_token,
                                 .k = k.data() + place * chunks * of_chunk,
                                 .scores = scores.data() + size_t{chunks} * place,
                                 .n = n,
                                 .heads = heads,
                                 .kv_heads = kv_heads,
                                 .head_dim = dim,
                                 .tokens = chunk_tokens,
                                 .chunks = chunks},
                                stream),
         "launch late_interaction");
  };
  call(nullptr, 0);
  const LateShape shape{.heads = heads, .kv_heads = kv_heads, .head_dim = dim, .tokens = chunk_tokens};
  const std::vector<float> host_q = q.host(n * of_token);
  const std::vector<Bf16> host_k = k.host(chunks * of_chunk);
  std::vector<float> expected(chunks);
  const auto start = std::chrono::steady_clock::now();
  for (size_t chunk = 0; chunk < chunks; ++chunk)
    expected[chunk] = late_score_cpu(shape, host_q.data(), n, host_k.data() + chunk * of_chunk);
  const double cpu = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  const bool right = Difference::of(scores.host(chunks), expected).within(1e-5);
  const Times times = times_of(places, call);
  const double floor = std::max(bytes / rate, flops / flops_rate);
  std::printf(
      "late_interaction %4u question tokens, %4u chunks: %s; cold %7.2f us, warm %7.2f us; floor %6.2f us; %.1f x the "
      "floor, %.1f x; one thread of the CPU (%s) %.0f us, %.0f x warm\n",
      n, chunks, verdict(right), times.cold, times.warm, floor, times.cold / floor, times.warm / floor, cpu_isa_name(),
      cpu, cpu / times.warm);
  return right;
}

}  // namespace

bool bench_late(double rate) {
  bool right = true;
  const double flops_rate = f32_flops_per_us();
  std::printf("late_interaction; fused multiply-adds in f32 alone: %.1f TFLOP/s\n", flops_rate / 1e6);
  for (const uint32_t chunks : {1, 16, 128, 4096})
    for (const uint32_t n : {8, 16, 32, 128}) right &= time_late(n, chunks, rate, flops_rate);
  return right;
}

}  // namespace recalld::bench
