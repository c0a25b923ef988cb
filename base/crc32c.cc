#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace recalld {

uint32_t crc32c(ByteView bytes, uint32_t seed) {
  constexpr size_t call_bytes_max = size_t{1} << 30;  // the library takes an int
  uint32_t state = ~seed;
  while (!bytes.empty()) {
    const ByteView part = bytes.first(std::min(bytes.size(), call_bytes_max));
    // The library's declaration lacks a const; it only reads.
    auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(part.data()));
    state = crc32_iscsi(data, static_cast<int>(part.size()), state);
    bytes = bytes.subspan(part.size());
  }
  return ~state;
}

}  // namespace recalld
