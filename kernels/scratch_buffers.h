// Buffers that hold for a while what may have to be forgotten: text, landmarks, K/V. They are had from one owner, which
// overwrites all of them, so that none can be left out.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace recalld {

// Buffer: a move-only owner of memory that the host can write, like cuda::PinnedBuffer. Not for several threads at
// once.
template <class Buffer>
class ScratchBuffers {
 public:
  // What Buffer::allocate() says, whose status of success is its type's default value. data: the new buffer's bytes,
  // which live as long as this owner; unchanged on failure
  auto allocate(size_t bytes, std::span<std::byte>& data) {
    Buffer buffer;
    const auto status = Buffer::allocate(bytes, buffer);
    if (status == decltype(status){}) {
      buffers_.push_back(std::move(buffer));
      data = {buffers_.back().template as<std::byte>(), buffers_.back().bytes()};
    }
    return status;
  }

  // Zeros in every buffer. Nothing may read or write them meanwhile.
  void overwrite() {
    for (const Buffer& buffer : buffers_)
      if (buffer.bytes() > 0) std::memset(buffer.template as<void>(), 0, buffer.bytes());
  }

 private:
  std::vector<Buffer> buffers_;
};

}  // namespace recalld
