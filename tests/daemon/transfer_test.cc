// Export and import, with a small model of the tests' own; at the end once through the engine.
#include "daemon/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <set>
#include <thread>

#include "daemon/engine.h"
#include "tests/support/checkpoints.h"
#include "tests/support/fake_model.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

// A record as bytes that say everything that an export has of it; not the memory's name.
std::string printed(const ExportRecord& record) {
  std::string text;
  ByteWriter out(text);
  out.u8(static_cast<uint8_t>(record.index()));
  if (const auto* header = std::get_if<ExportHeader>(&record)) {
    out.u64(static_cast<uint64_t>(header->created_us));
    out.u64(static_cast<uint64_t>(header->updated_us));
    out.u64(header->next_turn);
    out.text(header->model_hash);
  } else if (const auto* turn = std::get_if<StoredTurn>(&record)) {
    out.u64(turn->turn);
    out.u8(static_cast<uint8_t>(turn->value.role));
    out.u8(turn->value.name.has_value());
    out.text(turn->value.name.value_or(""));
    out.text(turn->value.content);
    out.u64(static_cast<uint64_t>(turn->value.time_us));
    out.text(turn->value.metadata);
  } else if (const auto* operation = std::get_if<ExportOperation>(&record)) {
    out.text(operation->operation_id);
    out.text(as_text(operation->digest));
    out.u64(operation->first_turn);
    out.u64(operation->last_turn);
    out.u64(operation->tokens);
  } else if (const auto* chunk = std::get_if<ExportChunk>(&record)) {
    out.u64(chunk->chunk);
    out.text(chunk->landmark);
    out.text(chunk->kv);
  } else if (const auto* state = std::get_if<ExportState>(&record)) {
    out.u64(state->chunks);
    out.text(state->state);
  } else {
    out.u64(std::get<ExportEnd>(record).turns);
    out.u64(std::get<ExportEnd>(record).chunks);
  }
  return text;
}
std::vector<std::string> printed(const std::vector<ExportRecord>& records) {
  std::vector<std::string> out;
  for (const ExportRecord& record : records) out.push_back(printed(record));
  return out;
}

// A store with its exports and imports.
struct Side {
  explicit Side(std::string_view model = "a model of a few lines",
                std::chrono::milliseconds idle_max = std::chrono::hours(1))
      : store(FakeModel::open(directory.path() / "data", model)),
        upkeep(1),
        transfer(std::make_unique<Transfer>(*store, upkeep,
                                            Transfer::Options{.shape = FakeModel::shape(model),
                                                              .tokenise = FakeModel::tokenise,
                                                              .encode =
                                                                  [this](MemoryId id) {
                                                                    const std::lock_guard lock(mutex);
                                                                    told.insert(id);
                                                                  },
                                                              .idle_max = idle_max})) {}
  ~Side() {
    transfer->stop();
    upkeep.join();
    transfer.reset();
  }

  Expected<std::vector<ExportRecord>> exported(const std::string& memory, bool encodings, size_t limit = 1000) const {
    std::vector<ExportRecord> records;
    std::string after;
    for (;;) {
      RECALLD_TRY(ExportReply page,
                  transfer->export_page({.memory = memory, .encodings = encodings, .after = after, .limit = limit}));
      EXPECT_LE(page.records.size(), limit);
      EXPECT_FALSE(page.records.empty());
      std::ranges::move(page.records, std::back_inserter(records));
      if (!page.next_after) return records;
      after = *page.next_after;
    }
  }
  Expected<ImportReply> import(const std::string& memory, std::vector<ExportRecord> records) {
    return transfer->import_page({.memory = memory, .records = std::move(records)});
  }
  MemoryInfo info(const std::string& memory) const {
    const auto found = store->memory(memory);
    return found ? *found : MemoryInfo{};
  }
  bool was_told(MemoryId id) {
    const std::lock_guard lock(mutex);
    return told.contains(id);
  }

  TempDir directory;
  std::unique_ptr<Store> store;
  boost::asio::thread_pool upkeep;
  std::mutex mutex;
  std::set<MemoryId> told;
  std::unique_ptr<Transfer> transfer;
};

