#include "kernels/encoder_attention.h"

#include <cmath>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/encoder_attention_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

#ifndef RECALLD_ENCODER_ATTENTION_INPUTS
#define RECALLD_ENCODER_ATTENTION_INPUTS
namespace recalld {

// One head's q or k.
struct RopeInput {
  const float* x;  // rows of head_dim, `stride` apart
  size_t stride;
  const float* bias;  // [head_dim] or nullptr
  const float* norm;  // [head_dim]
  const float* cos;   // [rows, head_dim / 2]
  const float* sin;
  size_t rows;
  size_t head_dim;
  float eps;
};

}  // namespace recalld
#endif

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

HWY_INLINE auto biased(Floats d, const float* x, const float* bias, size_t i) {
  const auto v = hn::LoadU(d, x + i);
  return bias ? hn::Add(v, hn::LoadU(d, bias + i)) : v;
}

template <class T>
HWY_INLINE void norm_rope(const RopeInput& in, T* out) {
  const Floats d;
  const size_t half = in.head_dim / 2;
  for (size_t row = 0; row < in.rows; ++row, out += in.head_dim) {
    const float* x = in.x + row * in.stride;
    auto squares = hn::Zero(d);
    for (size_t i = 0; i < in.head_dim; i += hn::Lanes(d)) {
      const auto v = biased(d, x, in.bias, i);
      squares = hn::MulAdd(v, v, squares);
    }
    const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(in.head_dim);
    const auto scale = hn::Set(d, 1.0f / std::sqrt(mean + in.eps));
    for (size_t i = 0; i < half; i += hn::Lanes(d)) {
      const auto a = hn::Mul(hn::Mul(biased(d, x, in.bias, i), scale), hn::LoadU(d, in.norm + i));
      const auto b = hn::Mul(hn::Mul(biased(d, x, in.bias, i + half), scale), hn::LoadU(d, in.norm + i + half));
      const auto cos = hn::LoadU(d, in.cos + row * half + i), sin = hn::LoadU(d, in.sin + row * half + i);
      store(d, hn::NegMulAdd(b, sin, hn::Mul(a, cos)), out + i);
      store(d, hn::MulAdd(a, sin, hn::Mul(b, cos)), out + i + half);
    }
  }
}

// out[row] = x[row] + bias, one head of many
template <class T>
HWY_INLINE void take_head(const float* x, size_t stride, const float* bias, size_t rows, size_t head_dim, T* out) {
  const Floats d;
  for (size_t row = 0; row < rows; ++row, x += stride, out += head_dim)
    for (size_t i = 0; i < head_dim; i += hn::Lanes(d)) store(d, biased(d, x, bias, i), out + i);
}

// out[row] = softmax(scale · scores[row]) over the first `valid` of `width` columns, 0 in the others.
template <class T>
HWY_INLINE void softmax(float* scores, size_t rows, size_t width, size_t valid, float scale, T* out) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  const auto factor = hn::Set(d, scale);
  for (size_t row = 0; row < rows; ++row, scores += width, out += width) {
    for (size_t i = valid; i < width; ++i) scores[i] = -INFINITY;
    auto top = hn::LoadU(d, scores);
    for (size_t i = lanes; i < width; i += lanes) top = hn::Max(top, hn::LoadU(d, scores + i));
    top = hn::MaxOfLanes(d, top);
    auto sum = hn::Zero(d);
    for (size_t i = 0; i < width; i += lanes) {
      const auto e = fast_exp(d, hn::Mul(factor, hn::Sub(hn::LoadU(d, scores + i), top)));
      sum = hn::Add(sum, e);
      hn::StoreU(e, d, scores + i);
    }
    const auto share = hn::Div(hn::Set(d, 1.0f), hn::SumOfLanes(d, sum));
    for (size_t i = 0; i < width; i += lanes) store(d, hn::Mul(hn::LoadU(d, scores + i), share), out + i);
  }
}

// [heads, rows, head_dim] → [rows, heads * head_dim]
template <class T>
HWY_INLINE void join_heads(const float* x, size_t heads, size_t rows, size_t head_dim, T* out) {
  const Floats d;
  for (size_t head = 0; head < heads; ++head)
    for (size_t row = 0; row < rows; ++row)
      for (size_t i = 0; i < head_dim; i += hn::Lanes(d))
        store(d, hn::LoadU(d, x + (head * rows + row) * head_dim + i), out + (row * heads + head) * head_dim + i);
}

