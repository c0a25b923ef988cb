// The products of the starter through cuBLASLt, beside what the algorithm for 64 rows takes for all. The peak is the
// data sheet's of H100 SXM and H200, without sparsity.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <vector>

#include "kernels/matmul_cuda.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

struct Shape {
  const char* name;
  uint32_t in, out;
};
constexpr Shape shapes[] = {{"in_proj", 384, 1680},       {"out_proj", 768, 384},  {"gate and up", 384, 2048},
                            {"down", 1024, 384},          {"q, k, v", 384, 1152},  {"q_proj, o_proj", 384, 384},
                            {"k and v of HSA", 384, 128}, {"retrieval", 384, 256}, {"q, k, v of SWA", 384, 512}};
constexpr Shape head = {"head", 384, 8192};

// The first, a middle and the last row, against sums of the same products in f64.
bool agrees(const Shape& shape, uint32_t rows, const Array<Bf16>& x, const Array<Bf16>& w, const Array<float>& y) {
  const auto host_w = w.host(size_t{shape.in} * shape.out);
  for (const uint32_t row : {0u, rows / 2, rows - 1}) {
    const auto host_x = x.host(shape.in, size_t{row} * shape.in);
    const auto found = y.host(shape.out, size_t{row} * shape.out);
    for (size_t column = 0; column < shape.out; ++column) {
      double sum = 0, magnitude = 0;
      for (size_t i = 0; i < shape.in; ++i) {
        const double term = value_of(host_x[i]) * value_of(host_w[column * shape.in + i]);
        sum += term;
        magnitude += std::abs(term);
      }
      if (!(std::abs(found[column] - sum) <= 4e-6 * magnitude)) return false;
    }
  }
  return true;
}

bool time_product(const cuda::Matmul& matmul, const Shape& shape, uint32_t rows, double rate) {
  const size_t of_x = size_t{rows} * shape.in, of_w = size_t{shape.in} * shape.out, of_y = size_t{rows} * shape.out;
  const double bytes = static_cast<double>(of_x + of_w) * sizeof(Bf16) + static_cast<double>(of_y) * sizeof(float);
  const double flops = 2.0 * rows * shape.in * shape.out;
  const int places = places_of(bytes);
  const Array<Bf16> x(places * of_x, 1), w(places * of_w, 2);
  const Array<float> y(places * of_y);
  const Array<std::byte> workspace(cuda::matmul_workspace);
  cuda::MatmulPlan plan;
  must(matmul.choose(shape.out, shape.in, plan), "choose a product's algorithms");
  cuda::MatmulPlan of_64 = plan;
  std::fill(std::begin(of_64.algorithms), std::end(of_64.algorithms), plan.algorithms[3]);
  const auto call_with = [&](const cuda::MatmulPlan& with, cudaStream_t stream, int place) {
    must(matmul.run(with, x.data() + place * of_x, w.data() + place * of_w, rows, y.data() + place * of_y,
                    workspace.data(), stream),
         "launch a product");
  };
  const auto call = [&](cudaStream_t stream, int place) { call_with(plan, stream, place); };
  call(nullptr, 0);
  const bool right = agrees(shape, rows, x, w, y);
  const Times times = times_of(places, call);
  const Times times_of_64 = times_of(places, [&](cudaStream_t stream, int place) { call_with(of_64, stream, place); });
  const auto print = [&](const char* label, double us) {
    std::printf("; %s %7.2f us, %5.1f TFLOP/s, %4.1f %% of the peak, %4.1f %% of the bytes' rate", label, us,
                flops / us / 1e6, 100 * flops / us / peak_flops_per_us, 100 * bytes / us / rate);
  };
  std::printf("matmul %-14s %4u to %4u, %5u rows: %s", shape.name, shape.in, shape.out, rows, verdict(right));
  print("cold", times.cold);
  print("warm", times.warm);
  const double byte_floor = bytes / rate, flop_floor = flops / peak_flops_per_us;
  std::printf(
      "; floors: bytes %6.2f us (%.2f MB), FLOPs %6.2f us (%.2f G); %.1f x the floor; the algorithm for 64 rows: "
      "%.2f x, %.2f x\n",
      byte_floor, bytes / 1e6, flop_floor, flops / 1e9, times.cold / std::max(byte_floor, flop_floor),
      times_of_64.cold / times.cold, times_of_64.warm / times.warm);
  return right;
}

}  // namespace

bool bench_matmul(double rate) {
  std::printf("products in bf16 with f32 sums, peak %.0f TFLOP/s\n", peak_flops_per_us / 1e6);
  cuda::Matmul matmul;
  must(cuda::Matmul::open(matmul), "open cuBLASLt");
  bool right = true;
  for (const Shape& shape : shapes)
    for (const uint32_t rows : {8, 64, 512, 1024, 4096, 16384}) right &= time_product(matmul, shape, rows, rate);
  right &= time_product(matmul, head, 8, rate);
  return right;
}

}  // namespace recalld::bench
