// What lies between the products of the chunk encoder, in the starter's shapes: 65 rows of 384 a chunk, 6 heads of 64.
// The floor of the attention's products is taken at the peak of the card.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels/chunk_encoder_cuda.h"
#include "kernels/elementwise.h"
#include "kernels/encoder_attention.h"
#include "kernels/encoder_attention_cuda.h"
#include "kernels/rmsnorm.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

constexpr uint32_t tokens = cuda::encoder_chunk_tokens, rows = tokens + 1, hidden = 384, heads = 6, head_dim = 64;
constexpr uint32_t kv_heads = 1, retrieval_dim = 256;
constexpr float eps = 1e-5f, rope_theta = 10000;

template <class Call>
bool report(const char* name, uint32_t chunks, bool right, double bytes, double flops, double rate, const Call& call) {
  const Times times = times_of(places_of(bytes), call);
  const double floor = std::max(bytes / rate, flops / peak_flops_per_us);
  std::printf("%-19s %3u chunks: %s; cold %8.2f us, warm %8.2f us; floors: bytes %7.2f us (%.2f MB)", name, chunks,
              verdict(right), times.cold, times.warm, bytes / rate, bytes / 1e6);
  if (flops > 0) std::printf(", FLOPs %7.2f us (%.2f G)", flops / peak_flops_per_us, flops / 1e9);
  std::printf("; %.1f x the floor, %.1f x\n", times.cold / floor, times.warm / floor);
  return right;
}

// Some chunks, the first and the last among them.
std::vector<uint32_t> checked(uint32_t chunks) {
  return {0, chunks / 2, chunks - 1};
}

bool time_attention(uint32_t chunks, double rate) {
  const size_t qkv_of_chunk = size_t{rows} * 3 * hidden, out_of_chunk = size_t{rows} * hidden;
  const double bytes = chunks * (qkv_of_chunk * sizeof(float) + out_of_chunk * sizeof(Bf16));
  const double flops = 4.0 * chunks * heads * rows * rows * head_dim;
  const int places = places_of(bytes);
  const Array<float> qkv(places * chunks * qkv_of_chunk, 1, 0, 2), bias(3 * hidden, 2);
  const Array<float> q_norm(head_dim, 3, 1, 0.5f), k_norm(head_dim, 4, 1, 0.5f);
  const Array<Bf16> out(places * chunks * out_of_chunk);
  std::vector<float> host_cos, host_sin;
  rope_table(rows, head_dim, rope_theta, host_cos, host_sin);
  const Array<float> cos(host_cos), sin(host_sin);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::encoder_attention({.qkv = qkv.data() + place * chunks * qkv_of_chunk,
                                  .qkv_stride = 3 * hidden,
                                  .bias = bias.data(),
                                  .q_norm = q_norm.data(),
                                  .k_norm = k_norm.data(),
                                  .cos = cos.data(),
                                  .sin = sin.data(),
                                  .chunks = chunks,
                                  .rows = rows,
                                  .heads = heads,
                                  .head_dim = head_dim,
                                  .eps = eps},
                                 out.data() + place * chunks * out_of_chunk, stream),
         "launch encoder_attention");
  };
  call(nullptr, 0);
  const auto host_bias = bias.host(3 * hidden), host_q = q_norm.host(head_dim), host_k = k_norm.host(head_dim);
  bool right = true;
  for (const uint32_t chunk : checked(chunks)) {
    const auto chunk_qkv = qkv.host(qkv_of_chunk, chunk * qkv_of_chunk);
    std::vector<float> expected(out_of_chunk);
    encoder_attention_reference({.rows = rows, .heads = heads, .head_dim = head_dim}, rope_theta, chunk_qkv.data(),
                                {host_bias.data(), host_q.data(), host_k.data(), eps}, expected.data());
    // q, k, v and the shares are rounded on the way, which the definition does not do.
    right &= Difference::of(out.host(out_of_chunk, chunk * out_of_chunk), expected).within(1.2e-2);
  }
  return report("encoder_attention", chunks, right, bytes, flops, rate, call);
}

bool time_input(uint32_t chunks, double rate) {
  const size_t in = size_t{chunks} * tokens * hidden, out = size_t{chunks} * rows * hidden;
  const double bytes = sizeof(float) * static_cast<double>(in + out + hidden);
  const int places = places_of(bytes);
  const Array<float> x(places * in, 11), cls(hidden, 12), y(places * out);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::encoder_input(x.data() + place * in, cls.data(), chunks, hidden, y.data() + place * out, stream),
         "launch encoder_input");
  };
  call(nullptr, 0);
  const auto host_x = x.host(in), host_cls = cls.host(hidden);
  std::vector<float> expected;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const auto first = host_x.begin() + chunk * tokens * hidden;
    expected.insert(expected.end(), first, first + tokens * hidden);
    expected.insert(expected.end(), host_cls.begin(), host_cls.end());
  }
  return report("encoder_input", chunks, y.host(out) == expected, bytes, 0, rate, call);
}

