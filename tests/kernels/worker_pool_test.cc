#include "kernels/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <vector>

namespace recalld {
namespace {

TEST(WorkerPool, CallsTheBodyOnceForEveryIndex) {
  for (const size_t threads : {1, 2, 3, 7}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const size_t count : {0, 1, 2, 3, 64, 1000}) {
      std::vector<std::atomic<int>> calls(count);
      pool.run(count, [&](size_t index, size_t worker) {
        EXPECT_LT(worker, threads);
        calls.at(index).fetch_add(1);
      });
      for (const auto& call : calls) EXPECT_EQ(call.load(), 1);
    }
  }
}

TEST(WorkerPool, LoopsFollowEachOtherWithoutMixingTheirBodies) {
  WorkerPool pool(4);
  for (uint64_t loop = 0; loop < 20000; ++loop) {
    const size_t count = loop % 9;
    std::vector<uint64_t> out(count);
    pool.run(count, [&out, loop](size_t index, size_t) { out[index] = loop + index; });
    uint64_t expected = 0;
    for (size_t i = 0; i < count; ++i) expected += loop + i;
    ASSERT_EQ(std::accumulate(out.begin(), out.end(), uint64_t{0}), expected) << "loop " << loop;
  }
}

TEST(WorkerPool, NoTwoCallsShareAWorkerNumberAtOnce) {
  WorkerPool pool(3);
  std::vector<std::atomic<int>> busy(3);
  std::atomic<int> clashes{0};
  pool.run(3000, [&](size_t, size_t worker) {
    if (busy[worker].fetch_add(1) != 0) ++clashes;
    busy[worker].fetch_sub(1);
  });
  EXPECT_EQ(clashes.load(), 0);
}

TEST(WorkerPool, ABodyMayWaitForALowerIndex) {
  for (const size_t threads : {1, 2, 5}) {
    WorkerPool pool(threads);
    std::vector<std::atomic<int>> done(500);
    pool.run(done.size(), [&](size_t index, size_t) {
      if (index > 0) done[index - 1].wait(0);
      done[index] = 1;
      done[index].notify_all();
    });
    EXPECT_EQ(done.back().load(), 1);
  }
}

TEST(WorkerPool, ZeroThreadsMeansTheCallerAlone) {
  WorkerPool pool(0);
  EXPECT_EQ(pool.threads(), 1u);
  size_t sum = 0;
  pool.run(10, [&](size_t index, size_t worker) { sum += index + worker; });
  EXPECT_EQ(sum, 45u);
}

}  // namespace
}  // namespace recalld
