// Forgetting turns and deleting memories: the turns are gone at once, the answer waits until nothing of them is left on
// disk. Between the two the encoder makes the generation without them, and the upkeep thread erases bytes.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>

#include "base/error.h"
#include "daemon/jobs.h"
#include "daemon/requests.h"
#include "daemon/reserve.h"
#include "memstore/store.h"

namespace recalld {

class Forgetter {
 public:
  // What follows the store, and must forget with it before anything is called erased.
  struct Follower {
    // created_us: of the memory, whose name another one may have by now.
    std::function<Expected<void>(const std::string& memory, int64_t created_us, std::span<const TurnRange> turns)>
        forget;
    std::function<Expected<void>(const std::string& memory, int64_t created_us)> remove;
    std::function<Expected<void>()> forget_missing;         // whatever is not in the store any more
    std::function<Expected<void>(MemoryId)> forget_cached;  // what encodings and answers were computed from
    // Bytes of the memory were erased: what was removed beside the turns can be made again.
    std::function<void(MemoryId)> erased = [](MemoryId) {};
  };

  // Everything is borrowed but `reserve`. `encode` asks for a memory to be encoded; `upkeep` runs what erases bytes.
  Forgetter(Store& store, Jobs& jobs, boost::asio::thread_pool& upkeep, std::function<void(MemoryId)> encode,
            Follower follower, Reserve reserve, std::function<int64_t()> now_us);

  // Takes up what an earlier process did not finish, or what failed.
  Expected<void> resume();

  // Both block on the disk until the turns are gone from every read; `done` is called then, or later on the upkeep
  // thread when everything is erased. On a full disk the reserve makes room for that, and encodings are erased at once
  // rather than replaced first: what is left of the memory waits to be encoded until there is room.
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
    bool resumed = false;    // an earlier process knew what was to be forgotten
    int64_t created_us = 0;  // of the memory
    Receipt receipt;
    Done<Receipt> done{};        // unset: nobody waits
    bool told = false;           // what follows the store has forgotten too
    uint64_t catalog_bytes = 0;  // of tables that were rewritten so far
    int attempts = 0;
  };
  static constexpr size_t pending_max = 256;             // of a memory
  static constexpr std::chrono::seconds retry_pause{2};  // after an erasure that failed
  static constexpr int attempts_max = 8;                 // before those who wait for it are told that it failed

  Expected<std::vector<TurnRange>> chosen(const MemoryInfo& memory, const ForgetRequest& request) const;
  Receipt receipt(const std::string& memory, const Forgotten& forgotten) const;
  template <class Result>
  Expected<Result> with_room(bool& needed_reserve, const std::function<Expected<Result>()>& write);
  Expected<bool> is_unfinished(const MemoryInfo& memory) const;
  void enter(MemoryId id, Pending pending, bool wait);
  Expected<Erasure> erase_everywhere(MemoryId id, std::vector<Pending>& pending);
  void erase_soon(MemoryId id);
  void erase(MemoryId id);
  void try_again(MemoryId id, std::vector<Pending> waiting, const Error& because);
  void keep_waiting(MemoryId id, std::vector<Pending> waiting);
  static void answer_at_stop(std::vector<Pending>& waiting);
  void retry_later(MemoryId id);

  Store& store_;
  Jobs& jobs_;
  boost::asio::thread_pool& upkeep_;
  const std::function<void(MemoryId)> encode_;
  const Follower follower_;
  Reserve reserve_;
  const std::function<int64_t()> now_us_;

  std::mutex mutex_;  // guards what follows
  std::map<MemoryId, std::vector<Pending>> pending_;
  std::map<MemoryId, boost::asio::steady_timer> retries_;
  std::map<MemoryId, std::string> failures_;  // of the last tries, which the log has
  bool stopped_ = false;
};

}  // namespace recalld
