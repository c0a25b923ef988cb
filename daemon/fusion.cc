#include "daemon/fusion.h"

#include <algorithm>
#include <cmath>

namespace recalld {
namespace {

constexpr double landmark_weight = 0.3;

void add_standing(std::vector<Candidate>& candidates, double Candidate::*part, double weight) {
  const auto count = static_cast<double>(candidates.size());
  double mean = 0, squares = 0;
  for (const Candidate& each : candidates) mean += each.*part / count;
  for (const Candidate& each : candidates) squares += (each.*part - mean) * (each.*part - mean) / count;
  const double deviation = std::sqrt(squares);
  if (deviation <= 0) return;
  for (Candidate& each : candidates) each.score += weight * (each.*part - mean) / deviation;
}

}  // namespace

void fuse(std::vector<Candidate>& candidates) {
  for (Candidate& each : candidates) each.score = 0;
  add_standing(candidates, &Candidate::bm25, 1);
  add_standing(candidates, &Candidate::context, 1);
  add_standing(candidates, &Candidate::landmark, landmark_weight);
  std::ranges::sort(candidates, [](const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.memory != b.memory ? a.memory < b.memory : a.chunk < b.chunk;
  });
}

}  // namespace recalld
