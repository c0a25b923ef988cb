// The SwiGLU MLP of the chunk encoder and of HSA: down(silu(gate(x)) · up(x)).
#pragma once

#include <string>
#include <utility>

#include "base/error.h"
#include "kernels/matmul.h"
#include "model/config.h"
#include "model/projection.h"
#include "model/weights.h"

namespace recalld {

class Mlp {
 public:
  // Reads "<prefix>.gate_proj.weight", "up_proj" and "down_proj"; every product has `rows` rows.
  static Expected<Mlp> load(const Weights& weights, const std::string& prefix, const Config& config, ProductType type,
                            size_t rows);

  // `count` inputs one after the other through each projection, so that its weights are read from the L2 cache. Each is
  // of the rows that the MLP was loaded for, or of Linear::rows_few.
  // x: [count, rows, hidden_size] operands · y: [count, rows, hidden_size] in and out, the result is added
  void add_to(Operands& x, size_t count, size_t rows, float* y) const;

 private:
  Mlp(ProductType type, Linear gate_up, Linear down)
      : type_(type), gate_up_(std::move(gate_up)), down_(std::move(down)) {}

  ProductType type_;
  Linear gate_up_;
  Linear down_;
};

}  // namespace recalld
