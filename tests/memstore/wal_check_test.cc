#include "memstore/wal_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/crc32c.h"

namespace recalld {
namespace {

using Verdict = LogCheck::Verdict;

// A log as RocksDB writes it.
class Log {
 public:
  // A batch with a payload of so many random bytes, none of them zero.
  void add(size_t bytes) {
    std::string batch;
    ByteWriter out(batch);
    out.u64(sequence_++);
    out.u32(1);
    while (batch.size() < bytes) batch += static_cast<char>(1 + random_() % 255);
    starts_.push_back(bytes_.size());
    bool first = true;
    do {
      const size_t left = LogCheck::block_bytes - bytes_.size() % LogCheck::block_bytes;
      if (left < 7) {
        bytes_.append(left, '\0');
        if (first) starts_.back() = bytes_.size();
        continue;
      }
      const size_t part = std::min(batch.size(), left - 7);
      const bool last = part == batch.size();
      fragment(batch.substr(0, part), first ? (last ? 1 : 2) : (last ? 4 : 3));
      batch.erase(0, part);
      first = false;
      if (last) break;
    } while (true);
  }

  // A batch of no changes.
  void add_nothing() {
    std::string batch;
    ByteWriter out(batch);
    out.u64(sequence_);
    out.u32(0);
    starts_.push_back(bytes_.size());
    fragment(batch, 1);
  }

  std::string& bytes() { return bytes_; }
  uint64_t start(size_t record) const { return starts_.at(record); }
  uint64_t records() const { return starts_.size(); }

 private:
  void fragment(const std::string& payload, int type) {
    const std::string typed = static_cast<char>(type) + payload;
    const uint32_t crc = crc32c(as_bytes(typed));
    ByteWriter out(bytes_);
    out.u32((crc >> 15 | crc << 17) + 0xa282ead8U);
    out.u8(static_cast<uint8_t>(payload.size()));
    out.u8(static_cast<uint8_t>(payload.size() >> 8));
    bytes_ += typed;
  }

