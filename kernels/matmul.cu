// cuBLASLt's matrices are column by column: to it W is [in, out], to be transposed, x is [in, rows] and y [out, rows],
// each without gaps. Descriptors live on the stack, so a call allocates nothing.
//
// What is best for few rows takes up to 7 times as long as the best for thousands: hence an algorithm for every power
// of two. That they agree is no promise of cuBLASLt's, but found: all that it offers for the starter's shapes (13.1,
// H100) add up in one order and differ in their tiles alone.
//
// cuBLASLt 13.1 offers Hopper's algorithms (wgmma) for an `out` of 1680, but for 1676 and 1684 only those of older
// cards, which take three times as long for 4096 rows.
#include "kernels/matmul_cuda.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace recalld::cuda {
namespace {

constexpr uint32_t rows_of_common = 64;     // whose algorithm is not far from the best one for fewer
constexpr uint32_t pointer_alignment = 16;  // bytes
constexpr uint32_t workspace_alignment = 256;
constexpr int candidates_max = 32;

cudaError_t to_cuda(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return cudaSuccess;
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return cudaErrorInitializationError;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_INVALID_VALUE:
      return cudaErrorInvalidValue;
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return cudaErrorNotSupported;
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return cudaErrorLaunchFailure;
    default:
      return cudaErrorUnknown;
  }
}

#define RETURN_IF_FAILED(call) \
  if (const cublasStatus_t status = (call); status != CUBLAS_STATUS_SUCCESS) return status

// What cuBLASLt is told about a product.
struct Description {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t w, x, y;

  cublasStatus_t describe(uint32_t out, uint32_t in, uint32_t rows) {
    RETURN_IF_FAILED(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    RETURN_IF_FAILED(
        cublasLtMatmulDescSetAttribute(&operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    RETURN_IF_FAILED(cublasLtMatrixLayoutInit(&w, CUDA_R_16BF, in, out, in));
    RETURN_IF_FAILED(cublasLtMatrixLayoutInit(&x, CUDA_R_16BF, in, rows, in));
    return cublasLtMatrixLayoutInit(&y, CUDA_R_32F, out, rows, out);
  }
};

cublasStatus_t prefer_whole_sums(cublasLtMatmulPreferenceOpaque_t& preference) {
  RETURN_IF_FAILED(cublasLtMatmulPreferenceInit(&preference));
  const uint64_t bytes = matmul_workspace;
  RETURN_IF_FAILED(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                        sizeof bytes));
  const uint32_t whole_sums = CUBLASLT_REDUCTION_SCHEME_NONE;
  RETURN_IF_FAILED(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                        &whole_sums, sizeof whole_sums));
  for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    RETURN_IF_FAILED(
        cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &pointer_alignment, sizeof pointer_alignment));
  return CUBLAS_STATUS_SUCCESS;
}

bool splits_sums(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t parts = 0;
  uint32_t scheme = 0;
  return cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts,
                                              nullptr) != CUBLAS_STATUS_SUCCESS ||
         cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                              nullptr) != CUBLAS_STATUS_SUCCESS ||
         parts > 1 || scheme != CUBLASLT_REDUCTION_SCHEME_NONE;
}

