// A disk whose reads take their time, all of them or those that a test holds back, or fail.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "memstore/file_io.h"

namespace recalld {

class SlowFileIo final : public FileIo {
 public:
  explicit SlowFileIo(std::unique_ptr<FileIo> disk) : disk_(std::move(disk)) {}

  // Any thread may call these. Each read sleeps for so long; those of which `which` says so wait for release().
  void delay(std::chrono::microseconds delay) {
    const std::lock_guard lock(mutex_);
    delay_ = delay;
  }
  void hold(std::function<bool(uint64_t offset)> which) {
    const std::lock_guard lock(mutex_);
    held_ = std::move(which);
  }
  void release() {
    hold({});
    released_.notify_all();
  }
  // One in so many reads fails; 0: none.
  void fail_one_in(uint64_t reads) {
    const std::lock_guard lock(mutex_);
    fails_one_in_ = reads;
  }
  // The next n reads that end fail.
  void fail_next(uint64_t n) {
    const std::lock_guard lock(mutex_);
    fails_next_ = n;
  }
  uint64_t reads() const {
    const std::lock_guard lock(mutex_);
    return reads_;
  }
  bool holds_a_read() const {
    const std::lock_guard lock(mutex_);
    return waiting_ > 0;
  }

  Expected<void> make_directory(const std::filesystem::path& path) override { return disk_->make_directory(path); }
  Expected<int> create(const std::filesystem::path& path, uint64_t bytes) override {
    return disk_->create(path, bytes);
  }
  Expected<int> open(const std::filesystem::path& path) override { return disk_->open(path); }
  void close(int file) override { disk_->close(file); }
  // A read that takes its time is on its way meanwhile.
  void stream(const NextRead& next, const ReadDone& done, const ReadWait& wait) override {
    bool has_begun = !wait.begun;
    disk_->stream(
        [&] {
          auto read = next();
          if (read && !std::exchange(has_begun, true)) wait.begun();
          if (read) take_time(read->offset);
          return read;
        },
        [&](uint64_t tag, Expected<void> result) {
          if (result && is_to_fail()) result = fail(ErrorKind::io, "read a record: made to fail");
          done(tag, std::move(result));
        },
        {.awake = wait.awake, .begun = {}});
  }
  Expected<void> write(std::span<const FileWrite> writes) override { return disk_->write(writes); }
  Expected<void> sync(int file) override { return disk_->sync(file); }
  Expected<void> punch(int file, uint64_t offset, uint64_t bytes) override { return disk_->punch(file, offset, bytes); }
  Expected<void> remove(const std::filesystem::path& path) override { return disk_->remove(path); }
  AlignedBuffer buffer(size_t bytes) override { return disk_->buffer(bytes); }
  std::string describe() const override { return "a slow disk"; }

 private:
  bool is_to_fail() {
    const std::lock_guard lock(mutex_);
    if (fails_next_ > 0) {
      --fails_next_;
      return true;
    }
    return fails_one_in_ > 0 && ++ended_ % fails_one_in_ == 0;
  }
  void take_time(uint64_t offset) {
    std::unique_lock lock(mutex_);
    ++reads_;
    ++waiting_;
    released_.wait(lock, [&] { return !held_ || !held_(offset); });
    --waiting_;
    const auto delay = delay_;
    lock.unlock();
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
  }

  const std::unique_ptr<FileIo> disk_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable released_;
  std::function<bool(uint64_t offset)> held_;
  std::chrono::microseconds delay_{0};
  uint64_t reads_ = 0;
  uint64_t waiting_ = 0;
  uint64_t fails_one_in_ = 0;  // 0: none does
  uint64_t ended_ = 0;
  uint64_t fails_next_ = 0;
};

}  // namespace recalld
