#include <omp.h>

#include <cassert>
#include <cstring>
#include <dnnl.hpp>
#include <vector>

#include "kernels/cpu_isa.h"
#include "kernels/matmul.h"

namespace recalld {
namespace {

using dnnl::memory;

// oneDNN splits a product over an OpenMP team unless the calling thread is told to be alone. The setting belongs to
// the thread, and is made again only where it is new.
void run_alone() {
  thread_local const bool alone = [] {
    omp_set_num_threads(1);
    return true;
  }();
  static_cast<void>(alone);
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine = [] {
    cpu_isa();  // the limit on instruction sets counts only before the first primitive
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return engine;
}

dnnl::stream& thread_stream() {
  thread_local dnnl::stream stream(cpu_engine());
  return stream;
}

memory::data_type data_type(ProductType type) {
  return type == ProductType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

memory::dim dim(size_t value) {
  return static_cast<memory::dim>(value);
}

// Runs a matmul on borrowed operands, with the scratchpad of this thread: sharing a primitive between threads is safe
// only when it owns none.
class Matmul {
 public:
  Matmul(const memory::desc& a, const memory::desc& b, const memory::desc& c) {
    run_alone();
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::matmul::primitive_desc description({a, b, c}, attributes, cpu_engine());
    primitive_ = dnnl::matmul(description);
    a_ = description.src_desc();
    b_ = description.weights_desc();
    c_ = description.dst_desc();
    scratchpad_ = description.scratchpad_desc();
    scratchpad_bytes_ = scratchpad_.get_size();
  }

  const memory::desc& weights() const { return b_; }  // in the layout that the kernel wants

  void run(const void* a, const void* b, float* c) const {
    run_alone();
    thread_local std::vector<std::byte> scratchpad;
    if (scratchpad.size() < scratchpad_bytes_) scratchpad.resize(scratchpad_bytes_);
    primitive_.execute(thread_stream(), {{DNNL_ARG_SRC, borrow(a_, a)},
                                         {DNNL_ARG_WEIGHTS, borrow(b_, b)},
                                         {DNNL_ARG_DST, borrow(c_, c)},
                                         {DNNL_ARG_SCRATCHPAD, borrow(scratchpad_, scratchpad.data())}});
  }

 private:
  // The library takes pointers to non-const even where it only reads.
  static memory borrow(const memory::desc& description, const void* data) {
    return memory(description, cpu_engine(), const_cast<void*>(data));
  }

  dnnl::matmul primitive_;
  memory::desc a_, b_, c_, scratchpad_;  // asked once: a question to the library takes as long as a small product
  size_t scratchpad_bytes_ = 0;
};

}  // namespace

namespace {

// Rows of the small product that the library computes alike: its AVX2 kernel takes six, and what is left by another
// way, so that eight rows would not all have the bits that they have in the first place.
size_t few_at_once() {
  cpu_isa();
  return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core ? Linear::rows_few : Linear::rows_few / 2;
}

}  // namespace

struct Linear::Impl {
  ProductType type;
  size_t rows, out, in;
  Matmul matmul, few;
  memory weights, few_weights;  // one and the same where both products want the same layout
};

Linear::Linear(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

Linear Linear::pack(ProductType type, size_t rows, size_t out, size_t in, const Bf16* weights) {
  const auto product = [&](size_t of_rows, const memory::desc& w) {
    return Matmul({{dim(of_rows), dim(in)}, data_type(type), memory::format_tag::ab}, w,
                  {{dim(of_rows), dim(out)}, memory::data_type::f32, memory::format_tag::ab});
  };
  const memory::desc any({dim(in), dim(out)}, data_type(type), memory::format_tag::any);
  Matmul matmul = product(rows, any), few = product(few_at_once(), any);
  // The checkpoint has [out, in]; the library reorders into whatever layout its kernel for this shape wants.
  std::vector<float> plain(out * in);
  for (size_t i = 0; i < plain.size(); ++i) plain[i] = to_float(weights[i]);
  memory given({{dim(in), dim(out)}, memory::data_type::f32, memory::format_tag::ba}, cpu_engine(), plain.data());
  const auto packed = [&](const memory::desc& layout) {
    memory to(layout, cpu_engine());
    dnnl::reorder(given, to).execute(thread_stream(), given, to);
    thread_stream().wait();
    return to;
  };
  memory of_rows = packed(matmul.weights());
  memory of_few = few.weights() == matmul.weights() ? of_rows : packed(few.weights());
  return Linear(std::make_unique<Impl>(
      Impl{type, rows, out, in, std::move(matmul), std::move(few), std::move(of_rows), std::move(of_few)}));
}

void Linear::run(const void* x, float* y) const {
  impl_->matmul.run(x, impl_->weights.get_data_handle(), y);
}
void Linear::run(const void* x, float* y, size_t of_rows) const {
  assert(of_rows == impl_->rows || of_rows == rows_few);
  if (of_rows == impl_->rows) return run(x, y);
  const size_t at_once = few_at_once();
  const size_t row_bytes = impl_->in * (impl_->type == ProductType::bf16 ? sizeof(Bf16) : sizeof(float));
  for (size_t row = 0; row < rows_few; row += at_once)
    impl_->few.run(static_cast<const char*>(x) + row * row_bytes, impl_->few_weights.get_data_handle(),
                   y + row * impl_->out);
}
size_t Linear::rows() const {
  return impl_->rows;
}
size_t Linear::out() const {
  return impl_->out;
}
size_t Linear::in() const {
  return impl_->in;
}

struct Product::Impl {
  Matmul matmul;
};

Product::Product(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Product::Product(Product&&) noexcept = default;
Product& Product::operator=(Product&&) noexcept = default;
Product::~Product() = default;

Product Product::make(ProductType type, size_t batch, size_t m, size_t n, size_t k, bool b_transposed) {
  const auto b_tag = b_transposed ? memory::format_tag::acb : memory::format_tag::abc;
  return Product(std::make_unique<Impl>(
      Impl{Matmul({{dim(batch), dim(m), dim(k)}, data_type(type), memory::format_tag::abc},
                  {{dim(batch), dim(k), dim(n)}, data_type(type), b_tag},
                  {{dim(batch), dim(m), dim(n)}, memory::data_type::f32, memory::format_tag::abc})}));
}

void Product::run(const void* a, const void* b, float* c) const {
  impl_->matmul.run(a, b, c);
}

}  // namespace recalld
