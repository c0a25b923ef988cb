#include "kernels/swa_attention.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "kernels/cpu_isa.h"
#include "kernels/elementwise.h"
#include "kernels/encoder_attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/swa_attention_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

#ifndef RECALLD_SWA_ATTENTION_INPUTS
#define RECALLD_SWA_ATTENTION_INPUTS
namespace recalld {

// Scores of some blocks of keys, oldest first: [blocks, rows, 64], where row r asks for token r % 64 of its block.
struct SwaScores {
  size_t blocks;
  size_t rows;
  bool from_window;  // whether the first block is as far behind as the window reaches
  float scale;
};

}  // namespace recalld
#endif

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

// out = RMSNorm(x). x: rows of `width`, `stride` apart · out: [rows, width]
void norm_rows(const float* x, size_t stride, const float* weight, size_t rows, size_t width, float eps, float* out) {
  const Floats d;
  for (size_t row = 0; row < rows; ++row, x += stride, out += width) {
    auto squares = hn::Zero(d);
    for (size_t i = 0; i < width; i += hn::Lanes(d)) {
      const auto v = hn::LoadU(d, x + i);
      squares = hn::MulAdd(v, v, squares);
    }
    const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(width);
    const auto scale = hn::Set(d, 1.0f / std::sqrt(mean + eps));
    for (size_t i = 0; i < width; i += hn::Lanes(d))
      hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), scale), hn::LoadU(d, weight + i)), d, out + i);
  }
}

// x: [rows, width], may be out · cos, sin: [rows, width / 2]
template <class T>
HWY_INLINE void rotate_rows(const float* x, size_t rows, size_t width, const float* cos, const float* sin, T* out) {
  const Floats d;
  const size_t half = width / 2;
  for (size_t row = 0; row < rows; ++row, x += width, cos += half, sin += half, out += width) {
    for (size_t i = 0; i < half; i += hn::Lanes(d)) {
      const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + half);
      const auto c = hn::LoadU(d, cos + i), s = hn::LoadU(d, sin + i);
      store(d, hn::NegMulAdd(b, s, hn::Mul(a, c)), out + i);
      store(d, hn::MulAdd(a, s, hn::Mul(b, c)), out + i + half);
    }
  }
}

// Softmax over the keys that a row may see: its own token's and those of the window before it.
template <class T>
HWY_INLINE void softmax_rows(const SwaScores& in, float* scores, T* shares) {
  const Floats d;
  const size_t lanes = hn::Lanes(d), apart = in.rows * swa_block;
  const auto factor = hn::Set(d, in.scale);
  for (size_t row = 0; row < in.rows; ++row) {
    float* const first = scores + row * swa_block;
    float* const last = first + (in.blocks - 1) * apart;
    const size_t token = row % swa_block;
    if (in.from_window) std::fill_n(first, token, -INFINITY);
    std::fill(last + token + 1, last + swa_block, -INFINITY);
    auto top = hn::Set(d, -INFINITY);
    for (float* block = first; block <= last; block += apart)
      for (size_t i = 0; i < swa_block; i += lanes) top = hn::Max(top, hn::LoadU(d, block + i));
    top = hn::MaxOfLanes(d, top);
    auto sum = hn::Zero(d);
    for (float* block = first; block <= last; block += apart) {
      for (size_t i = 0; i < swa_block; i += lanes) {
        const auto e = fast_exp(d, hn::Mul(factor, hn::Sub(hn::LoadU(d, block + i), top)));
        sum = hn::Add(sum, e);
        hn::StoreU(e, d, block + i);
      }
    }
    const auto share = hn::Div(hn::Set(d, 1.0f), hn::SumOfLanes(d, sum));
    T* out = shares + row * swa_block;
    for (float* block = first; block <= last; block += apart, out += apart)
      for (size_t i = 0; i < swa_block; i += lanes) store(d, hn::Mul(hn::LoadU(d, block + i), share), out + i);
  }
}

