#include "daemon/append_queue.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace recalld {

AppendQueue::AppendQueue(Commit commit) : commit_(std::move(commit)), thread_([this] { run(); }) {}

AppendQueue::~AppendQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

PendingAppend* AppendQueue::enter(std::string memory, size_t bytes, decltype(PendingAppend::committed) committed) {
  auto append = std::make_unique<PendingAppend>();
  append->memory = std::move(memory);
  append->bytes = bytes;
  append->committed = std::move(committed);
  const std::lock_guard lock(mutex_);
  ++waiting_;
  waiting_bytes_ += bytes;
  return entered_.emplace_back(std::move(append)).get();
}

void AppendQueue::ready(PendingAppend* append, AppendBatch batch) {
  {
    const std::lock_guard lock(mutex_);
    append->batch = std::move(batch);
    append->ready = true;
  }
  changed_.notify_all();
}

size_t AppendQueue::waiting() const {
  const std::lock_guard lock(mutex_);
  return waiting_;
}

size_t AppendQueue::waiting_bytes() const {
  const std::lock_guard lock(mutex_);
  return waiting_bytes_;
}

// Takes, in arrival order, the ready appends that no earlier, unready append of the same memory holds back.
std::vector<std::unique_ptr<PendingAppend>> AppendQueue::take_group(std::unique_lock<std::mutex>&) {
  std::vector<std::unique_ptr<PendingAppend>> group;
  std::unordered_set<std::string_view> held_back;
  size_t group_bytes = 0;
  for (auto& append : entered_) {
    if (!append->ready || held_back.contains(append->memory)) {
      held_back.insert(append->memory);
      continue;
    }
    if (!group.empty() && group_bytes + append->bytes > group_bytes_max) break;
    group_bytes += append->bytes;
    group.push_back(std::move(append));
  }
  std::erase(entered_, nullptr);
  return group;
}

void AppendQueue::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    auto group = take_group(lock);
    if (group.empty()) {
      if (stopping_ && entered_.empty()) return;
      changed_.wait(lock);
      continue;
    }
    lock.unlock();

    std::vector<AppendBatch> batches;
    batches.reserve(group.size());
    for (auto& append : group) batches.push_back(std::move(append->batch));
    auto outcomes = commit_(batches);
    batches = {};

    lock.lock();
    waiting_ -= group.size();
    for (const auto& append : group) waiting_bytes_ -= append->bytes;
    lock.unlock();
    for (size_t i = 0; i < group.size(); ++i)
      group[i]->committed(outcomes ? std::move((*outcomes)[i]) : std::unexpected(outcomes.error()));
    group.clear();
    lock.lock();
  }
}

}  // namespace recalld
