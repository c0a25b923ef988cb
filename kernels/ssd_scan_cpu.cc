#include "kernels/ssd_scan.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ssd_scan_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

#ifndef RECALLD_SSD_DECAY
#define RECALLD_SSD_DECAY
namespace recalld {

// What one head does to time, token by token.
struct SsdDecay {
  float dt[ssd_block];           // the step
  float sums[ssd_block];         // c: the running sum of dt a
  float since_start[ssd_block];  // exp(c_t): what is left of the incoming state
  float until_end[ssd_block];    // exp(c_63 - c_s) dt_s: what a token adds to the outgoing one
};

}  // namespace recalld
#endif

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

// dt: [64] values `stride` apart, before bias; from `rows` on time stands still
void decay_of(const float* dt, size_t stride, float bias, float a, size_t rows, SsdDecay& out) {
  const Floats d;
  for (size_t t = 0; t < ssd_block; ++t) out.dt[t] = dt[t * stride] + bias;
  for (size_t t = 0; t < ssd_block; t += hn::Lanes(d)) {
    const auto x = hn::LoadU(d, out.dt + t);  // softplus(x) = max(x, 0) + log(1 + e^-|x|)
    hn::StoreU(hn::Add(hn::Max(x, hn::Zero(d)), hn::Log1p(d, fast_exp(d, hn::Neg(hn::Abs(x))))), d, out.dt + t);
  }
  for (size_t t = rows; t < ssd_block; ++t) out.dt[t] = 0;
  float sum = 0;
  for (size_t t = 0; t < ssd_block; ++t) out.sums[t] = sum += out.dt[t] * a;
  const auto last = hn::Set(d, sum);
  for (size_t t = 0; t < ssd_block; t += hn::Lanes(d)) {
    const auto c = hn::LoadU(d, out.sums + t);
    hn::StoreU(fast_exp(d, c), d, out.since_start + t);
    hn::StoreU(hn::Mul(fast_exp(d, hn::Sub(last, c)), hn::LoadU(d, out.dt + t)), d, out.until_end + t);
  }
}

// out[t, s] = exp(c_t - c_s) dt_s scores[t, s] for s <= t, D added at s = t; zeros for s > t. All are [64, 64].
template <class T>
HWY_INLINE void mix(const SsdDecay& decay, float skip, const float* scores, T* out) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  for (size_t t = 0; t < ssd_block; ++t, scores += ssd_block, out += ssd_block) {
    const auto sum_t = hn::Set(d, decay.sums[t]);
    size_t s = 0;
    for (; s + lanes <= t; s += lanes) {  // wholly before t
      const auto weight =
          hn::Mul(fast_exp(d, hn::Sub(sum_t, hn::LoadU(d, decay.sums + s))), hn::LoadU(d, decay.dt + s));
      store(d, hn::Mul(weight, hn::LoadU(d, scores + s)), out + s);
    }
    {
      const auto at = hn::Iota(d, static_cast<float>(s)), last = hn::Set(d, static_cast<float>(t));
      const auto gone = fast_exp(d, hn::Min(hn::Sub(sum_t, hn::LoadU(d, decay.sums + s)), hn::Zero(d)));
      const auto weight = hn::Mul(hn::Mul(gone, hn::LoadU(d, decay.dt + s)), hn::LoadU(d, scores + s));
      const auto direct = hn::IfThenElseZero(hn::Eq(at, last), hn::Set(d, skip));
      store(d, hn::Add(hn::IfThenElseZero(hn::Le(at, last), weight), direct), out + s);
    }
    for (s += lanes; s < ssd_block; s += lanes) store(d, hn::Zero(d), out + s);
  }
}

// y[t] += factor[t] · before[t], one head. y: [64, width] · before: [64] rows `stride` apart
void add_before(const float* factor, const float* before, size_t stride, size_t width, float* y) {
  const Floats d;
  for (size_t t = 0; t < ssd_block; ++t, before += stride, y += width) {
    const auto f = hn::Set(d, factor[t]);
    for (size_t i = 0; i < width; i += hn::Lanes(d))
      hn::StoreU(hn::MulAdd(f, hn::LoadU(d, before + i), hn::LoadU(d, y + i)), d, y + i);
  }
}

// out[s] = factor[s] · x[s], one head. x: [64] rows `x_stride` apart · out: [64] rows `out_stride` apart
template <class T>
HWY_INLINE void scale_rows(const float* factor, const T* x, size_t x_stride, size_t width, size_t out_stride, T* out) {
  const Floats d;
  for (size_t s = 0; s < ssd_block; ++s, x += x_stride, out += out_stride) {
    const auto f = hn::Set(d, factor[s]);
    for (size_t i = 0; i < width; i += hn::Lanes(d)) store(d, hn::Mul(f, load(d, x + i)), out + i);
  }
}

// state = left · state + added, one head. Both: [rows] of width, `stride` apart
void update(float left, const float* added, size_t rows, size_t width, size_t stride, float* state) {
  const Floats d;
  const auto factor = hn::Set(d, left);
  for (size_t n = 0; n < rows; ++n, added += stride, state += stride)
    for (size_t i = 0; i < width; i += hn::Lanes(d))
      hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, state + i), hn::LoadU(d, added + i)), d, state + i);
}

