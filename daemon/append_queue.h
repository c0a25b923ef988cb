// Appends on their way to the journal: ordered on arrival, tokenised side by side, committed in groups.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "memstore/store.h"

namespace recalld {

// One append waiting for its turn. It is made in arrival order, before its tokens are known; tokenising may finish in
// any order, yet appends to one memory are committed in the order in which they were entered.
struct PendingAppend {
  std::string memory;
  size_t bytes = 0;   // of the request, for the bound on what waits
  AppendBatch batch;  // complete once `ready`
  bool ready = false;
  std::move_only_function<void(Expected<Appended>)> committed;  // called once, on the commit thread
};

class AppendQueue {
 public:
  // Starts the commit thread, which writes groups through `commit` (Store::append).
  using Commit = std::function<Expected<std::vector<Expected<Appended>>>(std::span<const AppendBatch>)>;
  explicit AppendQueue(Commit commit);
  // Commits everything that was entered; every entered append must become ready.
  ~AppendQueue();

  // Fixes the place of an append in its memory's order. The pointer stays valid until `committed` was called.
  PendingAppend* enter(std::string memory, size_t bytes, decltype(PendingAppend::committed) committed);
  void ready(PendingAppend* append, AppendBatch batch);

  size_t waiting() const;
  size_t waiting_bytes() const;

 private:
  static constexpr size_t group_bytes_max = size_t{8} << 20;  // of one synced write; a larger append goes alone

  void run();
  std::vector<std::unique_ptr<PendingAppend>> take_group(std::unique_lock<std::mutex>& lock);

  Commit commit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<PendingAppend>> entered_;  // in arrival order
  size_t waiting_ = 0;
  size_t waiting_bytes_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace recalld
