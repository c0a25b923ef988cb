// Matrix products on the CPU through oneDNN. Inputs in f32 or bf16, sums and results in f32.
//
// Every product here has a shape that is fixed when it is made and runs on the calling thread alone, so its bits do
// not depend on how much work is done at a time or on the number of threads.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/bf16.h"

namespace recalld {

enum class ProductType {
  f32,   // inputs as they are
  bf16,  // inputs rounded to bf16: needs AVX-512 BF16 or AMX (cpu_multiplies_bf16)
};

// y = x · Wᵀ with weights packed once. Several matrices stacked along `out` make one layer.
class Linear {
 public:
  // Rows of the small product, for tokens that are generated one at a time.
  static constexpr size_t rows_few = 8;

  // weights: [out, in] bf16, row-major; copied · rows: of every x of run().
  static Linear pack(ProductType type, size_t rows, size_t out, size_t in, const Bf16* weights);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  // x: [rows, in] Bf16 or float by type · y: [rows, out]. Several threads may run it at once.
  void run(const void* x, float* y) const;

  // The same with this many rows, rows() or rows_few; the bits of a row may differ between the two. Of rows_few, a
  // row's do not depend on its place, nor on the others.
  void run(const void* x, float* y, size_t of_rows) const;

  size_t rows() const;
  size_t out() const;
  size_t in() const;

 private:
  struct Impl;
  explicit Linear(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// c[i] = a[i] · b[i] for a batch of small products of two operands that both change, all dense and row-major.
class Product {
 public:
  // a: [batch, m, k] · b: [batch, k, n], or [batch, n, k] when b_transposed · c: [batch, m, n]
  static Product make(ProductType type, size_t batch, size_t m, size_t n, size_t k, bool b_transposed);
  Product(Product&&) noexcept;
  Product& operator=(Product&&) noexcept;
  ~Product();

  // a, b: Bf16 or float by type. Several threads may run it at once.
  void run(const void* a, const void* b, float* c) const;

 private:
  struct Impl;
  explicit Product(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace recalld
