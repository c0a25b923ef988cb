// One warp per query, which reads its head's part of the row twice, the second time from the L1 cache.
#include <cuda_runtime.h>

#include "kernels/elementwise_device.cuh"
#include "kernels/retrieval_cuda.h"

namespace recalld::cuda {
namespace {

using namespace elementwise;

__global__ void __launch_bounds__(threads) queries_kernel(const RetrievalQueries all, Bf16* queries) {
  const uint32_t index = warp_of_grid();  // of [rows, heads]
  if (index >= all.rows * all.heads) return;
  const uint32_t width = all.dim / all.heads, first = index % all.heads * width;
  const float* const own = all.x + static_cast<size_t>(index / all.heads) * all.x_stride + first;
  const bool norm = all.q_norm != nullptr;
  const float scale = norm ? norm_scale([own](uint32_t i) { return load(own + i); }, width, all.eps) : 1.0f;
  Bf16* const query = queries + static_cast<size_t>(index) * all.dim;
  for (uint32_t i = threadIdx.x % warp * 4; i < all.dim; i += warp * 4) {
    float4 value{};
    if (i >= first && i - first < width) {
      value = load(own + (i - first));
      if (norm) value = product(product(value, scale), load(all.q_norm + (i - first)));
      value = product(value, load(all.gain + i));
    }
    store(value, query + i);
  }
}

}  // namespace

cudaError_t retrieval_queries(const RetrievalQueries& all, Bf16* queries, cudaStream_t stream) {
  const uint64_t rows = uint64_t{all.rows} * all.heads;
  if (all.heads == 0 || !in_bounds(rows, all.dim) || all.dim % (uint64_t{16} * all.heads) != 0 ||
      !is_stride(all.x_stride, all.dim))
    return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  queries_kernel<<<blocks_of_rows(rows), threads, 0, stream>>>(all, queries);
  return cudaGetLastError();
}

}  // namespace recalld::cuda
