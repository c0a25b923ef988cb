#include "daemon/jobs.h"

#include <algorithm>
#include <utility>

namespace recalld {

uint64_t Jobs::start(std::string kind, std::string memory, int64_t now_us) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back({.job = ++last_,
                   .kind = std::move(kind),
                   .memory = std::move(memory),
                   .state = "running",
                   .done = 0,
                   .total = 0,
                   .started_us = now_us,
                   .message = {}});
  return last_;
}

void Jobs::progress(uint64_t job, uint64_t done, uint64_t total) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(jobs_, job, &JobView::job);
  if (found == jobs_.end()) return;
  found->done = done;
  found->total = total;
}

void Jobs::finish(uint64_t job, std::string message) {
  end(job, "done", std::move(message));
}

void Jobs::fail(uint64_t job, std::string message) {
  end(job, "failed", std::move(message));
}

void Jobs::drop(uint64_t job) {
  const std::lock_guard lock(mutex_);
  std::erase_if(jobs_, [job](const JobView& each) { return each.job == job; });
}

void Jobs::end(uint64_t job, std::string state, std::string message) {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(jobs_, job, &JobView::job);
  if (found == jobs_.end()) return;
  if (state == "done") found->done = found->total;
  found->state = std::move(state);
  found->message = std::move(message);
  const auto ended = [](const JobView& each) { return each.state != "running"; };
  for (auto count = static_cast<size_t>(std::ranges::count_if(jobs_, ended)); count > ended_max; --count)
    jobs_.erase(std::ranges::find_if(jobs_, ended));
}

std::vector<JobView> Jobs::list() const {
  const std::lock_guard lock(mutex_);
  return {jobs_.begin(), jobs_.end()};
}

JobView Jobs::get(uint64_t job) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(jobs_, job, &JobView::job);
  return found == jobs_.end() ? JobView{} : *found;
}

}  // namespace recalld
