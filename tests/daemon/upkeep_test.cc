// Verification and mending through the engine, with the model that ships.
#include "daemon/upkeep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <functional>
#include <future>
#include <set>
#include <thread>

#include "memstore/catalog.h"
#include "memstore/kv_file.h"
#include "memstore/rows.h"
#include "tests/daemon/engine_fixture.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class UpkeepTest : public ::testing::Test {
 protected:
  static constexpr uint64_t page_chunks = 256;

  void SetUp() override {
    engine_.open();
    append("harbour", 0, 700);
    append("garden", 5'000, 60);
    record_clean();
  }

  std::filesystem::path data() const { return directory_.path() / "data"; }
  void append(const std::string& memory, size_t from, size_t count) {
    engine_.append(memory, harbour_log(from, from + count), true);
  }
  Expected<VerifyReply> verify(bool repair = false, std::optional<std::string> memory = {}, bool wait = true) {
    return answer<VerifyReply>([&](auto done) {
      engine_->verify({.memory = std::move(memory), .repair = repair, .wait = wait}, std::move(done));
    });
  }
  SearchReply search(const std::string& memory, bool explain = false) {
    SearchRequest request;
    request.memory = memory;
    request.query = "how many boats came in with rope";
    request.mode = SearchMode::landmark;  // where a landmark is damaged, words find the chunk still
    request.limit = 20;
    request.explain = explain;
    auto reply = answer<SearchReply>([&](auto done) { engine_->search(std::move(request), std::move(done)); });
    EXPECT_TRUE(reply) << reply.error().message;
    return reply ? *std::move(reply) : SearchReply{};
  }
  std::string health() {
    return answer<HealthReply>([&](auto done) { engine_->health(std::move(done)); })->problem;
  }

  // Changes rows of the closed store, and opens it again.
  void tamper(const std::function<void(const Catalog&, Catalog::Batch&)>& change) {
    engine_.close();
    {
      const auto catalog = Catalog::open({data() / "catalog", 4 << 20, 1 << 20});
      ASSERT_TRUE(catalog) << catalog.error().message;
      Catalog::Batch rows(**catalog);
      change(**catalog, rows);
      ASSERT_TRUE((*catalog)->write(rows));
    }
    engine_.open();
  }

  // The bytes of what is encoded, read from the closed store: rows of the catalog, and K/V by chunk.
  struct Contents {
    std::vector<std::string> kv;
    std::map<std::string, std::string> rows;
  };
  Contents contents() {
    Contents out;
    engine_.close();
    {
      const auto catalog = Catalog::open({data() / "catalog", 4 << 20, 1 << 20});
      for (const Family family : {Family::landmarks, Family::states, Family::tokens, Family::turns}) {
        Catalog::Cursor rows = (*catalog)->cursor(family, "");
        // A page that is not full yet is in rows of any size.
        for (auto found = rows.first(); found.value(); found = rows.next())
          out.rows[std::string(name(family)) +
                   std::string(rows.key().substr(0, family == Family::landmarks ? 16 : 99))] += rows.value();
      }
      Catalog::Cursor rows = (*catalog)->cursor(Family::chunks, "");
      for (auto found = rows.first(); found.value(); found = rows.next()) {
        const auto entry = decode_chunk_entry(rows.value());
        std::ifstream segment(data() / "kv" / segment_name(entry->segment), std::ios::binary);
        std::string record(kv_record_bytes, '\0');
        segment.seekg(static_cast<std::streamoff>(entry->slot * kv_record_bytes))
            .read(record.data(), static_cast<std::streamsize>(record.size()));
        out.kv.push_back(std::move(record));
      }
    }
    engine_.open();
    return out;
  }
  void record_clean() { clean_ = contents(); }
  void expect_clean() {
    const Contents now = contents();
    EXPECT_TRUE(now.kv == clean_.kv);
    ASSERT_EQ(now.rows.size(), clean_.rows.size());
    for (const auto& [key, value] : clean_.rows)
      EXPECT_TRUE(now.rows.contains(key) && now.rows.at(key) == value) << key.substr(0, 9);
  }

  static constexpr uint64_t kv_record_bytes = 16'384;  // of the model that ships
  TempDir directory_;
  EngineDriver engine_{data()};
  Contents clean_;
};

TEST_F(UpkeepTest, AWholeStoreIsReadAndFoundWhole) {
  const auto reply = verify();
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->problem_count, 0u) << reply->problems[0].message;
  EXPECT_EQ(reply->memories, 2u);
  EXPECT_EQ(reply->turns, 760u);
  EXPECT_GT(reply->chunks, page_chunks);
  EXPECT_GT(reply->bytes, reply->chunks * kv_record_bytes);
  EXPECT_EQ(verify(false, "garden")->turns, 60u);
  EXPECT_EQ(verify(false, "nothing").error().kind, ErrorKind::not_found);
  const auto stats = answer<StatsReply>([&](auto done) { engine_->stats(std::move(done)); });
  EXPECT_EQ(stats->jobs.size(), 2u) << "of the memory that there is not, the answer alone tells";
}

