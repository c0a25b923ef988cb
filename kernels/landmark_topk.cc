#include "kernels/landmark_topk.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace recalld {

bool better(const ScoredChunk& a, const ScoredChunk& b) {
  const bool a_is_nan = std::isnan(a.dot), b_is_nan = std::isnan(b.dot);
  if (a_is_nan != b_is_nan) return b_is_nan;
  if (!a_is_nan && a.dot != b.dot) return a.dot > b.dot;
  return a.chunk < b.chunk;
}

TopK::TopK(size_t k) : k_(k) {}

void TopK::offer(ScoredChunk candidate) {
  if (heap_.size() < k_) {
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), better);
  } else if (better(candidate, heap_.front())) {
    std::pop_heap(heap_.begin(), heap_.end(), better);
    heap_.back() = candidate;
    std::push_heap(heap_.begin(), heap_.end(), better);
  }
}

std::vector<ScoredChunk> TopK::take() {
  std::sort_heap(heap_.begin(), heap_.end(), better);
  return std::exchange(heap_, {});
}

}  // namespace recalld
