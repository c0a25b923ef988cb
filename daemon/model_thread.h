// The one thread that computes with the model. Searches go first; between them memories take turns being encoded.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>

#include "memstore/chunk.h"

namespace recalld {

class ModelThread {
 public:
  enum class Outcome {
    done,   // nothing more to encode in this memory for now
    again,  // it has more: back to the end of the line
    later,  // it failed: to be tried again after a pause
  };

  // `encode` advances one memory by one segment, on this thread.
  explicit ModelThread(std::function<Outcome(MemoryId)> encode);
  ~ModelThread() { stop(); }

  // Runs the searches that were posted, drops the encodings that were not begun, and joins. What is posted afterwards
  // is never run.
  void stop();

  void search(std::move_only_function<void()> job);
  void encode(MemoryId memory);  // one that is in line, or pauses after a failure, keeps its place

  // Runs `step` again and again while there is nothing else to do: at once after `again`, after a pause after `later`,
  // and after `done` when this is called anew. An empty one: no more.
  void background(std::move_only_function<Outcome()> step);

 private:
  // Without this, a flood of searches would keep what was appended from ever being encoded.
  static constexpr int searches_in_a_row_max = 16;
  static constexpr std::chrono::seconds retry_pause{1};

  void run();

  std::function<Outcome(MemoryId)> encode_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::move_only_function<void()>> searches_;
  std::deque<MemoryId> line_;
  std::unordered_set<MemoryId> in_line_;                                          // those of line_ and later_
  std::deque<std::pair<std::chrono::steady_clock::time_point, MemoryId>> later_;  // by time
  std::move_only_function<Outcome()> background_;
  bool background_replaced_ = false;                                     // while it ran
  std::optional<std::chrono::steady_clock::time_point> background_due_;  // when it is to run; none: it is done
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace recalld
