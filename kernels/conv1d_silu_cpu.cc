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

template <class T>
HWY_INLINE void conv1d_silu(const float* input, size_t stride, size_t rows, size_t channels, size_t taps,
                            const float* weight, const float* bias, const float* history, T* y) {
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
  for (size_t k = 0; k + 1 < taps; ++k)
    std::memcpy(history + k * channels, input + (rows - (taps - 1) + k) * stride, channels * sizeof(float));
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
