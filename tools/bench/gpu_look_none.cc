// Where there is no CUDA.
#include "tools/bench/gpu_look.h"

namespace recalld::bench {

std::optional<double> empty_look_us(size_t) {
  return std::nullopt;
}

}  // namespace recalld::bench
