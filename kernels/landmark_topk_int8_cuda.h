// The k best landmarks of one query on an NVIDIA GPU, found among landmarks of 8 bits and scored again from those of
// bf16 (HSA, arXiv 2504.16795, section 3.1): landmark_topk() of landmark_topk_cuda.h at half the bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

// Pointers are to device memory where nothing else is said.
struct LandmarkTopKInt8 {
  const Bf16* query = nullptr;      // [dim]
  const int8_t* codes = nullptr;    // [n, dim], at a multiple of 16 bytes: what landmarks_to_int8() wrote
  const float* scales = nullptr;    // [n], likewise
  const Bf16* landmarks = nullptr;  // [n, dim], at a multiple of 16 bytes; device memory, or host memory mapped into it
  uint64_t n = 0;                   // below 2^32 - 1
  uint32_t dim = 0;                 // a positive multiple of 32, at most 8192
  uint32_t k = 0;                   // 1 to landmark_topk_max
  float* dots = nullptr;            // [k], best first; of fewer landmarks than k, the first n
  uint64_t* chunks = nullptr;       // [k] indices of landmarks, of equals the lower one first
  void* workspace = nullptr;        // of landmark_topk_int8_workspace() bytes, at a multiple of 16, of any contents
};

// Bytes. For any n and dim, on the current device.
size_t landmark_topk_int8_workspace(uint32_t k);

// The same chunks, and dots of the same bits, as from landmark_topk(), always. Enqueues five kernels. Calls that share
// a workspace must not overlap. Returns cudaErrorInvalidValue for a shape that is out of bounds.
//
// The query is rounded to 16 bits, to sq * Q, and the sum of code * Q is exact. So what a score from codes differs by
// is at most, with s the row's scale, q the query and |q| the sum of its magnitudes,
//   s * (0.50002 |q| + 64 * dim * sq + 128 |q| * (dim / 32 + 21) * 2^-24) + 2^-100:
// the rounding of the landmark, that of the query, and that of either sum. Every landmark that this leaves a chance is
// scored again in the one order. When those are more than the workspace has room for, all landmarks are.
cudaError_t landmark_topk_int8(const LandmarkTopKInt8& topk, cudaStream_t stream);

// A landmark's scale is its greatest magnitude over 127, and a code the element over the scale, to the nearest, ties to
// even. A landmark that has elements that are not finite, or none of 2^-100 or more but some, gets the scale infinity
// and codes of 0: it is always scored again.
// landmarks: [n, dim] bf16, as above · codes: [n, dim] · scales: [n] · dim a positive multiple of 32
cudaError_t landmarks_to_int8(const Bf16* landmarks, uint64_t n, uint32_t dim, int8_t* codes, float* scales,
                              cudaStream_t stream);

}  // namespace recalld::cuda
