// One block of the lower or of the upper half: what reads a stream token by token and keeps a recurrent state of it.
// Each family of models has its own: Mamba-2 (mamba2.h), or attention to a sliding window (swa.h).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/matmul.h"
#include "kernels/worker_pool.h"
#include "model/config.h"
#include "model/weights.h"

namespace recalld {

class Block {
 public:
  static constexpr size_t chunk_tokens = 64;

  virtual ~Block() = default;

  // f32 values of one stream's state, the same for all blocks of a model. All zeros at the start of a stream; which
  // else they are is the block's own matter.
  virtual size_t state_floats() const = 0;

  // Reads one chunk of 64 tokens, or the `rows` first of it, on the calling thread alone; several threads may run it on
  // streams of their own.
  // state: [state_floats()] in and out · hidden: [64, hidden_size] in and out; rows that are not read end up as
  // anything
  virtual void run(float* state, float* hidden, size_t rows) const = 0;

  // Reads one token of each of several streams, at most Linear::rows_few. A stream's bits do not depend on the others.
  // states: [streams] of [state_floats()] in and out · hidden: [Linear::rows_few, hidden_size] in and out, a stream a
  // row
  virtual void step(std::span<float* const> states, float* hidden) const = 0;
};

using Blocks = std::vector<std::unique_ptr<const Block>>;

// The block of the config's family at "<prefix>.*"; the error names what is missing or of another shape.
Expected<std::unique_ptr<const Block>> load_block(const Weights& weights, const std::string& prefix,
                                                  const Config& config, ProductType type);

// What goes on beside the blocks, on any thread of the pool.
struct Onward {
  static constexpr size_t part_chunks = 8;

  std::function<void(size_t chunk)> then;  // gets each chunk that came through the last block, several at a time
  // May be unset. Asked after every part_chunks: true ends the run there, and the states are those after the chunks
  // before.
  std::function<bool()> end_early = {};
};

// Runs consecutive blocks over chunks of one stream, block B on one chunk beside block B - 1 on the next.
// The bits do not depend on the number of threads: a chunk's work is the same wherever it runs.
// state: the blocks' states, one after the other · tokens: of which the last ones may be a part of a chunk
// hidden: [tokens up to a multiple of 64, hidden_size] in and out
// Returns how many chunks came through all blocks: all, where `onward` does not end them early.
size_t run_blocks(const Blocks& blocks, std::span<float> state, size_t tokens, float* hidden, size_t hidden_size,
                  WorkerPool& pool, const Onward& onward = {});

// The same for one token of each of several streams. states: [streams] · hidden: as in Block::step
void step_blocks(const Blocks& blocks, std::span<float* const> states, float* hidden);

}  // namespace recalld