void norm_rope_f32(const RopeInput& in, void* out) {
  norm_rope(in, static_cast<float*>(out));
}
void norm_rope_bf16(const RopeInput& in, void* out) {
  norm_rope(in, static_cast<Bf16*>(out));
}
void take_head_f32(const float* x, size_t stride, const float* bias, size_t rows, size_t head_dim, void* out) {
  take_head(x, stride, bias, rows, head_dim, static_cast<float*>(out));
}
void take_head_bf16(const float* x, size_t stride, const float* bias, size_t rows, size_t head_dim, void* out) {
  take_head(x, stride, bias, rows, head_dim, static_cast<Bf16*>(out));
}
void softmax_f32(float* scores, size_t rows, size_t width, size_t valid, float scale, void* out) {
  softmax(scores, rows, width, valid, scale, static_cast<float*>(out));
}
void softmax_bf16(float* scores, size_t rows, size_t width, size_t valid, float scale, void* out) {
  softmax(scores, rows, width, valid, scale, static_cast<Bf16*>(out));
}
void join_heads_f32(const float* x, size_t heads, size_t rows, size_t head_dim, void* out) {
  join_heads(x, heads, rows, head_dim, static_cast<float*>(out));
}
void join_heads_bf16(const float* x, size_t heads, size_t rows, size_t head_dim, void* out) {
  join_heads(x, heads, rows, head_dim, static_cast<Bf16*>(out));
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(norm_rope_f32);
HWY_EXPORT(norm_rope_bf16);
HWY_EXPORT(take_head_f32);
HWY_EXPORT(take_head_bf16);
HWY_EXPORT(softmax_f32);
HWY_EXPORT(softmax_bf16);
HWY_EXPORT(join_heads_f32);
HWY_EXPORT(join_heads_bf16);

namespace {

size_t padded(size_t rows) {
  return (rows + 15) / 16 * 16;
}

// Angle of pair i of a head at a position: position / theta^(2i / head_dim).
float rope_angle(size_t position, size_t pair, size_t head_dim, float theta) {
  return static_cast<float>(position) / std::pow(theta, static_cast<float>(2 * pair) / static_cast<float>(head_dim));
}

// Scratch of one thread; operands are bf16 or f32 by type, and sized for f32. The surplus keys stay zero.
struct Scratch {
  std::vector<float> q, k, v, scores, shares, values;

  void fit(const EncoderAttentionShape& shape, size_t keys) {
    q.resize(shape.heads * shape.rows * shape.head_dim);
    k.assign(shape.heads * keys * shape.head_dim, 0.0f);
    v.assign(shape.heads * keys * shape.head_dim, 0.0f);
    scores.resize(shape.heads * shape.rows * keys);
    shares.resize(shape.heads * shape.rows * keys);
    values.resize(shape.heads * shape.rows * shape.head_dim);
  }
};

}  // namespace

void rope_table(size_t rows, size_t head_dim, float theta, std::vector<float>& cos, std::vector<float>& sin) {
  cos.clear();
  sin.clear();
  for (size_t row = 0; row < rows; ++row) {
    for (size_t pair = 0; pair < head_dim / 2; ++pair) {
      const float angle = rope_angle(row, pair, head_dim, theta);
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
  }
}

EncoderAttention::EncoderAttention(ProductType type, EncoderAttentionShape shape, float rope_theta)
    : type_(type),
      shape_(shape),
      keys_(padded(shape.rows)),
      scores_(Product::make(type, shape.heads, shape.rows, keys_, shape.head_dim, true)),
      values_(Product::make(type, shape.heads, shape.rows, shape.head_dim, keys_, false)) {
  rope_table(shape.rows, shape.head_dim, rope_theta, cos_, sin_);
}

EncoderAttention EncoderAttention::make(ProductType type, EncoderAttentionShape shape, float rope_theta) {
  return EncoderAttention(type, shape, rope_theta);
}

void EncoderAttention::run(const float* qkv, const EncoderAttentionWeights& weights, void* out) const {
  cpu_isa();
  const bool bf16 = type_ == ProductType::bf16;
  const auto norm_rope = bf16 ? HWY_DYNAMIC_DISPATCH(norm_rope_bf16) : HWY_DYNAMIC_DISPATCH(norm_rope_f32);
  const auto take_head = bf16 ? HWY_DYNAMIC_DISPATCH(take_head_bf16) : HWY_DYNAMIC_DISPATCH(take_head_f32);
  const auto softmax = bf16 ? HWY_DYNAMIC_DISPATCH(softmax_bf16) : HWY_DYNAMIC_DISPATCH(softmax_f32);
  const auto join_heads = bf16 ? HWY_DYNAMIC_DISPATCH(join_heads_bf16) : HWY_DYNAMIC_DISPATCH(join_heads_f32);
  thread_local Scratch scratch;
  scratch.fit(shape_, keys_);

  const size_t width = shape_.width(), head_dim = shape_.head_dim, stride = 3 * width;
  const size_t operand_bytes = bf16 ? sizeof(Bf16) : sizeof(float);
  const auto at = [&](std::vector<float>& operand, size_t index) {
    return reinterpret_cast<char*>(operand.data()) + index * operand_bytes;
  };
  for (size_t head = 0; head < shape_.heads; ++head) {
    const auto part = [&](size_t which, const float* norm) {
      const size_t column = which * width + head * head_dim;
      return RopeInput{qkv + column, stride,      weights.bias ? weights.bias + column : nullptr,
                       norm,         cos_.data(), sin_.data(),
                       shape_.rows,  head_dim,    weights.eps};
    };
    norm_rope(part(0, weights.q_norm), at(scratch.q, head * shape_.rows * head_dim));
    norm_rope(part(1, weights.k_norm), at(scratch.k, head * keys_ * head_dim));
    const RopeInput v = part(2, nullptr);
    take_head(v.x, v.stride, v.bias, v.rows, head_dim, at(scratch.v, head * keys_ * head_dim));
  }
  scores_.run(scratch.q.data(), scratch.k.data(), scratch.scores.data());
  softmax(scratch.scores.data(), shape_.heads * shape_.rows, keys_, shape_.rows,
          1.0f / std::sqrt(static_cast<float>(head_dim)), scratch.shares.data());
  values_.run(scratch.shares.data(), scratch.v.data(), scratch.values.data());
  join_heads(scratch.values.data(), shape_.heads, shape_.rows, head_dim, out);
}

void encoder_attention_reference(const EncoderAttentionShape& shape, float rope_theta, const float* qkv,
                                 const EncoderAttentionWeights& weights, float* out) {
  const size_t rows = shape.rows, d = shape.head_dim, half = d / 2, width = shape.width();
  // One head's q, k (which 0, 1; normed and rotated) or v (2).
  const auto head_of = [&](size_t which, size_t head, const float* norm) {
    std::vector<float> x(rows * d);
    for (size_t row = 0; row < rows; ++row) {
      const size_t column = which * width + head * d;
      float squares = 0;
      for (size_t i = 0; i < d; ++i) {
        x[row * d + i] = qkv[row * 3 * width + column + i] + (weights.bias ? weights.bias[column + i] : 0.0f);
        squares += x[row * d + i] * x[row * d + i];
      }
      if (!norm) continue;
      const float scale = 1.0f / std::sqrt(squares / static_cast<float>(d) + weights.eps);
      for (size_t i = 0; i < half; ++i) {
        const float a = x[row * d + i] * scale * norm[i], b = x[row * d + i + half] * scale * norm[i + half];
        const float angle = rope_angle(row, i, d, rope_theta);
        x[row * d + i] = a * std::cos(angle) - b * std::sin(angle);
        x[row * d + i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    return x;
  };
  for (size_t head = 0; head < shape.heads; ++head) {
    const auto q = head_of(0, head, weights.q_norm), k = head_of(1, head, weights.k_norm),
               v = head_of(2, head, nullptr);
    for (size_t row = 0; row < rows; ++row) {
      std::vector<float> share(rows);
      float top = -INFINITY, sum = 0;
      for (size_t key = 0; key < rows; ++key) {
        for (size_t i = 0; i < d; ++i) share[key] += q[row * d + i] * k[key * d + i];
        share[key] /= std::sqrt(static_cast<float>(d));
        top = std::max(top, share[key]);
      }
      for (float& s : share) sum += s = std::exp(s - top);
      for (size_t i = 0; i < d; ++i) {
        float value = 0;
        for (size_t key = 0; key < rows; ++key) value += share[key] / sum * v[key * d + i];
        out[row * width + head * d + i] = value;
      }
    }
  }
}

}  // namespace recalld
#endif  // HWY_ONCE
