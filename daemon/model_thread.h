// The one thread that computes with the model. Searches go first, then what generates; between them memories take turns
// being encoded.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <unordered_set>
#include <vector>

#include "memstore/chunk.h"

namespace recalld {

class ModelThread {
 public:
  enum class Outcome {
    done,   // nothing more to encode in this memory for now
    again,  // it has more: back to the end of the line
    later,  // it failed: to be tried again after a pause
  };

  // Without these, a flood of searches, or long answers, would keep what was appended from ever being encoded.
  static constexpr int searches_in_a_row_max = 16;
  static constexpr int tokens_in_a_row_max = 16;

  // On this thread `encode` advances some memories by one segment each, the first ones in line and at most
  // `encode_at_once`: the outcome of each. `generate` advances all that generates by one token: whether there is more
  // to do.
  explicit ModelThread(std::function<std::vector<Outcome>(std::span<const MemoryId>)> encode,
                       std::function<bool()> generate = {}, size_t encode_at_once = 1);
  ~ModelThread() { stop(); }

  // Runs the searches that were posted and generates until nothing is left to do, drops the encodings that were not
  // begun, and joins. What is posted afterwards is never run.
  void stop();

  void search(std::move_only_function<void()> job);
  // Whether a search waits that what is being encoded, or goes on in the background, is to end early for.
  bool search_goes_first() const;
  void generate();               // there is something to do
  void encode(MemoryId memory);  // one that is in line, or pauses after a failure, keeps its place

  // Runs `step` again and again while there is nothing else to do: at once after `again`, after a pause after `later`,
  // and after `done` when this is called anew. An empty one: no more.
  void background(std::move_only_function<Outcome()> step);

 private:
  static constexpr std::chrono::seconds retry_pause{1};

  void run();
  void line_up_again(MemoryId memory, Outcome outcome);

  std::function<std::vector<Outcome>(std::span<const MemoryId>)> encode_;
  std::function<bool()> generate_;
  const size_t encode_at_once_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::move_only_function<void()>> searches_;
  bool ends_early_ = true;  // the encoding that goes on, for a search; not one that a whole row of searches went before
  bool generating_ = false;
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