// One token of one head. state: [state_size] rows `stride` apart · x, y: [width] · b, c: [state_size]
void state_update(float step, float decay, float skip, const float* x, const float* b, const float* c,
                  size_t state_size, size_t width, size_t stride, float* state, float* y) {
  const Floats d;
  const auto left = hn::Set(d, decay);
  for (size_t i = 0; i < width; i += hn::Lanes(d)) {
    const auto xi = hn::LoadU(d, x + i);
    const auto added = hn::Mul(hn::Set(d, step), xi);
    auto sum = hn::Mul(hn::Set(d, skip), xi);
    float* cell = state + i;
    for (size_t n = 0; n < state_size; ++n, cell += stride) {
      const auto next = hn::MulAdd(left, hn::LoadU(d, cell), hn::Mul(hn::Set(d, b[n]), added));
      hn::StoreU(next, d, cell);
      sum = hn::MulAdd(hn::Set(d, c[n]), next, sum);
    }
    hn::StoreU(sum, d, y + i);
  }
}

void mix_f32(const SsdDecay& decay, float skip, const float* scores, float* out) {
  mix(decay, skip, scores, out);
}
void mix_bf16(const SsdDecay& decay, float skip, const float* scores, Bf16* out) {
  mix(decay, skip, scores, out);
}
void scale_rows_f32(const float* factor, const float* x, size_t x_stride, size_t width, size_t out_stride, float* out) {
  scale_rows(factor, x, x_stride, width, out_stride, out);
}
void scale_rows_bf16(const float* factor, const Bf16* x, size_t x_stride, size_t width, size_t out_stride, Bf16* out) {
  scale_rows(factor, x, x_stride, width, out_stride, out);
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(decay_of);
HWY_EXPORT(mix_f32);
HWY_EXPORT(mix_bf16);
HWY_EXPORT(add_before);
HWY_EXPORT(scale_rows_f32);
HWY_EXPORT(scale_rows_bf16);
HWY_EXPORT(update);
HWY_EXPORT(state_update);

namespace {

void mix(const SsdDecay& decay, float skip, const float* scores, float* out) {
  HWY_DYNAMIC_DISPATCH(mix_f32)(decay, skip, scores, out);
}
void mix(const SsdDecay& decay, float skip, const float* scores, Bf16* out) {
  HWY_DYNAMIC_DISPATCH(mix_bf16)(decay, skip, scores, out);
}
void scale_rows(const float* factor, const float* x, size_t x_stride, size_t width, size_t out_stride, float* out) {
  HWY_DYNAMIC_DISPATCH(scale_rows_f32)(factor, x, x_stride, width, out_stride, out);
}
void scale_rows(const float* factor, const Bf16* x, size_t x_stride, size_t width, size_t out_stride, Bf16* out) {
  HWY_DYNAMIC_DISPATCH(scale_rows_bf16)(factor, x, x_stride, width, out_stride, out);
}
void to_operand(const float* x, size_t n, float* out) {
  std::memcpy(out, x, n * sizeof(float));
}
void to_operand(const float* x, size_t n, Bf16* out) {
  to_bf16_cpu(x, n, out);
}

constexpr size_t group_heads_max = 4;

size_t group_of(size_t heads) {
  size_t group = group_heads_max;
  while (heads % group != 0) --group;
  return group;
}

// Scratch of one thread; T is the operands' type.
template <class T>
struct Scratch {
  std::vector<SsdDecay> decay;  // of the heads
  std::vector<float> scores, before, added;
  std::vector<T> b, c, b_transposed, state, x, mixed, scaled;

  void fit(const SsdShape& shape, size_t group) {
    const size_t inner = shape.heads * shape.head_dim;
    decay.resize(shape.heads);
    scores.resize(ssd_block * ssd_block);
    before.resize(ssd_block * inner);
    added.resize(shape.state_floats());
    for (std::vector<T>* small : {&b, &c, &b_transposed}) small->resize(ssd_block * shape.state_size);
    state.resize(shape.state_floats());
    x.resize(group * ssd_block * shape.head_dim);
    mixed.resize(group * ssd_block * ssd_block);
    scaled.resize(ssd_block * inner);
  }
};

// Rows of a strided matrix one after the other.
template <class T>
void gather(const T* from, size_t stride, size_t rows, size_t width, T* to) {
  for (size_t row = 0; row < rows; ++row) std::memcpy(to + row * width, from + row * stride, width * sizeof(T));
}

template <class T>
void scan(const SsdShape& shape, size_t group, const Product& scores, const Product& before, const Product& inside,
          const Product& states, const T* xbc, const float* dt, size_t dt_stride, const SsdWeights& weights,
          float* state, float* y, size_t rows) {
  thread_local Scratch<T> scratch;
  scratch.fit(shape, group);
  const size_t channels = shape.channels(), width = shape.head_dim, inner = shape.heads * width;

  gather(xbc + inner, channels, ssd_block, shape.state_size, scratch.b.data());
  gather(xbc + inner + shape.state_size, channels, ssd_block, shape.state_size, scratch.c.data());
  for (size_t n = 0; n < shape.state_size; ++n)
    for (size_t t = 0; t < ssd_block; ++t)
      scratch.b_transposed[n * ssd_block + t] = scratch.b[t * shape.state_size + n];
  scores.run(scratch.c.data(), scratch.b.data(), scratch.scores.data());
  to_operand(state, shape.state_floats(), scratch.state.data());
  before.run(scratch.c.data(), scratch.state.data(), scratch.before.data());

  for (size_t first = 0; first < shape.heads; first += group) {
    for (size_t g = 0; g < group; ++g) {
      const size_t head = first + g;
      SsdDecay& decay = scratch.decay[head];
      HWY_DYNAMIC_DISPATCH(decay_of)(dt + head, dt_stride, weights.dt_bias[head], weights.a[head], rows, decay);
      mix(decay, weights.d[head], scratch.scores.data(), scratch.mixed.data() + g * ssd_block * ssd_block);
      gather(xbc + head * width, channels, ssd_block, width, scratch.x.data() + g * ssd_block * width);
      scale_rows(decay.until_end, scratch.x.data() + g * ssd_block * width, width, width, inner,
                 scratch.scaled.data() + head * width);
    }
    float* y_group = y + first * ssd_block * width;
    inside.run(scratch.mixed.data(), scratch.x.data(), y_group);
    for (size_t g = 0; g < group; ++g) HWY_DYNAMIC_DISPATCH(add_before)
    (scratch.decay[first + g].since_start, scratch.before.data() + (first + g) * width, inner, width,
     y_group + g * ssd_block * width);
  }
  states.run(scratch.b_transposed.data(), scratch.scaled.data(), scratch.added.data());
  for (size_t head = 0; head < shape.heads; ++head) HWY_DYNAMIC_DISPATCH(update)
  (scratch.decay[head].since_start[ssd_block - 1], scratch.added.data() + head * width, shape.state_size, width, inner,
   state + head * width);
}

float softplus(float x) {
  return x > 20.0f ? x : std::log1p(std::exp(x));
}

}  // namespace

SsdScan::SsdScan(ProductType type, SsdShape shape)
    : type_(type),
      shape_(shape),
      group_(group_of(shape.heads)),
      scores_(Product::make(type, 1, ssd_block, ssd_block, shape.state_size, true)),
      before_(Product::make(type, 1, ssd_block, shape.heads * shape.head_dim, shape.state_size, false)),
      inside_(Product::make(type, group_, ssd_block, shape.head_dim, ssd_block, false)),
      states_(Product::make(type, 1, shape.state_size, shape.heads * shape.head_dim, ssd_block, false)) {}

SsdScan SsdScan::make(ProductType type, SsdShape shape) {
  return SsdScan(type, shape);
}

void SsdScan::run(const void* xbc, const float* dt, size_t dt_stride, const SsdWeights& weights, float* state, float* y,
                  size_t rows) const {
  cpu_isa();
  const auto run_as = [&]<class T>(const T* typed) {
    scan(shape_, group_, scores_, before_, inside_, states_, typed, dt, dt_stride, weights, state, y, rows);
  };
  if (type_ == ProductType::bf16)
    run_as(static_cast<const Bf16*>(xbc));
  else
    run_as(static_cast<const float*>(xbc));
}

void ssd_state_update_cpu(const SsdShape& shape, const float* xbc, const float* dt, const SsdWeights& weights,
                          float* state, float* y) {
  cpu_isa();
  const size_t width = shape.head_dim, inner = shape.heads * width;
  const float* b = xbc + inner;
  for (size_t head = 0; head < shape.heads; ++head) {
    const float step = softplus(dt[head] + weights.dt_bias[head]);
    HWY_DYNAMIC_DISPATCH(state_update)
    (step, std::exp(step * weights.a[head]), weights.d[head], xbc + head * width, b, b + shape.state_size,
     shape.state_size, width, inner, state + head * width, y + head * width);
  }
}

void ssd_scan_reference(const SsdShape& shape, const float* xbc, const float* dt, size_t dt_stride,
                        const SsdWeights& weights, float* state, float* y, size_t rows) {
  const size_t inner = shape.heads * shape.head_dim;
  for (size_t head = 0; head < shape.heads; ++head) {
    float* s = state + head * shape.head_dim;
    for (size_t t = 0; t < rows; ++t) {
      const float* x = xbc + t * shape.channels() + head * shape.head_dim;
      const float* b = xbc + t * shape.channels() + inner;
      const float* c = b + shape.state_size;
      const float step = softplus(dt[t * dt_stride + head] + weights.dt_bias[head]);
      const float decay = std::exp(step * weights.a[head]);
      for (size_t p = 0; p < shape.head_dim; ++p) {
        float sum = weights.d[head] * x[p];
        for (size_t n = 0; n < shape.state_size; ++n) {
          float& cell = s[n * inner + p];
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
