// The GPU's convolution against its CPU twin, over awkward shapes. Skipped where there is no GPU.
#include "kernels/conv1d_silu_cuda.h"

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "kernels/conv1d_silu.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

using Conv1dSiluCuda = GpuTest;

void convolve(const cuda::Conv1dSilu& conv, std::span<const cuda::ConvStream> streams, float* y) {
  must(cuda::conv1d_silu(conv, streams.data(), static_cast<uint32_t>(streams.size()), y, nullptr));
}
void convolve(const cuda::Conv1dSilu& conv, std::span<const cuda::ConvStream> streams, Bf16* y) {
  must(cuda::conv1d_silu(conv, streams.data(), static_cast<uint32_t>(streams.size()), y, nullptr));
}
std::vector<float> floats_of(const std::vector<float>& values) {
  return values;
}
std::vector<float> floats_of(const std::vector<Bf16>& values) {
  std::vector<float> wide;
  for (const Bf16 value : values) wide.push_back(to_float(value));
  return wide;
}

// Streams of these lengths in one call, each against the twin, which reads a stream's history as the rows before it.
template <class T>
void expect_conv_parity(size_t channels, size_t taps, const std::vector<size_t>& lengths, float tolerance) {
  const size_t stride = channels + 8, held = taps - 1;
  const auto weight = random_floats(taps * channels, 41), bias = random_floats(channels, 42);
  size_t rows = 0;
  for (const size_t length : lengths) rows += length + held;  // those before a stream's first are its history
  const auto input = random_floats(rows * stride, 43);
  std::vector<float> histories;
  for (size_t first = 0; const size_t length : lengths) {
    for (size_t k = 0; k < held; ++k)
      histories.insert(histories.end(), input.begin() + (first + k) * stride,
                       input.begin() + (first + k) * stride + channels);
    first += length + held;
  }
  const DeviceArray<float> device_input(input), device_weight(weight), device_bias(bias), device_histories(histories);
  const DeviceArray<T> y(rows * channels);
  std::vector<cuda::ConvStream> streams;
  for (uint32_t first = 0; const size_t length : lengths) {
    streams.push_back({.history = device_histories.data() + streams.size() * held * channels,
                       .first = first + static_cast<uint32_t>(held),
                       .tokens = static_cast<uint32_t>(length)});
    first += static_cast<uint32_t>(length + held);
  }
  convolve({.input = device_input.data(),
            .input_stride = static_cast<uint32_t>(stride),
            .weight = device_weight.data(),
            .bias = device_bias.data(),
            .channels = static_cast<uint32_t>(channels),
            .taps = static_cast<uint32_t>(taps)},
           streams, y.data());
  const std::vector<float> found = floats_of(y.host()), found_histories = device_histories.host();
  for (size_t i = 0; i < lengths.size(); ++i) {
    SCOPED_TRACE("channels " + std::to_string(channels) + " taps " + std::to_string(taps) + " rows " +
                 std::to_string(lengths[i]));
    const size_t first = streams[i].first, count = lengths[i] + held;
    std::vector<float> history(held * channels), expected(count * channels);
    conv1d_silu_cpu(input.data() + (first - held) * stride, stride, count, channels, taps, weight.data(), bias.data(),
                    history.data(), expected.data());
    expect_near(std::span(found).subspan(first * channels, lengths[i] * channels),
                std::span<const float>(expected).subspan(held * channels), tolerance);
    EXPECT_TRUE(same_bits<float>(std::span(found_histories).subspan(i * held * channels, held * channels), history));
  }
}

TEST_F(Conv1dSiluCuda, IsNearItsTwin) {
  const std::vector<size_t> lengths{1, 2, 3, 4, 15, 16, 17, 18, 19, 63, 64, 65, 1000};
  for (const size_t taps : {2, 3, 4})
    for (const size_t channels : {16, 896, 2304}) {
      expect_conv_parity<float>(channels, taps, lengths, 1e-5f);
      expect_conv_parity<Bf16>(channels, taps, lengths, 8e-3f);
    }
}

TEST_F(Conv1dSiluCuda, AStepHasTheBitsOfALongerCall) {
  const size_t channels = 896, taps = 4, count = 9;
  const auto weight = random_floats(taps * channels, 51), bias = random_floats(channels, 52);
  const auto input = random_floats(count * channels, 53), histories = random_floats(2 * 3 * channels, 54);
  const DeviceArray<float> device_input(input), device_weight(weight), device_bias(bias);
  const DeviceArray<float> whole_history(histories), step_history(histories);
  const DeviceArray<Bf16> whole(count * channels), stepwise(count * channels);
  cuda::Conv1dSilu conv{.input = device_input.data(),
                        .input_stride = channels,
                        .weight = device_weight.data(),
                        .bias = device_bias.data(),
                        .channels = channels,
                        .taps = taps};
  const cuda::ConvStream stream{.history = whole_history.data(), .first = 0, .tokens = count};
  must(cuda::conv1d_silu(conv, &stream, 1, whole.data(), nullptr));
  const std::vector<float*> table{step_history.data()};
  const DeviceArray<float*> device_table(table);
  for (size_t t = 0; t < count; ++t) {
    conv.input = device_input.data() + t * channels;
    must(cuda::conv1d_silu_step(conv, device_table.data(), 1, stepwise.data() + t * channels, nullptr));
  }
  EXPECT_TRUE(same_bits<Bf16>(whole.host(), stepwise.host()));
  EXPECT_TRUE(same_bits<float>(whole_history.host(), step_history.host()));
}

TEST_F(Conv1dSiluCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const cuda::ConvStream conv{.tokens = 1};
  float* const y = nullptr;
  EXPECT_EQ(cuda::conv1d_silu({.channels = 6, .taps = 4}, &conv, 1, y, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::conv1d_silu({.channels = 8, .taps = 5}, &conv, 1, y, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::conv1d_silu_step({.channels = 8, .taps = 1}, nullptr, 1, y, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace recalld
