// Forgetting and deleting through the engine, with the checkpoint that comes with recalld.
#include "daemon/forgetter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>

#include "daemon/filter.h"
#include "tests/daemon/engine_fixture.h"
#include "tests/support/files_with.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::string raw(std::span<const uint32_t> ids) {
  return std::string(as_text(std::as_bytes(ids)));
}

class ForgetterTest : public ::testing::Test {
 protected:
  std::filesystem::path data() const { return directory_.path() / "data"; }

  // Bytes of a chunk's K/V as they lie on disk.
  std::string kv_on_disk(const ChunkEntry& entry) const {
    constexpr size_t record_bytes = 16384;
    std::string name = std::to_string(entry.segment);
    name = std::string(6 - name.size(), '0') + name + ".seg";
    std::ifstream in(data() / "kv" / name, std::ios::binary);
    in.seekg(static_cast<std::streamoff>(entry.slot * record_bytes));
    std::string bytes(record_bytes, '\0');
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return bytes.substr(0, 256);
  }

  // Nothing of what was forgotten is in any file.
  void expect_no_trace(std::string_view words = secret_words) const {
    EXPECT_THAT(files_with(data(), words), IsEmpty());
  }

  TempDir directory_;
  EngineDriver engine_{data()};
};

TEST_F(ForgetterTest, WhatIsLeftEqualsAStoreThatNeverSawTheTurnsAndNoFileHoldsThem) {
  // More than one page of landmarks, so that the rebuilt generation shares the first.
  auto log = harbour_log(0, 720);
  log[40] = fact;
  log[640] = log[642] = secret;
  engine_.open();
  engine_.append("m", log, true);
  ASSERT_GT(engine_.info("m").encoded_chunks, 300u);

  // What is looked for afterwards is there before.
  std::vector<uint32_t> ids;
  std::vector<std::string> records;
  uint64_t secret_chunk = 0;
  for (uint64_t chunk = 256; chunk < engine_.info("m").encoded_chunks; ++chunk) {
    const ChunkDetail detail = engine_.chunk("m", chunk);
    if (detail.view.passage.text.contains("marzipan") && ids.empty()) {
      secret_chunk = chunk;
      for (size_t i = 0; i + 4 < detail.token_ids.size(); ++i) {
        if (!(detail.token_texts[i] + detail.token_texts[i + 1] + detail.token_texts[i + 2]).contains("marz")) continue;
        ids.assign(&detail.token_ids[i], &detail.token_ids[i] + 4);
        break;
      }
    }
    if (secret_chunk > 0) records.push_back(kv_on_disk(detail.view.entry));
  }
  ASSERT_EQ(ids.size(), 4u);
  ASSERT_GT(records.size(), 2u);
  EXPECT_THAT(files_with(data(), secret_words), Not(IsEmpty()));
  EXPECT_THAT(files_with(data(), raw(ids)), Not(IsEmpty()));
  EXPECT_EQ(count_in_files(data(), records), records.size());
  EXPECT_THAT(engine_.found("m", secret_question), HasSubstr(secret_words));

  const Receipt receipt = engine_.forget("m", {{642, 642}, {640, 640}, {900, 950}});
  EXPECT_EQ(receipt.memory, "m");
  EXPECT_EQ(receipt.turns, (std::vector<TurnRange>{{640, 640}, {642, 642}}));
  EXPECT_EQ(receipt.turn_count, 2u);
  EXPECT_EQ(receipt.content_bytes, 2 * std::string_view(secret).size());
  EXPECT_EQ(receipt.chunks, records.size());
  EXPECT_TRUE(receipt.complete);
  EXPECT_FALSE(receipt.dry_run);
  EXPECT_FALSE(receipt.job);
  ASSERT_EQ(receipt.files.size(), 2u);
  EXPECT_EQ(receipt.files[0].file, "kv/000000.seg");
  EXPECT_GE(receipt.files[0].records, records.size());
  EXPECT_GE(receipt.files[0].bytes, records.size() * 16384);
  EXPECT_EQ(receipt.files[1].file, "catalog");
  EXPECT_EQ(receipt.files[1].records, 2u);
  EXPECT_GT(receipt.files[1].bytes, 0u);

  // The engine still runs.
  expect_no_trace();
  EXPECT_THAT(files_with(data(), raw(ids)), IsEmpty());
  EXPECT_EQ(count_in_files(data(), records), 0u);
  EXPECT_THAT(engine_.found("m", secret_question), Not(HasSubstr("marzipan")));
  EXPECT_THAT(engine_.found("m", question), HasSubstr("60417"));
  engine_.settle();

  engine_.close();
  const MemoryContents left = contents_of(data(), "m");
  EXPECT_EQ(left.turns[640].turn, 641u);
  EXPECT_EQ(left.turns[641].turn, 643u);
  EXPECT_EQ(left.info.next_turn, 720u);
  std::erase(log, secret);
  const MemoryContents never = contents_made_of(log);
  EXPECT_GT(never.states.size(), 0u);
  expect_same_encodings(left, never);
}

