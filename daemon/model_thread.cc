#include "daemon/model_thread.h"

#include <algorithm>
#include <utility>

namespace recalld {

ModelThread::ModelThread(std::function<std::vector<Outcome>(std::span<const MemoryId>)> encode,
                         std::function<bool()> generate, size_t encode_at_once)
    : encode_(std::move(encode)),
      generate_(std::move(generate)),
      encode_at_once_(encode_at_once),
      thread_([this] { run(); }) {}

void ModelThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void ModelThread::search(std::move_only_function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    searches_.push_back(std::move(job));
  }
  changed_.notify_all();
}

bool ModelThread::search_goes_first() const {
  const std::lock_guard lock(mutex_);
  return !searches_.empty() && ends_early_;
}

void ModelThread::generate() {
  {
    const std::lock_guard lock(mutex_);
    generating_ = true;
  }
  changed_.notify_all();
}

void ModelThread::encode(MemoryId memory) {
  {
    const std::lock_guard lock(mutex_);
    if (!in_line_.insert(memory).second) return;
    line_.push_back(memory);
  }
  changed_.notify_all();
}

void ModelThread::background(std::move_only_function<Outcome()> step) {
  {
    const std::lock_guard lock(mutex_);
    background_ = std::move(step);
    background_replaced_ = true;
    background_due_.reset();
    if (background_) background_due_ = std::chrono::steady_clock::now();
  }
  changed_.notify_all();
}

void ModelThread::run() {
  int searches_in_a_row = 0, tokens_in_a_row = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    const auto now = std::chrono::steady_clock::now();
    while (!later_.empty() && later_.front().first <= now) {
      const MemoryId memory = later_.front().second;
      later_.pop_front();
      line_.push_back(memory);
    }

    const bool encode_next = !line_.empty() && !stopping_;
    const bool others_wait = encode_next || generating_;
    if (!searches_.empty() && (searches_in_a_row < searches_in_a_row_max || !others_wait)) {
      auto job = std::move(searches_.front());
      searches_.pop_front();
      searches_in_a_row = others_wait ? searches_in_a_row + 1 : 0;
      lock.unlock();
      job();
      lock.lock();
    } else if (generating_ && (tokens_in_a_row < tokens_in_a_row_max || !encode_next)) {
      searches_in_a_row = 0;
      tokens_in_a_row = encode_next ? tokens_in_a_row + 1 : 0;
      generating_ = false;  // and true again when there is more, or when more came meanwhile
      lock.unlock();
      const bool more = generate_();
      lock.lock();
      generating_ |= more;
    } else if (encode_next) {
      const auto end = line_.begin() + static_cast<ptrdiff_t>(std::min(line_.size(), encode_at_once_));
      const std::vector<MemoryId> memories(line_.begin(), end);
      line_.erase(line_.begin(), end);
      for (const MemoryId memory : memories) in_line_.erase(memory);
      ends_early_ = searches_in_a_row < searches_in_a_row_max;
      searches_in_a_row = tokens_in_a_row = 0;
      lock.unlock();
      const std::vector<Outcome> outcomes = encode_(memories);
      lock.lock();
      for (size_t i = 0; i < memories.size(); ++i) line_up_again(memories[i], outcomes[i]);
    } else if (stopping_) {
      return;
    } else if (background_due_ && *background_due_ <= now) {
      auto step = std::move(background_);
      background_due_.reset();
      background_replaced_ = false;
      ends_early_ = true;
      lock.unlock();
      const Outcome outcome = step();
      lock.lock();
      if (!background_replaced_) {
        background_ = std::move(step);
        if (outcome != Outcome::done)
          background_due_ =
              std::chrono::steady_clock::now() + (outcome == Outcome::later ? retry_pause : std::chrono::seconds(0));
      }
    } else {
      std::optional<std::chrono::steady_clock::time_point> next = background_due_;
      if (!later_.empty()) next = std::min(next.value_or(later_.front().first), later_.front().first);
      if (next)
        changed_.wait_until(lock, *next);
      else
        changed_.wait(lock);
    }
  }
}

void ModelThread::line_up_again(MemoryId memory, Outcome outcome) {
  if (outcome == Outcome::done) return;
  const bool asked_for_meanwhile = !in_line_.insert(memory).second;
  if (outcome == Outcome::again && !asked_for_meanwhile) line_.push_back(memory);
  if (outcome == Outcome::later) {
    if (asked_for_meanwhile) std::erase(line_, memory);  // it pauses all the same
    later_.emplace_back(std::chrono::steady_clock::now() + retry_pause, memory);
  }
}

}  // namespace recalld
