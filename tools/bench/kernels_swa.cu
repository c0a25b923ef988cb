// Attention to a sliding window, in the shapes of model/swa-hsa and of a large model's layers: many tokens of each
// memory, and one. All memories have read more than a window, so that every token sees a whole one and each call does
// the same. The floor of bytes is that of q, k and v, of the window before the call, what is kept of the call, and the
// results: without the tables of angles, which all calls share, and the scratch. The floor of the products is taken at
// the peak of the card.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels/encoder_attention.h"
#include "kernels/swa_attention.h"
#include "kernels/swa_attention_cuda.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

constexpr float eps = 1e-5f, theta = 10000;
constexpr float width_of_numbers = 1.7320508f;  // of a variance of 1

// Those of the kernels' tests: for a result q, k, v and the shares are rounded on the way, which the twin in f32 does
// not do; what a state keeps is rounded once.
constexpr double tolerance_of_results = 3e-2, tolerance_of_states = 1e-2;

// The greatest difference is at most `tolerance` of the greatest value, and the root mean square of the differences at
// most a third of `tolerance` of that of the values.
class Nearness {
 public:
  void add(double found, double expected) {
    difference_.add(found, expected);
    error_ += (found - expected) * (found - expected);
    size_ += expected * expected;
  }
  bool within(double tolerance) const {
    return size_ > 0 && difference_.within(tolerance) && std::sqrt(error_) <= tolerance / 3 * std::sqrt(size_);
  }

 private:
  Difference difference_;
  double error_ = 0, size_ = 0;
};

// States whose ring is full, of keys and values that bf16 can hold, as the kernels leave them.
__global__ void fill_states(float* states, size_t count, size_t floats_of_state, float read, uint32_t seed) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    const size_t at = i % floats_of_state;
    const float number = width_of_numbers * random_at(i, seed);
    states[i] = at == 0 ? read : at < swa_head_floats ? 0 : __uint_as_float(__float_as_uint(number) & 0xffff0000u);
  }
}

// A layer's weights, and `places` times the inputs and states of `streams` memories with `tokens` each.
class Inputs {
 public:
  Inputs(const SwaShape& shape, uint32_t streams, uint32_t tokens)
      : shape(shape),
        streams(streams),
        tokens(tokens),
        rows(size_t{streams} * tokens),
        places(places_of(bytes())),
        twin_(SwaAttention::make(ProductType::f32, shape, theta)),
        q_norm_(shape.head_dim, 1, 1, 0.5f),
        k_norm_(shape.head_dim, 2, 1, 0.5f),
        host_q_norm_(q_norm_.host(shape.head_dim)),
        host_k_norm_(k_norm_.host(shape.head_dim)),
        cos_(angles(shape, true)),
        sin_(angles(shape, false)),
        qkv_(places * rows * shape.qkv_width(), 3, 0, width_of_numbers),
        k_(rows * shape.kv_width()),
        v_(rows * shape.kv_width()),
        out_(places * rows * shape.q_width()),
        states_(places * streams * shape.state_floats()) {
    const size_t count = places * streams * shape.state_floats();
    fill_states<<<1024, 256>>>(states_.data(), count, shape.state_floats(),
                               static_cast<float>(shape.ring_blocks() * swa_block), 4);
    must(cudaGetLastError(), "fill the states");
  }

  double bytes() const {
    const double of_inputs = static_cast<double>(rows) * shape.qkv_width() * sizeof(float);
    const double of_results = static_cast<double>(rows) * shape.q_width() * sizeof(Bf16);
    const size_t kept = std::min<size_t>(tokens, shape.ring_blocks() * swa_block);
    const double of_states = 2.0 * streams * static_cast<double>((shape.window + kept) * shape.kv_width());
    return of_inputs + of_results + of_states * sizeof(float);
  }
  double flops() const {
    return 4.0 * static_cast<double>(rows) * static_cast<double>(shape.q_width()) *
           static_cast<double>(shape.window + 1);
  }

  cuda::SwaAttention attention(int place) const {
    return {.qkv = qkv_.data() + place * rows * shape.qkv_width(),
            .qkv_stride = static_cast<uint32_t>(shape.qkv_width()),
            .q_norm = q_norm_.data(),
            .k_norm = k_norm_.data(),
            .cos = cos_.data(),
            .sin = sin_.data(),
            .heads = static_cast<uint32_t>(shape.heads),
            .kv_heads = static_cast<uint32_t>(shape.kv_heads),
            .window = static_cast<uint32_t>(shape.window),
            .eps = eps,
            .k = k_.data(),
            .v = v_.data()};
  }
  float* state(int place, size_t stream) const {
    return states_.data() + (static_cast<size_t>(place) * streams + stream) * shape.state_floats();
  }
  Bf16* out(int place) const { return out_.data() + place * rows * shape.q_width(); }

