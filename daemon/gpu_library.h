// The GPU's part of recalld, librecalld_cuda.so, opened at run time: the daemon starts where no CUDA is.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "base/error.h"
#include "daemon/options.h"
#include "model/gpu.h"

namespace recalld {

// Where the library is looked for, in this order: beside the running executable, and where an installed one has it; but
// if RECALLD_CUDA_LIBRARY is set, what it names and nothing else.
std::vector<std::filesystem::path> gpu_library_places(const Environment& environment);

// Opens the library, then the GPU. `not_found`: there is no library, no driver or no device; `device`: what is there
// cannot be used; else as OpenGpu says. The library stays loaded until the process ends, also where the GPU was
// refused: CUDA leaves threads, thread-local values and exit handlers behind that would then point into nothing.
// `driver` must be there before the library is loaded: what that needs (cuBLASLt) takes 150 MB of RAM at once, which a
// machine without a GPU has better use for.
Expected<std::unique_ptr<Gpu>> open_gpu(const Environment& environment, const GpuOptions& options,
                                        const char* driver = "libcuda.so.1");

}  // namespace recalld
