// A model on a GPU and its twin on the CPU, and streams that either encodes. Skipped where there is no GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/gpu_ramba.h"
#include "model/ramba.h"
#include "model/weights.h"
#include "tests/support/checkpoints.h"
#include "tests/support/device_array.h"

namespace recalld {

template <class T>
T must_have(Expected<T> value) {
  if (!value) throw std::runtime_error(value.error().message);
  if constexpr (!std::is_void_v<T>) return *std::move(value);
}

// What a stream leaves behind, as stored.
struct Encoding {
  std::vector<Bf16> landmarks;
  std::vector<std::byte> kv;
  std::string state;

  bool operator==(const Encoding& other) const {
    return same_bits(std::span<const Bf16>(landmarks), std::span<const Bf16>(other.landmarks)) && kv == other.kv &&
           state == other.state;
  }
};

class GpuRambaTest : public GpuTest {
 protected:
  static constexpr size_t chunk_size = 64;
  static constexpr float tolerance = 2e-2f;             // across devices
  static constexpr uint64_t roomy = uint64_t{1} << 30;  // a budget

  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    cpu_ = must_have(Ramba::open(model_, Precision::f32, Parts::all, pool_));
  }

  std::unique_ptr<Gpu> open(uint64_t budget_bytes) const {
    return must_have(open_gpu_ramba({.model = model_, .budget_bytes = budget_bytes, .encode_states = 32}));
  }

  // The least budget that opens, with few slots.
  uint64_t least_budget() const {
    const auto refused = open_gpu_ramba({.model = model_, .budget_bytes = 1 << 20, .encode_states = 8});
    if (refused) throw std::runtime_error("a budget of 1 MiB was taken");
    const std::string &message = refused.error().message, advice = "raise --gpu-budget to ";
    const size_t found = message.find(advice);
    if (found == std::string::npos) throw std::runtime_error(message);
    return std::stoull(message.substr(found + advice.size())) << 20;
  }

  // Words that the model knows, beginning at this one.
  static std::vector<uint32_t> text_tokens(size_t count, size_t first) {
    const auto golden = must_have(Weights::open(golden_files("default") / "golden.safetensors"));
    const auto ids = must_have(golden.all_ints("input_ids"));
    std::vector<uint32_t> tokens(count);
    for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<uint32_t>(ids[(first + i) % ids.size()]);
    return tokens;
  }
  static std::vector<uint32_t> random_tokens(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint32_t> tokens(count);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % 8192);
    return tokens;
  }

  Encoding room_for(size_t chunks) const {
    return {std::vector<Bf16>(chunks * cpu_->landmark_dim()), std::vector<std::byte>(chunks * cpu_->kv_bytes()), {}};
  }

  Gpu::Segment segment(Encoding& into, RecurrentState& state, std::span<const uint32_t> tokens, size_t first,
                       size_t count) const {
    return {.state = &state,
            .tokens = tokens.subspan(first * chunk_size, count * chunk_size),
            .landmarks = std::span(into.landmarks).subspan(first * cpu_->landmark_dim(), count * cpu_->landmark_dim()),
            .kv = std::span(into.kv).subspan(first * cpu_->kv_bytes(), count * cpu_->kv_bytes())};
  }

  // One stream alone, in segments of these many chunks, the last number again and again.
  Encoding encode(Gpu& gpu, std::span<const uint32_t> tokens, const std::vector<size_t>& cuts) const {
    const size_t chunks = tokens.size() / chunk_size;
    Encoding out = room_for(chunks);
    RecurrentState state = must_have(gpu.zero_state());
    for (size_t first = 0, call = 0; first < chunks; ++call) {
      const size_t count = std::min(chunks - first, cuts[std::min(call, cuts.size() - 1)]);
      must_have(gpu.encode(std::array{segment(out, state, tokens, first, count)}));
      first += count;
    }
    out.state = must_have(gpu.bytes_of(state));
    return out;
  }

  // The same stream on the CPU.
  Encoding encode_on_cpu(std::span<const uint32_t> tokens) const {
    const size_t chunks = tokens.size() / chunk_size;
    RecurrentState state = cpu_->lower_zero_state();
    std::vector<float> hidden(tokens.size() * cpu_->config().hidden_size);
    cpu_->lower(state, tokens, hidden);
    Encoding out = room_for(chunks);
    const auto encoded = cpu_->encode_chunks(hidden);
    for (size_t i = 0; i < chunks; ++i) {
      const auto landmark = cpu_->pack_landmark(encoded[i]);
      std::ranges::copy(landmark, out.landmarks.begin() + static_cast<ptrdiff_t>(i * cpu_->landmark_dim()));
      cpu_->pack_kv(encoded[i], std::span(out.kv).subspan(i * cpu_->kv_bytes(), cpu_->kv_bytes()));
    }
    out.state.assign(reinterpret_cast<const char*>(state.values.data()), state.values.size() * sizeof(float));
    return out;
  }

  static std::vector<float> floats(std::span<const Bf16> values) {
    std::vector<float> result(values.size());
    std::ranges::transform(values, result.begin(), to_float);
    return result;
  }
  static std::vector<float> floats(const std::vector<std::byte>& values) {
    return floats(std::span(reinterpret_cast<const Bf16*>(values.data()), values.size() / sizeof(Bf16)));
  }
  static std::vector<float> floats(const std::string& state) {
    std::vector<float> result(state.size() / sizeof(float));
    std::memcpy(result.data(), state.data(), state.size());
    return result;
  }

  std::filesystem::path model_ = default_checkpoint();
  WorkerPool pool_{2};
  std::unique_ptr<Ramba> cpu_;
};

}  // namespace recalld