// x: [heads, 64, width], of which `rows` from `first` on · out: [rows, heads * width]
template <class T>
HWY_INLINE void join_heads(const float* x, size_t heads, size_t first, size_t rows, size_t width, T* out) {
  const Floats d;
  for (size_t head = 0; head < heads; ++head)
    for (size_t row = 0; row < rows; ++row)
      for (size_t i = 0; i < width; i += hn::Lanes(d))
        store(d, hn::LoadU(d, x + (head * swa_block + first + row) * width + i),
              out + (row * heads + head) * width + i);
}

// scores[row] = q · k_row
void dot_rows(const float* q, const float* k, size_t rows, size_t width, float* scores) {
  const Floats d;
  for (size_t row = 0; row < rows; ++row, k += width) {
    auto sum = hn::Zero(d);
    for (size_t i = 0; i < width; i += hn::Lanes(d)) sum = hn::MulAdd(hn::LoadU(d, q + i), hn::LoadU(d, k + i), sum);
    scores[row] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

// out += Σ shares[row] · v_row
void add_rows(const float* shares, const float* v, size_t rows, size_t width, float* out) {
  const Floats d;
  for (size_t row = 0; row < rows; ++row, v += width) {
    const auto share = hn::Set(d, shares[row]);
    for (size_t i = 0; i < width; i += hn::Lanes(d))
      hn::StoreU(hn::MulAdd(share, hn::LoadU(d, v + i), hn::LoadU(d, out + i)), d, out + i);
  }
}

void rotate_rows_f32(const float* x, size_t rows, size_t width, const float* cos, const float* sin, void* out) {
  rotate_rows(x, rows, width, cos, sin, static_cast<float*>(out));
}
void rotate_rows_bf16(const float* x, size_t rows, size_t width, const float* cos, const float* sin, void* out) {
  rotate_rows(x, rows, width, cos, sin, static_cast<Bf16*>(out));
}
void softmax_rows_f32(const SwaScores& in, float* scores, void* shares) {
  softmax_rows(in, scores, static_cast<float*>(shares));
}
void softmax_rows_bf16(const SwaScores& in, float* scores, void* shares) {
  softmax_rows(in, scores, static_cast<Bf16*>(shares));
}
void join_heads_f32(const float* x, size_t heads, size_t first, size_t rows, size_t width, void* out) {
  join_heads(x, heads, first, rows, width, static_cast<float*>(out));
}
void join_heads_bf16(const float* x, size_t heads, size_t first, size_t rows, size_t width, void* out) {
  join_heads(x, heads, first, rows, width, static_cast<Bf16*>(out));
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(norm_rows);
HWY_EXPORT(rotate_rows_f32);
HWY_EXPORT(rotate_rows_bf16);
HWY_EXPORT(softmax_rows_f32);
HWY_EXPORT(softmax_rows_bf16);
HWY_EXPORT(join_heads_f32);
HWY_EXPORT(join_heads_bf16);
HWY_EXPORT(dot_rows);
HWY_EXPORT(add_rows);

namespace {

// Scratch of one thread; operands are bf16 or f32 by type, and sized for f32.
struct Scratch {
  std::vector<float> q;         // [heads, 64, head_dim] normed
  std::vector<float> rotated;   // likewise: operands
  std::vector<float> keys;      // [kv_heads, 64, head_dim] operands, with bf16 products; values likewise
  std::vector<float> scores;    // [ring_blocks, heads, 64, 64]
  std::vector<float> shares;    // likewise: operands
  std::vector<float> of_block;  // [heads, 64, head_dim]
  std::vector<float> sum;       // likewise

  void fit(const SwaShape& shape) {
    const size_t q_floats = shape.q_width() * swa_block, scores_floats = shape.heads * swa_block * swa_block;
    q.assign(q_floats, 0.0f);  // tokens that are not there
    rotated.resize(q_floats);
    keys.resize(shape.kv_width() * swa_block);
    scores.resize(shape.ring_blocks() * scores_floats);
    shares.resize(shape.ring_blocks() * scores_floats);
    of_block.resize(q_floats);
    sum.resize(q_floats);
  }
};

float scale_of(const SwaShape& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
}

}  // namespace

SwaPlace::SwaPlace(const SwaShape& shape, const float* state) {
  const auto read = static_cast<size_t>(state[0]);
  block = read / swa_block % shape.ring_blocks();
  offset = read % swa_block;
  before = std::min(read / swa_block, shape.window / swa_block);
}

void SwaPlace::advance(const SwaShape& shape, size_t count, float* state) {
  const size_t ring = shape.ring_blocks() * swa_block;
  size_t read = static_cast<size_t>(state[0]) + count;
  if (read >= 2 * ring) read -= ring;
  state[0] = static_cast<float>(read);
}

SwaAttention::SwaAttention(ProductType type, SwaShape shape, float rope_theta)
    : type_(type),
      shape_(shape),
      scores_(Product::make(type, shape.kv_heads, shape.heads / shape.kv_heads * swa_block, swa_block, shape.head_dim,
                            true)),
      values_(Product::make(type, shape.kv_heads, shape.heads / shape.kv_heads * swa_block, shape.head_dim, swa_block,
                            false)) {
  rope_table(shape.window + swa_block, shape.head_dim, rope_theta, cos_, sin_);
}

SwaAttention SwaAttention::make(ProductType type, SwaShape shape, float rope_theta) {
  return SwaAttention(type, shape, rope_theta);
}

void SwaAttention::run(const float* qkv, const SwaWeights& weights, float* state, void* out, size_t rows) const {
  assert(rows <= swa_block);
  const size_t operand_bytes = type_ == ProductType::bf16 ? sizeof(Bf16) : sizeof(float);
  for (size_t done = 0; done < rows;) {
    const SwaPlace place(shape_, state);
    const size_t count = std::min(rows - done, swa_block - place.offset);
    const float* const of_part = qkv + done * shape_.qkv_width();
    keep(of_part, weights, place, count, state);
    attend(of_part, weights, place, count, state, static_cast<char*>(out) + done * shape_.q_width() * operand_bytes);
    SwaPlace::advance(shape_, count, state);
    done += count;
  }
}

// Puts the keys and values of tokens of one block into the ring, rounded as their products take them.
void SwaAttention::keep(const float* qkv, const SwaWeights& weights, const SwaPlace& place, size_t count,
                        float* state) const {
  cpu_isa();
  const size_t width = shape_.head_dim, first = place.offset * width, half = first / 2;
  const size_t block = place.block * swa_block * shape_.kv_width();
  for (size_t head = 0; head < shape_.kv_heads; ++head) {
    const float* const k = qkv + shape_.q_width() + head * width;
    const float* const v = k + shape_.kv_width();
    float* const keys = state + swa_head_floats + block + head * swa_block * width + first;
    float* const values = keys + shape_.ring_floats();
    HWY_DYNAMIC_DISPATCH(norm_rows)(k, shape_.qkv_width(), weights.k_norm, count, width, weights.eps, keys);
    HWY_DYNAMIC_DISPATCH(rotate_rows_f32)(keys, count, width, cos_.data() + half, sin_.data() + half, keys);
    for (size_t row = 0; row < count; ++row) std::copy_n(v + row * shape_.qkv_width(), width, values + row * width);
    if (type_ != ProductType::bf16) continue;
    for (float* const rounded : {keys, values})
      for (size_t i = 0; i < count * width; ++i) rounded[i] = to_float(to_bf16(rounded[i]));
  }
}

void SwaAttention::attend(const float* qkv, const SwaWeights& weights, const SwaPlace& place, size_t count,
                          const float* state, void* out) const {
  cpu_isa();
  const bool bf16 = type_ == ProductType::bf16;
  const auto rotate_rows = bf16 ? HWY_DYNAMIC_DISPATCH(rotate_rows_bf16) : HWY_DYNAMIC_DISPATCH(rotate_rows_f32);
  const auto softmax_rows = bf16 ? HWY_DYNAMIC_DISPATCH(softmax_rows_bf16) : HWY_DYNAMIC_DISPATCH(softmax_rows_f32);
  const auto join_heads = bf16 ? HWY_DYNAMIC_DISPATCH(join_heads_bf16) : HWY_DYNAMIC_DISPATCH(join_heads_f32);
  thread_local Scratch scratch;
  scratch.fit(shape_);

  const size_t width = shape_.head_dim, head_floats = swa_block * width,
               operand_bytes = bf16 ? sizeof(Bf16) : sizeof(float);
  const size_t block_floats = swa_block * shape_.kv_width(), scores_floats = shape_.heads * swa_block * swa_block;
  const auto at = [&](std::vector<float>& operands, size_t index) {
    return reinterpret_cast<char*>(operands.data()) + index * operand_bytes;
  };
  // A block of the ring as an operand.
  const auto operand = [&](const float* ring, size_t distance) -> const void* {
    const float* const block = ring + place.block_before(shape_, distance) * block_floats;
    if (!bf16) return block;
    to_bf16_cpu(block, block_floats, reinterpret_cast<Bf16*>(scratch.keys.data()));
    return scratch.keys.data();
  };
  const float* const keys = state + swa_head_floats;
  const float* const values = keys + shape_.ring_floats();

  for (size_t head = 0; head < shape_.heads; ++head) HWY_DYNAMIC_DISPATCH(norm_rows)
  (qkv + head * width, shape_.qkv_width(), weights.q_norm, count, width, weights.eps,
   scratch.q.data() + head * head_floats + place.offset * width);
  const size_t blocks = place.before + 1;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t distance = place.before - i, half = distance * head_floats / 2;
    for (size_t head = 0; head < shape_.heads; ++head)
      rotate_rows(scratch.q.data() + head * head_floats, swa_block, width, cos_.data() + half, sin_.data() + half,
                  at(scratch.rotated, head * head_floats));
    scores_.run(scratch.rotated.data(), operand(keys, distance), scratch.scores.data() + i * scores_floats);
  }
  softmax_rows({.blocks = blocks,
                .rows = shape_.heads * swa_block,
                .from_window = blocks == shape_.ring_blocks(),
                .scale = scale_of(shape_)},
               scratch.scores.data(), scratch.shares.data());
  for (size_t i = 0; i < blocks; ++i) {
    std::vector<float>& to = i == 0 ? scratch.sum : scratch.of_block;
    values_.run(at(scratch.shares, i * scores_floats), operand(values, place.before - i), to.data());
    if (i > 0) add_cpu(scratch.of_block.data(), scratch.sum.size(), scratch.sum.data());
  }
  join_heads(scratch.sum.data(), shape_.heads, place.offset, count, width, out);
}

void SwaAttention::step(const float* qkv, const SwaWeights& weights, float* state, void* out) const {
  const SwaPlace place(shape_, state);
  keep(qkv, weights, place, 1, state);
  SwaPlace::advance(shape_, 1, state);

  const size_t width = shape_.head_dim, half = width / 2, group = shape_.heads / shape_.kv_heads;
  const bool from_window = place.before + 1 == shape_.ring_blocks();
  thread_local std::vector<float> q, rotated, scores, sum;
  q.resize(width);
  rotated.resize(width);
  scores.resize(shape_.ring_blocks() * swa_block);
  sum.assign(shape_.q_width(), 0.0f);
  for (size_t head = 0; head < shape_.heads; ++head) {
    HWY_DYNAMIC_DISPATCH(norm_rows)(qkv + head * width, width, weights.q_norm, 1, width, weights.eps, q.data());
    // The keys that the token sees, oldest first, block by block.
    const auto each_block = [&](auto visit) {
      size_t done = 0;
      for (size_t i = 0; i <= place.before; ++i) {
        const size_t distance = place.before - i, first = i == 0 && from_window ? place.offset : 0;
        const size_t end = distance == 0 ? place.offset + 1 : swa_block;
        const size_t row = (place.block_before(shape_, distance) * shape_.kv_heads + head / group) * swa_block + first;
        visit(distance, state + swa_head_floats + row * width, end - first, scores.data() + done);
        done += end - first;
      }
      return done;
    };
    const size_t count = each_block([&](size_t distance, const float* keys, size_t rows, float* to) {
      const size_t angle = (distance * swa_block + place.offset) * half;
      HWY_DYNAMIC_DISPATCH(rotate_rows_f32)
      (q.data(), 1, width, cos_.data() + angle, sin_.data() + angle, rotated.data());
      HWY_DYNAMIC_DISPATCH(dot_rows)(rotated.data(), keys, rows, width, to);
    });
    const float top = *std::max_element(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(count));
    float total = 0;
    for (size_t i = 0; i < count; ++i) total += scores[i] = std::exp(scale_of(shape_) * (scores[i] - top));
    for (size_t i = 0; i < count; ++i) scores[i] /= total;
    each_block([&](size_t, const float* keys, size_t rows, const float* shares) {
      HWY_DYNAMIC_DISPATCH(add_rows)(shares, keys + shape_.ring_floats(), rows, width, sum.data() + head * width);
    });
  }
  if (type_ == ProductType::bf16)
    to_bf16_cpu(sum.data(), sum.size(), static_cast<Bf16*>(out));
  else
    std::ranges::copy(sum, static_cast<float*>(out));
}

void swa_attention_reference(const SwaShape& shape, float rope_theta, const float* qkv, const SwaWeights& weights,
                             size_t tokens, float* out) {
  const size_t width = shape.head_dim, half = width / 2;
  const auto normed = [&](const float* x, const float* weight) {
    float squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[i] * x[i];
    std::vector<float> y(width);
    for (size_t i = 0; i < width; ++i)
      y[i] = x[i] / std::sqrt(squares / static_cast<float>(width) + weights.eps) * weight[i];
    return y;
  };
  for (size_t token = 0; token < tokens; ++token) {
    for (size_t head = 0; head < shape.heads; ++head) {
      const size_t kv_head = head / (shape.heads / shape.kv_heads);
      const auto q = normed(qkv + token * shape.qkv_width() + head * width, weights.q_norm);
      const size_t first = token - std::min(token, shape.window);
      std::vector<float> shares;
      for (size_t other = first; other <= token; ++other) {
        const auto k = normed(qkv + other * shape.qkv_width() + shape.q_width() + kv_head * width, weights.k_norm);
        float dot = 0;
        for (size_t i = 0; i < half; ++i) {
          // q rotated by the distance between the two.
          const float angle = static_cast<float>(token - other) /
                              std::pow(rope_theta, static_cast<float>(2 * i) / static_cast<float>(width));
          const float cos = std::cos(angle), sin = std::sin(angle);
          dot += (q[i] * cos - q[i + half] * sin) * k[i] + (q[i] * sin + q[i + half] * cos) * k[i + half];
        }
        shares.push_back(dot * scale_of(shape));
      }
      const float top = *std::ranges::max_element(shares);
      float sum = 0;
      for (float& share : shares) sum += share = std::exp(share - top);
      float* const o = out + token * shape.q_width() + head * width;
      std::fill_n(o, width, 0.0f);
      for (size_t other = first; other <= token; ++other) {
        const float* const v = qkv + other * shape.qkv_width() + shape.q_width() + shape.kv_width() + kv_head * width;
        for (size_t i = 0; i < width; ++i) o[i] += shares[other - first] / sum * v[i];
      }
    }
  }
}

}  // namespace recalld
#endif  // HWY_ONCE
