// Landmark scores and the k best of them (HSA, arXiv 2504.16795, section 3.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/bf16.h"

namespace recalld {

// A chunk of one memory and its landmark's dot product with the query, not yet scaled.
struct ScoredChunk {
  uint64_t chunk = 0;
  float dot = 0;
};

// "Comes before": the higher dot product, and of equals the lower chunk, so that every device gives the same order.
// A NaN comes after everything.
bool better(const ScoredChunk& a, const ScoredChunk& b);

// The k best of everything offered, in any order of offering. 1 <= k.
class TopK {
 public:
  explicit TopK(size_t k);
  void offer(ScoredChunk candidate);
  std::vector<ScoredChunk> take();  // best first; leaves the object empty

 private:
  size_t k_;
  std::vector<ScoredChunk> heap_;  // the worst of the kept on top
};

// Dot products of one query with n landmarks, in THE one order of fp32 summation that defines a landmark score:
// partial p (0..31) adds the products of elements p, p + 32, p + 64, ... in that order, starting from 0; then the
// partials are added pairwise, neighbours first: s[p] = s[p] + s[p + w] for w = 1, 2, 4, 8, 16 at p a multiple of 2w.
// A product of two bf16 numbers is exact in fp32 unless it leaves fp32's range, from which landmarks of unit RMS stay
// far away: a fused and a separate multiplication give the same bits, and so does every instruction set. Subnormal
// products and sums are kept.
// query: [dim] bf16 · landmarks: [n, dim] bf16 · out: [n] · dim a positive multiple of 32
void landmark_dots_cpu(std::span<const Bf16> query, const Bf16* landmarks, size_t n, float* out);

// The same, as plain loops: the definition that the fast path is tested against.
void landmark_dots_reference(std::span<const Bf16> query, const Bf16* landmarks, size_t n, float* out);

}  // namespace recalld
