// Stands in for librecalld_cuda.so. Defined by tests/daemon/CMakeLists.txt, for one library each: FAKE_GPU_OTHER_BUILD,
// FAKE_GPU_STRANGER (exports nothing of recalld).
#include "model/gpu_build.h"
#include "tests/support/fake_gpu.h"

extern "C" {

#ifdef FAKE_GPU_STRANGER

int not_of_recalld() {
  return 1;
}

#else

const char* recalld_gpu_build() {
#ifdef FAKE_GPU_OTHER_BUILD
  return "another build";
#else
  return recalld::gpu_build;
#endif
}

// Takes any budget of 1000 bytes and up.
recalld::Expected<std::unique_ptr<recalld::Gpu>> recalld_open_gpu(const recalld::GpuOptions& options) {
  if (options.budget_bytes != 0 && options.budget_bytes < 1000)
    return recalld::fail(recalld::ErrorKind::invalid_request, "open the GPU: it takes 1000 bytes");
  return std::make_unique<recalld::FakeGpu>("fake for " + options.model.string());
}

#endif

}  // extern "C"
