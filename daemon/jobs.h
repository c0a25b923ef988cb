// Work that goes on behind the replies, as `stats` lists it.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "daemon/requests.h"

namespace recalld {

// Any thread may call any function.
class Jobs {
 public:
  static constexpr size_t ended_max = 32;  // jobs that ended and are listed still

  // Enters a job that runs; returns its number.
  uint64_t start(std::string kind, std::string memory, int64_t now_us);
  void progress(uint64_t job, uint64_t done, uint64_t total);
  void finish(uint64_t job, std::string message = {});
  void fail(uint64_t job, std::string message);
  void drop(uint64_t job);  // one that turned out to have nothing to do

  std::vector<JobView> list() const;  // oldest first
  JobView get(uint64_t job) const;    // one that runs or ended lately; else empty

 private:
  void end(uint64_t job, std::string state, std::string message);

  mutable std::mutex mutex_;
  uint64_t last_ = 0;
  std::deque<JobView> jobs_;  // by number
};

}  // namespace recalld
