#include "model/block.h"

#include <algorithm>
#include <atomic>

#include "model/mamba2.h"
#include "model/swa.h"

namespace recalld {
namespace {

// How many chunks a block has finished; other threads wait for it.
class Progress {
 public:
  void wait_for(size_t chunks) const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < chunks; ++spins) {
      if (spins < spins_before_sleep) continue;
      const size_t seen = done_.load(std::memory_order_acquire);
      if (seen < chunks) done_.wait(seen, std::memory_order_acquire);
    }
  }
  void advance() {
    done_.fetch_add(1, std::memory_order_acq_rel);
    done_.notify_all();
  }

 private:
  static constexpr int spins_before_sleep = 1000;
  std::atomic<size_t> done_ = 0;
};

}  // namespace

Expected<std::unique_ptr<const Block>> load_block(const Weights& weights, const std::string& prefix,
                                                  const Config& config, ProductType type) {
  if (config.family == BlockFamily::swa_hsa) {
    RECALLD_TRY(Swa block, Swa::load(weights, prefix, config, type));
    return std::make_unique<const Swa>(std::move(block));
  }
  RECALLD_TRY(Mamba2 block, Mamba2::load(weights, prefix, config, type));
  return std::make_unique<const Mamba2>(std::move(block));
}

void step_blocks(const Blocks& blocks, std::span<float* const> states, float* hidden) {
  std::vector<float*> of_block(states.begin(), states.end());
  for (const auto& block : blocks) {
    block->step(of_block, hidden);
    for (float*& state : of_block) state += block->state_floats();
  }
}

size_t run_blocks(const Blocks& blocks, std::span<float> state, size_t tokens, float* hidden, size_t hidden_size,
                  WorkerPool& pool, const Onward& onward) {
  constexpr size_t chunk_tokens = Block::chunk_tokens;
  const size_t chunks = (tokens + chunk_tokens - 1) / chunk_tokens;
  std::vector<float*> states;
  float* next = state.data();
  for (const auto& block : blocks) {
    states.push_back(next);
    next += block->state_floats();
  }
  // As many stages side by side as there are threads, each one chunk behind the stage below it; then the next stages.
  // So a thread stays with a block, whose weights stay in its cache, and what a task waits for stands before it. What
  // may end early goes through all stages in parts, which stand in one list, so that no thread waits between them.
  struct Task {
    size_t stage, chunk;
  };
  std::vector<Task> tasks;
  const size_t stages = blocks.size() + (onward.then ? 1 : 0);
  const size_t side_by_side = blocks.size() <= pool.threads() ? stages : pool.threads();
  const size_t part_max = onward.then && side_by_side < stages ? Onward::part_chunks : chunks;
  for (size_t begin = 0; begin < chunks; begin += part_max) {
    const size_t part = std::min(part_max, chunks - begin);
    for (size_t first = 0; first < stages; first += side_by_side) {
      const size_t band = std::min(side_by_side, stages - first);
      for (size_t step = 0; step + 1 < part + band; ++step)
        for (size_t i = 0; i < band; ++i)
          if (step >= i && step - i < part) tasks.push_back({first + i, begin + step - i});
    }
  }
  std::vector<Progress> progress(blocks.size());
  std::atomic<size_t> end = chunks;
  pool.run(tasks.size(), [&](size_t index, size_t) {
    const auto [stage, chunk] = tasks[index];
    if (stage > 0) progress[stage - 1].wait_for(chunk + 1);
    if (stage == blocks.size()) {
      if (chunk < end) onward.then(chunk);
      return;
    }
    progress[stage].wait_for(chunk);
    // Whatever is done with the chunks from here on waits for this task.
    const bool asks = stage == 0 && chunk > 0 && chunk % Onward::part_chunks == 0 && chunk < end;
    if (asks && onward.end_early && onward.end_early()) end = chunk;
    if (chunk < end)
      blocks[stage]->run(states[stage], hidden + chunk * chunk_tokens * hidden_size,
                         std::min(chunk_tokens, tokens - chunk * chunk_tokens));
    progress[stage].advance();
  });
  return end;
}

}  // namespace recalld
