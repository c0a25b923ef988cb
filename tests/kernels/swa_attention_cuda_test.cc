// The GPU's attention to a sliding window against its definition and its CPU twin; a stream's bits however it is cut
// and whatever else is in a call. Skipped where there is no GPU.
#include "kernels/swa_attention_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/encoder_attention.h"
#include "kernels/swa_attention.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

constexpr float eps = 1e-5f, theta = 10000;
constexpr size_t dim = cuda::swa_head_dim;

// q, k, v and the shares are rounded to bf16 on the way, which the definition does not do.
constexpr float tolerance = 3e-2f;

const SwaShape shapes[] = {{1, 1, dim, 64},  {8, 4, dim, 64},  {5, 5, dim, 64},
                           {6, 2, dim, 128}, {3, 3, dim, 256}, {8, 1, dim, 512}};

std::vector<float> widen(std::span<const Bf16> values) {
  std::vector<float> wide;
  for (const Bf16 value : values) wide.push_back(to_float(value));
  return wide;
}

// What a stream got and left behind.
struct Outcome {
  std::vector<Bf16> out;
  std::vector<float> state;

  bool operator==(const Outcome& other) const {
    return same_bits(std::span<const Bf16>(out), std::span<const Bf16>(other.out)) &&
           same_bits(std::span<const float>(state), std::span<const float>(other.state));
  }
};

// A layer on the device, and one stream's inputs.
class Layer {
 public:
  // gap: elements between the rows of qkv on the device, NaN each
  explicit Layer(const SwaShape& of, size_t gap = 0)
      : shape(of),
        q_norm(random_floats(dim, 2)),
        k_norm(random_floats(dim, 3)),
        gap_(gap),
        device_q_norm_(q_norm),
        device_k_norm_(k_norm) {
    std::vector<float> cos, sin;
    rope_table(shape.window + swa_block, dim, theta, cos, sin);
    cos_ = std::make_unique<DeviceArray<float>>(cos);
    sin_ = std::make_unique<DeviceArray<float>>(sin);
  }

  std::vector<float> inputs(size_t tokens, uint32_t seed) const {
    return random_floats(tokens * shape.qkv_width(), seed, 2);
  }
  SwaWeights weights() const { return {q_norm.data(), k_norm.data(), eps}; }
  std::vector<float> expected(const std::vector<float>& qkv) const {
    const size_t tokens = qkv.size() / shape.qkv_width();
    std::vector<float> out(tokens * shape.q_width());
    swa_attention_reference(shape, theta, qkv.data(), weights(), tokens, out.data());
    return out;
  }
  cuda::SwaAttention on_device(const DeviceArray<float>& qkv, const DeviceArray<Bf16>& k,
                               const DeviceArray<Bf16>& v) const {
    return {.qkv = qkv.data(),
            .qkv_stride = static_cast<uint32_t>(shape.qkv_width() + gap_),
            .q_norm = device_q_norm_.data(),
            .k_norm = device_k_norm_.data(),
            .cos = cos_->data(),
            .sin = sin_->data(),
            .heads = static_cast<uint32_t>(shape.heads),
            .kv_heads = static_cast<uint32_t>(shape.kv_heads),
            .window = static_cast<uint32_t>(shape.window),
            .eps = eps,
            .k = k.data(),
            .v = v.data()};
  }

