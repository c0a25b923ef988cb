// One pass over the landmarks (landmark::scan) by as many blocks as the card holds, two a multiprocessor, but
// no more than one block can merge.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_device.cuh"

namespace recalld::cuda {
namespace {

using landmark::multiprocessors;

constexpr int blocks_per_sm = 2;

uint32_t blocks_max() {
  return std::min<uint32_t>(multiprocessors() * blocks_per_sm, landmark::parts_max);
}

struct Call {
  LandmarkTopK topk;
  uint32_t blocks_max;
};

template <int registers>
__global__ void __launch_bounds__(landmark::threads, blocks_per_sm) landmark_topk_kernel(Call call) {
  extern __shared__ __align__(16) float query[];  // [dim]
  __shared__ uint64_t lists[landmark::warps / 2 * landmark::Best<registers>::slots];
  const LandmarkTopK& topk = call.topk;
  auto* const state = static_cast<landmark::ScanState*>(topk.workspace);
  auto* const heads = reinterpret_cast<uint64_t*>(state + 1);
  landmark::scan<registers>({.query = topk.query,
                             .landmarks = topk.landmarks,
                             .rows = nullptr,
                             .n = topk.n,
                             .dim = topk.dim,
                             .k = topk.k,
                             .dots = topk.dots,
                             .chunks = topk.chunks,
                             .state = state,
                             .heads = heads,
                             .lists = heads + call.blocks_max * landmark::few,
                             .part = blockIdx.x,
                             .parts = gridDim.x},
                            query, lists);
}

}  // namespace

size_t landmark_topk_workspace(uint32_t k) {
  return sizeof(landmark::ScanState) + size_t{blocks_max()} * (landmark::few + k) * sizeof(uint64_t);
}

cudaError_t landmark_topk(const LandmarkTopK& topk, cudaStream_t stream) {
  constexpr uint32_t dim_max = 8192;  // the query must fit into shared memory
  if (topk.k == 0 || topk.k > landmark_topk_max || topk.dim == 0 || topk.dim % 32 != 0 || topk.dim > dim_max ||
      topk.n >= 0xffffffffu)
    return cudaErrorInvalidValue;
  if (topk.n == 0) return cudaSuccess;
  const auto kernel = topk.k <= 32   ? landmark_topk_kernel<1>
                      : topk.k <= 64 ? landmark_topk_kernel<2>
                                     : landmark_topk_kernel<4>;
  const Call call{topk, blocks_max()};
  return landmark::launch(kernel, landmark::parts_of(topk.n, call.blocks_max), landmark::threads,
                          topk.dim * sizeof(float), true, call, stream);
}

}  // namespace recalld::cuda
