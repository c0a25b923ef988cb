#include "base/hash.h"

#include <gtest/gtest.h>

namespace recalld {
namespace {

// These values lie in stores: in keys, and in the stamp.
TEST(Hash128, AgreesWithThePublishedFunction) {
  EXPECT_EQ(hex(hash128({})), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hex(hash128(as_bytes("recalld"))), "77e36b7624ae5ad20fe4c963de98b183");
}

TEST(Hash128, HexReadsBackAndNothingElseDoes) {
  EXPECT_EQ(hash_from_hex("99aa06d3014798d86001c324468d497f"), hash128({}));
  for (const std::string_view text : {"", "99aa06d3014798d86001c324468d497", "99aa06d3014798d86001c324468d497f0",
                                      "99AA06d3014798d86001c324468d497f", "99aa06d3014798d86001c324468d497g"})
    EXPECT_FALSE(hash_from_hex(text)) << text;
}

}  // namespace
}  // namespace recalld