// Whether it takes 1, 2, 4 to matmul_rows_max rows. Hopper's algorithms want 4 bytes of workspace once there are more
// tiles than multiprocessors.
bool takes_any_rows(cublasLtHandle_t handle, uint32_t out, uint32_t in, const cublasLtMatmulAlgo_t& algorithm) {
  for (uint32_t rows = 1; rows <= matmul_rows_max; rows *= 2) {
    Description product;
    cublasLtMatmulHeuristicResult_t result{};
    if (product.describe(out, in, rows) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulAlgoCheck(handle, &product.operation, &product.w, &product.x, &product.y, &product.y, &algorithm,
                                &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > matmul_workspace)
      return false;
  }
  return true;
}

// The algorithm that cuBLASLt thinks fastest for `rows`, of those that keep a row's sum whole and take any rows.
cudaError_t choose_for(cublasLtHandle_t handle, uint32_t out, uint32_t in, uint32_t rows,
                       cublasLtMatmulAlgo_t& algorithm) {
  Description product;
  cublasLtMatmulPreferenceOpaque_t preference;
  cublasLtMatmulHeuristicResult_t candidates[candidates_max];
  int count = 0;
  cublasStatus_t status = product.describe(out, in, rows);
  if (status == CUBLAS_STATUS_SUCCESS) status = prefer_whole_sums(preference);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasLtMatmulAlgoGetHeuristic(handle, &product.operation, &product.w, &product.x, &product.y, &product.y,
                                            &preference, candidates_max, candidates, &count);
  if (status != CUBLAS_STATUS_SUCCESS) return to_cuda(status);
  for (int i = 0; i < count; ++i) {  // fastest first
    if (candidates[i].state != CUBLAS_STATUS_SUCCESS || splits_sums(candidates[i].algo) ||
        !takes_any_rows(handle, out, in, candidates[i].algo))
      continue;
    algorithm = candidates[i].algo;
    return cudaSuccess;
  }
  return cudaErrorNotSupported;
}

cublasStatus_t multiply(cublasLtHandle_t handle, const MatmulPlan& plan, const cublasLtMatmulAlgo_t& algorithm,
                        const void* x, const void* w, uint32_t rows, float* y, void* workspace, cudaStream_t stream) {
  Description product;
  RETURN_IF_FAILED(product.describe(plan.out, plan.in, rows));
  const float one = 1, zero = 0;
  return cublasLtMatmul(handle, &product.operation, &one, w, &product.w, x, &product.x, &zero, y, &product.y, y,
                        &product.y, &algorithm, workspace, matmul_workspace, stream);
}

bool is_same(const cublasLtMatmulAlgo_t& a, const cublasLtMatmulAlgo_t& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// Pairs of bf16 of either sign, of eight exponents: their sums depend on the order.
__global__ void fill(uint32_t* pairs, size_t count, uint32_t seed) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9e3779b1u + seed;
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    x ^= x >> 16;
    pairs[i] = (x & 0x83ff83ffu) | 0x3c003c00u;
  }
}

__global__ void count_differences(const uint32_t* a, const uint32_t* b, size_t count, unsigned int* differences) {
  unsigned int own = 0;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x)
    own += a[i] != b[i];
  if (own > 0) atomicAdd(differences, own);
}

// Compares algorithms for one shape of W on the device, by products of the same random numbers.
class Comparison {
 public:
  Comparison(cublasLtHandle_t handle, const MatmulPlan& plan)
      : handle_(handle),
        plan_(plan),
        rows_(std::clamp(results_max / plan.out, 64u, 1024u)),
        results_(size_t{rows_} * plan.out) {}
  ~Comparison() {
    for (void* data : {static_cast<void*>(x_), static_cast<void*>(w_), static_cast<void*>(expected_),
                       static_cast<void*>(found_), workspace_, static_cast<void*>(differences_)})
      cudaFree(data);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Comparison(const Comparison&) = delete;
  Comparison& operator=(const Comparison&) = delete;

  // To compare with what `algorithm` makes.
  cudaError_t open(const cublasLtMatmulAlgo_t& algorithm) {
    const size_t x_pairs = size_t{rows_} * plan_.in / 2, w_pairs = size_t{plan_.out} * plan_.in / 2;
    cudaError_t status = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    if (status == cudaSuccess) status = cudaMalloc(&x_, x_pairs * sizeof(uint32_t));
    if (status == cudaSuccess) status = cudaMalloc(&w_, w_pairs * sizeof(uint32_t));
    if (status == cudaSuccess) status = cudaMalloc(&expected_, results_ * sizeof(float));
    if (status == cudaSuccess) status = cudaMalloc(&found_, results_ * sizeof(float));
    if (status == cudaSuccess) status = cudaMalloc(&workspace_, matmul_workspace);
    if (status == cudaSuccess) status = cudaMalloc(&differences_, sizeof *differences_);
    if (status != cudaSuccess) return status;
    fill<<<blocks, threads, 0, stream_>>>(x_, x_pairs, 1);
    fill<<<blocks, threads, 0, stream_>>>(w_, w_pairs, 2);
    status = cudaGetLastError();
    return status == cudaSuccess ? multiply_into(expected_, algorithm) : status;
  }

  // Waits for the device.
  cudaError_t compare(const cublasLtMatmulAlgo_t& algorithm, bool& agrees) {
    cudaError_t status = cudaMemsetAsync(found_, 0xff, results_ * sizeof(float), stream_);
    if (status == cudaSuccess) status = cudaMemsetAsync(differences_, 0, sizeof *differences_, stream_);
    if (status == cudaSuccess) status = multiply_into(found_, algorithm);
    if (status != cudaSuccess) return status;
    count_differences<<<blocks, threads, 0, stream_>>>(reinterpret_cast<const uint32_t*>(expected_),
                                                       reinterpret_cast<const uint32_t*>(found_), results_,
                                                       differences_);
    status = cudaGetLastError();
    unsigned int differences = 0;
    if (status == cudaSuccess)
      status = cudaMemcpyAsync(&differences, differences_, sizeof differences, cudaMemcpyDeviceToHost, stream_);
    if (status == cudaSuccess) status = cudaStreamSynchronize(stream_);
    agrees = differences == 0;
    return status;
  }

 private:
  static constexpr uint32_t results_max = 16 << 20;
  static constexpr int blocks = 256, threads = 256;

  cudaError_t multiply_into(float* y, const cublasLtMatmulAlgo_t& algorithm) {
    return to_cuda(multiply(handle_, plan_, algorithm, x_, w_, rows_, y, workspace_, stream_));
  }

  const cublasLtHandle_t handle_;
  const MatmulPlan& plan_;
  const uint32_t rows_;
  const size_t results_;
  cudaStream_t stream_ = nullptr;
  uint32_t *x_ = nullptr, *w_ = nullptr;
  float *expected_ = nullptr, *found_ = nullptr;
  void* workspace_ = nullptr;
  unsigned int* differences_ = nullptr;
};

bool in_bounds(uint32_t out, uint32_t in) {
  return out > 0 && out <= matmul_width_max && out % 4 == 0 && in > 0 && in <= matmul_width_max && in % 8 == 0;
}

template <class... Pointers>
bool are_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % pointer_alignment == 0) && ...);
}

}  // namespace