TEST_F(UpkeepTest, WhatAnEarlierVersionLeftUnindexedIsNoDamageAndIsIndexed) {
  tamper([&](const Catalog&, Catalog::Batch& rows) {
    for (const Family family : {Family::attributes, Family::postings}) rows.remove_all(family, row_key(1));
  });
  const auto found = verify();  // while it goes on behind the replies
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->problem_count, 0u) << found->problems[0].part << found->problems[0].message;
  const auto indexed = verify(true);
  ASSERT_TRUE(indexed) << indexed.error().message;
  EXPECT_EQ(indexed->problem_count, 0u) << indexed->problems[0].part << indexed->problems[0].message;
  EXPECT_EQ(indexed->unindexed_chunks, 0u);
  EXPECT_EQ(indexed->unindexed_turns, 0u);
}

TEST_F(UpkeepTest, DamagedEncodingsAreAnsweredAroundToldOnceAndMadeAgainToTheSameBytes) {
  const SearchReply before = search("garden");
  const uint64_t all = verify(false, "harbour")->chunks;
  tamper([&](const Catalog&, Catalog::Batch& rows) {
    rows.put(Family::landmarks, row_key(1, 0), "short");
    rows.put(Family::chunks, row_key(1, 5), "no entry");
    rows.remove(Family::chunks, row_key(1, page_chunks + 2));
    rows.remove(Family::tokens, row_key(1, 0));
  });
  // Page 0 cannot be scanned: the rest of this memory, and all of the other one, are served.
  const SearchReply around = search("harbour");
  ASSERT_EQ(around.unreadable.size(), 1u);
  EXPECT_EQ(around.unreadable[0].first, 0u);
  EXPECT_EQ(around.unreadable[0].last, page_chunks - 1);
  ASSERT_EQ(around.results.size(), 20u);
  for (const auto& result : around.results) EXPECT_GE(result.chunk, page_chunks);
  EXPECT_THAT(health(), HasSubstr("memory 1, chunk 0 to 255"));
  const SearchReply other = search("garden");
  ASSERT_EQ(other.results.size(), before.results.size());
  for (size_t i = 0; i < before.results.size(); ++i) EXPECT_EQ(other.results[i].chunk, before.results[i].chunk);
  append("harbour", 0, 1);  // goes on
  append("garden", 0, 1);

  const auto found = verify();
  ASSERT_TRUE(found) << found.error().message;
  std::set<std::string> parts;
  for (const Problem& problem : found->problems) {
    EXPECT_EQ(problem.memory, problem.id == 1 ? "harbour" : "");
    EXPECT_TRUE(problem.repairable || problem.part == "counter") << problem.part << problem.message;
    EXPECT_FALSE(problem.repaired);
    parts.insert(problem.part);
  }
  EXPECT_TRUE(parts.contains("chunk") && parts.contains("landmark") && parts.contains("tokens"));
  EXPECT_EQ(found->repaired_count, 0u);

  const auto mended = verify(true);
  ASSERT_TRUE(mended) << mended.error().message;
  for (const Problem& problem : mended->problems) EXPECT_TRUE(problem.repaired) << problem.part << problem.message;
  EXPECT_EQ(mended->repaired_count, mended->problem_count);
  const auto after = verify();
  ASSERT_TRUE(after);
  EXPECT_EQ(after->problem_count, 0u) << after->problems[0].part << after->problems[0].message;
  EXPECT_EQ(health(), "");
  EXPECT_THAT(search("harbour").unreadable, IsEmpty());
  EXPECT_GE(verify(false, "harbour")->chunks, all);
  // The two turns that were appended meanwhile do not change what was there.
  const Contents now = contents();
  for (const auto& [key, value] : clean_.rows) {
    if (key.starts_with("states")) continue;  // the newest one is another by now
    EXPECT_TRUE(now.rows.contains(key) && now.rows.at(key).starts_with(value)) << key.substr(0, 9);
  }
  for (uint64_t chunk = 0; chunk < all; ++chunk) EXPECT_TRUE(now.kv[chunk] == clean_.kv[chunk]) << chunk;
}

