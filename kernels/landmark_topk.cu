// One pass over the landmarks (landmark::scan) by as many blocks as the card holds, two a multiprocessor.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_device.cuh"

namespace recalld::cuda {
namespace {

using landmark::multiprocessors;

constexpr int blocks_per_sm = 2;

template <int registers>
__global__ void __launch_bounds__(landmark::threads, blocks_per_sm) landmark_topk_kernel(LandmarkTopK topk) {
  extern __shared__ __align__(16) float query[];  // [dim]
  __shared__ uint64_t lists[landmark::warps / 2 * landmark::Best<registers>::slots];
  auto* const state = static_cast<landmark::ScanState*>(topk.workspace);
  landmark::scan<registers>({.query = topk.query,
                             .landmarks = topk.landmarks,
                             .rows = nullptr,
                             .n = topk.n,
                             .dim = topk.dim,
                             .k = topk.k,
                             .dots = topk.dots,
                             .chunks = topk.chunks,
                             .state = state,
                             .lists = reinterpret_cast<uint64_t*>(state + 1),
                             .part = blockIdx.x,
                             .parts = gridDim.x},
                            query, lists);
}

template <int registers>
cudaError_t launch(const LandmarkTopK& topk, cudaStream_t stream) {
  constexpr uint64_t rows_of_block = uint64_t{landmark::warps} * landmark::rows;
  const uint64_t most = static_cast<uint64_t>(multiprocessors()) * blocks_per_sm;
  const uint64_t blocks = std::clamp<uint64_t>((topk.n + rows_of_block - 1) / rows_of_block, 1, most);
  landmark_topk_kernel<registers>
      <<<static_cast<unsigned>(blocks), landmark::threads, topk.dim * sizeof(float), stream>>>(topk);
  return cudaGetLastError();
}

}  // namespace

size_t landmark_topk_workspace(uint32_t k) {
  return sizeof(landmark::ScanState) + static_cast<size_t>(multiprocessors()) * blocks_per_sm * k * sizeof(uint64_t);
}

cudaError_t landmark_topk(const LandmarkTopK& topk, cudaStream_t stream) {
  constexpr uint32_t dim_max = 8192;  // the query must fit into shared memory
  if (topk.k == 0 || topk.k > landmark_topk_max || topk.dim == 0 || topk.dim % 32 != 0 || topk.dim > dim_max ||
      topk.n >= 0xffffffffu)
    return cudaErrorInvalidValue;
  if (topk.n == 0) return cudaSuccess;
  if (topk.k <= 32) return launch<1>(topk, stream);
  return topk.k <= 64 ? launch<2>(topk, stream) : launch<4>(topk, stream);
}

}  // namespace recalld::cuda
