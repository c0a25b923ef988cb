// RAMba on an NVIDIA GPU: the twin of Ramba (ramba.h) and what lies beside it in the memory of the GPU.
#pragma once

#include <memory>

#include "base/error.h"
#include "model/gpu.h"

namespace recalld {

// On the device that is current. Errors as of OpenGpu.
Expected<std::unique_ptr<Gpu>> open_gpu_ramba(const GpuOptions& options);

}  // namespace recalld
