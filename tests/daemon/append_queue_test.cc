#include "daemon/append_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <semaphore>

namespace recalld {
namespace {

using ::testing::ElementsAre;

AppendBatch batch(std::string memory, std::string operation_id) {
  AppendBatch b;
  b.memory = std::move(memory);
  b.operation_id = std::move(operation_id);
  return b;
}

// Records what is committed, and in which groups; a closed gate holds the commit thread inside its first group.
struct Journal {
  std::mutex mutex;
  std::vector<std::string> committed;
  std::vector<size_t> groups;  // appends of each
  std::counting_semaphore<1000> gate{0};

  AppendQueue::Commit commit() {
    return [this](std::span<const AppendBatch> batches) -> Expected<std::vector<Expected<Appended>>> {
      gate.acquire();
      const std::lock_guard lock(mutex);
      groups.push_back(batches.size());
      std::vector<Expected<Appended>> outcomes;
      for (const AppendBatch& b : batches) {
        committed.push_back(b.memory + ":" + b.operation_id);
        outcomes.push_back(Appended{.first_turn = committed.size()});
      }
      return outcomes;
    };
  }
};

TEST(AppendQueue, AppendsToOneMemoryKeepTheOrderOfEnteringWhateverIsReadyFirst) {
  Journal journal;
  journal.gate.release(1000);
  {
    AppendQueue queue(journal.commit());
    PendingAppend* first = queue.enter("a", 1, [](Expected<Appended>) {});
    PendingAppend* second = queue.enter("a", 1, [](Expected<Appended>) {});
    std::promise<void> other_done;
    PendingAppend* other = queue.enter("b", 1, [&](Expected<Appended>) { other_done.set_value(); });
    queue.ready(second, batch("a", "2"));
    queue.ready(other, batch("b", "1"));
    other_done.get_future().wait();  // another memory does not wait for it
    EXPECT_THAT(journal.committed, ElementsAre("b:1"));
    queue.ready(first, batch("a", "1"));
  }
  EXPECT_THAT(journal.committed, ElementsAre("b:1", "a:1", "a:2"));
}

TEST(AppendQueue, WhatWaitsDuringACommitGoesIntoOneGroup) {
  Journal journal;
  {
    AppendQueue queue(journal.commit());
    queue.ready(queue.enter("a", 1, [](Expected<Appended>) {}), batch("a", "0"));
    std::vector<PendingAppend*> appends;
    for (int i = 0; i < 20; ++i) appends.push_back(queue.enter("a", 1, [](Expected<Appended>) {}));
    for (int i = 0; i < 20; ++i) queue.ready(appends[static_cast<size_t>(i)], batch("a", std::to_string(i + 1)));
    journal.gate.release(1000);
  }
  EXPECT_EQ(journal.committed.size(), 21u);
  EXPECT_LE(journal.groups.size(), 3u);
}

TEST(AppendQueue, AGroupIsBoundedInBytesAndALargerAppendGoesAlone) {
  Journal journal;
  {
    AppendQueue queue(journal.commit());
    for (const size_t mebibytes : {1, 5, 3, 1, 20, 8}) {
      PendingAppend* append = queue.enter("a", mebibytes << 20, [](Expected<Appended>) {});
      queue.ready(append, batch("a", std::to_string(mebibytes)));
    }
    journal.gate.release(1000);
  }
  EXPECT_THAT(journal.committed, ElementsAre("a:1", "a:5", "a:3", "a:1", "a:20", "a:8"));
  // What the first group takes depends on when the thread looks: it may have begun with less.
  EXPECT_GE(journal.groups.size(), 4u);
  EXPECT_LE(journal.groups.size(), 5u);
}

TEST(AppendQueue, BytesCountUntilTheyAreDurable) {
  Journal journal;
  std::promise<void> done;
  AppendQueue queue(journal.commit());
  PendingAppend* append = queue.enter("a", 700, [&](Expected<Appended>) { done.set_value(); });
  EXPECT_EQ(queue.waiting_bytes(), 700u);
  queue.ready(append, batch("a", "1"));
  EXPECT_EQ(queue.waiting(), 1u);
  journal.gate.release();
  done.get_future().wait();
  EXPECT_EQ(queue.waiting_bytes(), 0u);
}

TEST(AppendQueue, AFailedCommitIsToldToEveryAppendOfTheGroup) {
  std::atomic<int> refused = 0;
  {
    AppendQueue queue([](std::span<const AppendBatch>) -> Expected<std::vector<Expected<Appended>>> {
      return fail(ErrorKind::full, "no space");
    });
    for (int i = 0; i < 5; ++i) {
      PendingAppend* append = queue.enter(
          "a", 1, [&](Expected<Appended> outcome) { refused += !outcome && outcome.error().kind == ErrorKind::full; });
      queue.ready(append, batch("a", ""));
    }
  }
  EXPECT_EQ(refused, 5);
}

}  // namespace
}  // namespace recalld