TEST_F(ForgetterTest, AFilterChoosesTurnsAndADryRunOnlyCountsThem) {
  auto log = harbour_log(0, 60);
  log[20] = log[21] = log[50] = secret;
  engine_.open();
  engine_.append("m", log, true);
  const auto request = [](bool dry_run) {
    Json filter = Json::parse(R"({"role":"user","turn":{"in":[20,21,50]}})");
    return ForgetRequest{
        .memory = "m", .turns = {}, .filter = must(read_query(filter, "filter")), .dry_run = dry_run, .wait = true};
  };
  const Receipt dry = must(engine_.try_forget(request(true)));
  EXPECT_TRUE(dry.dry_run);
  EXPECT_FALSE(dry.complete);
  EXPECT_EQ(dry.turns, (std::vector<TurnRange>{{20, 21}, {50, 50}}));
  EXPECT_EQ(engine_.turns("m").size(), 60u);
  EXPECT_THAT(engine_.jobs(), IsEmpty());
  EXPECT_THAT(engine_.found("m", secret_question), HasSubstr(secret_words));

  const Receipt receipt = must(engine_.try_forget(request(false)));
  EXPECT_EQ(receipt.turns, dry.turns);
  EXPECT_EQ(receipt.turn_count, dry.turn_count);
  EXPECT_EQ(receipt.tokens, dry.tokens);
  EXPECT_EQ(receipt.content_bytes, dry.content_bytes);
  EXPECT_EQ(receipt.chunks, dry.chunks);
  EXPECT_TRUE(receipt.complete);
  EXPECT_EQ(engine_.turns("m").size(), 57u);
  expect_no_trace();

  const Receipt again = must(engine_.try_forget(request(false)));
  EXPECT_EQ(again.turn_count, 0u);
  EXPECT_TRUE(again.complete);
  EXPECT_EQ(engine_.try_forget({.memory = "nobody", .turns = {{0, 0}}, .filter = {}}).error().kind,
            ErrorKind::not_found);
}

TEST_F(ForgetterTest, DuringTheRebuildNoSearchShowsWhatIsForgottenAndAllFindTheRestAndTheNewest) {
  auto log = harbour_log(0, 400);
  log[10] = secret;
  log[200] = fact;
  engine_.open();
  engine_.append("m", log, true);
  const Receipt receipt = engine_.forget("m", {{10, 10}}, false);
  EXPECT_FALSE(receipt.complete);
  EXPECT_EQ(receipt.turn_count, 1u);
  EXPECT_THAT(receipt.files, IsEmpty());
  ASSERT_TRUE(receipt.job);
  EXPECT_EQ(engine_.job(*receipt.job).kind, "forget");
  EXPECT_EQ(engine_.job(*receipt.job).memory, "m");

  int searches = 0;
  uint64_t progress = 0;
  bool newest_shown = false;
  while (true) {
    const JobView before = engine_.job(*receipt.job);
    EXPECT_GE(before.done, progress);
    progress = before.done;
    if (before.state != "running") break;
    EXPECT_THAT(engine_.found("m", secret_question), Not(HasSubstr("marzipan")));
    EXPECT_THAT(engine_.found("m", question), HasSubstr("60417"));
    if (++searches == 2) engine_.append("m", {"The blue kite landed on the customs house."});
    if (searches >= 2) {
      newest_shown = engine_.found("m", "Where did the blue kite land?").contains("customs house");
      EXPECT_TRUE(newest_shown);
    }
  }
  EXPECT_GE(searches, 3);
  EXPECT_TRUE(newest_shown);
  const JobView job = engine_.job(*receipt.job);
  EXPECT_EQ(job.state, "done");
  EXPECT_GT(job.total, 150u);
  EXPECT_EQ(job.done, job.total);
  expect_no_trace();

  engine_.settle();
  engine_.close();
  log.erase(log.begin() + 10);
  log.emplace_back("The blue kite landed on the customs house.");
  expect_same_encodings(contents_of(data(), "m"), contents_made_of(log));
}

TEST_F(ForgetterTest, WhoAsksAgainForTurnsThatAreGoneWaitsUntilNothingOfThemIsLeft) {
  auto log = harbour_log(0, 200);
  log[3] = secret;
  engine_.open();
  engine_.append("m", log, true);
  const Receipt first = engine_.forget("m", {{3, 3}}, false);
  EXPECT_FALSE(engine_.forget("m", {{3, 3}}, false).complete);
  const Receipt second = engine_.forget("m", {{3, 3}});
  EXPECT_EQ(second.turn_count, 0u);
  EXPECT_TRUE(second.complete);
  expect_no_trace();
  EXPECT_EQ(engine_.job(*first.job).state, "done");
}

