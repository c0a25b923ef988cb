#include "kernels/worker_pool.h"

#include <atomic>
#include <cassert>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace recalld {
namespace {

using Body = std::function<void(size_t, size_t)>;

// Loops of one layer follow each other within microseconds: a short spin saves a sleep and a wake-up in between.
constexpr int spins_before_sleep = 2000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

struct WorkerPool::Team {
  // Generation of the loop in the upper half, indices not yet taken in the lower. Taking one is a compare-and-swap of
  // the whole word, so a worker that wakes late can neither take an index of a finished loop nor read its body.
  std::atomic<uint64_t> tickets{0};
  std::atomic<uint32_t> wake{0};  // changes with every loop and on shutdown; idle workers sleep on it
  std::atomic<uint32_t> done{0};  // finished indices of the current loop
  std::atomic<bool> stop{false};
  // Written only while no index is outstanding, published by `tickets`.
  const Body* body = nullptr;
  size_t count = 0;
  std::vector<std::jthread> threads;

  void take_all(size_t worker) {
    uint64_t ticket = tickets.load(std::memory_order_acquire);
    while ((ticket & 0xffffffff) != 0) {
      if (!tickets.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
      // An index is ours: the loop cannot end, so body and count stand still.
      const size_t loop_count = count;
      (*body)(loop_count - (ticket & 0xffffffff), worker);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == loop_count) done.notify_one();
      ticket = tickets.load(std::memory_order_acquire);
    }
  }

  void work(size_t worker) {
    while (true) {
      const uint32_t seen = wake.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      take_all(worker);
      for (int i = 0; i < spins_before_sleep && wake.load(std::memory_order_acquire) == seen; ++i) relax();
      wake.wait(seen, std::memory_order_acquire);
    }
  }
};

WorkerPool::WorkerPool(size_t threads) : threads_(threads == 0 ? 1 : threads), team_(std::make_unique<Team>()) {
  team_->threads.reserve(threads_ - 1);
  for (size_t worker = 0; worker + 1 < threads_; ++worker) {
    team_->threads.emplace_back([team = team_.get(), worker] { team->work(worker); });
  }
}

WorkerPool::~WorkerPool() {
  team_->stop.store(true, std::memory_order_release);
  team_->wake.fetch_add(1, std::memory_order_acq_rel);
  team_->wake.notify_all();
}

void WorkerPool::run(size_t count, const Body& body) {
  const size_t caller = threads_ - 1;
  if (threads_ == 1 || count < 2) {
    for (size_t index = 0; index < count; ++index) body(index, caller);
    return;
  }
  assert(count <= 0xffffffff);
  Team& team = *team_;
  team.body = &body;
  team.count = count;
  team.done.store(0, std::memory_order_relaxed);
  const uint64_t generation = (team.tickets.load(std::memory_order_relaxed) >> 32) + 1;
  team.tickets.store(generation << 32 | count, std::memory_order_release);
  team.wake.fetch_add(1, std::memory_order_acq_rel);
  team.wake.notify_all();

  team.take_all(caller);
  uint32_t done = team.done.load(std::memory_order_acquire);
  for (int i = 0; i < spins_before_sleep && done != count; ++i) {
    relax();
    done = team.done.load(std::memory_order_acquire);
  }
  while (done != count) {
    team.done.wait(done, std::memory_order_acquire);
    done = team.done.load(std::memory_order_acquire);
  }
}

}  // namespace recalld