class TransferTest : public ::testing::Test {
 protected:
  static MemoryId append(Store& store, const std::string& memory, std::vector<Turn> turns, const std::string& operation,
                         int64_t now_us) {
    AppendBatch batch{.memory = memory,
                      .turns = {},
                      .operation_id = operation,
                      .operation_digest = hash128(as_bytes(operation + "!")),
                      .now_us = now_us};
    for (Turn& turn : turns) batch.turns.push_back(FakeModel::tokenise(std::move(turn)));
    const auto replies = store.append({&batch, 1});
    if (!replies || !replies->at(0)) throw std::runtime_error("append failed");
    return replies->at(0)->id;
  }
  static Turn said(uint64_t number) {
    return {.role = static_cast<Role>(number % 4),
            .name = number % 3 == 0 ? std::optional("Runa " + std::to_string(number)) : std::nullopt,
            .content = "Line " + std::to_string(number) + " of the tide table: " + std::string(30 + number % 77, 't'),
            .time_us = 1'700'000'000'123'456 + static_cast<int64_t>(number * 1'000'001),
            .metadata = number % 2 == 0 ? R"({"page":)" + std::to_string(number) + "}" : ""};
  }
  // A memory with everything that a memory can have.
  static MemoryId fill(Side& side, const std::string& memory, uint64_t lines = 120, size_t long_bytes = 70'000) {
    MemoryId id = 0;
    for (uint64_t i = 0; i < lines; ++i)
      id = append(*side.store, memory, {said(i)}, i % 5 == 0 ? "op-" + std::to_string(i) : "",
                  1'700'000'000'654'321 + static_cast<int64_t>(i));
    append(*side.store, memory,
           {{.role = Role::tool,
             .name = std::string("nul\0name", 8),
             .content = std::string("a\0b\n\"\\\x01", 7) + std::string(long_bytes, 'x') + "é",
             .time_us = -1,
             .metadata = R"({ "k" : "\u0000" })"},
            said(121),
            said(122),
            said(123)},
           "op-long", 1'700'000'000'999'999);
    return id;
  }
  static void forget(Store& store, MemoryId id, std::vector<TurnRange> turns) {
    const auto forgotten = store.forget(id, turns);
    ASSERT_TRUE(forgotten) << forgotten.error().message;
    ASSERT_TRUE(FakeModel::settle(store, id));
  }
  // Both memories are the same, and go on in the same way.
  static void expect_same(Side& a, const std::string& in_a, Side& b, const std::string& in_b) {
    for (const bool encodings : {false, true}) {
      const auto left = a.exported(in_a, encodings), right = b.exported(in_b, encodings);
      ASSERT_TRUE(left) << left.error().message;
      ASSERT_TRUE(right) << right.error().message;
      EXPECT_EQ(printed(*left) == printed(*right), true) << encodings;
    }
    const MemoryInfo left = a.info(in_a), right = b.info(in_b);
    EXPECT_EQ(left.turns, right.turns);
    EXPECT_EQ(left.tokens, right.tokens);
    EXPECT_EQ(left.content_bytes, right.content_bytes);
    EXPECT_EQ(a.store->tokens(left.id, 0, left.tokens).value(), b.store->tokens(right.id, 0, right.tokens).value());
  }

  Side from_;
};

TEST_F(TransferTest, AnImportedMemoryIsTheSameAndGoesOnAsTheOriginalDoes) {
  for (const bool holes : {false, true}) {
    const std::string name = holes ? "with-holes" : "whole";
    const MemoryId id = fill(from_, name);
    ASSERT_TRUE(FakeModel::settle(*from_.store, id));
    if (holes) forget(*from_.store, id, {{0, 0}, {17, 40}, {99, 99}, {122, 123}});  // the last ones too
    for (const bool encodings : {false, true}) {
      const auto records = from_.exported(name, encodings);
      ASSERT_TRUE(records) << records.error().message;
      Side other;
      for (Side* to : {&from_, &other}) {
        const std::string copy = name + "/copy" + (encodings ? "-encoded" : "");
        const auto imported = to->import(copy, *records);
        ASSERT_TRUE(imported) << imported.error().message;
        EXPECT_EQ(imported->imported, records->size() - 1);  // all but the end
        EXPECT_EQ(imported->present, 0u);
        EXPECT_EQ(imported->ignored, 0u);
        const MemoryInfo made = to->info(copy);
        EXPECT_TRUE(to->was_told(made.id));
        EXPECT_EQ(made.encoded_chunks, encodings ? from_.info(name).encoded_chunks : 0);
        if (!encodings) {
          ASSERT_TRUE(FakeModel::settle(*to->store, made.id));
        }
        expect_same(from_, name, *to, copy);
      }
      // Appended to both, they stay the same.
      Side& to = other;
      const std::string copy = name + "/copy" + (encodings ? "-encoded" : "");
      for (uint64_t i = 200; i < 230; ++i) {
        for (auto [side, memory] : {std::pair(&from_, name), std::pair(&to, copy)}) {
          const MemoryId at =
              append(*side->store, memory, {said(i)}, "", 1'800'000'000'000'000 + static_cast<int64_t>(i));
          ASSERT_TRUE(FakeModel::settle(*side->store, at));
        }
      }
      expect_same(from_, name, to, copy);
      ASSERT_TRUE(from_.store->erase(name + "/copy" + (encodings ? "-encoded" : "")));
    }
  }
}

TEST_F(TransferTest, PagesOfAnySizeHoldTheSameRecords) {
  ASSERT_TRUE(FakeModel::settle(*from_.store, fill(from_, "m")));
  const auto whole = from_.exported("m", true);
  ASSERT_TRUE(whole);
  for (const size_t limit : {size_t{1}, size_t{2}, size_t{7}, size_t{50}}) {
    const auto paged = from_.exported("m", true, limit);
    ASSERT_TRUE(paged) << paged.error().message;
    EXPECT_TRUE(printed(*paged) == printed(*whole)) << limit;
  }
}

TEST_F(TransferTest, APageSentBackIsNoLineBeyondTheLimit) {
  for (int i = 0; i < 6; ++i)
    append(*from_.store, "m",
           {{.role = Role::user, .name = {}, .content = std::string(1 << 20, '\1'), .time_us = 1, .metadata = {}}}, "",
           1);
  std::string after;
  size_t pages = 0, turns = 0;
  do {
    const auto page = from_.transfer->export_page({.memory = "m", .encodings = false, .after = after, .limit = 1000});
    ASSERT_TRUE(page) << page.error().message;
    size_t bytes = 0;
    for (const ExportRecord& record : page->records) {
      const auto* turn = std::get_if<StoredTurn>(&record);
      if (turn) bytes += 6 * turn->value.content.size() + 200;  // \u0001
      turns += turn != nullptr;
    }
    EXPECT_LT(bytes, line_bytes_max);
    after = page->next_after.value_or("");
    ++pages;
  } while (!after.empty());
  EXPECT_EQ(turns, 6u);
  EXPECT_GE(pages, 6u);
}

// A model with a long window has such states.
TEST_F(TransferTest, StatesThatNoRequestCouldBringBackAreLeftOut) {
  const MemoryId id = fill(from_, "m");
  ASSERT_TRUE(FakeModel::settle(*from_.store, id));
  const auto count_states = [&](uint32_t state_bytes) {
    RecordShape shape = FakeModel::shape();
    shape.state_bytes = state_bytes;
    Transfer transfer(*from_.store, from_.upkeep,
                      {.shape = shape, .tokenise = FakeModel::tokenise, .encode = [](MemoryId) {}});
    size_t states = 0;
    std::string after;
    do {
      const auto page = transfer.export_page({.memory = "m", .encodings = true, .after = after, .limit = 1000});
      EXPECT_TRUE(page) << page.error().message;
      for (const ExportRecord& record : page->records) states += std::holds_alternative<ExportState>(record);
      after = page->next_after.value_or("");
    } while (!after.empty());
    transfer.stop();
    return states;
  };
  EXPECT_GT(count_states(FakeModel::state_bytes), 0u);
  EXPECT_EQ(count_states(uint32_t{6} << 20), 0u);
}

TEST_F(TransferTest, AContentOfManyPiecesComesBackByteForByte) {
  std::string content;
  for (size_t i = 0; content.size() < (1 << 20); ++i) content += std::to_string(i * i) + std::string("\0,é", 4);
  content.resize((1 << 20) - 3);
  append(*from_.store, "m", {{.role = Role::user, .name = {}, .content = content, .time_us = 1, .metadata = {}}}, "",
         1);
  ASSERT_TRUE(FakeModel::settle(*from_.store, from_.info("m").id));
  Side to;
  ASSERT_TRUE(to.import("m", from_.exported("m", true).value()));
  EXPECT_EQ(to.store->turns(to.info("m").id, 0, 1, 1)->at(0).value.content, content);
  expect_same(from_, "m", to, "m");
}

TEST_F(TransferTest, AnImportThatIsCutOffAnywhereIsRepeatedFromTheBeginning) {
  const MemoryId id = fill(from_, "m", 20, 1'000);
  ASSERT_TRUE(FakeModel::settle(*from_.store, id));
  forget(*from_.store, id, {{5, 9}, {23, 23}});
  const auto records = from_.exported("m", true);
  ASSERT_TRUE(records);
  for (size_t cut = 1; cut < records->size(); ++cut) {
    Side to;
    ASSERT_TRUE(to.import("m", {records->begin(), records->begin() + static_cast<ptrdiff_t>(cut)})) << cut;
    EXPECT_FALSE(to.was_told(to.info("m").id)) << cut;  // its encodings may come still
    // Once at one go, once record by record.
    auto again = to.import("m", *records);
    ASSERT_TRUE(again) << cut << ": " << again.error().message;
    EXPECT_EQ(again->present, cut);
    EXPECT_EQ(again->imported, records->size() - 1 - cut);
    expect_same(from_, "m", to, "m");
    if (cut % 5 != 0) continue;
    uint64_t present = 0;
    for (const ExportRecord& record : *records) {
      again = to.import("m", {record});
      ASSERT_TRUE(again) << cut << ": " << again.error().message;
      EXPECT_EQ(again->imported, 0u);
      present += again->present;
    }
    EXPECT_EQ(present, records->size() - 1);
    expect_same(from_, "m", to, "m");
  }
}

TEST_F(TransferTest, ChunksThatTheEncoderHasStoredMeanwhileAreSkipped) {
  ASSERT_TRUE(FakeModel::settle(*from_.store, fill(from_, "m")));
  const auto records = from_.exported("m", true);
  ASSERT_TRUE(records);
  Side to;
  for (const ExportRecord& record : *records) {
    // A restart would let the encoder begin between any two records.
    if (std::holds_alternative<ExportChunk>(record) && std::get<ExportChunk>(record).chunk % 3 == 0) {
      ASSERT_TRUE(FakeModel::encode(*to.store, to.info("m").serving, 2));
    }
    const auto imported = to.import("m", {record});
    ASSERT_TRUE(imported) << imported.error().message;
  }
  expect_same(from_, "m", to, "m");
}

TEST_F(TransferTest, EncodingsOfAnotherModelAreIgnoredAndMadeAnew) {
  ASSERT_TRUE(FakeModel::settle(*from_.store, fill(from_, "m")));
  const auto records = from_.exported("m", true);
  ASSERT_TRUE(records);
  Side to("another model");
  const auto imported = to.import("m", *records);
  ASSERT_TRUE(imported) << imported.error().message;
  EXPECT_GT(imported->ignored, from_.info("m").encoded_chunks);  // and the states
  EXPECT_EQ(to.info("m").encoded_chunks, 0u);
  EXPECT_TRUE(to.was_told(to.info("m").id));
  EXPECT_TRUE(printed(*to.exported("m", false)) == printed(*from_.exported("m", false)));
}

TEST_F(TransferTest, AnImportThatIsBrokenOffIsEncodedAllTheSame) {
  ASSERT_TRUE(FakeModel::settle(*from_.store, fill(from_, "m")));
  const auto records = from_.exported("m", true);
  ASSERT_TRUE(records);
  Side to("a model of a few lines", std::chrono::milliseconds(50));
  ASSERT_TRUE(to.import("m", {records->begin(), records->begin() + 60}));
  for (int i = 0; i < 200 && !to.was_told(to.info("m").id); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(to.was_told(to.info("m").id));
  ASSERT_TRUE(FakeModel::settle(*to.store, to.info("m").id));
  ASSERT_TRUE(to.import("m", {records->begin() + 60, records->end()}));  // it is heard of again
  expect_same(from_, "m", to, "m");
}

TEST_F(TransferTest, TooManyImportsAtATimeLetTheIdlestGiveWay) {
  fill(from_, "m", 4, 10);
  const auto records = from_.exported("m", true);
  ASSERT_TRUE(records);
  Side to;
  for (size_t i = 0; i <= imports_max; ++i) {
    EXPECT_FALSE(to.was_told(to.info("m0").id));
    ASSERT_TRUE(to.import("m" + std::to_string(i), {records->front()}));
  }
  EXPECT_TRUE(to.was_told(to.info("m0").id));
  EXPECT_THAT(to.import("m0", {records->at(1)}).error().message, HasSubstr("begin again"));
  EXPECT_TRUE(to.import("m1", {records->at(1)}));
  const auto again = to.import("m0", *records);
  ASSERT_TRUE(again) << again.error().message;
  expect_same(from_, "m", to, "m0");
}

TEST_F(TransferTest, RepeatedOperationsOfAnImportedMemoryReturnTheirFirstReply) {
  fill(from_, "m");
  Side to;
  ASSERT_TRUE(to.import("m", from_.exported("m", false).value()));
  for (const std::string operation : {"op-0", "op-115", "op-long"}) {
    for (Side* side : {&from_, &to}) {
      AppendBatch batch{.memory = "m",
                        .turns = {FakeModel::tokenise(said(1))},
                        .operation_id = operation,
                        .operation_digest = hash128(as_bytes(operation + "!")),
                        .now_us = 3};
      const auto again = side->store->append({&batch, 1});
      ASSERT_TRUE(again && again->at(0));
      const Appended reply = *again->at(0);
      EXPECT_TRUE(reply.repeated);
      static Appended first;
      if (side == &from_) {
        first = reply;
      } else {
        EXPECT_EQ(reply.first_turn, first.first_turn);
        EXPECT_EQ(reply.last_turn, first.last_turn);
        EXPECT_EQ(reply.tokens, first.tokens);
        EXPECT_EQ(reply.end_token, first.end_token);
      }
      batch.operation_digest = {};
      EXPECT_FALSE(side->store->append({&batch, 1})->at(0));
    }
  }
  EXPECT_EQ(to.info("m").turns, from_.info("m").turns);
}

TEST_F(TransferTest, AMemoryWithoutTurnsIsOneAfterwardsToo) {
  const MemoryId id = append(*from_.store, "m", {said(0), said(1)}, "op", 77);
  forget(*from_.store, id, {{0, 1}});
  for (const bool encodings : {false, true}) {
    Side to;
    const auto imported = to.import("m", from_.exported("m", encodings).value());
    ASSERT_TRUE(imported) << imported.error().message;
    EXPECT_EQ(to.info("m").turns, 0u);
    EXPECT_EQ(to.info("m").next_turn, 2u);
    EXPECT_EQ(to.info("m").created_us, 77);
    expect_same(from_, "m", to, "m");
    append(*to.store, "m", {said(2)}, "", 78);
    EXPECT_EQ(to.store->turns(to.info("m").id, 0, 9, 1 << 20)->at(0).turn, 2u);
  }
}

TEST_F(TransferTest, AnExportShowsTheTurnsThatThereWereWhenItBegan) {
  const MemoryId id = fill(from_, "m");
  ASSERT_TRUE(FakeModel::settle(*from_.store, id));
  const auto first = from_.transfer->export_page({.memory = "m", .encodings = true, .after = {}, .limit = 10});
  ASSERT_TRUE(first);
  append(*from_.store, "m", {said(300), said(301)}, "late", 1);
  ASSERT_TRUE(FakeModel::settle(*from_.store, id));
  auto records = first->records;
  for (std::string after = *first->next_after; !after.empty();) {
    const auto page = from_.transfer->export_page({.memory = "m", .encodings = true, .after = after, .limit = 10});
    ASSERT_TRUE(page) << page.error().message;
    records.insert(records.end(), page->records.begin(), page->records.end());
    after = page->next_after.value_or("");
  }
  EXPECT_EQ(std::get<ExportEnd>(records.back()).turns, 124u);
  for (const ExportRecord& record : records) {
    const auto* operation = std::get_if<ExportOperation>(&record);
    EXPECT_FALSE(operation && operation->operation_id == "late");
  }
  Side to;
  const auto imported = to.import("m", records);
  ASSERT_TRUE(imported) << imported.error().message;
  EXPECT_EQ(to.info("m").next_turn, 124u);
}

TEST_F(TransferTest, ForgettingMeanwhileLeavesTurnsOutOrEndsAnExportWithEncodings) {
  const MemoryId id = fill(from_, "m");
  ASSERT_TRUE(FakeModel::settle(*from_.store, id));
  const auto begun = [&](bool encodings) {
    return *from_.transfer->export_page({.memory = "m", .encodings = encodings, .after = {}, .limit = 10})->next_after;
  };
  const std::string with = begun(true), without = begun(false);
  ASSERT_TRUE(from_.store->forget(id, std::array{TurnRange{50, 60}}));
  const auto page = from_.transfer->export_page({.memory = "m", .encodings = true, .after = with, .limit = 10});
  ASSERT_FALSE(page);
  EXPECT_EQ(page.error().kind, ErrorKind::busy);
  EXPECT_EQ(from_.exported("m", true).error().kind, ErrorKind::busy);  // until the rest is encoded anew
  const auto rest = from_.transfer->export_page({.memory = "m", .encodings = false, .after = without, .limit = 1000});
  ASSERT_TRUE(rest) << rest.error().message;
  EXPECT_EQ(std::get<ExportEnd>(rest->records.back()).turns, 124u - 11u);
  ASSERT_TRUE(FakeModel::settle(*from_.store, id));
  EXPECT_EQ(from_.transfer->export_page({.memory = "m", .encodings = true, .after = with, .limit = 10}).error().kind,
            ErrorKind::busy);
  EXPECT_TRUE(from_.exported("m", true));
}

TEST_F(TransferTest, ForgettingDuringAnImportKeepsOldEncodingsOut) {
  ASSERT_TRUE(FakeModel::settle(*from_.store, fill(from_, "m")));
  const auto records = from_.exported("m", true);
  ASSERT_TRUE(records);
  const auto first_chunk =
      std::ranges::find_if(*records, [](const auto& record) { return std::holds_alternative<ExportChunk>(record); });
  Side to;
  ASSERT_TRUE(to.import("m", {records->begin(), first_chunk}));
  ASSERT_TRUE(to.store->forget(to.info("m").id, std::array{TurnRange{3, 3}}));
  const auto rest = to.import("m", {first_chunk, records->end()});
  ASSERT_FALSE(rest);
  EXPECT_EQ(rest.error().kind, ErrorKind::busy);
  EXPECT_EQ(to.info("m").encoded_chunks, 0u);
  EXPECT_THAT(to.import("m", *records).error().message, HasSubstr("turn 3 is not there any more"));
}

TEST_F(TransferTest, WhatDiffersFromTheMemoryOrFromItselfIsRefused) {
  ASSERT_TRUE(FakeModel::settle(*from_.store, fill(from_, "m")));
  const auto whole = from_.exported("m", true);
  ASSERT_TRUE(whole);
  const auto index_of = [&](auto is) { return static_cast<size_t>(std::ranges::find_if(*whole, is) - whole->begin()); };
  const size_t operation = index_of([](const auto& r) { return std::holds_alternative<ExportOperation>(r); });
  const size_t chunk = index_of([](const auto& r) { return std::holds_alternative<ExportChunk>(r); });
  const size_t state = index_of([](const auto& r) { return std::holds_alternative<ExportState>(r); });
  const auto why = [&](auto change) {
    auto records = *whole;
    change(records);
    Side to;
    const auto imported = to.import("m", std::move(records));
    EXPECT_FALSE(imported);
    if (imported) return std::string();
    EXPECT_EQ(imported.error().kind, ErrorKind::invalid_request) << imported.error().message;
    return imported.error().message;
  };
  using Records = std::vector<ExportRecord>;
  EXPECT_THAT(why([](Records& r) { r.erase(r.begin()); }), HasSubstr("begin again with the memory record"));
  EXPECT_THAT(why([](Records& r) { std::swap(r[3], r[4]); }), HasSubstr("out of order"));
  EXPECT_THAT(why([](Records& r) { r.erase(r.begin() + 5); }), HasSubstr("not whole"));
  EXPECT_THAT(why([](Records& r) { std::get<StoredTurn>(r[124]).turn = 900; }), HasSubstr("beyond next_turn"));
  EXPECT_THAT(why([&](Records& r) { std::swap(r[operation - 1], r[operation]); }), HasSubstr("out of order"));
  EXPECT_THAT(why([&](Records& r) { std::get<ExportOperation>(r[operation]).last_turn = 124; }),
              HasSubstr("operation"));
  EXPECT_THAT(why([&](Records& r) { r.erase(r.begin() + static_cast<ptrdiff_t>(chunk) + 1); }),
              HasSubstr("stands where chunk 1 should"));
  EXPECT_THAT(why([&](Records& r) { std::get<ExportChunk>(r[chunk]).kv.pop_back(); }), HasSubstr("bytes"));
  EXPECT_THAT(why([&](Records& r) {
                std::get<ExportChunk>(r[chunk]).landmark[1] = '\x7f';
                std::get<ExportChunk>(r[chunk]).landmark[0] = '\x80';
              }),
              HasSubstr("no finite number"));
  EXPECT_THAT(why([&](Records& r) { std::get<ExportState>(r[state]).state += "...."; }), HasSubstr("bytes"));
  EXPECT_THAT(why([&](Records& r) { std::get<ExportState>(r[state]).chunks = 1 << 30; }), HasSubstr("beyond"));
  EXPECT_THAT(why([&](Records& r) { r.erase(r.begin() + 20, r.begin() + static_cast<ptrdiff_t>(operation)); }),
              HasSubstr("tokens that its turns do not have"));
  EXPECT_THAT(why([](Records& r) { r.push_back(r.back()); }), HasSubstr("second end record"));
  EXPECT_THAT(why([](Records& r) { std::get<ExportHeader>(r[0]).model_hash.clear(); }), HasSubstr("model_hash"));

  // Against a memory that is there.
  const auto against = [&](auto change) {
    auto records = *whole;
    change(records);
    const auto imported = from_.import("m", std::move(records));
    return imported ? std::string() : imported.error().message;
  };
  EXPECT_EQ(against([](Records&) {}), "");
  EXPECT_THAT(against([](Records& r) { std::get<StoredTurn>(r[7]).value.content += "?"; }),
              HasSubstr("another turn 6 is there"));
  EXPECT_THAT(against([](Records& r) { std::get<StoredTurn>(r[7]).value.time_us += 1; }),
              HasSubstr("another turn 6 is there"));
  EXPECT_THAT(against([](Records& r) { r.erase(r.begin() + 7); }), HasSubstr("has a turn 6, which the export has not"));
  EXPECT_THAT(against([](Records& r) { std::get<ExportHeader>(r[0]).created_us += 1; }), HasSubstr("another memory"));
  EXPECT_THAT(against([&](Records& r) { std::get<ExportOperation>(r[operation]).digest = {}; }),
              HasSubstr("used for other turns"));
  EXPECT_EQ(from_.info("m").turns, 124u);
}

TEST_F(TransferTest, TurnsThatWereAppendedOtherwiseAreNotMixedWithAnExports) {
  fill(from_, "m");
  const auto records = from_.exported("m", false);
  ASSERT_TRUE(records);
  Side to;
  ASSERT_TRUE(to.import("m", {records->begin(), records->begin() + 10}));
  append(*to.store, "m", {said(400)}, "", 5);
  const auto rest = to.import("m", {records->begin() + 10, records->end()});
  ASSERT_FALSE(rest);
  EXPECT_THAT(rest.error().message, HasSubstr("another turn 9 is there"));
}

TEST_F(TransferTest, ACursorOfAnotherExportIsRefused) {
  fill(from_, "m");
  fill(from_, "n");
  const auto cursor =
      *from_.transfer->export_page({.memory = "m", .encodings = false, .after = {}, .limit = 5})->next_after;
  for (const std::string& after : {std::string("x"), cursor + ".1", cursor + "x", "9" + cursor, std::string("1.2.3"),
                                   "." + cursor, std::string("99999999999999999999999")}) {
    const auto page = from_.transfer->export_page({.memory = "m", .encodings = false, .after = after, .limit = 5});
    ASSERT_FALSE(page) << after;
    EXPECT_EQ(page.error().kind, ErrorKind::invalid_request);
  }
  EXPECT_FALSE(from_.transfer->export_page({.memory = "n", .encodings = false, .after = cursor, .limit = 5}));
  EXPECT_FALSE(from_.transfer->export_page({.memory = "m", .encodings = true, .after = cursor, .limit = 5}));
  EXPECT_TRUE(from_.transfer->export_page({.memory = "m", .encodings = false, .after = cursor, .limit = 5}));
}

// ---- The real model, through the engine

class EngineTransferTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> open(const std::string& name) const {
    EngineOptions options;
    options.data = directory_.path() / name;
    options.model = default_checkpoint();
    options.memory_budget_bytes = 64 << 20;
    auto engine = Engine::open(std::move(options));
    EXPECT_TRUE(engine) << (engine ? "" : engine.error().message);
    return engine ? *std::move(engine) : nullptr;
  }
  template <class Reply, class Call>
  static Expected<Reply> answer(Call call) {
    std::promise<Expected<Reply>> promise;
    auto future = promise.get_future();
    call([&promise](Expected<Reply> reply) { promise.set_value(std::move(reply)); });
    return future.get();
  }
  static void append(Engine& engine, uint64_t first, uint64_t count) {
    AppendRequest request{.memory = "log", .turns = {}, .operation_id = {}, .wait_searchable = true};
    for (uint64_t i = first; i < first + count; ++i)
      request.turns.push_back({{.role = Role::user,
                                .name = {},
                                .content = "Entry " + std::to_string(i) + ": the ferry left at " +
                                           std::to_string(i % 24) + " with sheep, letters and a piano on deck.",
                                .time_us = static_cast<int64_t>(i),
                                .metadata = {}},
                               true});
    const auto appended = answer<AppendReply>([&](auto done) { engine.append(request, std::move(done)); });
    ASSERT_TRUE(appended) << appended.error().message;
  }
  static std::vector<ExportRecord> exported(Engine& engine) {
    std::vector<ExportRecord> records;
    for (std::string after;;) {
      const ExportRequest request{.memory = "log", .encodings = true, .after = after, .limit = 1000};
      auto page = answer<ExportReply>([&](auto done) { engine.export_memory(request, std::move(done)); });
      EXPECT_TRUE(page) << (page ? "" : page.error().message);
      if (!page) return {};
      std::ranges::move(page->records, std::back_inserter(records));
      if (!page->next_after) return records;
      after = *page->next_after;
    }
  }

  TempDir directory_;
};

TEST_F(EngineTransferTest, AnImportedMemoryEncodesTheNextTurnsToTheSameBitsAndABackupOpens) {
  auto from = open("from"), to = open("to");
  ASSERT_TRUE(from && to);
  append(*from, 0, 260);
  const auto before = exported(*from);
  ASSERT_TRUE(std::holds_alternative<ExportState>(before.at(before.size() - 2)));  // something to go on from
  // All pages are on their way at once.
  std::vector<std::future<Expected<ImportReply>>> replies;
  for (size_t at = 0; at < before.size(); at += 100) {
    std::promise<Expected<ImportReply>> promise;
    replies.push_back(promise.get_future());
    to->import_memory(
        {.memory = "log",
         .records = {before.begin() + static_cast<ptrdiff_t>(at),
                     before.begin() + static_cast<ptrdiff_t>(std::min(before.size(), at + 100))}},
        [promise = std::move(promise)](Expected<ImportReply> reply) mutable { promise.set_value(std::move(reply)); });
  }
  for (auto& reply : replies) {
    const auto imported = reply.get();
    ASSERT_TRUE(imported) << imported.error().message;
  }
  EXPECT_TRUE(printed(exported(*to)) == printed(before));
  append(*from, 260, 60);
  append(*to, 260, 60);
  const auto is_encoding = [](const ExportRecord& r) {
    return std::holds_alternative<ExportChunk>(r) || std::holds_alternative<ExportState>(r);
  };
  std::vector<std::string> left, right;
  for (const auto& record : exported(*from))
    if (is_encoding(record)) left.push_back(printed(record));
  for (const auto& record : exported(*to))
    if (is_encoding(record)) right.push_back(printed(record));
  EXPECT_GT(left.size(), before.size() - 262);
  EXPECT_TRUE(left == right);

  const std::string copy = (directory_.path() / "copy").string();
  const auto backup = answer<BackupReply>([&](auto done) { from->backup({copy}, std::move(done)); });
  ASSERT_TRUE(backup) << backup.error().message;
  EXPECT_EQ(backup->directory, copy);
  EXPECT_GT(backup->files, 4u);
  auto opened = open("copy");
  ASSERT_TRUE(opened);
  EXPECT_TRUE(printed(exported(*opened)) == printed(exported(*from)));
}

}  // namespace
}  // namespace recalld
