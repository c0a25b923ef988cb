#include "kernels/ssd_scan.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ssd_scan_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

#ifndef RECALLD_SSD_LAYOUT
#define RECALLD_SSD_LAYOUT
namespace recalld {

// Left operands of one head, [64, 64 + state]: row t holds exp(c_t - c_s) dt_s (C_t · B_s) for s <= t, D added at s =
// t, zeros for s > t, and then exp(c_t) C_t.
struct SsdLeft {
  const float* scores;  // [64, 64] C · Bᵀ
  const float* sums;    // [64] c
  const float* dt;      // [64]
  const void* c;        // [64] rows of state_size, `stride` apart
  size_t stride;
  size_t state_size;
  float d;
};

}  // namespace recalld
#endif

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

template <class T>
HWY_INLINE void left_operand(const SsdLeft& in, T* out) {
  const Floats d;
  const T* c = static_cast<const T*>(in.c);
  const size_t lanes = hn::Lanes(d);
  const size_t width = ssd_block + in.state_size;
  for (size_t t = 0; t < ssd_block; ++t, out += width, c += in.stride) {
    const auto sum_t = hn::Set(d, in.sums[t]);
    const auto last = hn::Set(d, static_cast<float>(t));
    for (size_t s = 0; s < ssd_block; s += lanes) {
      if (s > t) {
        store(d, hn::Zero(d), out + s);
        continue;
      }
      const auto seen = hn::Le(hn::Iota(d, static_cast<float>(s)), last);
      const auto decay = fast_exp(d, hn::Min(hn::Sub(sum_t, hn::LoadU(d, in.sums + s)), hn::Zero(d)));
      const auto weight = hn::Mul(hn::Mul(decay, hn::LoadU(d, in.dt + s)), hn::LoadU(d, in.scores + t * ssd_block + s));
      const auto skip = hn::IfThenElseZero(hn::Eq(hn::Iota(d, static_cast<float>(s)), last), hn::Set(d, in.d));
      store(d, hn::Add(hn::IfThenElseZero(seen, weight), skip), out + s);
    }
    const auto carried = hn::Set(d, std::exp(in.sums[t]));
    for (size_t n = 0; n < in.state_size; n += lanes) store(d, hn::Mul(carried, load(d, c + n)), out + ssd_block + n);
  }
}

// out[n, s] = b_transposed[n, s] * factor[s]
template <class T>
HWY_INLINE void scale_columns(const float* b_transposed, const float* factor, size_t state_size, T* out) {
  const Floats d;
  for (size_t n = 0; n < state_size; ++n)
    for (size_t s = 0; s < ssd_block; s += hn::Lanes(d))
      store(d, hn::Mul(hn::LoadU(d, b_transposed + n * ssd_block + s), hn::LoadU(d, factor + s)),
            out + n * ssd_block + s);
}

void left_f32(const SsdLeft& in, void* out) {
  left_operand(in, static_cast<float*>(out));
}
void left_bf16(const SsdLeft& in, void* out) {
  left_operand(in, static_cast<Bf16*>(out));
}
void scale_f32(const float* b, const float* factor, size_t state_size, void* out) {
  scale_columns(b, factor, state_size, static_cast<float*>(out));
}
void scale_bf16(const float* b, const float* factor, size_t state_size, void* out) {
  scale_columns(b, factor, state_size, static_cast<Bf16*>(out));
}

// state = decay * state + added
void update(float decay, const float* added, size_t n, float* state) {
  const Floats d;
  const auto factor = hn::Set(d, decay);
  for (size_t i = 0; i < n; i += hn::Lanes(d))
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, state + i), hn::LoadU(d, added + i)), d, state + i);
}

void state_to_bf16(const float* x, size_t n, void* out) {
  const Floats d;
  Bf16* y = static_cast<Bf16*>(out);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) store(d, hn::LoadU(d, x + i), y + i);
}

