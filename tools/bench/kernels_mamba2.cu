// The floors of operations leave out what lies above the diagonal of a block, at the 790 TFLOP/s that H100 and H200
// reach in bf16 products.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels/conv1d_silu.h"
#include "kernels/conv1d_silu_cuda.h"
#include "kernels/ssd_scan.h"
#include "kernels/ssd_scan_cuda.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

constexpr double flops_per_us = 790e6;
constexpr uint32_t head_dim = cuda::ssd_head_dim, block = cuda::ssd_block_tokens;

struct Layer {
  uint32_t heads, state_size;
  float *dt_bias, *a, *d;

  Layer(uint32_t heads, uint32_t state_size)
      : heads(heads),
        state_size(state_size),
        dt_bias(random_memory<float>(heads, 1, -4.5f, 2.3f)),  // steps of 0.001 to 0.1
        a(random_memory<float>(heads, 2, -8.5f, 7.5f)),
        d(random_memory<float>(heads, 3, 1, 0.5f)) {}
  uint32_t inner() const { return heads * head_dim; }
  uint32_t channels() const { return inner() + 2 * state_size; }
  size_t cells() const { return size_t{inner()} * state_size; }
};

// The scan of `streams` memories with `tokens` each, checked on the first 128 tokens or fewer of the first.
bool time_scan(const Layer& layer, uint32_t streams, uint32_t tokens, double bytes_per_us) {
  const size_t rows = size_t{streams} * tokens;
  const size_t bytes_of_place = rows * (layer.channels() + layer.inner()) * sizeof(Bf16);
  const auto places = static_cast<int>(std::max<size_t>(2, cold_bytes / bytes_of_place + 1));
  Bf16* const xbc = random_memory<Bf16>(places * rows * layer.channels(), 11);
  Bf16* const y = random_memory<Bf16>(places * rows * layer.inner(), 12);
  float* const dt = random_memory<float>(places * rows * layer.heads, 13);
  float* const states = random_memory<float>(streams * layer.cells(), 14);
  auto* const workspace =
      device_memory<uint8_t>(cuda::ssd_scan_workspace(layer.heads, layer.state_size, rows, streams));
  const auto call = [&](cudaStream_t stream, int place, uint32_t count, uint32_t tokens_each) {
    std::vector<cuda::SsdStream> table;
    for (uint32_t i = 0; i < count; ++i)
      table.push_back({.state = states + i * layer.cells(), .first = i * tokens_each, .tokens = tokens_each});
    must(cuda::ssd_scan({.xbc = xbc + place * rows * layer.channels(),
                         .dt = dt + place * rows * layer.heads,
                         .dt_stride = layer.heads,
                         .dt_bias = layer.dt_bias,
                         .a = layer.a,
                         .d = layer.d,
                         .y = y + place * rows * layer.inner(),
                         .heads = layer.heads,
                         .state_size = layer.state_size,
                         .streams = table.data(),
                         .stream_count = count,
                         .workspace = workspace},
                        stream),
         "launch ssd_scan");
  };

  const uint32_t checked = std::min(tokens, 2 * block);
  auto state = to_host(states, layer.cells());
  call(nullptr, 0, 1, checked);
  must(cudaDeviceSynchronize(), "run ssd_scan");
  const auto host_xbc = to_host(xbc, size_t{checked} * layer.channels());
  const auto host_dt = to_host(dt, size_t{checked} * layer.heads), dt_bias = to_host(layer.dt_bias, layer.heads);
  const auto a = to_host(layer.a, layer.heads), d = to_host(layer.d, layer.heads);
  const auto found_state = to_host(states, layer.cells());
  const auto found_y = to_host(y, size_t{checked} * layer.inner());
  Difference of_y, of_state;
  for (uint32_t first = 0; first < checked; first += block) {
    std::vector<float> block_xbc, block_y(size_t{block} * layer.inner());
    for (size_t i = 0; i < size_t{block} * layer.channels(); ++i)
      block_xbc.push_back(to_float(host_xbc[size_t{first} * layer.channels() + i]));
    ssd_scan_reference({.heads = layer.heads, .head_dim = head_dim, .state_size = layer.state_size}, block_xbc.data(),
                       host_dt.data() + size_t{first} * layer.heads, layer.heads,
                       {.dt_bias = dt_bias.data(), .a = a.data(), .d = d.data()}, state.data(), block_y.data());
    for (size_t h = 0; h < layer.heads; ++h)
      for (size_t t = 0; t < block; ++t)
        for (size_t p = 0; p < head_dim; ++p)
          of_y.add(to_float(found_y[(first + t) * layer.inner() + h * head_dim + p]),
                   block_y[(h * block + t) * head_dim + p]);
  }
  for (size_t i = 0; i < state.size(); ++i) of_state.add(found_state[i], state[i]);
  const bool right = of_y.within(2e-2) && of_state.within(2e-2);

  const double cold = time_cold_us([&](cudaStream_t stream, int i) { call(stream, i % places, streams, tokens); });
  const double warm = time_us([&](cudaStream_t stream, int) { call(stream, 0, streams, tokens); });
  const double bytes = static_cast<double>(bytes_of_place) + rows * layer.heads * sizeof(float) +
                       2.0 * streams * layer.cells() * sizeof(float);
  const double half = (block + 1) / 2.0;  // of a block's tokens, how many one sees in the mean
  const double flops =
      2.0 * rows * (half * layer.state_size + layer.heads * (half * head_dim + 2.0 * layer.state_size * head_dim));
  std::printf(
      "ssd_scan %2u heads, state %3u, %2u x %5u tokens: %s; cold %8.2f us, warm %8.2f us; floors: bytes %7.2f us (%.0f "
      "MB), FLOPs %7.2f us (%.1f G)\n",
      layer.heads, layer.state_size, streams, tokens, verdict(right), cold, warm, bytes / bytes_per_us, bytes / 1e6,
      flops / flops_per_us, flops / 1e9);
  for (void* data : {static_cast<void*>(xbc), static_cast<void*>(y), static_cast<void*>(dt), static_cast<void*>(states),
                     static_cast<void*>(workspace)})
    must(cudaFree(data), "free");
  return right;
}

