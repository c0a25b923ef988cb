// A fixed team of threads for the data-parallel loops of the kernels.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace recalld {

// Owns threads - 1 threads; the thread that calls run() is the last of the team. One caller at a time.
// Which worker takes which index varies from run to run, so a loop body must not let its result depend on `worker`:
// that number only selects scratch space.
class WorkerPool {
 public:
  explicit WorkerPool(size_t threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  size_t threads() const { return threads_; }

  // Calls body(index, worker) once for every index in [0, count), worker in [0, threads()); returns when all are done.
  // Indices are begun in rising order, so a body may wait for what a lower one does.
  void run(size_t count, const std::function<void(size_t index, size_t worker)>& body);

 private:
  struct Team;
  size_t threads_;
  std::unique_ptr<Team> team_;
};

}  // namespace recalld
