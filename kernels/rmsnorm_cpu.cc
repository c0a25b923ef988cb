#include "kernels/rmsnorm.h"

#include <cmath>
#include <vector>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rmsnorm_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

template <class T>
HWY_INLINE void scale_row(const float* x, const float* weight, size_t width, float scale, T* y) {
  const Floats d;
  const auto factor = hn::Set(d, scale);
  for (size_t i = 0; i < width; i += hn::Lanes(d))
    store(d, hn::Mul(hn::Mul(hn::LoadU(d, x + i), factor), hn::LoadU(d, weight + i)), y + i);
}

template <class T>
HWY_INLINE void rmsnorm(const float* x, const float* weight, size_t rows, size_t width, float eps, T* y) {
  const Floats d;
  for (size_t row = 0; row < rows; ++row, x += width, y += width) {
    auto squares = hn::Zero(d);
    for (size_t i = 0; i < width; i += hn::Lanes(d)) {
      const auto v = hn::LoadU(d, x + i);
      squares = hn::MulAdd(v, v, squares);
    }
    const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(width);
    scale_row(x, weight, width, 1.0f / std::sqrt(mean + eps), y);
  }
}

template <class T>
HWY_INLINE void gated_rmsnorm(const float* y, const float* z, size_t z_stride, const float* weight, size_t rows,
                              size_t heads, size_t head_dim, float eps, float* gated, T* out) {
  const Floats d;
  const size_t width = heads * head_dim;
  for (size_t row = 0; row < rows; ++row) {
    auto squares = hn::Zero(d);
    for (size_t head = 0; head < heads; ++head) {
      const float* y_head = y + (head * rows + row) * head_dim;
      const float* z_head = z + row * z_stride + head * head_dim;
      for (size_t i = 0; i < head_dim; i += hn::Lanes(d)) {
        const auto v = hn::Mul(hn::LoadU(d, y_head + i), silu(d, hn::LoadU(d, z_head + i)));
        squares = hn::MulAdd(v, v, squares);
        hn::StoreU(v, d, gated + head * head_dim + i);
      }
    }
    const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(width);
    scale_row(gated, weight, width, 1.0f / std::sqrt(mean + eps), out + row * width);
  }
}

void rmsnorm_f32(const float* x, const float* w, size_t rows, size_t width, float eps, float* y) {
  rmsnorm(x, w, rows, width, eps, y);
}
void rmsnorm_bf16(const float* x, const float* w, size_t rows, size_t width, float eps, Bf16* y) {
  rmsnorm(x, w, rows, width, eps, y);
}
void gated_f32(const float* y, const float* z, size_t stride, const float* w, size_t rows, size_t heads,
               size_t head_dim, float eps, float* gated, float* out) {
  gated_rmsnorm(y, z, stride, w, rows, heads, head_dim, eps, gated, out);
}
void gated_bf16(const float* y, const float* z, size_t stride, const float* w, size_t rows, size_t heads,
                size_t head_dim, float eps, float* gated, Bf16* out) {
  gated_rmsnorm(y, z, stride, w, rows, heads, head_dim, eps, gated, out);
}
}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(rmsnorm_f32);
HWY_EXPORT(rmsnorm_bf16);
HWY_EXPORT(gated_f32);
HWY_EXPORT(gated_bf16);

namespace {

// One row between the gate and the norm.
float* gated_row(size_t width) {
  thread_local std::vector<float> row;
  if (row.size() < width) row.resize(width);
  return row.data();
}

}  // namespace

void rmsnorm_cpu(const float* x, const float* weight, size_t rows, size_t width, float eps, float* y) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(rmsnorm_f32)(x, weight, rows, width, eps, y);
}
void rmsnorm_cpu(const float* x, const float* weight, size_t rows, size_t width, float eps, Bf16* y) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(rmsnorm_bf16)(x, weight, rows, width, eps, y);
}
void gated_rmsnorm_cpu(const float* y, const float* z, size_t z_stride, const float* weight, size_t rows, size_t heads,
                       size_t head_dim, float eps, float* out) {
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(gated_f32)(y, z, z_stride, weight, rows, heads, head_dim, eps, gated_row(heads * head_dim), out);
}
void gated_rmsnorm_cpu(const float* y, const float* z, size_t z_stride, const float* weight, size_t rows, size_t heads,
                       size_t head_dim, float eps, Bf16* out) {
  cpu_isa();
  const auto gated = HWY_DYNAMIC_DISPATCH(gated_bf16);
  gated(y, z, z_stride, weight, rows, heads, head_dim, eps, gated_row(heads * head_dim), out);
}
}  // namespace recalld
#endif  // HWY_ONCE
