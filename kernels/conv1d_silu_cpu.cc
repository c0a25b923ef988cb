#include "kernels/conv1d_silu.h"

#include <cstring>
#include <type_traits>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/conv1d_silu_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

// The usual width: weights and the last inputs of one vector of channels stay in registers from token to token.
template <class T>
HWY_INLINE void conv4_silu(const float* input, size_t stride, size_t rows, size_t channels, const float* weight,
                           const float* bias, const float* history, T* y) {
  const Floats d;
  for (size_t c = 0; c < channels; c += hn::Lanes(d)) {
    const auto b = hn::LoadU(d, bias + c);
    const auto w0 = hn::LoadU(d, weight + c), w1 = hn::LoadU(d, weight + channels + c);
    const auto w2 = hn::LoadU(d, weight + 2 * channels + c), w3 = hn::LoadU(d, weight + 3 * channels + c);
    auto x0 = hn::LoadU(d, history + c), x1 = hn::LoadU(d, history + channels + c),
         x2 = hn::LoadU(d, history + 2 * channels + c);
    for (size_t t = 0; t < rows; ++t) {
      const auto x3 = hn::LoadU(d, input + t * stride + c);
      const auto sum = hn::MulAdd(w3, x3, hn::MulAdd(w2, x2, hn::MulAdd(w1, x1, hn::MulAdd(w0, x0, b))));
      store(d, silu(d, sum), y + t * channels + c);
      x0 = x1;
      x1 = x2;
      x2 = x3;
    }
  }
}

template <class T>
HWY_INLINE void conv1d_silu(const float* input, size_t stride, size_t rows, size_t channels, size_t taps,
                            const float* weight, const float* bias, const float* history, T* y) {
  if (taps == 4) return conv4_silu(input, stride, rows, channels, weight, bias, history, y);
  const Floats d;
  for (size_t t = 0; t < rows; ++t) {
    for (size_t c = 0; c < channels; c += hn::Lanes(d)) {
      auto sum = hn::LoadU(d, bias + c);
      for (size_t k = 0; k < taps; ++k) {
        const float* from =
            t + k >= taps - 1 ? input + (t + k - (taps - 1)) * stride + c : history + (t + k) * channels + c;
        sum = hn::MulAdd(hn::LoadU(d, weight + k * channels + c), hn::LoadU(d, from), sum);
      }
      store(d, silu(d, sum), y + t * channels + c);
    }
  }
}

void conv_f32(const float* input, size_t stride, size_t rows, size_t channels, size_t taps, const float* weight,
              const float* bias, const float* history, float* y) {
  conv1d_silu(input, stride, rows, channels, taps, weight, bias, history, y);
}
void conv_bf16(const float* input, size_t stride, size_t rows, size_t channels, size_t taps, const float* weight,
               const float* bias, const float* history, Bf16* y) {
  conv1d_silu(input, stride, rows, channels, taps, weight, bias, history, y);
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(conv_f32);
HWY_EXPORT(conv_bf16);

namespace {

void keep_last(const float* input, size_t stride, size_t rows, size_t channels, size_t taps, float* history) {
  const size_t kept = taps - 1, stay = rows < kept ? kept - rows : 0;  // inputs that are history still
  std::memmove(history, history + (kept - stay) * channels, stay * channels * sizeof(float));
  for (size_t k = stay; k < kept; ++k)
    std::memcpy(history + k * channels, input + (rows + k - kept) * stride, channels * sizeof(float));
}

}  // namespace

void conv1d_silu_cpu(const float* input, size_t input_stride, size_t rows, size_t channels, size_t taps,
                     const float* weight, const float* bias, float* history, float* y) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(conv_f32)(input, input_stride, rows, channels, taps, weight, bias, history, y);
  keep_last(input, input_stride, rows, channels, taps, history);
}
void conv1d_silu_cpu(const float* input, size_t input_stride, size_t rows, size_t channels, size_t taps,
                     const float* weight, const float* bias, float* history, Bf16* y) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(conv_bf16)(input, input_stride, rows, channels, taps, weight, bias, history, y);
  keep_last(input, input_stride, rows, channels, taps, history);
}

}  // namespace recalld
#endif  // HWY_ONCE