cudaError_t Matmul::open(Matmul& matmul) {
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status == CUBLAS_STATUS_SUCCESS) matmul.handle_.reset(handle);
  return to_cuda(status);
}

cudaError_t Matmul::choose(uint32_t out, uint32_t in, MatmulPlan& plan) const {
  if (!handle_ || !in_bounds(out, in)) return cudaErrorInvalidValue;
  cublasLtMatmulAlgo_t common;
  if (const cudaError_t status = choose_for(handle_.get(), out, in, rows_of_common, common); status != cudaSuccess)
    return status;
  MatmulPlan chosen{.out = out, .in = in};
  Comparison comparison(handle_.get(), chosen);
  const cudaError_t opened = comparison.open(common);
  if (opened != cudaSuccess && opened != cudaErrorMemoryAllocation) return opened;
  if (opened != cudaSuccess) cudaGetLastError();  // else the next launch's caller would find it
  for (int i = 0; i < matmul_choices; ++i) {
    cublasLtMatmulAlgo_t& algorithm = chosen.algorithms[i];
    algorithm = common;
    cublasLtMatmulAlgo_t offered;
    if (opened != cudaSuccess || choose_for(handle_.get(), out, in, matmul_rows_least << i, offered) != cudaSuccess)
      continue;
    bool agrees = is_same(offered, common) || (i > 0 && is_same(offered, chosen.algorithms[i - 1]));
    if (!agrees) {
      const cudaError_t status = comparison.compare(offered, agrees);
      if (status != cudaSuccess) return status;
    }
    if (agrees) algorithm = offered;
  }
  plan = chosen;
  return cudaSuccess;
}

cudaError_t Matmul::run(const MatmulPlan& plan, const Bf16* x, const Bf16* w, uint32_t rows, float* y, void* workspace,
                        cudaStream_t stream) const {
  if (!handle_ || !in_bounds(plan.out, plan.in) || rows > matmul_rows_max || workspace == nullptr ||
      !are_aligned(x, w, y) || reinterpret_cast<uintptr_t>(workspace) % workspace_alignment != 0)
    return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const uint32_t choice = std::bit_ceil(std::max(rows, matmul_rows_least)) / matmul_rows_least;
  const int last = matmul_choices - 1, place = std::min(std::countr_zero(choice), last);
  return to_cuda(multiply(handle_.get(), plan, plan.algorithms[place], x, w, rows, y, workspace, stream));
}

}  // namespace recalld::cuda
