// What the vector kernels share, once per instruction set: included inside HWY_BEFORE_NAMESPACE by files that Highway
// compiles for each target (hence no ordinary include guard).
#if defined(RECALLD_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RECALLD_KERNELS_SIMD_INL_H_
#undef RECALLD_KERNELS_SIMD_INL_H_
#else
#define RECALLD_KERNELS_SIMD_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Widths that these kernels are given are multiples of 16, so there is never a remainder.
using Floats = hn::CappedTag<float, 16>;

HWY_INLINE auto load(Floats d, const float* from) {
  return hn::LoadU(d, from);
}
HWY_INLINE auto load(Floats d, const Bf16* from) {
  const hn::RebindToUnsigned<Floats> du;
  const hn::Rebind<uint16_t, Floats> du16;
  const auto halves = hn::PromoteTo(du, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from)));
  return hn::BitCast(d, hn::ShiftLeft<16>(halves));
}

template <class V>
HWY_INLINE void store(Floats d, V value, float* to) {
  hn::StoreU(value, d, to);
}
// Rounds to nearest, ties to even, as to_bf16 does for every number.
template <class V>
HWY_INLINE void store(Floats, V value, Bf16* to) {
  const hn::RebindToUnsigned<Floats> du;
  const hn::RebindToSigned<Floats> di;
  const hn::Rebind<uint16_t, Floats> du16;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff))));
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, rounded)), du16, reinterpret_cast<uint16_t*>(to));
}

// e^x to about one unit in the last place for x <= 88, 0 below -87; cheaper than the library's, which also serves
// numbers near the ends of the range.
template <class V>
HWY_INLINE V fast_exp(Floats d, V x) {
  const hn::RebindToSigned<Floats> di;
  const auto low = hn::Set(d, -87.0f);
  const auto inside = hn::Ge(x, low);
  const auto clamped = hn::Min(hn::Max(x, low), hn::Set(d, 88.0f));
  // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts so that n ln 2 is exact.
  const auto n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  // Minimax polynomial of degree 5 for (e^r - 1 - r) / r^2 (Cephes expf).
  auto p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127))));
  return hn::IfThenElseZero(inside, hn::Mul(p, scale));
}

// x / (1 + e^-x). The reciprocal is the CPU's approximation and one Newton step, to about two units in the last place.
template <class V>
HWY_INLINE V silu(Floats d, V x) {
  const auto below = hn::Add(fast_exp(d, hn::Neg(x)), hn::Set(d, 1.0f));
  const auto reciprocal = hn::ApproximateReciprocal(below);
  return hn::Mul(x, hn::Mul(reciprocal, hn::NegMulAdd(below, reciprocal, hn::Set(d, 2.0f))));
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
