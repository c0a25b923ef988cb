#include "memstore/store_shares.h"

#include <gtest/gtest.h>

namespace recalld {
namespace {

constexpr uint64_t mib = uint64_t{1} << 20;

StoreShares shares(uint64_t budget_bytes, uint64_t state_bytes) {
  const RecordShape shape{
      .kv_bytes = 16384, .landmark_dim = 128, .state_bytes = static_cast<uint32_t>(state_bytes), .model = {}};
  return StoreShares::of(budget_bytes, shape);
}
uint64_t shared(const StoreShares& of) {
  return of.entry_bytes + of.landmark_bytes + of.block_bytes;
}

TEST(StoreSharesTest, SmallStatesLeaveAllButEightMiBOrAThirdToBeShared) {
  const StoreShares usual = shares(192 * mib, 4096);
  EXPECT_EQ(usual.working_bytes, 8 * mib);
  EXPECT_EQ(usual.landmark_bytes + usual.entry_bytes, 92 * mib);
  EXPECT_EQ(usual.block_bytes, 184 * mib / 3);
  EXPECT_EQ(usual.memtable_bytes, 184 * mib / 6);
  EXPECT_EQ(shares(1024 * mib, 4096).memtable_bytes, 64 * mib);
  EXPECT_EQ(shares(12 * mib, 4096).working_bytes, 4 * mib);
}

// As those of a model whose lower half has windows of 512 tokens with 6 K/V heads.
TEST(StoreSharesTest, LargeStatesComeOffBeforeTheRestIsShared) {
  constexpr uint64_t state_bytes = 7'000'000;
  for (const uint64_t budget : {96 * mib, 192 * mib, 1024 * mib}) {
    const StoreShares small = shares(budget, 4096), large = shares(budget, state_bytes);
    EXPECT_EQ(large.working_bytes, 10 * state_bytes);
    EXPECT_LE(large.working_bytes + shared(large), budget - (budget - large.working_bytes) / 6 + 1);
    // As if the budget were so much smaller.
    const StoreShares same = shares(budget - 10 * state_bytes + 8 * mib, 4096);
    EXPECT_EQ(shared(large), shared(same));
    EXPECT_LT(large.landmark_bytes, small.landmark_bytes);
    EXPECT_LT(large.block_bytes, small.block_bytes);
  }
}

TEST(StoreSharesTest, StatesThatTheBudgetCannotHoldLeaveWhatTheSmallestStoreHas) {
  for (const uint64_t state_bytes : {1'116'672, 7'000'000, 400'000'000}) {
    for (uint64_t budget = 8 * mib; budget <= 512 * mib; budget += mib) {
      const StoreShares of = shares(budget, state_bytes);
      ASSERT_GE(of.landmark_bytes, shares(8 * mib, 4096).landmark_bytes) << budget << " " << state_bytes;
      ASSERT_LE(of.working_bytes + shared(of), budget) << state_bytes;
    }
    EXPECT_EQ(shares(8 * mib, state_bytes).working_bytes, shares(8 * mib, 4096).working_bytes);
  }
}

}  // namespace
}  // namespace recalld
