// Retrieval of one group of upper layers: which chunks a token asks for (HSA, arXiv 2504.16795, section 3.1).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/matmul.h"
#include "model/config.h"
#include "model/weights.h"

namespace recalld {

class Retrieval {
 public:
  // Reads "<prefix>.*"; the error names what is missing or of another shape.
  static Expected<Retrieval> load(const Weights& weights, const std::string& prefix, const Config& config,
                                  ProductType type);

  // q = RMSNorm(ln(RMSNorm(h))), the outer norm a retrieval head, and only with enable_lmk_norm.
  // hidden: [n, hidden_size], any n · returns [n, retrieval_dim]
  std::vector<float> embed(std::span<const float> hidden) const;

  // lmk_k_norm, by which the stored landmarks are multiplied: [retrieval_dim], ones without enable_lmk_norm.
  std::span<const float> landmark_gain() const { return landmark_gain_; }

 private:
  Retrieval(const Config& config, ProductType type, Linear ln) : config_(config), type_(type), ln_(std::move(ln)) {}

  Config config_;
  ProductType type_;
  Linear ln_;
  std::vector<float> pre_norm_;       // [hidden_size]
  std::vector<float> q_norm_;         // [width of a retrieval head], empty without enable_lmk_norm
  std::vector<float> landmark_gain_;  // [retrieval_dim]
};

}  // namespace recalld
