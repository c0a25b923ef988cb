// The small kernels between the products of all layers, in the starter's shapes: hidden 384, 12 Mamba heads of 64, MLP
// 1024, 6 query heads of 64, retrieval_dim 256. 8 rows are those of a step of generating, 64 a block of its prompt,
// 4096 and 16384 what is encoded at once.
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/elementwise_cuda.h"
#include "kernels/retrieval_cuda.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

constexpr uint32_t hidden = 384, inner = 768, projected = 1680, mlp = 1024, retrieval_dim = 256, vocabulary = 8192;
constexpr float eps = 1e-5f;

template <class Call>
bool report(const std::string& name, uint32_t rows, bool right, double bytes, double rate, const Call& call) {
  const Times times = times_of(places_of(bytes), call);
  const double floor = bytes / rate;
  std::printf(
      "%-30s %5u rows: %s; cold %7.2f us, warm %7.2f us; floor: bytes %7.2f us (%.2f MB); %.1f x the floor, %.1f x\n",
      name.c_str(), rows, verdict(right), times.cold, times.warm, floor, bytes / 1e6, times.cold / floor,
      times.warm / floor);
  return right;
}

template <class T>
const char* name_of() {
  return sizeof(T) == sizeof(float) ? "f32" : "bf16";
}

template <class Out>
bool time_rmsnorm(uint32_t rows, uint32_t heads, uint32_t width, double rate) {
  const size_t elements = size_t{rows} * heads * width;
  const double bytes = static_cast<double>(elements) * (sizeof(float) + sizeof(Out));
  const int places = places_of(bytes);
  const Array<float> x(places * elements, 1), weight(width, 2, 1, 0.5f);
  const Array<Out> y(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::rmsnorm({.x = x.data() + place * elements,
                        .x_stride = heads * width,
                        .weight = weight.data(),
                        .rows = rows,
                        .heads = heads,
                        .width = width,
                        .eps = eps},
                       y.data() + place * elements, stream),
         "launch rmsnorm");
  };
  call(nullptr, 0);
  std::vector<float> expected(elements);
  rmsnorm_cpu(x.host(elements).data(), weight.host(width).data(), size_t{rows} * heads, width, eps, expected.data());
  const bool right = Difference::of(y.host(elements), expected).within(tolerance<Out>);
  return report(
      std::string("rmsnorm ") + std::to_string(heads) + " x " + std::to_string(width) + " to " + name_of<Out>(), rows,
      right, bytes, rate, call);
}

template <class In>
bool time_gated(uint32_t rows, double rate) {
  const size_t elements = size_t{rows} * inner, z_elements = size_t{rows} * projected;
  const double bytes = static_cast<double>(elements) * (sizeof(float) + sizeof(In) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> z(places * z_elements, 11, 0, 3), weight(inner, 12, 1, 0.5f);
  const Array<In> y(places * elements, 13);
  const Array<Bf16> out(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::gated_rmsnorm({.z = z.data() + place * z_elements,
                              .z_stride = projected,
                              .weight = weight.data(),
                              .rows = rows,
                              .width = inner,
                              .eps = eps},
                             y.data() + place * elements, out.data() + place * elements, stream),
         "launch gated_rmsnorm");
  };
  call(nullptr, 0);
  std::vector<float> host_y, expected(elements);
  for (const In value : y.host(elements)) host_y.push_back(static_cast<float>(value_of(value)));
  gated_rmsnorm_cpu(host_y.data(), z.host(z_elements).data(), projected, weight.host(inner).data(), rows, 1, inner, eps,
                    expected.data());
  const bool right = Difference::of(out.host(elements), expected).within(tolerance<Bf16>);
  return report(std::string("gated_rmsnorm 768 from ") + name_of<In>(), rows, right, bytes, rate, call);
}

bool time_swiglu(uint32_t rows, double rate) {
  const size_t elements = size_t{rows} * mlp;
  const double bytes = static_cast<double>(elements) * (2 * sizeof(float) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> x(places * 2 * elements, 21, 0, 3);
  const Array<Bf16> out(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::swiglu(x.data() + place * 2 * elements, rows, mlp, out.data() + place * elements, stream),
         "launch swiglu");
  };
  call(nullptr, 0);
  std::vector<float> expected(elements);
  swiglu_cpu(x.host(2 * elements).data(), rows, mlp, expected.data());
  const bool right = Difference::of(out.host(elements), expected).within(tolerance<Bf16>);
  return report("swiglu 1024", rows, right, bytes, rate, call);
}

