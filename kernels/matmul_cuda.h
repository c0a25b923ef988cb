// Matrix products y = x · Wᵀ on an NVIDIA GPU through cuBLASLt: the twin of Linear in kernels/matmul.h. Inputs in bf16,
// sums and results in f32.
//
// A row's bits do not depend on how many rows are in a call, nor on its place: no algorithm here splits the sums, and
// those that a plan holds for few rows and for many were seen to give the same bits. They do depend on the card and
// cuBLASLt's version.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/bf16.h"

namespace recalld::cuda {

inline constexpr uint32_t matmul_rows_max = 1u << 16;   // of x in one call
inline constexpr uint32_t matmul_width_max = 1u << 20;  // of in and out
inline constexpr size_t matmul_workspace = 64 << 10;    // bytes, for any shape

// The next width of out that is fast (see matmul.cu): W has rows of zeros up to there.
constexpr size_t matmul_padded(size_t out) {
  return (out + 15) / 16 * 16;
}

inline constexpr uint32_t matmul_rows_least = 8;  // that a plan has an algorithm for
inline constexpr int matmul_choices = 12;

// How products with one shape of W are computed, by Matmul::choose().
struct MatmulPlan {
  uint32_t out = 0, in = 0;
  // Number i is for at most matmul_rows_least << i rows, the last one for more, too.
  cublasLtMatmulAlgo_t algorithms[matmul_choices]{};
};

// Owns cuBLASLt's handle for the device that is current when it is opened. Several threads may use it at once.
class Matmul {
 public:
  // Allocates on the host and on the device, and may wait for the device.
  static cudaError_t open(Matmul& matmul);

  // Chooses the algorithms that cuBLASLt thinks fastest for 8, 16, 32 to 16384 rows, of those that take 1 to
  // matmul_rows_max rows. Multiplies random numbers with each on the device, 1024 rows or what 16 Mi results allow (at
  // least 64): whatever differs in a bit from the one for 64 rows is replaced by that, and so are all where memory for
  // the comparison (two times the results, W once) is lacking. Takes tens of milliseconds, allocates, and waits for the
  // device, so no stream may be being captured. in: a multiple of 8 · out: a multiple of 4, and better one of 16 (see
  // matmul.cu)
  // cudaErrorInvalidValue: a shape out of bounds, or not open · cudaErrorNotSupported: no such algorithm for 64 rows
  cudaError_t choose(uint32_t out, uint32_t in, MatmulPlan& plan) const;

  // x: [rows, in] · w: [out, in] · y: [rows, out] · workspace: of matmul_workspace bytes; need not be cleared, but
  // calls that share it must not overlap. All in device memory, at multiples of 16 bytes, the workspace of 256.
  // Enqueues one product, or nothing without rows. cudaErrorInvalidValue: rows, a pointer or the plan out of bounds
  cudaError_t run(const MatmulPlan& plan, const Bf16* x, const Bf16* w, uint32_t rows, float* y, void* workspace,
                  cudaStream_t stream) const;

 private:
  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };
  std::unique_ptr<cublasLtContext, Destroy> handle_;
};

}  // namespace recalld::cuda
