// What a look at the host costs on this machine, whatever is looked at: the floor of a token that waits for chunks.
#pragma once

#include <cstddef>
#include <optional>

namespace recalld::bench {

// Microseconds that are added when work on the GPU goes on by way of the host: a graph ends whose branch is not taken,
// the host sees it and launches one small kernel and the graph again, and the branch begins, which has so many kernels
// that do nothing. The median of many looks, less that of as many times the same without one. Nothing where the GPU
// fails or this was built without CUDA.
std::optional<double> empty_look_us(size_t kernels_of_branch);

}  // namespace recalld::bench
