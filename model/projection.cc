#include "model/projection.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"
#include "kernels/swiglu.h"

namespace recalld {

void rmsnorm(ProductType type, const float* x, const float* weight, size_t rows, size_t width, float eps, void* y) {
  if (type == ProductType::bf16)
    rmsnorm_cpu(x, weight, rows, width, eps, static_cast<Bf16*>(y));
  else
    rmsnorm_cpu(x, weight, rows, width, eps, static_cast<float*>(y));
}

void swiglu(ProductType type, const float* gate_up, size_t rows, size_t width, void* out) {
  if (type == ProductType::bf16)
    swiglu_cpu(gate_up, rows, width, static_cast<Bf16*>(out));
  else
    swiglu_cpu(gate_up, rows, width, static_cast<float*>(out));
}

void to_operands(ProductType type, const float* x, size_t count, void* y) {
  if (type == ProductType::bf16)
    to_bf16_cpu(x, count, static_cast<Bf16*>(y));
  else
    std::copy_n(x, count, static_cast<float*>(y));
}

Expected<Linear> pack(const Weights& weights, const std::vector<Stacked>& matrices, size_t in, ProductType type,
                      size_t rows) {
  std::vector<Bf16> stacked;
  for (const Stacked& matrix : matrices) {
    RECALLD_TRY(const auto part, weights.bf16(matrix.name, {matrix.out, in}));
    stacked.insert(stacked.end(), part.begin(), part.end());
  }
  return Linear::pack(type, rows, stacked.size() / in, in, stacked.data());
}

size_t rows_for(const Linear& linear, size_t n) {
  return n <= Linear::rows_few ? Linear::rows_few : linear.rows();
}

std::vector<float> project_normed(ProductType type, const Linear& linear, std::span<const float> norm, float eps,
                                  std::span<const float> x) {
  const size_t width = linear.in(), n = x.size() / width, block = rows_for(linear, n);
  const size_t padded = (n + block - 1) / block * block;
  Operands normed;
  normed.fit(type, padded * width);
  rmsnorm(type, x.data(), norm.data(), n, width, eps, normed.at(0));
  std::vector<float> out(padded * linear.out());
  for (size_t first = 0; first < padded; first += block)
    linear.run(normed.at(first * width), out.data() + first * linear.out(), block);
  out.resize(n * linear.out());
  return out;
}

}  // namespace recalld
