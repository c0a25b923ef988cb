#include "kernels/hsa_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/hsa_attention_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

// o += weight · softmax(q · Kᵀ / √head_dim) · V for one chunk. Each row of K and of V is widened once for all heads.
// row: [head_dim] and shares: [heads, tokens] are scratch; tokens % 16 == 0
void attend(const HsaShape& shape, const float* q, const HsaStoredChunk& chunk, float* row, float* shares, float* o) {
  const Floats d;
  const size_t width = shape.head_dim, lanes = hn::Lanes(d);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (size_t token = 0; token < shape.tokens; ++token) {
    for (size_t i = 0; i < width; i += lanes) hn::StoreU(load(d, chunk.k + token * shape.stride + i), d, row + i);
    for (size_t head = 0; head < shape.heads; ++head) {
      auto sum = hn::Zero(d);
      for (size_t i = 0; i < width; i += lanes)
        sum = hn::MulAdd(hn::LoadU(d, q + head * width + i), hn::LoadU(d, row + i), sum);
      shares[head * shape.tokens + token] = scale * hn::GetLane(hn::SumOfLanes(d, sum));
    }
  }
  for (size_t head = 0; head < shape.heads; ++head) {
    float* of_head = shares + head * shape.tokens;
    const auto top = hn::Set(d, *std::max_element(of_head, of_head + shape.tokens));
    auto total = hn::Zero(d);
    for (size_t t = 0; t < shape.tokens; t += lanes) {
      const auto share = fast_exp(d, hn::Sub(hn::LoadU(d, of_head + t), top));
      hn::StoreU(share, d, of_head + t);
      total = hn::Add(total, share);
    }
    const auto factor = hn::Set(d, chunk.weight / hn::GetLane(hn::SumOfLanes(d, total)));
    for (size_t t = 0; t < shape.tokens; t += lanes)
      hn::StoreU(hn::Mul(factor, hn::LoadU(d, of_head + t)), d, of_head + t);
  }
  for (size_t token = 0; token < shape.tokens; ++token) {
    for (size_t i = 0; i < width; i += lanes) hn::StoreU(load(d, chunk.v + token * shape.stride + i), d, row + i);
    for (size_t head = 0; head < shape.heads; ++head) {
      const auto share = hn::Set(d, shares[head * shape.tokens + token]);
      float* out = o + head * width;
      for (size_t i = 0; i < width; i += lanes)
        hn::StoreU(hn::MulAdd(share, hn::LoadU(d, row + i), hn::LoadU(d, out + i)), d, out + i);
    }
  }
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(attend);

namespace {

// shares = e^(shares - max), divided by their sum
void softmax(std::span<float> shares) {
  const float top = *std::ranges::max_element(shares);
  float sum = 0;
  for (float& share : shares) sum += share = std::exp(share - top);
  for (float& share : shares) share /= sum;
}

}  // namespace

void hsa_shares_cpu(const HsaShape& shape, const float* q, const float* k, float* shares) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  for (size_t head = 0; head < shape.heads; ++head, q += shape.head_dim, shares += shape.tokens) {
    for (size_t token = 0; token < shape.tokens; ++token) {
      float dot = 0;
      for (size_t i = 0; i < shape.head_dim; ++i) dot += q[i] * k[token * shape.stride + i];
      shares[token] = dot * scale;
    }
    softmax({shares, shape.tokens});
  }
}

void hsa_attention_cpu(const HsaShape& shape, const float* q, std::span<const HsaChunk> chunks, float* o) {
  std::vector<float> shares(shape.heads * shape.tokens);
  std::fill_n(o, shape.heads * shape.head_dim, 0.0f);
  for (const HsaChunk& chunk : chunks) {
    hsa_shares_cpu(shape, q, chunk.k, shares.data());
    for (size_t head = 0; head < shape.heads; ++head) {
      float* out = o + head * shape.head_dim;
      for (size_t token = 0; token < shape.tokens; ++token) {
        const float share = chunk.weight * shares[head * shape.tokens + token];
        for (size_t i = 0; i < shape.head_dim; ++i) out[i] += share * chunk.v[token * shape.stride + i];
      }
    }
  }
}

void hsa_attention_cpu(const HsaShape& shape, const float* q, std::span<const HsaStoredChunk> chunks, float* o) {
  cpu_isa();
  thread_local std::vector<float> row, shares;
  row.resize(shape.head_dim);
  shares.resize(shape.heads * shape.tokens);
  std::fill_n(o, shape.heads * shape.head_dim, 0.0f);
  for (const HsaStoredChunk& chunk : chunks)
    HWY_DYNAMIC_DISPATCH(attend)(shape, q, chunk, row.data(), shares.data(), o);
}

void chunk_weights_cpu(const ChunkWeighting& how, std::span<const float> scores, std::span<float> weights) {
  if (scores.empty()) return;
  weights = weights.first(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) weights[i] = scores[i] + static_cast<float>(i) * how.pos_decay;
  if (how.softmax) return softmax(weights);
  const bool relative = how.stick_slope > 0;
  if (relative) {
    const float best = *std::ranges::max_element(weights);
    for (float& weight : weights) weight = how.stick_slope * (weight - best + how.stick_margin);
  }
  float broken = 0;  // Σ softplus of the newer chunks' scores and this one's
  for (float& weight : weights) {
    const float score = weight;
    broken += std::max(score, 0.0f) + std::log1p(std::exp(-std::abs(score)));
    weight = std::exp(score - broken);
  }
  if (!relative) return;
  const float sum = std::accumulate(weights.begin(), weights.end(), 0.0f);
  for (float& weight : weights) weight /= sum;
}

}  // namespace recalld
#endif  // HWY_ONCE