TEST_F(ForgetterTest, SearchableAppendsAreAnsweredWhenTheirChunksNeverGetTheirNumbers) {
  engine_.open();
  engine_.append("m", harbour_log(0, 50), true);
  AppendRequest request = EngineDriver::request("m", harbour_log(50, 300));
  request.wait_searchable = true;
  std::promise<Expected<AppendReply>> promise;
  auto waiting = promise.get_future();
  (*engine_).append(std::move(request), [&](Expected<AppendReply> reply) { promise.set_value(std::move(reply)); });
  EngineDriver::wait_for("the turns to be there", [&] { return engine_.info("m").next_turn == 300; });
  engine_.forget("m", {{20, 280}});
  const auto reply = waiting.get();
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->last_turn, 299u);
}

TEST_F(ForgetterTest, ARetriedOperationOfAForgottenAppendAddsNothing) {
  engine_.open();
  engine_.append("m", harbour_log(0, 20));
  AppendRequest request = EngineDriver::request("m", {secret});
  request.operation_id = "an operation";
  const AppendReply first = must(engine_.append(request));
  engine_.append("m", {"after it"}, true);
  engine_.forget("m", {{first.first_turn, first.last_turn}});
  for (int time = 0; time < 2; ++time) {
    const AppendReply again = must(engine_.append(request));
    EXPECT_EQ(again.first_turn, first.first_turn);
    EXPECT_EQ(again.last_turn, first.last_turn);
    EXPECT_EQ(engine_.info("m").turns, 21u);
    engine_.close();
    engine_.open();
  }
  expect_no_trace();
}

TEST_F(ForgetterTest, ManyForgetsAtOnceAndDuringARebuildLeaveWhatOneWouldLeave) {
  auto log = harbour_log(0, 300);
  for (const size_t at : {5, 90, 91, 150, 220, 299}) log[at] = secret;
  engine_.open();
  engine_.append("m", log, true);
  std::vector<std::future<Expected<Receipt>>> receipts;
  for (const uint64_t at : {150, 5, 299, 90, 220, 91}) {
    auto promise = std::make_shared<std::promise<Expected<Receipt>>>();
    receipts.push_back(promise->get_future());
    (*engine_).forget({.memory = "m", .turns = {{at, at}}, .filter = {}},
                      [promise](Expected<Receipt> receipt) { promise->set_value(std::move(receipt)); });
    // Some come together, and some while a rebuild is under way.
    if (receipts.size() % 2 == 0)
      EngineDriver::wait_for("a rebuild", [&] {
        const auto jobs = engine_.jobs();
        return std::ranges::any_of(jobs, [](const JobView& job) { return job.state == "running" && job.done > 16; }) ||
               std::ranges::count(jobs, "running", &JobView::state) == 0;
      });
  }
  for (auto& each : receipts) {
    const Receipt receipt = must(each.get());
    EXPECT_TRUE(receipt.complete);
    EXPECT_EQ(receipt.turn_count, 1u);
  }
  expect_no_trace();
  engine_.settle();
  engine_.close();
  std::erase(log, secret);
  expect_same_encodings(contents_of(data(), "m"), contents_made_of(log));
}

TEST_F(ForgetterTest, AMemoryThatIsDeletedDuringARebuildLeavesNothingAndAnswersBoth) {
  auto log = harbour_log(0, 300);
  log[7] = secret;
  engine_.open();
  engine_.append("m", log, true);
  engine_.append("other", harbour_log(0, 40), true);
  std::promise<Expected<Receipt>> promise;
  auto forgotten = promise.get_future();
  (*engine_).forget({.memory = "m", .turns = {{7, 7}}, .filter = {}},
                    [&](Expected<Receipt> receipt) { promise.set_value(std::move(receipt)); });
  EngineDriver::wait_for("the rebuild", [&] {
    const auto jobs = engine_.jobs();
    return !jobs.empty() && jobs[0].done > 0;
  });
  const DeleteReply removed = engine_.remove("m");
  EXPECT_EQ(removed.memory.turns, 299u);
  EXPECT_EQ(removed.receipt.turn_count, 299u);
  EXPECT_EQ(removed.receipt.turns, (std::vector<TurnRange>{{0, 6}, {8, 299}}));
  EXPECT_TRUE(removed.receipt.complete);
  const auto receipt = forgotten.get();
  ASSERT_TRUE(receipt) << receipt.error().message;
  EXPECT_TRUE(receipt->complete);
  EXPECT_EQ(engine_.try_search("m", "tide").error().kind, ErrorKind::not_found);
  expect_no_trace();
  expect_no_trace("Entry 123");
  EXPECT_THAT(engine_.found("other", "boats on entry 17"), HasSubstr("Entry"));
}

