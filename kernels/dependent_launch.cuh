// Kernels that start while the one ahead of them in the stream still runs (programmatic dependent launch), so that the
// time of a launch is hidden behind it.
#pragma once

#include <cuda_runtime.h>

namespace recalld::cuda {

// The attribute of such a launch. It starts as soon as all thread blocks of the kernel ahead have let it, or have
// ended.
inline cudaLaunchAttribute early_start(bool allowed = true) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = allowed ? 1 : 0;
  return attribute;
}

__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// What depends on the kernel ahead comes after this. That one has then ended, and what it wrote is there; so have all
// before it, if each of them has awaited its own.
__device__ __forceinline__ void await_kernel_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace recalld::cuda
