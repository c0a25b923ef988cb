#pragma once

// What RocksDB 7.8 needs to get over a full disk: an environment around that of the operating system.
//
// - A flush that begins after RocksDB has stopped for an error, or when a recovery has just failed, is dropped. Yet the
//   column family is still down as waiting for it, and the next DB::Resume() then waits without end. So such a flush is
//   held until the next recovery is under way.
// - A compaction that leaves nothing, and whose table cannot be written, ends the process by an assertion. So an error
//   in writing a table is told when the table is opened, which RocksDB does before it counts on one.

#include <rocksdb/db.h>
#include <rocksdb/env.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace recalld {

// Any thread may call any function.
class CatalogEnv final : public rocksdb::EnvWrapper {
 public:
  explicit CatalogEnv(rocksdb::Env& base);  // borrowed
  const char* Name() const override { return "CatalogEnv"; }

  // RocksDB has failed, or fails again in a recovery.
  void stopped();
  // DB::Resume(), of one database, by one thread at a time.
  rocksdb::Status resume(rocksdb::DB& db);
  // Flushes that the threads for them have been given and have not ended.
  uint64_t flushes() const { return *handed_over_; }

  void Schedule(void (*function)(void*), void* argument, Priority priority, void* tag,
                void (*unschedule)(void*)) override;
  int UnSchedule(void* tag, Priority priority) override;

 private:
  struct Flush {
    void (*function)(void*);
    void* argument;
    void* tag;
    void (*unschedule)(void*);
    std::shared_ptr<std::atomic<uint64_t>> handed_over;
  };
  void hand_over(const Flush& flush);
  void release();

  static thread_local bool resumes_;  // this thread is in DB::Resume()
  const std::shared_ptr<std::atomic<uint64_t>> handed_over_ = std::make_shared<std::atomic<uint64_t>>(0);
  std::mutex mutex_;
  bool stopped_ = false;     // since the last recovery began
  bool recovering_ = false;  // and, when it does, `flushing_` once it has ended its wait for what was at work before
  bool flushing_ = false;
  std::vector<Flush> held_;
};

}  // namespace recalld
