#include "tools/bench/products.h"

#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

namespace recalld::bench {
namespace {

struct Shape {
  dnnl_dim_t rows, out, in;
  double flop() const { return 2.0 * static_cast<double>(rows * out * in); }
};

// Every product that one chunk of 64 tokens goes through on append.
std::vector<Shape> products_of_a_chunk(const Config& c) {
  const dnnl_dim_t rows = static_cast<dnnl_dim_t>(c.chunk_size), d = static_cast<dnnl_dim_t>(c.hidden_size);
  const dnnl_dim_t inner = d * static_cast<dnnl_dim_t>(c.expand);
  const dnnl_dim_t projected =
      2 * inner + 2 * static_cast<dnnl_dim_t>(c.state_size) + static_cast<dnnl_dim_t>(c.num_heads);
  const dnnl_dim_t mlp = static_cast<dnnl_dim_t>(c.mlp_size());
  std::vector<Shape> shapes;
  for (size_t layer = 0; layer < c.num_lower_layers; ++layer) {
    shapes.push_back({rows, projected, d});
    shapes.push_back({rows, d, inner});
  }
  for (size_t layer = 0; layer < c.encoder_layers; ++layer) {
    shapes.push_back({rows, 3 * d, d});    // q, k, v
    shapes.push_back({rows, d, d});        // o
    shapes.push_back({rows, 2 * mlp, d});  // gate, up
    shapes.push_back({rows, d, mlp});      // down
  }
  shapes.push_back({rows, 2 * static_cast<dnnl_dim_t>(c.num_kv_heads * c.attention_head_dim), d});  // K, V
  return shapes;
}

// One product with memory of its own.
class Product {
 public:
  Product(const dnnl::engine& engine, const Shape& shape, dnnl::memory::data_type type) {
    using dnnl::memory;
    const memory::desc source({shape.rows, shape.in}, type, memory::format_tag::ab);
    const memory::desc weights({shape.in, shape.out}, type, memory::format_tag::any);
    const memory::desc result({shape.rows, shape.out}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc description({source, weights, result}, engine);
    matmul_ = dnnl::matmul(description);
    source_ = memory(source, engine);
    weights_ = memory(description.weights_desc(), engine);
    result_ = memory(result, engine);
    for (const memory& m : {source_, weights_}) std::memset(m.get_data_handle(), 0, m.get_desc().get_size());
  }
  void run(dnnl::stream& stream) {
    matmul_.execute(stream, {{DNNL_ARG_SRC, source_}, {DNNL_ARG_WEIGHTS, weights_}, {DNNL_ARG_DST, result_}});
  }

 private:
  dnnl::matmul matmul_;
  dnnl::memory source_, weights_, result_;
};

}  // namespace

double product_flop_per_token(const Config& config) {
  double flop = 0;
  for (const Shape& shape : products_of_a_chunk(config)) flop += shape.flop();
  return flop / static_cast<double>(config.chunk_size);
}

double product_tokens_per_s(const Config& config, bool bf16, size_t threads) {
  using Clock = std::chrono::steady_clock;
  constexpr size_t rounds = 9;
  constexpr auto round_length = std::chrono::milliseconds(100);
  const auto type = bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;

  std::vector<std::vector<double>> rates(threads, std::vector<double>(rounds));
  std::barrier together(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> team;
  for (size_t t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      omp_set_num_threads(1);
      dnnl::engine engine(dnnl::engine::kind::cpu, 0);
      dnnl::stream stream(engine);
      std::vector<Product> products;
      for (const Shape& shape : products_of_a_chunk(config)) products.emplace_back(engine, shape, type);
      for (Product& product : products) product.run(stream);
      for (size_t round = 0; round < rounds; ++round) {
        together.arrive_and_wait();
        const auto start = Clock::now();
        size_t chunks = 0;
        for (; Clock::now() - start < round_length; ++chunks)
          for (Product& product : products) product.run(stream);
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        rates[t][round] = static_cast<double>(chunks * config.chunk_size) / seconds;
      }
    });
  }
  team.clear();  // joins

  std::vector<double> sums(rounds, 0.0);
  for (const auto& of_thread : rates)
    for (size_t round = 0; round < rounds; ++round) sums[round] += of_thread[round];
  std::nth_element(sums.begin(), sums.begin() + rounds / 2, sums.end());
  return sums[rounds / 2];
}

}  // namespace recalld::bench