bool time_update(const Layer& layer, uint32_t streams, double bytes_per_us) {
  const size_t bytes_of_place = streams * layer.cells() * sizeof(float);
  const auto places = static_cast<int>(std::max<size_t>(2, cold_bytes / bytes_of_place + 1));
  float* const xbc = random_memory<float>(size_t{streams} * layer.channels(), 21);
  float* const dt = random_memory<float>(size_t{streams} * layer.heads, 22);
  float* const y = random_memory<float>(size_t{streams} * layer.inner(), 23);
  float* const states = random_memory<float>(places * streams * layer.cells(), 24);
  std::vector<float*> table;
  for (size_t i = 0; i < size_t{streams} * places; ++i) table.push_back(states + i * layer.cells());
  auto* const device_table = device_memory<float*>(table.size());
  must(cudaMemcpy(device_table, table.data(), table.size() * sizeof(float*), cudaMemcpyHostToDevice), "copy");
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::ssd_state_update({.xbc = xbc,
                                 .dt = dt,
                                 .dt_stride = layer.heads,
                                 .dt_bias = layer.dt_bias,
                                 .a = layer.a,
                                 .d = layer.d,
                                 .states = device_table + static_cast<size_t>(place) * streams,
                                 .y = y,
                                 .heads = layer.heads,
                                 .state_size = layer.state_size,
                                 .count = streams},
                                stream),
         "launch ssd_state_update");
  };
  const auto state = to_host(states, layer.cells());
  call(nullptr, 0);
  must(cudaDeviceSynchronize(), "run ssd_state_update");
  const auto found_y = to_host(y, layer.inner()), host_xbc = to_host(xbc, layer.channels());
  const auto host_dt = to_host(dt, layer.heads), dt_bias = to_host(layer.dt_bias, layer.heads);
  const auto a = to_host(layer.a, layer.heads), d = to_host(layer.d, layer.heads);
  Difference of_y;
  for (size_t i = 0; i < layer.inner(); ++i) {
    const size_t head = i / head_dim;
    const double step = std::log1p(std::exp(double{host_dt[head]} + dt_bias[head])), decay = std::exp(step * a[head]);
    double sum = double{d[head]} * host_xbc[i];
    for (size_t n = 0; n < layer.state_size; ++n)
      sum += host_xbc[layer.inner() + layer.state_size + n] *
             (decay * state[n * layer.inner() + i] + step * host_xbc[layer.inner() + n] * host_xbc[i]);
    of_y.add(found_y[i], sum);
  }
  const bool right = of_y.within(1e-5);
  const double cold = time_cold_us([&](cudaStream_t stream, int i) { call(stream, i % places); });
  const double warm = time_us([&](cudaStream_t stream, int) { call(stream, 0); });
  const double bytes = 2.0 * static_cast<double>(bytes_of_place) +
                       sizeof(float) * streams * (layer.channels() + layer.inner() + layer.heads);
  std::printf(
      "ssd_state_update %2u heads, state %3u, %2u streams: %s; cold %8.2f us, warm %8.2f us; floor: bytes %7.2f "
      "us (%.1f MB)\n",
      layer.heads, layer.state_size, streams, verdict(right), cold, warm, bytes / bytes_per_us, bytes / 1e6);
  for (void* data : {static_cast<void*>(xbc), static_cast<void*>(dt), static_cast<void*>(y), static_cast<void*>(states),
                     static_cast<void*>(device_table)})
    must(cudaFree(data), "free");
  return right;
}

