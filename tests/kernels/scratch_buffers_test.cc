#include "kernels/scratch_buffers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

namespace recalld {
namespace {

enum class Status { fine, no_memory };

// Of the host, as cuda::PinnedBuffer is of CUDA.
class HostBuffer {
 public:
  static constexpr size_t bytes_max = 1 << 20;
  static Status allocate(size_t bytes, HostBuffer& buffer) {
    if (bytes > bytes_max) return Status::no_memory;
    buffer.data_ = std::make_unique<std::byte[]>(bytes);
    buffer.bytes_ = bytes;
    return Status::fine;
  }
  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t bytes_ = 0;
};
using Buffers = ScratchBuffers<HostBuffer>;

void write(std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{'k'});
}
bool is_written(std::span<const std::byte> data) {
  return std::ranges::all_of(data, [](std::byte each) { return each == std::byte{'k'}; });
}
bool is_overwritten(std::span<const std::byte> data) {
  return std::ranges::all_of(data, [](std::byte each) { return each == std::byte{0}; });
}

TEST(ScratchBuffersTest, EveryByteOfEveryBufferIsOverwritten) {
  Buffers buffers;
  std::vector<std::span<std::byte>> all;
  for (const size_t bytes : {1, 4096, 0, 4097, 100'000}) {
    ASSERT_EQ(buffers.allocate(bytes, all.emplace_back()), Status::fine);
    ASSERT_EQ(all.back().size(), bytes);
  }
  for (int time = 0; time < 2; ++time) {
    for (const auto& each : all) write(each);
    for (const auto& each : all) ASSERT_TRUE(is_written(each));
    buffers.overwrite();
    for (const auto& each : all) EXPECT_TRUE(is_overwritten(each)) << each.size() << " bytes";
  }
}

TEST(ScratchBuffersTest, BuffersThatMovedToAnotherOwnerAreOverwrittenThere) {
  Buffers first;
  std::span<std::byte> data;
  ASSERT_EQ(first.allocate(100, data), Status::fine);
  Buffers second = std::move(first);
  write(data);
  second.overwrite();
  EXPECT_TRUE(is_overwritten(data));
}

TEST(ScratchBuffersTest, ABufferThatCannotBeHadChangesNothing) {
  Buffers buffers;
  std::span<std::byte> data;
  ASSERT_EQ(buffers.allocate(100, data), Status::fine);
  const auto before = data;
  EXPECT_EQ(buffers.allocate(HostBuffer::bytes_max + 1, data), Status::no_memory);
  EXPECT_EQ(data.data(), before.data());
  EXPECT_EQ(data.size(), before.size());
  write(data);
  buffers.overwrite();
  EXPECT_TRUE(is_overwritten(data));
}

}  // namespace
}  // namespace recalld
