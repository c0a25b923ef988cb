// What the owners of what CUDA hands out leave behind when it hands out nothing. Skipped where there is no GPU.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "kernels/device_memory.h"
#include "tests/support/device_array.h"

namespace recalld {
namespace {

using DeviceMemoryCuda = GpuTest;

TEST_F(DeviceMemoryCuda, AnAllocationThatFailsIsNoErrorOfALaterCall) {
  cuda::DeviceBuffer buffer;
  EXPECT_EQ(cuda::DeviceBuffer::allocate(size_t{1} << 50, buffer), cudaErrorMemoryAllocation);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST_F(DeviceMemoryCuda, ACaptureThatFailsIsNoErrorOfALaterCall) {
  cuda::Stream stream;
  must(cuda::Stream::open(stream));
  cuda::Graph graph;
  const auto waits = [&] { return cudaStreamSynchronize(stream.get()); };  // not while it is being captured
  EXPECT_NE(cuda::Graph::capture(stream.get(), waits, graph), cudaSuccess);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  // Nor is the stream left in a capture.
  const DeviceArray<float> x(4);
  must(cuda::Graph::capture(
      stream.get(), [&] { return cudaMemsetAsync(x.data(), 0, 4 * sizeof(float), stream.get()); }, graph));
  must(graph.launch(stream.get()));
  must(cudaStreamSynchronize(stream.get()));
  EXPECT_EQ(x.host(), std::vector<float>(4, 0.0f));
}

}  // namespace
}  // namespace recalld