bool time_records(uint32_t chunks, double rate) {
  constexpr size_t width = kv_heads * head_dim, record = 2 * tokens * width, kv_of_chunk = size_t{rows} * 2 * width;
  const double bytes = chunks * static_cast<double>(record) * (sizeof(float) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> kv(places * chunks * kv_of_chunk, 21), norm(head_dim, 22, 1, 0.5f);
  const Array<Bf16> records(places * chunks * record);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::kv_records({.kv = kv.data() + place * chunks * kv_of_chunk,
                           .k_norm = norm.data(),
                           .chunks = chunks,
                           .rows = rows,
                           .kv_heads = kv_heads,
                           .head_dim = head_dim,
                           .eps = eps,
                           .record_stride = record},
                          records.data() + place * chunks * record, stream),
         "launch kv_records");
  };
  call(nullptr, 0);
  const auto host_norm = norm.host(head_dim);
  bool right = true;
  for (const uint32_t chunk : checked(chunks)) {
    const auto of_chunk = kv.host(kv_of_chunk, chunk * kv_of_chunk);
    std::vector<float> expected(record);
    for (size_t token = 0; token < tokens; ++token)
      for (size_t part = 0; part < 2; ++part)
        std::copy_n(of_chunk.begin() + (token * 2 + part) * width, width,
                    expected.begin() + (part * tokens + token) * width);
    rmsnorm_cpu(expected.data(), host_norm.data(), tokens * kv_heads, head_dim, eps, expected.data());
    right &= Difference::of(records.host(record, chunk * record), expected).within(tolerance<Bf16>);
  }
  return report("kv_records", chunks, right, bytes, 0, rate, call);
}

// Of the CLS row, or of the mean of the tokens.
bool time_landmark_rows(uint32_t chunks, bool with_cls, double rate) {
  const uint32_t rows_of_chunk = with_cls ? rows : tokens;
  const size_t x_of_chunk = size_t{rows_of_chunk} * hidden, out = size_t{chunks} * hidden;
  const double bytes = static_cast<double>(out) * ((with_cls ? 1 : tokens) * sizeof(float) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> x(places * chunks * x_of_chunk, 31);
  const Array<Bf16> y(places * out);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::landmark_rows(x.data() + place * chunks * x_of_chunk, chunks, rows_of_chunk, hidden,
                             y.data() + place * out, stream),
         "launch landmark_rows");
  };
  call(nullptr, 0);
  bool right = true;
  for (const uint32_t chunk : checked(chunks)) {
    const auto of_chunk = x.host(x_of_chunk, chunk * x_of_chunk);
    std::vector<float> expected(hidden);
    if (with_cls) {
      std::copy_n(of_chunk.begin() + size_t{tokens} * hidden, hidden, expected.begin());
    } else {
      for (size_t token = 0; token < tokens; ++token)
        add_cpu(of_chunk.data() + token * hidden, hidden, expected.data());
      for (float& value : expected) value /= tokens;
    }
    right &= Difference::of(y.host(hidden, size_t{chunk} * hidden), expected).within(tolerance<Bf16>);
  }
  return report(with_cls ? "landmark_rows, CLS" : "landmark_rows, mean", chunks, right, bytes, 0, rate, call);
}

bool time_landmarks_out(uint32_t chunks, double rate) {
  const size_t elements = size_t{chunks} * retrieval_dim;
  const double bytes = static_cast<double>(elements) * (sizeof(float) + sizeof(Bf16));
  const int places = places_of(bytes);
  const Array<float> x(places * elements, 41);
  const Array<Bf16> y(places * elements);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::landmarks_out({.x = x.data() + place * elements,
                              .chunks = chunks,
                              .heads = 1,
                              .width = retrieval_dim,
                              .norm = true,
                              .eps = eps},
                             y.data() + place * elements, stream),
         "launch landmarks_out");
  };
  call(nullptr, 0);
  const std::vector<float> ones(retrieval_dim, 1.0f);
  std::vector<float> expected(elements);
  rmsnorm_cpu(x.host(elements).data(), ones.data(), chunks, retrieval_dim, eps, expected.data());
  const bool right = Difference::of(y.host(elements), expected).within(tolerance<Bf16>);
  return report("landmarks_out", chunks, right, bytes, 0, rate, call);
}

}  // namespace

bool bench_encoder(double rate) {
  bool right = true;
  for (const uint32_t chunks : {1, 16, 64, 256}) {
    right &= time_input(chunks, rate);
    right &= time_attention(chunks, rate);
    right &= time_records(chunks, rate);
    for (const bool with_cls : {true, false}) right &= time_landmark_rows(chunks, with_cls, rate);
    right &= time_landmarks_out(chunks, rate);
  }
  return right;
}

}  // namespace recalld::bench
