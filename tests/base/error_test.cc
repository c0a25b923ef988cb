#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace recalld {
namespace {

Expected<int> half(int value) {
  if (value % 2 != 0) return fail(ErrorKind::invalid_request, "halve " + std::to_string(value) + ": it is odd");
  return value / 2;
}

Expected<int> quarter(int value) {
  RECALLD_TRY(const int once, half(value));
  RECALLD_CHECK(half(once));
  return half(once);
}

TEST(Error, RisesThroughTryAndCheck) {
  EXPECT_EQ(quarter(8).value(), 2);
  EXPECT_EQ(quarter(6).error().message, "halve 3: it is odd");
  EXPECT_EQ(quarter(3).error().kind, ErrorKind::invalid_request);
}

TEST(Error, ContextStandsInFront) {
  EXPECT_EQ((Error{ErrorKind::io, "read failed"}.within("open store")).message, "open store: read failed");
}

TEST(Error, AFullDiskIsItsOwnKind) {
  EXPECT_EQ(system_error("write", ENOSPC).kind, ErrorKind::full);
  EXPECT_EQ(system_error("write", EIO).kind, ErrorKind::io);
  EXPECT_EQ(name(ErrorKind::not_found), "not_found");
}

}  // namespace
}  // namespace recalld