bool time_conv(uint32_t channels, uint32_t tokens, double bytes_per_us) {
  constexpr uint32_t taps = 4;
  const size_t bytes_of_place = size_t{tokens} * channels * (sizeof(float) + sizeof(Bf16));
  const auto places = static_cast<int>(std::max<size_t>(2, cold_bytes / bytes_of_place + 1));
  float* const input = random_memory<float>(places * size_t{tokens} * channels, 31);
  Bf16* const y = random_memory<Bf16>(places * size_t{tokens} * channels, 32);
  float* const weight = random_memory<float>(taps * channels, 33);
  float* const bias = random_memory<float>(channels, 34);
  float* const history = random_memory<float>((taps - 1) * channels, 35);
  const auto call = [&](cudaStream_t stream, int place) {
    const cuda::ConvStream of{.history = history, .first = 0, .tokens = tokens};
    must(cuda::conv1d_silu({.input = input + place * size_t{tokens} * channels,
                            .input_stride = channels,
                            .weight = weight,
                            .bias = bias,
                            .channels = channels,
                            .taps = taps},
                           &of, 1, y + place * size_t{tokens} * channels, stream),
         "launch conv1d_silu");
  };
  auto host_history = to_host(history, (taps - 1) * channels);
  call(nullptr, 0);
  must(cudaDeviceSynchronize(), "run conv1d_silu");
  const size_t cells = size_t{tokens} * channels;
  const auto host_input = to_host(input, cells), host_weight = to_host(weight, taps * channels);
  const auto host_bias = to_host(bias, channels);
  const auto found = to_host(y, cells);
  std::vector<float> expected(cells);
  conv1d_silu_cpu(host_input.data(), channels, tokens, channels, taps, host_weight.data(), host_bias.data(),
                  host_history.data(), expected.data());
  Difference of_y;
  for (size_t i = 0; i < cells; ++i) of_y.add(to_float(found[i]), expected[i]);
  const bool right = of_y.within(8e-3);
  const double cold = time_cold_us([&](cudaStream_t stream, int i) { call(stream, i % places); });
  const double warm = time_us([&](cudaStream_t stream, int) { call(stream, 0); });
  std::printf(
      "conv1d_silu %4u channels, %5u tokens, f32 to bf16: %s; cold %8.2f us, warm %8.2f us; floor: bytes %7.2f "
      "us (%.1f MB)\n",
      channels, tokens, verdict(right), cold, warm, static_cast<double>(bytes_of_place) / bytes_per_us,
      static_cast<double>(bytes_of_place) / 1e6);
  for (void* data : {static_cast<void*>(input), static_cast<void*>(y), static_cast<void*>(weight),
                     static_cast<void*>(bias), static_cast<void*>(history)})
    must(cudaFree(data), "free");
  return right;
}

