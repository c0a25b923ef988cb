// Times are data: what the store does depends on no clock.
#include <gtest/gtest.h>

#include "memstore/store.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

TEST(ClockTest, AClockThatGoesBackwardsChangesTimesAndNothingElse) {
  const TempDir directory;
  StoreOptions options;
  options.shape.kv_bytes = 4096;
  options.shape.landmark_dim = 32;
  options.shape.state_bytes = 64;
  const std::vector<int64_t> clock{5'000'000, 4'000'000, -1, 4'000'000, 0};
  for (int round = 0; round < 2; ++round) {  // the second one after reopening, at an earlier time
    auto store = Store::open(directory.path(), options);
    ASSERT_TRUE(store) << store.error().message;
    const uint64_t before = static_cast<uint64_t>(round) * clock.size();
    for (size_t i = 0; i < clock.size(); ++i) {
      AppendBatch batch;
      batch.memory = "m";
      batch.now_us = clock[i] - round;
      NewTurn turn;
      turn.turn.content = "turn " + std::to_string(i);
      turn.turn.time_us = clock[i];
      const auto length = static_cast<uint32_t>(stream_text(turn.turn).size());
      turn.ids = {1};
      turn.ends = {length};
      batch.turns.push_back(std::move(turn));
      batch.operation_id = "op " + std::to_string(before + i);
      const auto appended = (*store)->append({&batch, 1});
      ASSERT_TRUE(appended) << appended.error().message;
      ASSERT_TRUE(appended->front());
      EXPECT_EQ(appended->front()->first_turn, before + i);
      const auto again = (*store)->append({&batch, 1});
      ASSERT_TRUE(again);
      EXPECT_TRUE(again->front()->repeated);
      EXPECT_EQ((*store)->memory("m")->updated_us, batch.now_us);
    }
    const auto info = (*store)->memory("m");
    ASSERT_TRUE(info);
    EXPECT_EQ(info->created_us, 5'000'000);
    const auto turns = (*store)->turns(info->id, 0, 100, 1 << 20);
    ASSERT_TRUE(turns);
    ASSERT_EQ(turns->size(), before + clock.size());
    for (size_t i = 0; i < turns->size(); ++i) {
      EXPECT_EQ((*turns)[i].turn, i);
      EXPECT_EQ((*turns)[i].value.time_us, clock[i % clock.size()]);
    }
  }
}

}  // namespace
}  // namespace recalld