  std::mt19937_64 random_{7};
  uint64_t sequence_ = 1000;
  std::string bytes_;
  std::vector<uint64_t> starts_;
};

LogCheck::Result check(std::string_view bytes, LogUse use = LogUse::write_ahead) {
  LogCheck check(use);
  for (size_t at = 0; at < bytes.size(); at += LogCheck::block_bytes)
    check.add(as_bytes(bytes.substr(at, LogCheck::block_bytes)));
  return check.result();
}

// Records of many lengths: short ones, some of more than a block, and headers at the end of a block.
Log some_log() {
  Log log;
  for (const size_t bytes : {20u, 500u, 32768u, 13u, 100'000u, 40u, 32720u, 5000u, 700u}) log.add(bytes);
  return log;
}

TEST(LogCheck, ABatchOfNoChangesDoesNotCount) {
  Log log;
  log.add_nothing();
  EXPECT_EQ(check(log.bytes()).records, 0u);
  EXPECT_EQ(check(log.bytes()).verdict, Verdict::whole);
  log.add(100);
  EXPECT_EQ(check(log.bytes()).records, 1u);
}

TEST(LogCheckTest, AWholeLogIsWholeAndSoIsAnEmptyOneAndOneWithPreparedSpace) {
  Log log = some_log();
  const uint64_t end = log.bytes().size();
  for (const size_t zeros : {0u, 3u, 7u, 100'000u}) {
    const auto result = check(log.bytes() + std::string(zeros, '\0'));
    EXPECT_EQ(result.verdict, Verdict::whole) << zeros;
    EXPECT_EQ(result.records, log.records());
    EXPECT_EQ(result.offset, end);
  }
  EXPECT_EQ(check("").verdict, Verdict::whole);
  EXPECT_EQ(check(std::string(40'000, '\0')).verdict, Verdict::whole);
}

TEST(LogCheckTest, ALogThatEndsAnywhereInItsLastRecordIsTornThere) {
  Log log = some_log();
  log.add(70'000);
  const uint64_t start = log.start(log.records() - 1);
  for (uint64_t end = start; end < log.bytes().size(); end += end % 97 + 1) {
    const auto result = check(log.bytes().substr(0, end));
    EXPECT_EQ(result.verdict, end == start ? Verdict::whole : Verdict::torn) << end;
    EXPECT_EQ(result.offset, start) << end;
    EXPECT_EQ(result.records, log.records() - 1);
  }
}

TEST(LogCheckTest, ALastRecordOfWhichAnySectorsNeverReachedTheDiskIsTorn) {
  std::mt19937_64 random(11);
  Log log = some_log();
  log.add(70'000);
  const uint64_t start = log.start(log.records() - 1);
  for (int round = 0; round < 300; ++round) {
    std::string bytes = log.bytes();
    const size_t unit = random() % 2 == 0 ? 512 : 4096;
    size_t lost = 0;
    for (size_t at = start / unit * unit; at < bytes.size(); at += unit) {
      if (random() % 4 != 0) continue;
      const size_t from = std::max<size_t>(at, start), to = std::min(at + unit, bytes.size());
      std::fill(bytes.begin() + static_cast<ptrdiff_t>(from), bytes.begin() + static_cast<ptrdiff_t>(to), '\0');
      ++lost;
    }
    const auto result = check(bytes);
    const bool nothing = bytes.find_first_not_of('\0', start) == std::string::npos;
    EXPECT_EQ(result.verdict, lost == 0 || nothing ? Verdict::whole : Verdict::torn) << "round " << round;
  }
}

TEST(LogCheckTest, EveryFlippedBitIsDamageWhereverItLies) {
  Log log = some_log();
  size_t flips = 0, detected = 0;
  for (size_t at = 0; at < log.bytes().size(); at += at % 61 + 1) {
    std::string bytes = log.bytes();
    bytes[at] = static_cast<char>(bytes[at] ^ 1 << at % 8);
    const auto result = check(bytes);
    // The few bytes behind the last header of a block say nothing.
    const bool filler = at % LogCheck::block_bytes > LogCheck::block_bytes - 7 && log.bytes()[at] == '\0';
    if (filler) {
      EXPECT_EQ(result.verdict, Verdict::whole) << at;
      continue;
    }
    ++flips;
    detected += result.verdict == Verdict::damaged ? 1 : 0;
    EXPECT_EQ(result.verdict, Verdict::damaged) << "byte " << at;
    EXPECT_LE(result.offset, at);
  }
  // Headers are few among so many bytes: each bit of each.
  for (uint64_t record = 0; record < log.records(); ++record) {
    for (size_t bit = 0; bit < 56; ++bit) {
      std::string bytes = log.bytes();
      char& byte = bytes[log.start(record) + bit / 8];
      byte = static_cast<char>(byte ^ 1 << bit % 8);
      ++flips;
      const bool found = check(bytes).verdict == Verdict::damaged;
      detected += found ? 1 : 0;
      EXPECT_TRUE(found) << "record " << record << ", bit " << bit;
    }
  }
  std::printf("log bits flipped %zu, detected %zu\n", flips, detected);
}

TEST(LogCheckTest, LostOrMisplacedSectorsBeforeTheLastRecordAreDamage) {
  Log log = some_log();
  const uint64_t last = log.start(log.records() - 1);
  size_t holes = 0;
  for (size_t at = 0; at + 512 <= last; at += 512) {
    std::string zeroed = log.bytes(), copied = log.bytes();
    std::fill_n(zeroed.begin() + static_cast<ptrdiff_t>(at), 512, '\0');
    std::copy_n(log.bytes().begin() + static_cast<ptrdiff_t>((at + 2048) % (last / 512 * 512)), 512,
                copied.begin() + static_cast<ptrdiff_t>(at));
    EXPECT_EQ(check(zeroed).verdict, Verdict::damaged) << at;
    EXPECT_EQ(check(copied).verdict, Verdict::damaged) << at;
    holes += 2;
  }
  std::printf("log sectors replaced %zu\n", holes);
}

TEST(LogCheckTest, TextThatLooksLikeARecordInATornOneProvesNothing) {
  Log inner;
  inner.add(60);
  Log log;
  log.add(100);
  log.add(3000);
  std::string bytes = log.bytes();
  std::string text = inner.bytes();  // a record of its own, of another sequence, as somebody's message
  text.replace(7, 8, std::string("\x01\0\0\0\0\0\0\0", 8));
  const std::string typed = text.substr(6);
  const uint32_t crc = crc32c(as_bytes(typed));
  std::string header;
  ByteWriter(header).u32((crc >> 15 | crc << 17) + 0xa282ead8U);
  text.replace(0, 4, header);
  ASSERT_EQ(check(text).records, 1u);
  bytes.replace(log.start(1) + 1500, text.size(), text);
  std::fill_n(bytes.begin() + 512, 512, '\0');
  EXPECT_EQ(check(bytes).verdict, Verdict::torn);
}

TEST(LogCheckTest, RecordsOfAManifestThatAreSyncedTogetherMayBeTornInAnyOrder) {
  Log log;
  for (int i = 0; i < 4; ++i) log.add(600);
  std::string bytes = log.bytes();
  std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(1024), 512, '\0');
  EXPECT_EQ(check(bytes, LogUse::manifest).verdict, Verdict::torn);
  EXPECT_EQ(check(bytes, LogUse::write_ahead).verdict, Verdict::damaged);
  log.add(6000);
  log.add(600);
  bytes = log.bytes();
  std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(1024), 512, '\0');
  EXPECT_EQ(check(bytes, LogUse::manifest).verdict, Verdict::damaged);
}

}  // namespace
}  // namespace recalld
