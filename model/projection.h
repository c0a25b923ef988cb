// What goes into matrix products: inputs in f32 or bf16, and weights packed from the checkpoint.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/bf16.h"
#include "kernels/matmul.h"
#include "model/weights.h"

namespace recalld {

// A buffer of inputs of products: bf16 where that is what they multiply, else f32.
class Operands {
 public:
  void fit(ProductType type, size_t count) {
    type_ = type;
    if (floats_.size() < count) floats_.resize(count);
  }
  void* at(size_t index) {
    return reinterpret_cast<char*>(floats_.data()) +
           index * (type_ == ProductType::bf16 ? sizeof(Bf16) : sizeof(float));
  }

 private:
  ProductType type_ = ProductType::f32;
  std::vector<float> floats_;  // large enough for either type
};

// The kernels of these names, with results that are operands of `type`.
void rmsnorm(ProductType type, const float* x, const float* weight, size_t rows, size_t width, float eps, void* y);
void swiglu(ProductType type, const float* gate_up, size_t rows, size_t width, void* out);
void to_operands(ProductType type, const float* x, size_t count, void* y);

// Matrices of the checkpoint, one below the other, as one layer of fixed `rows`. Each is [out, in] bf16; the error
// names what is missing or of another shape.
struct Stacked {
  std::string name;
  size_t out = 0;
};
Expected<Linear> pack(const Weights& weights, const std::vector<Stacked>& matrices, size_t in, ProductType type,
                      size_t rows);

// The rows of one product for n rows of input: few of them are multiplied as such.
size_t rows_for(const Linear& linear, size_t n);

// linear(RMSNorm(x)) of any number of rows, the last block of products padded.
// x: [n, linear.in()] · norm: [linear.in()] · returns [n, linear.out()]
std::vector<float> project_normed(ProductType type, const Linear& linear, std::span<const float> norm, float eps,
                                  std::span<const float> x);

}  // namespace recalld
