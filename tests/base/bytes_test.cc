#include "base/bytes.h"

#include <gtest/gtest.h>

#include <limits>

namespace recalld {
namespace {

TEST(Bytes, EveryFieldComesBackAsWritten) {
  std::string record;
  ByteWriter out(record);
  out.u8(250);
  out.u32(0xfedcba98);
  out.u64(std::numeric_limits<uint64_t>::max());
  out.key64(0x0102030405060708);
  for (const uint64_t value : {uint64_t{0}, uint64_t{127}, uint64_t{128}, std::numeric_limits<uint64_t>::max()})
    out.varint(value);
  out.text(std::string_view("a\0b", 3));

  ByteReader in(record);
  EXPECT_EQ(in.u8(), 250);
  EXPECT_EQ(in.u32(), 0xfedcba98);
  EXPECT_EQ(in.u64(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(in.key64(), 0x0102030405060708u);
  for (const uint64_t value : {uint64_t{0}, uint64_t{127}, uint64_t{128}, std::numeric_limits<uint64_t>::max()})
    EXPECT_EQ(in.varint(), value);
  EXPECT_EQ(in.text(), std::string_view("a\0b", 3));
  EXPECT_TRUE(in.done());
}

TEST(Bytes, KeysSortByNumber) {
  std::string previous;
  for (const uint64_t value :
       {uint64_t{0}, uint64_t{255}, uint64_t{256}, uint64_t{1} << 40, std::numeric_limits<uint64_t>::max()}) {
    std::string key;
    ByteWriter(key).key64(value);
    EXPECT_LT(previous, key);
    previous = key;
  }
}

TEST(Bytes, EveryTruncationOfARecordIsNoticed) {
  std::string record;
  ByteWriter out(record);
  out.u32(7);
  out.varint(1 << 20);
  out.text("landmark");
  for (size_t length = 0; length < record.size(); ++length) {
    ByteReader in(std::string_view(record).substr(0, length));
    in.u32();
    in.varint();
    in.text();
    EXPECT_FALSE(in.ok()) << length;
  }
}

TEST(Bytes, AnOverlongVarintIsRefused) {
  ByteReader in(std::string_view("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"));
  in.varint();
  EXPECT_FALSE(in.ok());
}

}  // namespace
}  // namespace recalld