  // Streams side by side, each by calls of these many tokens, the last number again and again.
  std::vector<Outcome> run(const std::vector<std::vector<float>>& streams, const std::vector<size_t>& cuts) const {
    std::vector<std::unique_ptr<DeviceArray<float>>> states;
    for (size_t i = 0; i < streams.size(); ++i)
      states.push_back(std::make_unique<DeviceArray<float>>(std::vector<float>(shape.state_floats())));
    std::vector<Outcome> outcomes(streams.size());
    const size_t width = shape.qkv_width();
    size_t longest = 0;
    for (const auto& stream : streams) longest = std::max(longest, stream.size() / width);
    for (size_t done = 0, call = 0; done < longest; ++call) {
      const size_t most = cuts[std::min(call, cuts.size() - 1)];
      std::vector<cuda::SwaStream> of_call;
      std::vector<size_t> which;
      std::vector<float> rows;
      for (size_t i = 0; i < streams.size(); ++i) {
        const size_t tokens = streams[i].size() / width, count = std::min(most, tokens - std::min(tokens, done));
        if (count == 0) continue;
        of_call.push_back(
            {states[i]->data(), static_cast<uint32_t>(rows.size() / width), static_cast<uint32_t>(count)});
        which.push_back(i);
        const auto from = streams[i].begin() + static_cast<ptrdiff_t>(done * width);
        rows.insert(rows.end(), from, from + static_cast<ptrdiff_t>(count * width));
      }
      const size_t count = rows.size() / width;
      const DeviceArray<float> qkv(with_gaps(rows));
      const DeviceArray<Bf16> k(count * shape.kv_width()), v(count * shape.kv_width()), out(count * shape.q_width());
      must(cuda::swa_attention(on_device(qkv, k, v), of_call.data(), static_cast<uint32_t>(of_call.size()), out.data(),
                               nullptr));
      const auto found = out.host();
      for (size_t i = 0; i < which.size(); ++i) {
        const auto of_stream =
            std::span(found).subspan(of_call[i].first * shape.q_width(), of_call[i].tokens * shape.q_width());
        auto& to = outcomes[which[i]].out;
        to.insert(to.end(), of_stream.begin(), of_stream.end());
      }
      done += most;
    }
    for (size_t i = 0; i < streams.size(); ++i) outcomes[i].state = states[i]->host();
    return outcomes;
  }
  Outcome run(const std::vector<float>& stream, const std::vector<size_t>& cuts) const {
    return run(std::vector<std::vector<float>>{stream}, cuts).front();
  }

  // One token of each stream, beside each other. states: of the streams
  std::vector<Bf16> step(const std::vector<float>& rows, const std::vector<DeviceArray<float>*>& states) const {
    std::vector<float*> pointers;
    for (const auto* state : states) pointers.push_back(state->data());
    const DeviceArray<float*> table(pointers);
    const DeviceArray<float> qkv(with_gaps(rows));
    const DeviceArray<Bf16> none(0), out(states.size() * shape.q_width());
    must(cuda::swa_attention_step(on_device(qkv, none, none), table.data(), static_cast<uint32_t>(states.size()),
                                  out.data(), nullptr));
    return out.host();
  }

  const SwaShape shape;
  const std::vector<float> q_norm, k_norm;

 private:
  std::vector<float> with_gaps(const std::vector<float>& rows) const {
    const size_t width = shape.qkv_width();
    std::vector<float> apart;
    for (size_t at = 0; at < rows.size(); at += width) {
      apart.insert(apart.end(), rows.begin() + static_cast<ptrdiff_t>(at),
                   rows.begin() + static_cast<ptrdiff_t>(at + width));
      apart.resize(apart.size() + gap_, NAN);
    }
    return apart;
  }

  const size_t gap_;
  const DeviceArray<float> device_q_norm_, device_k_norm_;
  std::unique_ptr<DeviceArray<float>> cos_, sin_;
};

// Keys and values of a state, without the count before them.
std::span<const float> ring_of(const std::vector<float>& state) {
  return std::span(state).subspan(swa_head_floats);
}

using SwaAttentionCuda = GpuTest;

TEST_F(SwaAttentionCuda, AgreesWithTheDefinitionAndLeavesTheStateOfTheTwin) {
  for (const SwaShape& shape : shapes) {
    const Layer layer(shape);
    const SwaAttention twin = SwaAttention::make(ProductType::f32, shape, theta);
    for (const size_t tokens :
         {size_t{1}, size_t{63}, size_t{64}, size_t{65}, shape.window + 1, 3 * shape.window + 200}) {
      SCOPED_TRACE("window " + std::to_string(shape.window) + " tokens " + std::to_string(tokens));
      const auto qkv = layer.inputs(tokens, 5);
      const Outcome found = layer.run(qkv, {tokens});
      expect_near(widen(found.out), layer.expected(qkv), tolerance);

      std::vector<float> state(shape.state_floats()), out(swa_block * shape.q_width());
      for (size_t done = 0; done < tokens; done += swa_block)
        twin.run(qkv.data() + done * shape.qkv_width(), layer.weights(), state.data(), out.data(),
                 std::min(swa_block, tokens - done));
      EXPECT_EQ(found.state[0], state[0]);
      expect_near(ring_of(found.state), ring_of(state), 1e-2f);
    }
  }
}

