// Landmark scores and the k best of them on an NVIDIA GPU (HSA, arXiv 2504.16795, section 3.1): the twin of
// landmark_dots_cpu() and TopK in kernels/landmark_topk.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t landmark_topk_max = 128;

// Everything is in device memory; the landmarks may be in host memory mapped into it.
struct LandmarkTopK {
  const Bf16* query = nullptr;      // [dim]
  const Bf16* landmarks = nullptr;  // [n, dim], at a multiple of 16 bytes
  uint64_t n = 0;                   // below 2^32 - 1
  uint32_t dim = 0;                 // a positive multiple of 32, at most 8192
  uint32_t k = 0;                   // 1 to landmark_topk_max
  float* dots = nullptr;            // [k], best first; of fewer landmarks than k, the first n
  uint64_t* chunks = nullptr;       // [k] indices of landmarks, of equals the lower one first
  void* workspace = nullptr;        // of landmark_topk_workspace() bytes, at a multiple of 16, zeroed before first use
};

// Bytes. For any n and dim, on the current device.
size_t landmark_topk_workspace(uint32_t k);

// Enqueues one kernel, which reads each landmark once and writes no scores. Calls that share a workspace must not
// overlap. The dots have the bits of landmark_dots_cpu(), but for the sign of a zero and the payload of a NaN, and the
// order is that of better(). Returns cudaErrorInvalidValue for a shape that is out of bounds.
cudaError_t landmark_topk(const LandmarkTopK& topk, cudaStream_t stream);

}  // namespace recalld::cuda
