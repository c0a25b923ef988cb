// The GPU's Mamba-2 kernels against their CPU twins, over awkward shapes; the same bits however a stream is cut and
// whatever else is in a call. Skipped where there is no GPU.
#include "kernels/ssd_scan_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ssd_scan.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

std::vector<float> to_floats(std::span<const Bf16> values) {
  std::vector<float> result;
  for (const Bf16 value : values) result.push_back(to_float(value));
  return result;
}

struct Layer {
  SsdShape shape;
  std::vector<float> dt_bias, a, d;

  Layer(size_t heads, size_t state_size) : shape{heads, cuda::ssd_head_dim, state_size} {
    std::mt19937 random(7);
    for (size_t h = 0; h < heads; ++h) {
      // As Mamba-2 draws them: A in [1, 16], steps of 0.001 to 0.1.
      a.push_back(-std::uniform_real_distribution<float>(1, 16)(random));
      const float step = std::exp(std::uniform_real_distribution<float>(std::log(0.001f), std::log(0.1f))(random));
      dt_bias.push_back(std::log(std::expm1(step)));
      d.push_back(std::normal_distribution<float>(1, 0.5f)(random));
    }
  }
  size_t inner() const { return shape.heads * shape.head_dim; }
  SsdWeights weights() const { return {.dt_bias = dt_bias.data(), .a = a.data(), .d = d.data()}; }
};

// What one stream brings.
struct Tokens {
  std::vector<Bf16> xbc;
  std::vector<float> dt, state;

  Tokens(const Layer& layer, size_t count, uint32_t seed)
      : xbc(rounded(random_floats(count * layer.shape.channels(), seed))),
        dt(random_floats(count * layer.shape.heads, seed + 1)),
        state(random_floats(layer.shape.state_floats(), seed + 2)) {}
  size_t count(const Layer& layer) const { return dt.size() / layer.shape.heads; }
};

struct Scanned {
  std::vector<float> y, state;  // y: [tokens, inner]
};

// By the recurrence, in f32. It takes 64 tokens at a time: those that a last block lacks get a step of 0.
Scanned on_cpu(const Layer& layer, const Tokens& tokens) {
  const size_t heads = layer.shape.heads, channels = layer.shape.channels(), count = tokens.count(layer);
  Scanned result{.y = std::vector<float>(count * layer.inner()), .state = tokens.state};
  for (size_t first = 0; first < count; first += ssd_block) {
    const size_t rows = std::min(ssd_block, count - first);
    std::vector<float> xbc(ssd_block * channels), dt(ssd_block * heads, -1e9f), y(ssd_block * layer.inner());
    for (size_t i = 0; i < rows * channels; ++i) xbc[i] = to_float(tokens.xbc[first * channels + i]);
    std::copy_n(tokens.dt.begin() + first * heads, rows * heads, dt.begin());
    ssd_scan_reference(layer.shape, xbc.data(), dt.data(), heads, layer.weights(), result.state.data(), y.data());
    for (size_t t = 0; t < rows; ++t)
      for (size_t h = 0; h < heads; ++h)
        std::copy_n(y.begin() + (h * ssd_block + t) * layer.shape.head_dim, layer.shape.head_dim,
                    result.y.begin() + (first + t) * layer.inner() + h * layer.shape.head_dim);
  }
  return result;
}

