#include "client/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "client/text.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Progress, KnownTotalShowsABarAndTheTimeLeft) {
  const std::string line = progress_line(500, 1000, 12, 3'400, 10.0, 120);
  EXPECT_THAT(line, HasSubstr("[###############...............]"));
  EXPECT_THAT(line, HasSubstr(" 50%"));
  EXPECT_THAT(line, HasSubstr("3,400 tokens"));
  EXPECT_THAT(line, HasSubstr("340 tokens/s"));
  EXPECT_THAT(line, HasSubstr("0:10 left"));
}

TEST(Progress, UnknownTotalShowsCountsAlone) {
  const std::string line = progress_line(2'048, std::nullopt, 1, 2, 1.0, 120);
  EXPECT_THAT(line, HasSubstr("2.0 KiB"));
  EXPECT_THAT(line, Not(HasSubstr("%")));
}

TEST(Progress, OtherWorkShowsItsShareAndItsOwnCounts) {
  const std::string line = progress_line(std::optional(0.25), "reencode  25 of 100 chunks", 5.0, 120);
  EXPECT_THAT(line, HasSubstr("[#######.......................]  25%  reencode  25 of 100 chunks  0:15 left"));
  EXPECT_EQ(progress_line(std::nullopt, "12 turns", 5.0, 120), "12 turns");
  EXPECT_THAT(progress_line(std::optional(7.0), "x", 1.0, 120), HasSubstr("100%"));
}

TEST(Progress, NarrowTerminalIsNeverOverrun) {
  for (size_t columns = 1; columns < 130; ++columns) {
    EXPECT_LE(characters(progress_line(999, 1000, 123'456'789, 987'654'321, 12345.0, columns)), columns);
  }
}

TEST(Progress, NothingIsWrittenWhereThereIsNoTerminal) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  {
    Progress progress(ends[1], 100);
    progress.show(50, 1, 1);
  }
  close(ends[1]);
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 0);
  close(ends[0]);
}

}  // namespace
}  // namespace recalld::client
