#include "kernels/swiglu.h"

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/swiglu_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

template <class T>
HWY_INLINE void swiglu(const float* gate_up, size_t rows, size_t width, T* out) {
  const Floats d;
  for (size_t row = 0; row < rows; ++row, gate_up += 2 * width, out += width)
    for (size_t i = 0; i < width; i += hn::Lanes(d))
      store(d, hn::Mul(silu(d, hn::LoadU(d, gate_up + i)), hn::LoadU(d, gate_up + width + i)), out + i);
}

void swiglu_f32(const float* gate_up, size_t rows, size_t width, float* out) {
  swiglu(gate_up, rows, width, out);
}
void swiglu_bf16(const float* gate_up, size_t rows, size_t width, Bf16* out) {
  swiglu(gate_up, rows, width, out);
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(swiglu_f32);
HWY_EXPORT(swiglu_bf16);

void swiglu_cpu(const float* gate_up, size_t rows, size_t width, float* out) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(swiglu_f32)(gate_up, rows, width, out);
}
void swiglu_cpu(const float* gate_up, size_t rows, size_t width, Bf16* out) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(swiglu_bf16)(gate_up, rows, width, out);
}

}  // namespace recalld
#endif  // HWY_ONCE
