#include "memstore/file_io.h"

#include <spdlog/spdlog.h>

#include <cassert>
#include <cstdlib>
#include <new>

namespace recalld {

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  assert(bytes % io_alignment == 0);
  auto* const data = static_cast<std::byte*>(std::aligned_alloc(io_alignment, bytes));
  if (data == nullptr && bytes > 0) throw std::bad_alloc();
  data_ = {data, [](std::byte* owned) { std::free(owned); }};
}

Expected<void> FileIo::read(std::span<const FileRead> reads) {
  size_t given = 0;
  std::optional<Error> failure;
  const auto next = [&]() -> std::optional<FileRead> {
    if (failure || given == reads.size()) return std::nullopt;
    return reads[given++];
  };
  const auto done = [&](uint64_t, Expected<void> result) {
    if (!result && !failure) failure = std::move(result).error();
  };
  stream(next, done, {});
  if (failure) return std::unexpected(*std::move(failure));
  return {};
}

std::unique_ptr<FileIo> open_file_io(DirectIo direct) {
  Expected<std::unique_ptr<FileIo>> ring = open_file_io_uring(direct);
  if (ring) {
    spdlog::info("segment files: {}", (*ring)->describe());
    return *std::move(ring);
  }
  spdlog::info("segment files: posix, one transfer at a time, because {}", ring.error().message);
  return open_file_io_posix(direct);
}

}  // namespace recalld
