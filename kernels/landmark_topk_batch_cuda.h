// The k best landmarks of each of several queries on an NVIDIA GPU (HSA, arXiv 2504.16795, section 3.1):
// landmark_topk() of landmark_topk_cuda.h for a batch, which reads the landmarks once for all of it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t landmark_topk_batch_max = 64;  // queries

// Everything is in device memory; the landmarks may be in host memory mapped into it.
struct LandmarkTopKBatch {
  const Bf16* queries = nullptr;    // [count, dim], at a multiple of 16 bytes
  uint32_t count = 0;               // 0 to landmark_topk_batch_max
  const Bf16* landmarks = nullptr;  // [n, dim], at a multiple of 16 bytes
  uint64_t n = 0;                   // below 2^32 - 1
  uint32_t dim = 0;                 // a positive multiple of 32, at most 8192
  uint32_t k = 0;                   // 1 to landmark_topk_max, of every query; the best few of k are the first of them
  float* dots = nullptr;            // [count, k], best first; of fewer landmarks than k, the first n of each k
  uint64_t* chunks = nullptr;       // [count, k] indices of landmarks, of equals the lower one first
  void* workspace = nullptr;        // of landmark_topk_batch_workspace() bytes, at a multiple of 16, of any contents
};

// Bytes. For any count, n and dim, on the current device.
size_t landmark_topk_batch_workspace(uint32_t k);

// Each query gets the same chunks, and dots of the same bits, as from landmark_topk(). Enqueues four kernels for as
// many queries as have 64 Ki elements together (and are 8, 16, 32 or 64), and four more for as many of the rest. Calls
// that share a workspace must not overlap. Returns cudaErrorInvalidValue for a shape that is out of bounds.
//
// Tensor cores find candidates, which are scored again in the one order of summation. With A = sum |q_i l_i|, bounded
// by the sum of the query's magnitudes times the landmark's greatest one, both sums of `dim` products lie within
// A * dim * 1.5 * 2^-23 of each other:
// - the order of landmark_topk.h rounds dim / 32 + 5 times on the way to a sum, each time by at most 2^-24 A;
// - a step of the tensor cores adds 16 exact products to a sum. NVIDIA does not say how it rounds. It is
//   taken that it aligns them to the greatest, cuts them off below 24 bits, and the sum too, as was found on cards
//   before Hopper (Fasi et al., PeerJ Comput. Sci. 7:e330, 2021): at most 20 * 2^-23 A for each of dim / 16 steps, were
//   even the steps made of two halves. The worst rows found, which the test has too, use up 0.17 of the bound on an
//   H100 (dim 64 to 8192, A as it is and not as it is bounded).
// Products and sums below 2^-126 may be lost: dim * 2^-126 is added. Where A may reach 2^126, nothing is believed.
//
// A query with more candidates than the workspace has room for (because many landmarks are equal, say) is answered by
// a pass of its own over all landmarks.
cudaError_t landmark_topk_batch(const LandmarkTopKBatch& topk, cudaStream_t stream);

}  // namespace recalld::cuda