TEST_F(UpkeepTest, FlippedBitsInTheSegmentAndALostStateAreMadeAgain) {
  const Contents& clean = clean_;
  tamper([&](const Catalog& catalog, Catalog::Batch& rows) {
    Catalog::Cursor states = catalog.cursor(Family::states, row_key(1));
    ASSERT_TRUE(states.seek_before(row_key(1, UINT64_MAX)).value());
    rows.remove(Family::states, states.key());
    for (const uint64_t chunk : {uint64_t{3}, uint64_t{100}, uint64_t{257}}) {
      const auto entry = decode_chunk_entry(*catalog.get(Family::chunks, row_key(1, chunk)).value());
      std::fstream segment(data() / "kv" / segment_name(entry->segment),
                           std::ios::in | std::ios::out | std::ios::binary);
      const auto at = static_cast<std::streamoff>(entry->slot * kv_record_bytes + 77);
      const int byte = segment.seekg(at).get();
      segment.seekp(at).put(static_cast<char>(byte ^ 4));
    }
  });
  // Its landmark and its text are whole: a search that explains nothing reads no K/V.
  EXPECT_THAT(search("harbour").unreadable, IsEmpty());
  EXPECT_EQ(search("harbour", true).results.size(), 20u);
  const auto mended = verify(true, "harbour");
  ASSERT_TRUE(mended) << mended.error().message;
  std::vector<std::string> found;
  for (const Problem& problem : mended->problems) {
    found.push_back(problem.part + " " + std::to_string(problem.first));
    EXPECT_TRUE(problem.repaired) << problem.part << problem.first << problem.message;
  }
  EXPECT_THAT(found, ::testing::IsSupersetOf({"kv 3", "kv 100", "kv 257"}));
  EXPECT_EQ(found.size(), 4u);
  EXPECT_EQ(verify()->problem_count, 0u);
  expect_clean();
  EXPECT_EQ(clean.kv.size(), clean_.kv.size());
}

TEST_F(UpkeepTest, ADamagedTurnIsNamedAndNeedsABackupWhileTheRestIsServed) {
  tamper([&](const Catalog&, Catalog::Batch& rows) { rows.put(Family::turns, row_key(1, 17), "no turn"); });
  const SearchReply around = search("harbour");
  EXPECT_EQ(around.results.size(), 20u);
  const auto found = verify(true);
  ASSERT_TRUE(found) << found.error().message;
  ASSERT_EQ(found->problem_count, 1u);
  EXPECT_EQ(found->problems[0].part, "turn");
  EXPECT_EQ(found->problems[0].first, 17u);
  EXPECT_EQ(found->problems[0].last, 17u);
  EXPECT_EQ(found->problems[0].memory, "harbour");
  EXPECT_FALSE(found->problems[0].repairable || found->problems[0].repaired);
  EXPECT_THAT(found->problems[0].message, HasSubstr("backup"));
  EXPECT_THAT(health(), HasSubstr("turn 17"));
}

TEST_F(UpkeepTest, DamagedTurnsTakeThePlacesOfNoOthersOfSeveralMemories) {
  append("shed", 9'000, 1);
  tamper([&](const Catalog&, Catalog::Batch& rows) {
    for (uint64_t turn = 5; turn < 700; turn += 10) rows.put(Family::turns, row_key(1, turn), "no turn");
  });
  for (const SearchMode mode : {SearchMode::landmark, SearchMode::lexical}) {
    SearchRequest request;
    request.memories = {"harbour", "shed"};
    request.query = "how many boats came in with rope";
    request.mode = mode;
    request.limit = 64;
    const auto reply =
        must(answer<SearchReply>([&](auto done) { engine_->search(std::move(request), std::move(done)); }));
    EXPECT_EQ(reply.results.size(), 64u);
    EXPECT_GT(reply.memories->at(0).unreadable.size(), 1u);
  }
}

TEST_F(UpkeepTest, OneVerificationGoesOnAtATimeAndItsJobTellsHowFarItIs) {
  const auto begun = verify(false, {}, false);
  ASSERT_TRUE(begun && begun->job);
  const auto second = verify();
  if (!second) {
    EXPECT_EQ(second.error().kind, ErrorKind::busy);
  }
  JobView job;
  for (int i = 0; i < 1'000 && job.state != "done"; ++i) {
    const auto stats = answer<StatsReply>([&](auto done) { engine_->stats(std::move(done)); });
    for (const JobView& each : stats->jobs)
      if (each.job == *begun->job) job = each;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(job.state, "done");
  EXPECT_EQ(job.kind, "verify");
  EXPECT_EQ(job.done, job.total);
  EXPECT_GT(job.done, 760u);
  EXPECT_EQ(job.message, "no damage");
  // One that goes on while the daemon stops ends with it.
  ASSERT_TRUE(verify(true, {}, false));
  engine_.close();
}

TEST_F(UpkeepTest, AVerificationThatIsWaitedForEndsWhenTheDaemonIsAboutToStop) {
  engine_->interrupt();
  const auto verified = verify();
  ASSERT_FALSE(verified);
  EXPECT_EQ(verified.error().kind, ErrorKind::busy);
  EXPECT_THAT(verified.error().message, HasSubstr("the daemon stops"));
}

}  // namespace
}  // namespace recalld