  // Runs call() once at place 0 and compares the first and the last memory's results and states with what the CPU makes
  // of the same states by run(twin, qkv, weights, state, out), in f32.
  template <class Call, class Run>
  bool agrees(const Call& call, const Run& run) const {
    std::vector<uint32_t> checked{0};
    if (streams > 1) checked.push_back(streams - 1);
    std::vector<std::vector<float>> expected_states;
    for (const uint32_t stream : checked) expected_states.push_back(to_host(state(0, stream), shape.state_floats()));
    call(nullptr, 0);
    const SwaWeights weights{.q_norm = host_q_norm_.data(), .k_norm = host_k_norm_.data(), .eps = eps};
    bool right = true;
    for (size_t i = 0; i < checked.size(); ++i) {
      const size_t first = size_t{checked[i]} * tokens;
      const auto qkv = qkv_.host(tokens * shape.qkv_width(), first * shape.qkv_width());
      const auto found = out_.host(tokens * shape.q_width(), first * shape.q_width());
      const auto found_state = to_host(state(0, checked[i]), shape.state_floats());
      std::vector<float>& expected_state = expected_states[i];
      std::vector<float> expected(tokens * shape.q_width());
      run(twin_, qkv.data(), weights, expected_state.data(), expected.data());
      Nearness of_results, of_state;
      for (size_t j = 0; j < expected.size(); ++j) of_results.add(to_float(found[j]), expected[j]);
      for (size_t j = swa_head_floats; j < expected_state.size(); ++j) of_state.add(found_state[j], expected_state[j]);
      right &= of_results.within(tolerance_of_results) && of_state.within(tolerance_of_states) &&
               found_state[0] == expected_state[0];
    }
    return right;
  }

  const SwaShape shape;
  const uint32_t streams, tokens;
  const size_t rows;
  const int places;

 private:
  static std::vector<float> angles(const SwaShape& shape, bool of_cos) {
    std::vector<float> cos, sin;
    rope_table(shape.window + swa_block, shape.head_dim, theta, cos, sin);
    return of_cos ? cos : sin;
  }

  const SwaAttention twin_;
  const Array<float> q_norm_, k_norm_;
  const std::vector<float> host_q_norm_, host_k_norm_;
  const Array<float> cos_, sin_, qkv_;
  const Array<Bf16> k_, v_, out_;  // k_, v_: the scratch
  const Array<float> states_;
};

template <class Call>
bool report(const char* name, const Inputs& inputs, bool right, double rate, const Call& call) {
  const Times times = times_of(inputs.places, call);
  const double of_bytes = inputs.bytes() / rate, of_flops = inputs.flops() / peak_flops_per_us;
  const double floor = std::max(of_bytes, of_flops);
  std::printf(
      "%-18s %2zu heads, %zu KV, window %4zu, %2u x %5u tokens: %s; cold %8.2f us, warm %8.2f us; floors: bytes "
      "%7.2f us (%.2f MB), FLOPs %7.2f us (%.2f G); %.1f x the floor, %.1f x\n",
      name, inputs.shape.heads, inputs.shape.kv_heads, inputs.shape.window, inputs.streams, inputs.tokens,
      verdict(right), times.cold, times.warm, of_bytes, inputs.bytes() / 1e6, of_flops, inputs.flops() / 1e9,
      times.cold / floor, times.warm / floor);
  return right;
}

bool time_attention(const SwaShape& shape, uint32_t streams, uint32_t tokens, double rate) {
  const Inputs inputs(shape, streams, tokens);
  const auto call = [&](cudaStream_t stream, int place) {
    std::vector<cuda::SwaStream> table;
    for (uint32_t i = 0; i < streams; ++i)
      table.push_back({.state = inputs.state(place, i), .first = i * tokens, .tokens = tokens});
    must(cuda::swa_attention(inputs.attention(place), table.data(), streams, inputs.out(place), stream),
         "launch swa_attention");
  };
  const bool right = inputs.agrees(
      call, [&](const SwaAttention& twin, const float* qkv, const SwaWeights& weights, float* state, float* out) {
        for (size_t done = 0; done < tokens; done += swa_block)
          twin.run(qkv + done * shape.qkv_width(), weights, state, out + done * shape.q_width(),
                   std::min<size_t>(swa_block, tokens - done));
      });
  return report("swa_attention", inputs, right, rate, call);
}

bool time_step(const SwaShape& shape, uint32_t streams, double rate) {
  const Inputs inputs(shape, streams, 1);
  std::vector<float*> host_table;
  for (int place = 0; place < inputs.places; ++place)
    for (uint32_t i = 0; i < streams; ++i) host_table.push_back(inputs.state(place, i));
  const Array<float*> table(host_table);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::swa_attention_step(inputs.attention(place), table.data() + size_t(place) * streams, streams,
                                  inputs.out(place), stream),
         "launch swa_attention_step");
  };
  const bool right = inputs.agrees(call, [](const SwaAttention& twin, const float* qkv, const SwaWeights& weights,
                                            float* state, float* out) { twin.step(qkv, weights, state, out); });
  return report("swa_attention_step", inputs, right, rate, call);
}

}  // namespace

bool bench_swa(double rate) {
  const SwaShape shipped{.heads = 6, .kv_heads = 1, .head_dim = cuda::swa_head_dim, .window = 512};
  const SwaShape large{.heads = 16, .kv_heads = 4, .head_dim = cuda::swa_head_dim, .window = 512};
  const SwaShape widest{.heads = 16, .kv_heads = 4, .head_dim = cuda::swa_head_dim, .window = cuda::swa_window_max};
  bool right = true;
  for (const uint32_t tokens : {64, 1024, 4096, 16384}) right &= time_attention(shipped, 1, tokens, rate);
  for (const uint32_t streams : {16, 64}) right &= time_attention(shipped, streams, 64, rate);
  right &= time_attention(shipped, 16, 1024, rate);
  for (const SwaShape& shape : {large, widest}) {
    for (const uint32_t tokens : {64, 1024, 4096}) right &= time_attention(shape, 1, tokens, rate);
    right &= time_attention(shape, 16, 64, rate);
  }
  for (const SwaShape& shape : {shipped, large, widest})
    for (const uint32_t streams : {1, 8, 64}) right &= time_step(shape, streams, rate);
  return right;
}

}  // namespace recalld::bench
