// Recurrent states that were given back are overwritten when that is asked for. Skipped where there is no GPU.
#include "model/gpu_states.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <vector>

#include "tests/support/device_array.h"

namespace recalld {
namespace {

class GpuStatesTest : public GpuTest {
 protected:
  static constexpr size_t state_bytes = 4096;

  static std::vector<std::byte> bytes_of(const GpuStatePool::State& state) {
    std::vector<std::byte> bytes(state_bytes);
    must(cudaMemcpy(bytes.data(), state.data(), bytes.size(), cudaMemcpyDeviceToHost));
    return bytes;
  }
  static std::shared_ptr<GpuStatePool::State> take(GpuStatePool& pool) {
    auto state = pool.take();
    if (!state) throw std::runtime_error(state.error().message);
    must(cudaMemset((*state)->data(), 1, state_bytes));
    return *std::move(state);
  }
};

TEST_F(GpuStatesTest, ErasingOverwritesThoseThatAreFreeAlone) {
  const auto pool = GpuStatePool::open(3, state_bytes);
  ASSERT_TRUE(pool);
  const auto kept = take(**pool);
  {
    const auto one = take(**pool), other = take(**pool);
    EXPECT_FALSE((*pool)->take()) << "all are in use";
  }
  must((*pool)->erase_free(nullptr));
  must(cudaDeviceSynchronize());
  const auto one = (*pool)->take(), other = (*pool)->take();
  ASSERT_TRUE(one && other);
  const std::vector<std::byte> zeros(state_bytes), ones(state_bytes, std::byte{1});
  EXPECT_EQ(bytes_of(**one), zeros);
  EXPECT_EQ(bytes_of(**other), zeros);
  EXPECT_EQ(bytes_of(*kept), ones);
}

}  // namespace
}  // namespace recalld
