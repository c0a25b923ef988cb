#include "kernels/hsa_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace recalld {
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

void chunk_weights_cpu(bool use_softmax, std::span<const float> scores, std::span<float> weights) {
  if (scores.empty()) return;
  std::ranges::copy(scores, weights.begin());
  if (use_softmax) return softmax(weights.first(scores.size()));
  float broken = 0;  // Σ softplus of the newer chunks' scores and this one's
  for (size_t i = 0; i < scores.size(); ++i) {
    broken += std::max(scores[i], 0.0f) + std::log1p(std::exp(-std::abs(scores[i])));
    weights[i] = std::exp(scores[i] - broken);
  }
}

}  // namespace recalld
