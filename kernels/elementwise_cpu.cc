#include "kernels/elementwise.h"

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

void convert(const float* x, size_t n, Bf16* y) {
  const Floats d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) store(d, hn::LoadU(d, x + i), y + i);
}
void add(const float* x, size_t n, float* y) {
  const Floats d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(convert);
HWY_EXPORT(add);

void to_bf16_cpu(const float* x, size_t n, Bf16* y) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(convert)(x, n, y);
}
void add_cpu(const float* x, size_t n, float* y) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(add)(x, n, y);
}

}  // namespace recalld
#endif  // HWY_ONCE