TEST_F(SwaAttentionCuda, BitsDependNeitherOnTheCutsNorOnOtherStreams) {
  for (const SwaShape& shape : shapes) {
    const Layer layer(shape);
    const auto qkv = layer.inputs(3 * shape.window + 230, 6);
    const Outcome whole = layer.run(qkv, {1 << 20});
    for (const auto& cuts : std::vector<std::vector<size_t>>{{64}, {128, 64, 640}, {1, 7, 50}, {shape.window + 64}})
      EXPECT_TRUE(layer.run(qkv, cuts) == whole) << "window " << shape.window << " first cut " << cuts[0];
    const auto beside = layer.run({layer.inputs(100, 7), qkv, layer.inputs(5 * shape.window, 8)}, {192});
    EXPECT_TRUE(beside[1] == whole) << "window " << shape.window;
    EXPECT_FALSE(beside[2].state == whole.state);
  }
}

TEST_F(SwaAttentionCuda, EachOfAsManyStreamsAsThereMayBeHasTheBitsItHasAlone) {
  const Layer layer({8, 4, dim, 64});
  std::vector<std::vector<float>> streams;
  for (uint32_t i = 0; i < cuda::swa_streams_max; ++i) streams.push_back(layer.inputs(1 + i * 37 % 150, 100 + i));
  const std::vector<Outcome> together = layer.run(streams, {1 << 20}), in_pieces = layer.run(streams, {40});
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_TRUE(layer.run(streams[i], {1 << 20}) == together[i]) << "stream " << i;
    EXPECT_TRUE(in_pieces[i] == together[i]) << "stream " << i;
  }
}

TEST_F(SwaAttentionCuda, RowsMayLieApart) {
  for (const SwaShape& shape : {SwaShape{1, 1, dim, 64}, SwaShape{6, 2, dim, 128}}) {
    const Layer close(shape), apart(shape, 20);
    const auto qkv = close.inputs(2 * shape.window + 100, 12), next = close.inputs(1, 13);
    const Outcome expected = close.run(qkv, {100});
    EXPECT_TRUE(apart.run(qkv, {100}) == expected) << "window " << shape.window;
    DeviceArray<float> of_close(expected.state), of_apart(expected.state), beside(expected.state);
    const auto out = close.step(next, {&of_close});
    auto twice = next;
    twice.insert(twice.end(), next.begin(), next.end());
    const auto both = apart.step(twice, {&of_apart, &beside});
    for (const size_t first : {size_t{0}, out.size()})
      EXPECT_TRUE(same_bits(std::span(out), std::span(both).subspan(first, out.size()))) << "window " << shape.window;
    for (const auto* state : {&of_apart, &beside})
      EXPECT_TRUE(same_bits<float>(state->host(), of_close.host())) << "window " << shape.window;
  }
}

// After more tokens than the ring holds.
TEST_F(SwaAttentionCuda, SingleTokensSeeAllOfTheWidestWindow) {
  const Layer layer({2, 1, dim, cuda::swa_window_max});
  const SwaShape& shape = layer.shape;
  constexpr size_t steps = 3, before = cuda::swa_window_max + swa_block + 37;
  const size_t width = shape.qkv_width();
  const auto qkv = layer.inputs(before + steps, 14);
  const auto row = [&](size_t token) { return qkv.begin() + static_cast<ptrdiff_t>(token * width); };

  const SwaAttention twin = SwaAttention::make(ProductType::f32, shape, theta);
  std::vector<float> of_twin(shape.state_floats()), expected((before + steps) * shape.q_width());
  for (size_t done = 0; done < before + steps; done += swa_block)
    twin.run(qkv.data() + done * width, layer.weights(), of_twin.data(), expected.data() + done * shape.q_width(),
             std::min(swa_block, before + steps - done));

  DeviceArray<float> state(layer.run(std::vector<float>(row(0), row(before)), {1 << 20}).state);
  std::vector<float> found;
  for (size_t i = before; i < before + steps; ++i) {
    const auto wide = widen(layer.step(std::vector<float>(row(i), row(i + 1)), {&state}));
    found.insert(found.end(), wide.begin(), wide.end());
  }
  expect_near(found, std::span(expected).subspan(before * shape.q_width()), tolerance);
  const auto stepped = state.host();
  EXPECT_EQ(stepped[0], of_twin[0]);
  expect_near(ring_of(stepped), ring_of(of_twin), 1e-2f);
}

