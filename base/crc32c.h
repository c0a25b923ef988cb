// CRC32C (Castagnoli), as iSCSI, RocksDB and ext4 use it.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace recalld {

// The checksum of `bytes` continued from `seed` (0 starts afresh). crc32c(a + b) == crc32c(b, crc32c(a)).
uint32_t crc32c(ByteView bytes, uint32_t seed = 0);

}  // namespace recalld
