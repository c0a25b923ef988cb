// What tokens ask of landmarks, on an NVIDIA GPU (HSA, arXiv 2504.16795, section 3.1). Twin: Retrieval in
// model/retrieval.h and Ramba::landmark_queries().
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace recalld::cuda {

// All pointers are to device memory, at multiples of 16 bytes.
struct RetrievalQueries {
  const float* x = nullptr;       // [rows] rows of dim, x_stride apart: the product `ln` of the tokens' hidden states
  uint32_t x_stride = 0;          // in elements: a multiple of 4, at least dim
  const float* q_norm = nullptr;  // [dim / heads], the same for each head; null: no norm
  const float* gain = nullptr;    // [dim], by which the landmarks would be multiplied
  uint32_t rows = 0;              // rows * heads is at most elementwise_rows_max
  uint32_t heads = 1;             // retrieval heads, at least 1
  uint32_t dim = 0;               // a multiple of 16 * heads, at most elementwise_width_max
  float eps = 0;                  // of q_norm
};

// Query h of a row has head h's part of the row, RMSNorm(x) · gain, in f32 and then rounded, and zeros elsewhere, so
// that its products with whole landmarks are that head's. queries: [rows, heads, dim] Enqueues one kernel, or nothing
// without rows. A row's bits do not depend on the other rows of the call. cudaErrorInvalidValue: a shape out of bounds.
cudaError_t retrieval_queries(const RetrievalQueries& retrieval, Bf16* queries, cudaStream_t stream);

}  // namespace recalld::cuda
