#include "daemon/model_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <map>
#include <semaphore>
#include <span>
#include <string>
#include <vector>

namespace recalld {
namespace {

using ::testing::ElementsAre;

// Holds the thread inside a search until released, so that the line behind it can be set up.
struct Gate {
  std::promise<void> entered;
  std::binary_semaphore open{0};
  void hold(ModelThread& thread) {
    thread.search([this] {
      entered.set_value();
      open.acquire();
    });
    entered.get_future().wait();
  }
};

// Encodes memory by memory.
template <class Encode>
auto each(Encode encode) {
  return [encode](std::span<const MemoryId> memories) {
    std::vector<ModelThread::Outcome> outcomes;
    for (const MemoryId memory : memories) outcomes.push_back(encode(memory));
    return outcomes;
  };
}

TEST(ModelThread, SearchesGoBeforeEncodingAndMemoriesTakeTurns) {
  std::vector<std::string> order;
  std::map<MemoryId, int> left = {{1, 3}, {2, 2}};
  std::promise<void> finished;
  ModelThread thread(each([&](MemoryId id) {
    order.push_back(std::to_string(id));
    if (order.size() == 6) finished.set_value();
    return --left[id] > 0 ? ModelThread::Outcome::again : ModelThread::Outcome::done;
  }));
  Gate gate;
  gate.hold(thread);
  thread.encode(1);
  thread.encode(2);
  thread.encode(1);  // in line already
  thread.search([&] { order.push_back("search"); });
  gate.open.release();
  finished.get_future().wait();
  thread.stop();
  EXPECT_THAT(order, ElementsAre("search", "1", "2", "1", "2", "1"));
}

TEST(ModelThread, SearchesGoBeforeTokensAndTokensBeforeEncodingWhichAreNotStarved) {
  std::string order;
  int tokens_left = 40, encodings_left = 3;
  std::promise<void> finished;
  ModelThread thread(each([&](MemoryId) {
                       order += 'e';
                       return --encodings_left > 0 ? ModelThread::Outcome::again : ModelThread::Outcome::done;
                     }),
                     [&] {
                       order += 't';
                       if (--tokens_left == 0) finished.set_value();
                       return tokens_left > 0;
                     });
  Gate gate;
  gate.hold(thread);
  thread.encode(1);
  thread.generate();
  thread.search([&] { order += 's'; });
  gate.open.release();
  finished.get_future().wait();
  thread.stop();
  const std::string row(ModelThread::tokens_in_a_row_max, 't');
  EXPECT_EQ(order.substr(0, 3 + 2 * row.size()), "s" + row + "e" + row + "e");
  EXPECT_EQ(std::ranges::count(order, 't'), 40);
}

TEST(ModelThread, AFloodOfSearchesDoesNotStopEncoding) {
  std::vector<char> order;
  ModelThread thread(each([&](MemoryId) {
    order.push_back('e');
    return ModelThread::Outcome::done;
  }));
  Gate gate;
  gate.hold(thread);
  thread.encode(1);
  std::promise<void> last;
  for (int i = 0; i < 100; ++i) thread.search([&] { order.push_back('s'); });
  thread.search([&] { last.set_value(); });
  gate.open.release();
  last.get_future().wait();
  thread.stop();
  const auto encoded = std::find(order.begin(), order.end(), 'e');
  EXPECT_LT(encoded - order.begin(), 20);
}

TEST(ModelThread, ASearchThatComesEndsAnEncodingEarlyUnlessARowOfOthersWentBeforeIt) {
  ModelThread* thread = nullptr;
  std::vector<bool> ends;
  std::promise<void> first, last;
  ModelThread model_thread(each([&](MemoryId) {
    ends.push_back(thread->search_goes_first());  // nothing waits
    if (ends.size() == 1) thread->search([&] { first.set_value(); });
    ends.push_back(thread->search_goes_first());
    return ModelThread::Outcome::done;
  }));
  thread = &model_thread;
  Gate gate;
  gate.hold(*thread);
  EXPECT_FALSE(thread->search_goes_first());
  thread->encode(1);
  gate.open.release();
  first.get_future().wait();

  Gate second;
  second.hold(*thread);
  thread->encode(2);
  for (int i = 0; i < ModelThread::searches_in_a_row_max; ++i) thread->search([] {});  // the last one waits
  thread->search([&] { last.set_value(); });
  second.open.release();
  last.get_future().wait();
  model_thread.stop();
  EXPECT_THAT(ends, ElementsAre(false, true, false, false));
}

TEST(ModelThread, ASearchThatComesEndsAnEncodingEarlyBehindARowOfTokens) {
  ModelThread* thread = nullptr;
  bool ends = false;
  int tokens = 0;
  std::promise<void> found;
  ModelThread model_thread(each([&](MemoryId) {
                             thread->search([&] { found.set_value(); });
                             ends = thread->search_goes_first();
                             return ModelThread::Outcome::done;
                           }),
                           [&] { return ++tokens < 2 * ModelThread::tokens_in_a_row_max; });
  thread = &model_thread;
  Gate gate;
  gate.hold(*thread);
  thread->generate();
  thread->encode(1);
  gate.open.release();
  found.get_future().wait();
  model_thread.stop();
  EXPECT_TRUE(ends);
  EXPECT_GE(tokens, ModelThread::tokens_in_a_row_max);
}

TEST(ModelThread, AFailedEncodingIsTriedAgain) {
  std::atomic<int> tries = 0;
  std::promise<void> second;
  ModelThread thread(each([&](MemoryId) {
    if (++tries == 2) {
      second.set_value();
      return ModelThread::Outcome::done;
    }
    return ModelThread::Outcome::later;
  }));
  thread.encode(7);
  EXPECT_EQ(second.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST(ModelThread, AFailurePausesHoweverOftenItIsAskedFor) {
  std::atomic<int> tries = 0;
  std::promise<void> first;
  ModelThread thread(each([&](MemoryId) {
    if (++tries == 1) first.set_value();
    return ModelThread::Outcome::later;
  }));
  thread.encode(7);
  first.get_future().wait();
  for (int i = 0; i < 100; ++i) {
    thread.encode(7);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_LE(tries, 2);
}

TEST(ModelThread, SeveralMemoriesAreEncodedAtOnceAsTheyStandInLine) {
  std::vector<std::vector<MemoryId>> batches;
  std::promise<void> finished;
  const auto encode = [&](std::span<const MemoryId> memories) {
    batches.emplace_back(memories.begin(), memories.end());
    if (batches.size() == 1)
      return std::vector{ModelThread::Outcome::again, ModelThread::Outcome::later, ModelThread::Outcome::done};
    if (batches.back() == std::vector<MemoryId>{2}) finished.set_value();
    return std::vector(memories.size(), ModelThread::Outcome::done);
  };
  ModelThread thread(encode, {}, 3);
  Gate gate;
  gate.hold(thread);
  for (const MemoryId memory : {1, 2, 3, 4}) thread.encode(memory);
  gate.open.release();
  finished.get_future().wait();
  thread.stop();
  EXPECT_THAT(batches, ElementsAre(ElementsAre(1, 2, 3), ElementsAre(4, 1), ElementsAre(2)));
}

TEST(ModelThread, StopRunsTheSearchesThatWereAccepted) {
  std::atomic<int> ran = 0;
  ModelThread thread(each([](MemoryId) { return ModelThread::Outcome::again; }));
  thread.encode(1);
  for (int i = 0; i < 10; ++i) thread.search([&] { ++ran; });
  thread.stop();
  EXPECT_EQ(ran, 10);
}

TEST(ModelThread, TheBackgroundRunsOnlyWhenNothingElseIsToDoAndUntilItIsDone) {
  std::mutex mutex;
  std::string order;
  const auto note = [&](char what) {
    const std::lock_guard lock(mutex);
    order += what;
  };
  int encodings = 20, steps = 3;
  std::promise<void> ended;
  {
    ModelThread thread(each([&](MemoryId) {
      note('e');
      return --encodings > 0 ? ModelThread::Outcome::again : ModelThread::Outcome::done;
    }));
    thread.encode(1);
    thread.background([&] {
      note('b');
      if (--steps > 0) return ModelThread::Outcome::again;
      ended.set_value();
      return ModelThread::Outcome::done;
    });
    ended.get_future().wait();
    thread.search([&] { note('s'); });
    thread.background({});
  }
  EXPECT_EQ(order.substr(0, order.find('s')), std::string(20, 'e') + "bbb");
}

}  // namespace
}  // namespace recalld
