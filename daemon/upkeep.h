// Verifying the store behind the replies, and making damaged encodings again: one verification at a time, on a thread
// of its own, with slices of encoding on the model thread, where searches go first.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include <boost/asio/thread_pool.hpp>

#include "base/error.h"
#include "daemon/encoder.h"
#include "daemon/jobs.h"
#include "daemon/model_thread.h"
#include "daemon/requests.h"
#include "memstore/store.h"

namespace recalld {

class Upkeep {
 public:
  // Everything is borrowed. `encoder` is used on the model thread alone. `index` has a memory indexed behind the
  // replies; `resume_erasures` takes up what was to be erased and failed; `verified` is told what damage is left
  // whenever everything has been verified.
  Upkeep(Store& store, Jobs& jobs, ModelThread& model_thread, Encoder& encoder, const Tokenizer& tokenizer,
         std::function<void(MemoryId)> index, std::function<Expected<void>()> resume_erasures,
         std::function<void(const std::string& damage)> verified, std::function<int64_t()> now_us);

  // Returns at once. `done` is called when everything is verified, or at once with the job's number when the request
  // does not wait; with busy while another verification goes on.
  void verify(VerifyRequest request, Done<VerifyReply> done);

  // Ends a verification that goes on: it answers busy. Any thread may call this.
  void interrupt();
  // The same, and waits for its end. Comes before the model thread stops.
  void stop();

 private:
  struct Run;
  Expected<VerifyReply> run(const VerifyRequest& request, uint64_t job);
  Expected<void> verify_memory(MemoryId id, bool repair, Run& run);
  Expected<void> mend(MemoryId id, const Verification& found);
  Expected<void> mend(const Verification::Lost& lost);
  Expected<void> index_turns(MemoryId id);
  Expected<void> index_words(const StreamInfo& of);
  template <class Work>
  auto on_model_thread(Work work) -> decltype(work());

  Store& store_;
  Jobs& jobs_;
  ModelThread& model_thread_;
  Encoder& encoder_;
  const Tokenizer& tokenizer_;
  const std::function<void(MemoryId)> index_;
  const std::function<Expected<void>()> resume_erasures_;
  const std::function<void(const std::string&)> verified_;
  const std::function<int64_t()> now_us_;

  std::mutex mutex_;  // what is posted to the model thread is posted before it stops
  std::atomic<bool> stopped_ = false;
  std::atomic<bool> running_ = false;
  boost::asio::thread_pool thread_{1};
};

}  // namespace recalld
