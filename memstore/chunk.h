// Numbers, sizes and byte views that the parts of the store share. The store sees fixed-size bytes; only the model
// knows what is in them.
#pragma once

#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/hash.h"
#include "kernels/bf16.h"

namespace recalld {

using MemoryId = uint64_t;  // never used again after a memory is deleted
// Under which chunks, landmarks and states lie: a memory's own number, and one more for each further generation of its
// encodings. Memories and streams are numbered together, so that no two share a number.
using StreamId = uint64_t;

inline constexpr uint32_t chunk_tokens = 64;  // tokens of a chunk, of every model that we run

// The sizes of what one model leaves behind for a chunk. A store holds records of one shape only.
struct RecordShape {
  uint32_t kv_bytes = 0;      // K then V of one chunk; padded to a multiple of 4096 on disk
  uint32_t landmark_dim = 0;  // bf16 elements of a landmark, a multiple of 32
  uint32_t state_bytes = 0;   // a checkpoint of the recurrent state
  Hash128 model{};            // identity of the checkpoint that wrote the encodings
};

// One encoded chunk as the model hands it over. Views borrow.
struct EncodedChunkView {
  std::span<const Bf16> landmark;  // [landmark_dim]
  ByteView kv;                     // [kv_bytes]
};

// Where a chunk's K/V lies and how to know that it is the right one.
struct ChunkEntry {
  uint32_t segment = 0;     // DATA/kv/<segment>.seg
  uint32_t slot = 0;        // record number inside the segment
  uint64_t generation = 0;  // of the memory's encoding
  uint32_t crc32c = 0;      // of the record, seeded with memory, chunk, model and generation
  bool operator==(const ChunkEntry&) const = default;
};

}  // namespace recalld
