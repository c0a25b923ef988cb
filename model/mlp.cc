#include "model/mlp.h"

#include <vector>

#include "kernels/elementwise.h"

namespace recalld {

Expected<Mlp> Mlp::load(const Weights& weights, const std::string& prefix, const Config& config, ProductType type,
                        size_t rows) {
  const size_t hidden = config.hidden_size, inner = config.mlp_size();
  RECALLD_TRY(
      Linear gate_up,
      pack(weights, {{prefix + ".gate_proj.weight", inner}, {prefix + ".up_proj.weight", inner}}, hidden, type, rows));
  RECALLD_TRY(Linear down, pack(weights, {{prefix + ".down_proj.weight", hidden}}, inner, type, rows));
  return Mlp(type, std::move(gate_up), std::move(down));
}

void Mlp::add_to(Operands& x, size_t count, size_t rows, float* y) const {
  const size_t hidden = gate_up_.in(), inner = down_.in();
  struct Scratch {
    std::vector<float> gate_up, out;
    Operands gated;
  };
  thread_local Scratch scratch;
  scratch.gate_up.resize(rows * 2 * inner);
  scratch.gated.fit(type_, count * rows * inner);
  scratch.out.resize(rows * hidden);
  for (size_t i = 0; i < count; ++i) {
    gate_up_.run(x.at(i * rows * hidden), scratch.gate_up.data(), rows);
    swiglu(type_, scratch.gate_up.data(), rows, inner, scratch.gated.at(i * rows * inner));
  }
  for (size_t i = 0; i < count; ++i) {
    down_.run(scratch.gated.at(i * rows * inner), scratch.out.data(), rows);
    add_cpu(scratch.out.data(), rows * hidden, y + i * rows * hidden);
  }
}

}  // namespace recalld
