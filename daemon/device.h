// What the model computes on.
#pragma once

#include <cstdint>

namespace recalld {

enum class Device : uint8_t {
  automatic,  // the GPU where one can be opened, else the CPU
  cpu,
  cuda,  // the GPU, or the daemon does not start
};

}  // namespace recalld
