#include "kernels/landmark_topk.h"

#include <cassert>

#include "kernels/cpu_isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/landmark_topk_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace recalld::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Blocks of four partials, each summed in all its lanes, to the sum of all: neighbours first, as the header says.
template <class D, class V>
HWY_INLINE float sum_of_blocks(D d, const V* sums) {
  if constexpr (hn::MaxLanes(D()) == 16) {
    const auto pairs = hn::Add(sums[0], hn::SwapAdjacentBlocks(sums[0]));
    return hn::GetLane(hn::Add(pairs, hn::ReverseBlocks(d, pairs)));
  } else if constexpr (hn::MaxLanes(D()) == 8) {
    const auto low = hn::Add(sums[0], hn::SwapAdjacentBlocks(sums[0]));
    const auto high = hn::Add(sums[1], hn::SwapAdjacentBlocks(sums[1]));
    return hn::GetLane(hn::Add(low, high));
  } else {
    static_assert(hn::MaxLanes(D()) == 4);
    return hn::GetLane(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3])));
  }
}

// Elements 2i and 2i + 1 share a 32-bit word, so one load yields the partials of even and of odd number without a
// shuffle, and the first step of the pairwise sum is one vector addition.
// query_even, query_odd: [dim / 2] floats
void landmark_dots(const float* query_even, const float* query_odd, size_t dim, const Bf16* landmarks, size_t n,
                   float* out) {
  using Floats = hn::CappedTag<float, 16>;
  const Floats df;
  const hn::RebindToUnsigned<Floats> du;
  constexpr size_t lanes = hn::MaxLanes(Floats());
  constexpr size_t vectors = 16 / lanes;  // of even, and as many of odd partials
  const auto high_half = hn::Set(du, 0xffff0000u);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(landmarks + i * dim);
    hn::VFromD<Floats> sums[vectors];
    for (size_t v = 0; v < vectors; ++v) {
      auto even = hn::Zero(df), odd = hn::Zero(df);
      for (size_t j = v * lanes; j < dim / 2; j += 16) {
        const auto pair = hn::LoadU(du, words + j);
        even = hn::MulAdd(hn::BitCast(df, hn::ShiftLeft<16>(pair)), hn::LoadU(df, query_even + j), even);
        odd = hn::MulAdd(hn::BitCast(df, hn::And(pair, high_half)), hn::LoadU(df, query_odd + j), odd);
      }
      auto sum = hn::Add(even, odd);
      sum = hn::Add(sum, hn::Shuffle2301(sum));
      sums[v] = hn::Add(sum, hn::Shuffle1032(sum));  // every lane of a block of four now holds the block's sum
    }
    out[i] = sum_of_blocks(df, sums);
  }
}

}  // namespace recalld::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace recalld {

HWY_EXPORT(landmark_dots);

void landmark_dots_cpu(std::span<const Bf16> query, const Bf16* landmarks, size_t n, float* out) {
  const size_t dim = query.size();
  assert(dim > 0 && dim % 32 == 0);
  std::vector<float> split(dim);  // even elements, then odd ones
  for (size_t i = 0; i < dim; ++i) split[i / 2 + (i % 2) * (dim / 2)] = to_float(query[i]);
  cpu_isa();
  HWY_DYNAMIC_DISPATCH(landmark_dots)(split.data(), split.data() + dim / 2, dim, landmarks, n, out);
}

void landmark_dots_reference(std::span<const Bf16> query, const Bf16* landmarks, size_t n, float* out) {
  const size_t dim = query.size();
  for (size_t i = 0; i < n; ++i) {
    float partial[32] = {};
    for (size_t j = 0; j < dim; ++j) partial[j % 32] += to_float(query[j]) * to_float(landmarks[i * dim + j]);
    for (size_t width = 1; width < 32; width *= 2) {
      for (size_t p = 0; p < 32; p += 2 * width) partial[p] += partial[p + width];
    }
    out[i] = partial[0];
  }
}

}  // namespace recalld
#endif  // HWY_ONCE