// ---- What a stop and a crash leave behind

TEST_F(ForgetterTest, AStopDuringTheRebuildSaysSoAndTheNextStartFinishesByItself) {
  auto log = harbour_log(0, 400);
  log[12] = secret;
  log[300] = fact;
  engine_.open();
  engine_.append("m", log, true);
  std::promise<Expected<Receipt>> promise;
  auto forgotten = promise.get_future();
  (*engine_).forget({.memory = "m", .turns = {{12, 12}}, .filter = {}},
                    [&](Expected<Receipt> receipt) { promise.set_value(std::move(receipt)); });
  EngineDriver::wait_for("the rebuild", [&] {
    const auto jobs = engine_.jobs();
    return !jobs.empty() && jobs[0].done > 0;
  });
  engine_.close();
  const auto receipt = forgotten.get();
  ASSERT_FALSE(receipt);
  EXPECT_EQ(receipt.error().kind, ErrorKind::busy);
  EXPECT_THAT(receipt.error().message, AllOf(HasSubstr("gone from every read"), HasSubstr("next start")));

  engine_.open();
  EXPECT_THAT(engine_.found("m", secret_question), Not(HasSubstr("marzipan")));
  EXPECT_THAT(engine_.found("m", question), HasSubstr("60417"));
  ASSERT_EQ(engine_.jobs().size(), 1u);
  EXPECT_EQ(engine_.jobs()[0].kind, "forget");
  EXPECT_EQ(engine_.jobs()[0].memory, "m");
  engine_.settle();
  expect_no_trace();
  engine_.close();
  log.erase(log.begin() + 12);
  expect_same_encodings(contents_of(data(), "m"), contents_made_of(log));
}

// The states that a crash can leave, made with the store alone.
TEST_F(ForgetterTest, EveryStepThatACrashCutOffIsFinishedByTheNextStart) {
  auto log = harbour_log(0, 120);
  log[6] = secret;
  log[80] = secret;
  std::vector<std::string> left = log;
  std::erase(left, secret);
  const MemoryContents never = contents_made_of(left);

  using Step = std::function<void(Store&, MemoryId)>;
  const auto forget = [](Store& store, MemoryId id, uint64_t turn) {
    must(store.forget(id, std::array{TurnRange{turn, turn}}));
  };
  const std::vector<std::pair<std::string, Step>> states{
      {"forgotten", [&](Store& store, MemoryId id) { forget(store, id, 6), forget(store, id, 80); }},
      {"swapped before it was encoded",
       [&](Store& store, MemoryId id) {
         forget(store, id, 6);
         forget(store, id, 80);
         must(store.swap(id, true));
       }},
      {"erased for the first turn while the second was forgotten",
       [&](Store& store, MemoryId id) {
         forget(store, id, 6);
         must(store.swap(id, true));
         forget(store, id, 80);
         must(store.erase_forgotten(id));
       }},
      {"erased the rows while the old generation served",
       [&](Store& store, MemoryId id) {
         forget(store, id, 6);
         forget(store, id, 80);
         must(store.erase_forgotten(id));
       }},
  };
  for (const auto& [name, reach] : states) {
    SCOPED_TRACE(name);
    std::filesystem::remove_all(data());
    engine_.open();
    engine_.append("m", log, true);
    std::vector<std::string> records;  // of the first chunk that holds the secret and of those after it
    for (uint64_t chunk = 4; chunk < engine_.info("m").encoded_chunks; ++chunk)
      records.push_back(kv_on_disk(engine_.chunk("m", chunk).view.entry));
    engine_.close();
    ASSERT_EQ(count_in_files(data(), records), records.size());
    {
      const auto store = open_store(data());
      reach(*store, must(store->memory("m")).id);
    }
    engine_.open();
    engine_.settle();
    expect_no_trace();
    EXPECT_EQ(count_in_files(data(), records), 0u);
    engine_.close();
    EXPECT_THAT(must(open_store(data())->to_erase()), IsEmpty());
    expect_same_encodings(contents_of(data(), "m"), never);
  }
}

TEST_F(ForgetterTest, AMemoryThatWasRemovedBeforeACrashIsErasedByTheNextStart) {
  auto log = harbour_log(0, 60);
  log[6] = secret;
  engine_.open();
  engine_.append("m", log, true);
  engine_.close();
  must(open_store(data())->remove("m"));
  ASSERT_THAT(files_with(data(), secret_words), Not(IsEmpty()));
  engine_.open();
  ASSERT_EQ(engine_.jobs().size(), 1u);
  EXPECT_EQ(engine_.jobs()[0].kind, "delete");
  engine_.settle();
  expect_no_trace();
}

}  // namespace
}  // namespace recalld