// One token of each of `streams` memories, whose histories are taken in turn.
bool time_conv_step(uint32_t channels, uint32_t streams, double bytes_per_us) {
  constexpr uint32_t taps = 4;
  const size_t of_history = size_t{taps - 1} * channels, of_place = streams * of_history;
  const size_t of_input = size_t{streams} * channels;
  const double bytes = sizeof(float) * (2.0 * of_place + 2.0 * of_input + (taps + 1.0) * channels);
  const int places = places_of(bytes);
  const Array<float> histories(places * of_place, 41), input(places * of_input, 42);
  const Array<float> weight(size_t{taps} * channels, 43), bias(channels, 44), y(places * of_input);
  std::vector<float*> host_table;
  for (size_t i = 0; i < places * streams; ++i) host_table.push_back(histories.data() + i * of_history);
  const Array<float*> table(host_table);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::conv1d_silu_step({.input = input.data() + place * of_input,
                                 .input_stride = channels,
                                 .weight = weight.data(),
                                 .bias = bias.data(),
                                 .channels = channels,
                                 .taps = taps},
                                table.data() + place * streams, streams, y.data() + place * of_input, stream),
         "launch conv1d_silu_step");
  };
  auto expected_history = histories.host(of_place);
  call(nullptr, 0);
  const auto host_input = input.host(of_input), host_weight = weight.host(size_t{taps} * channels);
  const auto host_bias = bias.host(channels);
  std::vector<float> expected(of_input);
  for (size_t i = 0; i < streams; ++i)
    conv1d_silu_cpu(host_input.data() + i * channels, channels, 1, channels, taps, host_weight.data(), host_bias.data(),
                    expected_history.data() + i * of_history, expected.data() + i * channels);
  const bool right = Difference::of(y.host(of_input), expected).within(tolerance<float>) &&
                     histories.host(of_place) == expected_history;
  const Times times = times_of(places, call);
  std::printf(
      "conv1d_silu_step %4u channels, %2u streams: %s; cold %8.2f us, warm %8.2f us; floor: bytes %7.2f us (%.2f MB)\n",
      channels, streams, verdict(right), times.cold, times.warm, bytes / bytes_per_us, bytes / 1e6);
  return right;
}

}  // namespace

bool bench_mamba2(double rate) {
  bool right = true;
  const Layer large(32, 128), starter(12, 64);  // a large one's layer and the starter's
  for (const uint32_t tokens : {1024, 4096, 16384}) right &= time_scan(large, 1, tokens, rate);
  right &= time_scan(large, 16, 1024, rate);
  for (const uint32_t tokens : {64, 1024, 4096, 16384}) right &= time_scan(starter, 1, tokens, rate);
  for (const uint32_t streams : {16, 64}) right &= time_scan(starter, streams, 64, rate);
  right &= time_scan(starter, 16, 1024, rate);
  for (const uint32_t streams : {1, 8, 64}) right &= time_update(large, streams, rate);
  for (const uint32_t streams : {1, 8, 64}) right &= time_update(starter, streams, rate);
  for (const uint32_t tokens : {64, 4096, 16384}) right &= time_conv(large.channels(), tokens, rate);
  for (const uint32_t tokens : {64, 4096}) right &= time_conv(starter.channels(), tokens, rate);
  for (const uint32_t streams : {1, 8, 64}) right &= time_conv_step(starter.channels(), streams, rate);
  return right;
}

}  // namespace recalld::bench