// factor[s] = exp(last - sums[s]) * dt[s]
void state_factors(const float* sums, const float* dt, float* factor) {
  const Floats d;
  const auto last = hn::Set(d, sums[ssd_block - 1]);
  for (size_t s = 0; s < ssd_block; s += hn::Lanes(d))
    hn::StoreU(hn::Mul(fast_exp(d, hn::Sub(last, hn::LoadU(d, sums + s))), hn::LoadU(d, dt + s)), d, factor + s);
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(left_f32);
HWY_EXPORT(left_bf16);
HWY_EXPORT(scale_f32);
HWY_EXPORT(scale_bf16);
HWY_EXPORT(update);
HWY_EXPORT(state_to_bf16);
HWY_EXPORT(state_factors);

namespace {

constexpr size_t group_heads_max = 4;

size_t group_of(size_t heads) {
  size_t group = group_heads_max;
  while (heads % group != 0) --group;
  return group;
}

float softplus(float x) {
  return x > 20.0f ? x : std::log1p(std::exp(x));
}

// Scratch of one thread for a group of heads; operands are bf16 or f32 by type, and sized for f32.
struct Scratch {
  std::vector<float> scores, b_transposed, sums, dt, factor, left, right, x, b_scaled, added;

  void fit(const SsdShape& shape, size_t group) {
    const size_t depth = ssd_block + shape.state_size;
    scores.resize(ssd_block * ssd_block);
    b_transposed.resize(shape.state_size * ssd_block);
    sums.resize(ssd_block);
    dt.resize(ssd_block);
    factor.resize(ssd_block);
    left.resize(group * ssd_block * depth);
    right.resize(group * depth * shape.head_dim);
    x.resize(group * ssd_block * shape.head_dim);
    b_scaled.resize(group * shape.state_size * ssd_block);
    added.resize(group * shape.state_size * shape.head_dim);
  }
};

template <class T>
T* at(std::vector<float>& buffer, size_t offset) {
  return reinterpret_cast<T*>(buffer.data()) + offset;
}

float widen(Bf16 x) {
  return to_float(x);
}
float widen(float x) {
  return x;
}

}  // namespace

SsdScan::SsdScan(ProductType type, SsdShape shape)
    : type_(type),
      shape_(shape),
      group_(group_of(shape.heads)),
      scores_(Product::make(type, 1, ssd_block, ssd_block, shape.state_size, true)),
      outputs_(Product::make(type, group_, ssd_block, shape.head_dim, ssd_block + shape.state_size, false)),
      states_(Product::make(type, group_, shape.state_size, shape.head_dim, ssd_block, false)) {}

SsdScan SsdScan::make(ProductType type, SsdShape shape) {
  return SsdScan(type, shape);
}

namespace {

template <class T>
struct Kernels;
template <>
struct Kernels<float> {
  static void left(const SsdLeft& in, void* out) { HWY_DYNAMIC_DISPATCH(left_f32)(in, out); }
  static void scale(const float* b, const float* factor, size_t n, void* out) {
    HWY_DYNAMIC_DISPATCH(scale_f32)(b, factor, n, out);
  }
  static void copy_state(const float* state, size_t n, void* out) { std::memcpy(out, state, n * sizeof(float)); }
};
template <>
struct Kernels<Bf16> {
  static void left(const SsdLeft& in, void* out) { HWY_DYNAMIC_DISPATCH(left_bf16)(in, out); }
  static void scale(const float* b, const float* factor, size_t n, void* out) {
    HWY_DYNAMIC_DISPATCH(scale_bf16)(b, factor, n, out);
  }
  static void copy_state(const float* state, size_t n, void* out) {
    HWY_DYNAMIC_DISPATCH(state_to_bf16)(state, n, out);
  }
};

// xbc: [64, channels]
template <class T>
void scan(const SsdShape& shape, size_t group, const Product& scores, const Product& outputs, const Product& states,
          const T* xbc, const float* dt, size_t dt_stride, const SsdWeights& weights, float* state, float* y) {
  thread_local Scratch scratch;
  scratch.fit(shape, group);
  const size_t channels = shape.channels(), depth = ssd_block + shape.state_size;
  const size_t head_state = shape.state_size * shape.head_dim;
  const T* b = xbc + shape.heads * shape.head_dim;
  const T* c = b + shape.state_size;

  // C · Bᵀ is the same for all heads.
  T* b_rows = at<T>(scratch.left, 0);  // free until the left operands are made
  T* c_rows = at<T>(scratch.right, 0);
  for (size_t t = 0; t < ssd_block; ++t) {
    std::memcpy(b_rows + t * shape.state_size, b + t * channels, shape.state_size * sizeof(T));
    std::memcpy(c_rows + t * shape.state_size, c + t * channels, shape.state_size * sizeof(T));
    for (size_t n = 0; n < shape.state_size; ++n) scratch.b_transposed[n * ssd_block + t] = widen(b[t * channels + n]);
  }
  scores.run(c_rows, b_rows, scratch.scores.data());

  for (size_t first = 0; first < shape.heads; first += group) {
    float decay[group_heads_max];
    for (size_t g = 0; g < group; ++g) {
      const size_t head = first + g;
      float sum = 0;
      for (size_t t = 0; t < ssd_block; ++t) {
        scratch.dt[t] = softplus(dt[t * dt_stride + head] + weights.dt_bias[head]);
        sum += scratch.dt[t] * weights.a[head];
        scratch.sums[t] = sum;
      }
      decay[g] = std::exp(sum);
      Kernels<T>::left({scratch.scores.data(), scratch.sums.data(), scratch.dt.data(), c, channels, shape.state_size,
                        weights.d[head]},
                       at<T>(scratch.left, g * ssd_block * depth));
      HWY_DYNAMIC_DISPATCH(state_factors)(scratch.sums.data(), scratch.dt.data(), scratch.factor.data());
      Kernels<T>::scale(scratch.b_transposed.data(), scratch.factor.data(), shape.state_size,
                        at<T>(scratch.b_scaled, g * shape.state_size * ssd_block));

      T* right = at<T>(scratch.right, g * depth * shape.head_dim);
      T* x = at<T>(scratch.x, g * ssd_block * shape.head_dim);
      for (size_t t = 0; t < ssd_block; ++t)
        std::memcpy(x + t * shape.head_dim, xbc + t * channels + head * shape.head_dim, shape.head_dim * sizeof(T));
      std::memcpy(right, x, ssd_block * shape.head_dim * sizeof(T));
      Kernels<T>::copy_state(state + head * head_state, head_state, right + ssd_block * shape.head_dim);
    }
    outputs.run(scratch.left.data(), scratch.right.data(), y + first * ssd_block * shape.head_dim);
    states.run(scratch.b_scaled.data(), scratch.x.data(), scratch.added.data());
    const auto advance = HWY_DYNAMIC_DISPATCH(update);
    for (size_t g = 0; g < group; ++g)
      advance(decay[g], scratch.added.data() + g * head_state, head_state, state + (first + g) * head_state);
  }
}

}  // namespace

void SsdScan::run(const void* xbc, const float* dt, size_t dt_stride, const SsdWeights& weights, float* state,
                  float* y) const {
  cpu_isa();
  if (type_ == ProductType::bf16)
    scan(shape_, group_, scores_, outputs_, states_, static_cast<const Bf16*>(xbc), dt, dt_stride, weights, state, y);
  else
    scan(shape_, group_, scores_, outputs_, states_, static_cast<const float*>(xbc), dt, dt_stride, weights, state, y);
}

void ssd_scan_reference(const SsdShape& shape, const float* xbc, const float* dt, size_t dt_stride,
                        const SsdWeights& weights, float* state, float* y) {
  for (size_t head = 0; head < shape.heads; ++head) {
    float* s = state + head * shape.state_size * shape.head_dim;
    for (size_t t = 0; t < ssd_block; ++t) {
      const float* x = xbc + t * shape.channels() + head * shape.head_dim;
      const float* b = xbc + t * shape.channels() + shape.heads * shape.head_dim;
      const float* c = b + shape.state_size;
      const float step = softplus(dt[t * dt_stride + head] + weights.dt_bias[head]);
      const float decay = std::exp(step * weights.a[head]);
      for (size_t p = 0; p < shape.head_dim; ++p) {
        float sum = weights.d[head] * x[p];
        for (size_t n = 0; n < shape.state_size; ++n) {
          float& cell = s[n * shape.head_dim + p];
          cell = decay * cell + step * b[n] * x[p];
          sum += c[n] * cell;
        }
        y[(head * ssd_block + t) * shape.head_dim + p] = sum;
      }
    }
  }
}

}  // namespace recalld
#endif  // HWY_ONCE
