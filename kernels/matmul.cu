// cuBLASLt's matrices are column by column: to it W is [in, out], to be transposed, x is [in, rows] and y [out, rows],
// each without gaps. Descriptors live on the stack, so a call allocates nothing.
//
// cuBLASLt 13.1 offers Hopper's algorithms (wgmma) for an `out` of 1680, but for 1676 and 1684 only those of older
// cards, which take three times as long for 4096 rows.
#include "kernels/matmul_cuda.h"

namespace recalld::cuda {
namespace {

// Best for short calls; 4096 rows take up to 6 times as long as with the tiles that cuBLASLt would choose for them.
constexpr uint32_t rows_of_choice = 64;
constexpr uint32_t pointer_alignment = 16;  // bytes
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
bool takes_any_rows(cublasLtHandle_t handle, const MatmulPlan& plan) {
  for (uint32_t rows = 1; rows <= matmul_rows_max; rows *= 2) {
    Description product;
    cublasLtMatmulHeuristicResult_t result{};
    if (product.describe(plan.out, plan.in, rows) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulAlgoCheck(handle, &product.operation, &product.w, &product.x, &product.y, &product.y,
                                &plan.algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > matmul_workspace)
      return false;
  }
  return true;
}

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
  Description product;
  cublasLtMatmulPreferenceOpaque_t preference;
  cublasLtMatmulHeuristicResult_t candidates[candidates_max];
  int count = 0;
  cublasStatus_t status = product.describe(out, in, rows_of_choice);
  if (status == CUBLAS_STATUS_SUCCESS) status = prefer_whole_sums(preference);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasLtMatmulAlgoGetHeuristic(handle_.get(), &product.operation, &product.w, &product.x, &product.y,
                                            &product.y, &preference, candidates_max, candidates, &count);
  if (status != CUBLAS_STATUS_SUCCESS) return to_cuda(status);
  for (int i = 0; i < count; ++i) {  // fastest first
    if (candidates[i].state != CUBLAS_STATUS_SUCCESS || splits_sums(candidates[i].algo)) continue;
    const MatmulPlan candidate{out, in, candidates[i].algo};
    if (!takes_any_rows(handle_.get(), candidate)) continue;
    plan = candidate;
    return cudaSuccess;
  }
  return cudaErrorNotSupported;
}

cudaError_t Matmul::run(const MatmulPlan& plan, const Bf16* x, const Bf16* w, uint32_t rows, float* y, void* workspace,
                        cudaStream_t stream) const {
  if (!handle_ || !in_bounds(plan.out, plan.in) || rows > matmul_rows_max || workspace == nullptr ||
      !are_aligned(x, w, y, workspace))
    return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  Description product;
  if (const cublasStatus_t status = product.describe(plan.out, plan.in, rows); status != CUBLAS_STATUS_SUCCESS)
    return to_cuda(status);
  const float one = 1, zero = 0;
  return to_cuda(cublasLtMatmul(handle_.get(), &product.operation, &one, w, &product.w, x, &product.x, &zero, y,
                                &product.y, y, &product.y, &plan.algorithm, workspace, matmul_workspace, stream));
}

}  // namespace recalld::cuda