bool time_embedding(uint32_t rows, double rate) {
  const size_t elements = size_t{rows} * hidden;
  const double bytes = static_cast<double>(elements) * (sizeof(Bf16) + sizeof(float)) + rows * sizeof(uint32_t);
  const int places = places_of(bytes);
  const Array<Bf16> table(size_t{vocabulary} * hidden, 31);
  std::vector<uint32_t> host_tokens(size_t{rows} * places);
  for (size_t i = 0; i < host_tokens.size(); ++i)
    host_tokens[i] = static_cast<uint32_t>(i) * 2654435761u / (uint32_t{1} << 19);  // below 2^13
  const Array<uint32_t> tokens(host_tokens);
  const Array<float> y(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::embedding_lookup(table.data(), tokens.data() + size_t{rows} * place, rows, hidden,
                                y.data() + place * elements, stream),
         "launch embedding_lookup");
  };
  call(nullptr, 0);
  const auto host_table = table.host(size_t{vocabulary} * hidden);
  std::vector<float> expected;
  for (size_t row = 0; row < rows; ++row)
    for (size_t i = 0; i < hidden; ++i) expected.push_back(to_float(host_table[size_t{host_tokens[row]} * hidden + i]));
  return report("embedding_lookup 384", rows, y.host(elements) == expected, bytes, rate, call);
}

bool time_add(uint32_t rows, double rate) {
  const size_t elements = size_t{rows} * hidden;
  const double bytes = static_cast<double>(elements) * 3 * sizeof(float);
  const int places = places_of(bytes);
  const Array<float> x(places * elements, 41), y(places * elements, 42);
  auto expected = y.host(elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::add(x.data() + place * elements, rows, hidden, y.data() + place * elements, stream), "launch add");
  };
  call(nullptr, 0);
  add_cpu(x.host(elements).data(), elements, expected.data());
  return report("add 384", rows, y.host(elements) == expected, bytes, rate, call);
}

bool time_to_bf16(uint32_t rows, double rate) {
  const size_t elements = size_t{rows} * hidden;
  const double bytes = static_cast<double>(elements) * (sizeof(float) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> x(places * elements, 51);
  const Array<Bf16> y(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::to_bf16(x.data() + place * elements, rows, hidden, y.data() + place * elements, stream),
         "launch to_bf16");
  };
  call(nullptr, 0);
  std::vector<Bf16> expected(elements);
  to_bf16_cpu(x.host(elements).data(), elements, expected.data());
  return report("to_bf16 384", rows, Difference::of(y.host(elements), expected).within(0), bytes, rate, call);
}

bool time_queries(uint32_t rows, double rate) {
  const size_t elements = size_t{rows} * retrieval_dim;
  const double bytes = static_cast<double>(elements) * (sizeof(float) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> x(places * elements, 61), norm(retrieval_dim, 62, 1, 0.5f), gain(retrieval_dim, 63, 1, 0.5f);
  const Array<Bf16> queries(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::retrieval_queries({.x = x.data() + place * elements,
                                  .x_stride = retrieval_dim,
                                  .q_norm = norm.data(),
                                  .gain = gain.data(),
                                  .rows = rows,
                                  .heads = 1,
                                  .dim = retrieval_dim,
                                  .eps = eps},
                                 queries.data() + place * elements, stream),
         "launch retrieval_queries");
  };
  call(nullptr, 0);
  const auto host_gain = gain.host(retrieval_dim);
  std::vector<float> expected(elements);
  rmsnorm_cpu(x.host(elements).data(), norm.host(retrieval_dim).data(), rows, retrieval_dim, eps, expected.data());
  for (size_t i = 0; i < elements; ++i) expected[i] *= host_gain[i % retrieval_dim];
  const bool right = Difference::of(queries.host(elements), expected).within(tolerance<Bf16>);
  return report("retrieval_queries 256", rows, right, bytes, rate, call);
}

}  // namespace

bool bench_small(double rate) {
  bool right = true;
  for (const uint32_t rows : {8, 64, 4096, 16384}) {
    right &= time_embedding(rows, rate);
    right &= time_rmsnorm<Bf16>(rows, 1, hidden, rate);
    right &= rows <= 64 ? time_gated<float>(rows, rate) : time_gated<Bf16>(rows, rate);
    right &= time_add(rows, rate);
    right &= time_to_bf16(rows, rate);
    right &= time_swiglu(rows, rate);
    if (rows > 64) continue;  // what only generating has
    right &= time_rmsnorm<float>(rows, 6, 64, rate);
    right &= time_queries(rows, rate);
  }
  return right;
}

}  // namespace recalld::bench