TEST_F(SwaAttentionCuda, SingleTokensContinueTheState) {
  for (const SwaShape& shape : shapes) {
    const Layer layer(shape);
    constexpr size_t steps = 70;  // beyond a block
    const size_t width = shape.qkv_width(), read = 2 * shape.window + 100;
    for (const size_t before : {size_t{0}, size_t{40}, read}) {
      SCOPED_TRACE("window " + std::to_string(shape.window) + " after " + std::to_string(before));
      const auto qkv = layer.inputs(before + steps, 9), other = layer.inputs(steps, 10);
      const auto expected = layer.expected(qkv);
      const auto begin = std::vector<float>(qkv.begin(), qkv.begin() + static_cast<ptrdiff_t>(before * width));
      const std::vector<float> state =
          before > 0 ? layer.run(begin, {64}).state : std::vector<float>(shape.state_floats());
      DeviceArray<float> alone(state), beside(state), of_other{std::vector<float>(shape.state_floats())};
      std::vector<float> found;
      for (size_t i = 0; i < steps; ++i) {
        const auto row = [&](const std::vector<float>& of, size_t token) {
          const auto from = of.begin() + static_cast<ptrdiff_t>(token * width);
          return std::vector<float>(from, from + static_cast<ptrdiff_t>(width));
        };
        const auto out = layer.step(row(qkv, before + i), {&alone});
        auto both = row(other, i);
        const auto own = row(qkv, before + i);
        both.insert(both.end(), own.begin(), own.end());
        const auto pair = layer.step(both, {&of_other, &beside});
        ASSERT_TRUE(same_bits(std::span(out), std::span(pair).subspan(shape.q_width())));
        const auto wide = widen(out);
        found.insert(found.end(), wide.begin(), wide.end());
      }
      expect_near(found, std::span(expected).subspan(before * shape.q_width()), tolerance);
      ASSERT_TRUE(same_bits(std::span<const float>(alone.host()), std::span<const float>(beside.host())));
      const auto whole = layer.run(qkv, {64}).state, stepped = alone.host();
      EXPECT_EQ(stepped[0], whole[0]);
      expect_near(ring_of(stepped), ring_of(whole), 1e-2f);
    }
  }
}

TEST_F(SwaAttentionCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const cuda::SwaStream streams[] = {{nullptr, 0, 0}};
  const cuda::SwaAttention good{.qkv_stride = 3 * dim, .heads = 1, .kv_heads = 1, .window = 64};
  EXPECT_EQ(cuda::swa_attention(good, streams, 0, nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::swa_attention_step(good, nullptr, 0, nullptr, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::swa_attention(good, streams, 1, nullptr, nullptr), cudaErrorInvalidValue);  // without tokens
  const auto refused = [&](auto change) {
    cuda::SwaAttention bad = good;
    change(bad);
    return cuda::swa_attention(bad, streams, 0, nullptr, nullptr) == cudaErrorInvalidValue &&
           cuda::swa_attention_step(bad, nullptr, 0, nullptr, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused([](auto& bad) { bad.window = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.window = 100; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.window = cuda::swa_window_max + 64; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.heads = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.kv_heads = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.heads = 3, bad.kv_heads = 2, bad.qkv_stride = 7 * dim; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.qkv_stride = 3 * dim - 4; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.qkv_stride = 3 * dim + 2; }));
  EXPECT_EQ(cuda::swa_attention(good, streams, 65, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::swa_attention_step(good, nullptr, 65, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace recalld
