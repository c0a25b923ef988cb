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

void run_blocks(const Blocks& blocks, std::span<float> state, size_t tokens, float* hidden, size_t hidden_size,
                WorkerPool& pool) {
  constexpr size_t chunk_tokens = Block::chunk_tokens;
  const size_t chunks = (tokens + chunk_tokens - 1) / chunk_tokens;
  std::vector<float*> states;
  float* next = state.data();
  for (const auto& block : blocks) {
    states.push_back(next);
    next += block->state_floats();
  }
  // As many blocks side by side as there are threads, each one chunk behind the block below it; then the next blocks.
  // So a thread stays with a block, whose weights stay in its cache, and what a task waits for stands before it.
  struct Task {
    size_t block, chunk;
  };
  std::vector<Task> tasks;
  for (size_t first = 0; first < blocks.size(); first += pool.threads()) {
    const size_t band = std::min(pool.threads(), blocks.size() - first);
    for (size_t step = 0; step + 1 < chunks + band; ++step)
      for (size_t i = 0; i < band; ++i)
        if (step >= i && step - i < chunks) tasks.push_back({first + i, step - i});
  }
  std::vector<Progress> progress(blocks.size());
  pool.run(tasks.size(), [&](size_t index, size_t) {
    const auto [block, chunk] = tasks[index];
    progress[block].wait_for(chunk);
    if (block > 0) progress[block - 1].wait_for(chunk + 1);
    blocks[block]->run(states[block], hidden + chunk * chunk_tokens * hidden_size,
                       std::min(chunk_tokens, tokens - chunk * chunk_tokens));
    progress[block].advance();
  });
}

}  // namespace recalld