// All streams in one call, with a row that belongs to none before each; or in several, cut after `cut` tokens each.
std::vector<Scanned> on_gpu(const Layer& layer, const std::vector<Tokens>& streams, size_t cut = ~size_t{0}) {
  const size_t heads = layer.shape.heads, channels = layer.shape.channels(), stride = heads + 3;
  std::vector<Bf16> xbc;
  std::vector<float> dt;
  std::vector<uint32_t> first;
  std::vector<std::unique_ptr<DeviceArray<float>>> states;
  size_t tokens_in_all = 0, longest = 0;
  for (const Tokens& tokens : streams) {
    xbc.resize(xbc.size() + channels, to_bf16(NAN));
    dt.resize(dt.size() + stride, NAN);
    first.push_back(static_cast<uint32_t>(xbc.size() / channels));
    xbc.insert(xbc.end(), tokens.xbc.begin(), tokens.xbc.end());
    for (size_t t = 0; t < tokens.count(layer); ++t) {
      dt.insert(dt.end(), tokens.dt.begin() + t * heads, tokens.dt.begin() + (t + 1) * heads);
      dt.insert(dt.end(), stride - heads, NAN);
    }
    states.push_back(std::make_unique<DeviceArray<float>>(std::span<const float>(tokens.state)));
    tokens_in_all += tokens.count(layer);
    longest = std::max(longest, tokens.count(layer));
  }
  xbc.resize(xbc.size() + channels, to_bf16(NAN));
  const DeviceArray<Bf16> device_xbc(xbc), y(xbc.size() / channels * layer.inner());
  const DeviceArray<float> device_dt(dt), dt_bias(layer.dt_bias), a(layer.a), d(layer.d);
  const DeviceArray<std::byte> workspace(
      cuda::ssd_scan_workspace(static_cast<uint32_t>(heads), static_cast<uint32_t>(layer.shape.state_size),
                               tokens_in_all, static_cast<uint32_t>(streams.size())));
  for (size_t begin = 0; begin < longest;) {
    const size_t end = cut < longest - begin ? begin + cut : longest;
    std::vector<cuda::SsdStream> parts;
    for (size_t i = 0; i < streams.size(); ++i) {
      const size_t count = streams[i].count(layer);
      if (count <= begin) continue;
      parts.push_back({.state = states[i]->data(),
                       .first = first[i] + static_cast<uint32_t>(begin),
                       .tokens = static_cast<uint32_t>(std::min(count, end) - begin)});
    }
    must(cuda::ssd_scan({.xbc = device_xbc.data(),
                         .dt = device_dt.data(),
                         .dt_stride = static_cast<uint32_t>(stride),
                         .dt_bias = dt_bias.data(),
                         .a = a.data(),
                         .d = d.data(),
                         .y = y.data(),
                         .heads = static_cast<uint32_t>(heads),
                         .state_size = static_cast<uint32_t>(layer.shape.state_size),
                         .streams = parts.data(),
                         .stream_count = static_cast<uint32_t>(parts.size()),
                         .workspace = workspace.data()},
                        nullptr));
    begin = end;
  }
  must(cudaDeviceSynchronize());
  const std::vector<float> all = to_floats(y.host());
  std::vector<Scanned> result;
  for (size_t i = 0; i < streams.size(); ++i) {
    const auto* const from = all.data() + first[i] * layer.inner();
    result.push_back(
        {.y = std::vector<float>(from, from + streams[i].count(layer) * layer.inner()), .state = states[i]->host()});
    for (size_t p = 0; p < layer.inner(); ++p)  // the row before was left alone
      EXPECT_TRUE(std::isnan(all[(first[i] - 1) * layer.inner() + p]));
  }
  return result;
}

void expect_same(const Scanned& a, const Scanned& b) {
  EXPECT_TRUE(same_bits<float>(a.y, b.y));
  EXPECT_TRUE(same_bits<float>(a.state, b.state));
}

using SsdScanCuda = GpuTest;

TEST_F(SsdScanCuda, IsNearTheRecurrence) {
  for (const size_t state_size : {64, 128})
    for (const size_t heads : {1, 5, 12})
      for (const size_t count : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 500}) {
        SCOPED_TRACE("state " + std::to_string(state_size) + " heads " + std::to_string(heads) + " tokens " +
                     std::to_string(count));
        const Layer layer(heads, state_size);
        const std::vector<Tokens> streams{Tokens(layer, count, static_cast<uint32_t>(count))};
        const Scanned expected = on_cpu(layer, streams[0]), found = on_gpu(layer, streams)[0];
        expect_near(found.y, expected.y, 2e-2f);
        expect_near(found.state, expected.state, 2e-2f);
      }
}

