// softplus, by which the scan and the update of one token turn dt into time steps. The branch is the twin's.
#pragma once

#include <cuda_runtime.h>

namespace recalld::cuda {

__device__ __forceinline__ float softplus(float x) {
  return x > 20.0f ? x : log1pf(expf(x));
}

}  // namespace recalld::cuda
