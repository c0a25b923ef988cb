// Forgetting turns and deleting memories: the turns are gone at once, the answer waits until nothing of them is left on
// disk. Between the two the encoder makes the generation without them, and the upkeep thread erases bytes.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>

#include "base/error.h"
#include "daemon/jobs.h"
#include "daemon/requests.h"
#include "memstore/store.h"

namespace recalld {

class Forgetter {
 public:
  // What follows the store, and must forget with it before anything is called erased.
  struct Follower {
    std::function<Expected<void>(const std::string& memory, std::span<const TurnRange> turns)> forget;
    std::function<Expected<void>(const std::string& memory)> remove;
  };

  // Everything is borrowed. `encode` asks for a memory to be encoded; `upkeep` runs what erases bytes.
  Forgetter(Store& store, Jobs& jobs, boost::asio::thread_pool& upkeep, std::function<void(MemoryId)> encode,
            Follower follower, std::function<int64_t()> now_us);

  // Takes up what an earlier process did not finish, or what failed.
  Expected<void> resume();

  // Both block on the disk until the turns are gone from every read; `done` is called then, or later on the upkeep
  // thread when everything is erased.
  void forget(ForgetRequest request, Done<Receipt> done);
  void remove(DeleteRequest request, Done<DeleteReply> done);

  // To be told after each segment that was encoded of a memory, and that something of it may have been swapped.
  void encoded(const MemoryInfo& memory);

  // Answers those who wait: what is left goes on with the next start. Nothing else may be called afterwards.
  void stop();

 private:
  struct Pending {
    uint64_t job = 0;
    bool whole_memory = false;
    Receipt receipt;
    Done<Receipt> done;  // unset: nobody waits
  };

  Expected<std::vector<TurnRange>> chosen(const MemoryInfo& memory, const ForgetRequest& request) const;
  Receipt receipt(const std::string& memory, const Forgotten& forgotten) const;
  void enter(MemoryId id, bool whole_memory, Receipt receipt, bool wait, Done<Receipt> done);
  Expected<Erasure> erase_everywhere(MemoryId id, const std::vector<Pending>& pending);
  void erase_when_swapped(MemoryId id);
  void erase(MemoryId id);

  Store& store_;
  Jobs& jobs_;
  boost::asio::thread_pool& upkeep_;
  const std::function<void(MemoryId)> encode_;
  const Follower follower_;
  const std::function<int64_t()> now_us_;

  std::mutex mutex_;  // guards what follows
  std::map<MemoryId, std::vector<Pending>> pending_;
  bool stopped_ = false;
};

}  // namespace recalld