TEST_F(SsdScanCuda, ErrorsDoNotGrowOverManyBlocks) {
  const Layer layer(2, 128);
  const std::vector<Tokens> streams{Tokens(layer, 20'000, 3)};  // more than one window
  const Scanned expected = on_cpu(layer, streams[0]), found = on_gpu(layer, streams)[0];
  expect_near(found.y, expected.y, 2e-2f);
  expect_near(found.state, expected.state, 2e-2f);
}

TEST_F(SsdScanCuda, ExtremeStepsStayFinite) {
  const Layer layer(4, 64);
  std::vector<Tokens> streams{Tokens(layer, 200, 5)};
  std::mt19937 random(6);
  const float extremes[] = {-200.0f, -30.0f, 0.0f, 10.0f, 25.0f};
  for (float& step : streams[0].dt) step = extremes[random() % std::size(extremes)];
  const Scanned expected = on_cpu(layer, streams[0]), found = on_gpu(layer, streams)[0];
  expect_near(found.y, expected.y, 2e-2f);
  expect_near(found.state, expected.state, 2e-2f);
}

TEST_F(SsdScanCuda, HasTheSameBitsHoweverAStreamIsCut) {
  for (const size_t state_size : {64, 128}) {
    const Layer layer(3, state_size);
    const std::vector<Tokens> streams{Tokens(layer, 7 * 64 + 21, 11)};
    const Scanned whole = on_gpu(layer, streams)[0];
    for (const size_t cut : {64, 128, 192, 448}) expect_same(on_gpu(layer, streams, cut)[0], whole);
  }
  const Layer layer(2, 64);
  const std::vector<Tokens> streams{Tokens(layer, 300 * 64 + 1, 12)};  // more than one window
  expect_same(on_gpu(layer, streams, 100 * 64)[0], on_gpu(layer, streams)[0]);
}

TEST_F(SsdScanCuda, HasTheSameBitsInABatch) {
  const Layer layer(12, 128);
  std::vector<Tokens> streams;
  for (uint32_t i = 0; i < 60; ++i) streams.emplace_back(layer, 1 + i * 37 % 450, 100 + i);
  const std::vector<Scanned> together = on_gpu(layer, streams), in_pieces = on_gpu(layer, streams, 128);
  for (size_t i = 0; i < streams.size(); ++i) {
    SCOPED_TRACE("stream " + std::to_string(i));
    expect_same(in_pieces[i], together[i]);
    if (i % 7 == 0) expect_same(on_gpu(layer, {streams[i]})[0], together[i]);
  }
}

// A thread block of the last kernel has 4 or 2 heads where those fill the card, and one otherwise. 256 blocks of tokens
// (64 streams of 4, the last of which are not full) fill 81 to 144 multiprocessors: 19 heads by 2, 35 by 4, and
// the last group has one less than the others. A stream alone has a thread block for each head.
TEST_F(SsdScanCuda, SeveralHeadsOfAThreadBlockAreNearTheRecurrenceAndHaveTheBitsOfOne) {
  for (const auto& [heads, state_size] : std::vector<std::pair<size_t, size_t>>{{19, 64}, {35, 128}}) {
    const Layer layer(heads, state_size);
    std::vector<Tokens> streams;
    for (uint32_t i = 0; i < 16; ++i) streams.emplace_back(layer, 193 + i * 29 % 64, 200 + 3 * i);
    for (size_t i = streams.size(); i < cuda::ssd_streams_max; ++i) streams.push_back(streams[i % 16]);
    const std::vector<Scanned> together = on_gpu(layer, streams);
    for (size_t i = 0; i < streams.size(); ++i) {
      SCOPED_TRACE("heads " + std::to_string(heads) + " state " + std::to_string(state_size) + " stream " +
                   std::to_string(i));
      if (i >= 16) {
        expect_same(together[i], together[i % 16]);
        continue;
      }
      expect_same(on_gpu(layer, {streams[i]})[0], together[i]);
      if (i % 8 != 0) continue;
      const Scanned expected = on_cpu(layer, streams[i]);
      expect_near(together[i].y, expected.y, 2e-2f);
      expect_near(together[i].state, expected.state, 2e-2f);
    }
  }
}

TEST_F(SsdScanCuda, LaterTokensDoNotChangeY) {
  const Layer layer(2, 128);
  const Tokens longer(layer, 100, 21);
  Tokens shorter = longer;
  shorter.xbc.resize(70 * layer.shape.channels());
  shorter.dt.resize(70 * layer.shape.heads);
  const std::vector<float> y = on_gpu(layer, {longer})[0].y;
  EXPECT_TRUE(same_bits<float>(on_gpu(layer, {shorter})[0].y, std::span(y).first(70 * layer.inner())));
}

TEST_F(SsdScanCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const cuda::SsdStream streams[2] = {{.tokens = 1}, {.tokens = 0}};
  EXPECT_EQ(cuda::ssd_scan({.heads = 1, .state_size = 32, .streams = streams, .stream_count = 1}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_scan({.heads = 0, .state_size = 64, .streams = streams, .stream_count = 1}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_scan({.heads = 1, .state_size = 64, .streams = streams, .stream_count = 2}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_scan({.heads = 1, .state_size = 64, .streams = streams, .stream_count = 0}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_scan({.heads = 1, .state_size = 64, .streams = streams, .stream_count = 65}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_state_update({.heads = 1, .state_size = 96, .count = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_state_update({.heads = 1, .state_size = 64, .count = 65}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::ssd_state_update({.heads = 1, .state_size = 64, .count = 0}, nullptr), cudaSuccess);
}

TEST_F(SsdScanCuda, OneTokenIsNearTheRecurrence) {
  for (const size_t state_size : {64, 128})
    for (const size_t heads : {1, 12})
      for (const size_t count : {1, 3, 64}) {
        SCOPED_TRACE("state " + std::to_string(state_size) + " heads " + std::to_string(heads) + " streams " +
                     std::to_string(count));
        const Layer layer(heads, state_size);
        const size_t channels = layer.shape.channels(), cells = layer.shape.state_floats();
        const auto xbc = random_floats(count * channels, 31), dt = random_floats(count * heads, 32);
        auto state = random_floats(count * cells, 33);
        const DeviceArray<float> device_xbc(xbc), device_dt(dt), device_state(state);
        const DeviceArray<float> dt_bias(layer.dt_bias), a(layer.a), d(layer.d), y(count * layer.inner());
        std::vector<float*> table;
        for (size_t i = 0; i < count; ++i) table.push_back(device_state.data() + (count - 1 - i) * cells);
        const DeviceArray<float*> device_table(table);
        must(cuda::ssd_state_update({.xbc = device_xbc.data(),
                                     .dt = device_dt.data(),
                                     .dt_stride = static_cast<uint32_t>(heads),
                                     .dt_bias = dt_bias.data(),
                                     .a = a.data(),
                                     .d = d.data(),
                                     .states = device_table.data(),
                                     .y = y.data(),
                                     .heads = static_cast<uint32_t>(heads),
                                     .state_size = static_cast<uint32_t>(state_size),
                                     .count = static_cast<uint32_t>(count)},
                                    nullptr));
        std::vector<float> expected(count * layer.inner());
        for (size_t i = 0; i < count; ++i)
          ssd_state_update_cpu(layer.shape, xbc.data() + i * channels, dt.data() + i * heads, layer.weights(),
                               state.data() + (count - 1 - i) * cells, expected.data() + i * layer.inner());
        expect_near(y.host(), expected, 1e-5f);
        expect_near(device_state.host(), state, 1e-5f);
      }
}

}  // namespace
}  // namespace recalld
