// What librecalld_cuda.so exports: all else in it is hidden, since the daemon has its own copies of much of it.
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "model/gpu.h"
#include "model/gpu_build.h"
#include "model/gpu_ramba.h"

namespace recalld {
namespace {

std::unexpected<Error> cuda_error(std::string_view action, cudaError_t error) {
  return fail(ErrorKind::device, std::string(action) + ": " + cudaGetErrorString(error));
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Refuses where the kernels cannot run, before anything is allocated on the device. They run on the first device that
// CUDA shows.
Expected<void> check_device() {
  int driver = 0;
  if (const auto error = cudaDriverGetVersion(&driver); error != cudaSuccess)
    return cuda_error("open the GPU: ask for the NVIDIA driver's version", error);
  if (driver == 0)
    return fail(ErrorKind::not_found, "open the GPU: there is no NVIDIA driver (libcuda.so.1); install one");
  int devices = 0;
  const auto counted = cudaGetDeviceCount(&devices);
  if (counted == cudaErrorInsufficientDriver)
    return fail(ErrorKind::device, "open the GPU: the NVIDIA driver takes CUDA " + version_text(driver) +
                                       " at most, and recalld was built with CUDA " + version_text(CUDART_VERSION) +
                                       "; update the driver");
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && devices == 0))
    return fail(
        ErrorKind::not_found,
        "open the GPU: the NVIDIA driver shows no GPU; nvidia-smi and CUDA_VISIBLE_DEVICES tell which there are");
  if (counted != cudaSuccess) return cuda_error("open the GPU: count the devices", counted);

  cudaDeviceProp device{};
  if (const auto error = cudaGetDeviceProperties(&device, 0); error != cudaSuccess)
    return cuda_error("open the GPU: ask what it is", error);
  if (device.major * 10 + device.minor < RECALLD_CUDA_ARCHITECTURE_MIN)
    return fail(ErrorKind::device, "open the GPU: " + std::string(device.name) + " has architecture sm_" +
                                       std::to_string(device.major) + std::to_string(device.minor) +
                                       ", and recalld was built for sm_" +
                                       std::to_string(RECALLD_CUDA_ARCHITECTURE_MIN) +
                                       " and up; build it with CMAKE_CUDA_ARCHITECTURES set to the former");
  return {};
}

}  // namespace
}  // namespace recalld

extern "C" {

[[gnu::visibility("default")]] const char* recalld_gpu_build() {
  return recalld::gpu_build;
}

// No C program calls it: recalld_gpu_build() is asked first.
// NOLINTNEXTLINE(clang-diagnostic-return-type-c-linkage)
[[gnu::visibility("default")]] recalld::Expected<std::unique_ptr<recalld::Gpu>> recalld_open_gpu(
    const recalld::GpuOptions& options) {
  RECALLD_CHECK(recalld::check_device());
  return recalld::open_gpu_ramba(options);
}

}  // extern "C"
