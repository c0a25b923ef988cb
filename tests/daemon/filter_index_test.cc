// The index of attributes against the rows of turns: whatever is appended, forgotten and asked, both select the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <latch>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>

#include "daemon/filter.h"
#include "daemon/indexer.h"
#include "daemon/rfc3339.h"
#include "memstore/attribute_rows.h"
#include "memstore/catalog.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "memstore/turn_selection.h"
#include "tests/support/fake_model.h"
#include "tests/support/files_with.h"
#include "tests/support/raw_rows.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
// A byte a token, so that few turns share a chunk.
using Model = FakeModelOf<32, 1>;

class FilterIndex : public ::testing::Test {
 protected:
  void open(bool with_index = true) {
    store_.reset();
    StoreOptions options{.shape = Model::shape("m"), .memory_budget_bytes = 16 << 20, .file_io = {}};
    if (with_index) options.read_metadata = metadata_attributes;
    auto opened = Store::open(data(), std::move(options));
    if (!opened) throw std::runtime_error(opened.error().message);
    store_ = *std::move(opened);
  }

  std::filesystem::path data() const { return directory_.path() / "data"; }
  uint64_t below(uint64_t end) { return random_() % end; }
  bool one_in(uint64_t n) { return below(n) == 0; }

  // Few of each kind, so that filters meet what there is; the same for turns and for filters.
  Json value() {
    switch (below(9)) {
      case 0:
        return below(5);
      case 1:
        return -static_cast<int64_t>(below(3));
      case 2:
        return std::array{1.0, 2.5, -1.0, 1e300, -0.0}.at(below(5));
      case 3:
        return one_in(2) ? Json(UINT64_MAX - below(2)) : Json(INT64_MIN + static_cast<int64_t>(below(2)));
      case 4:
        return one_in(2);
      case 5:
        return std::array{"", "1", "calm", "calmer", "\xc3\xa4\x01"}.at(below(5));
      case 6:  // longer than a bound of a column
        return std::string(70, 'x') + std::array{"a", "b", ""}.at(below(3));
      case 7:
        return "2026-11-" + std::to_string(10 + below(20));
      default:
        return nullptr;
    }
  }
  std::string key() { return std::array{"n", "mood", "", "a.b", "id", "none"}.at(below(6)); }
  int64_t time() { return static_cast<int64_t>(below(200)) * 1'000'000; }
  std::string name() { return std::array{"Ana", "Bo", "metadata.n"}.at(below(3)); }

  Turn turn() {
    Turn turn;
    turn.role = static_cast<Role>(below(4));
    if (!one_in(3)) turn.name = name();
    turn.time_us = one_in(4) ? time() : static_cast<int64_t>(said_) * 50'000;  // mostly rising
    if (!one_in(4)) {
      Json metadata = Json::object();
      for (uint64_t left = below(4); left > 0; --left)
        metadata[std::array{"n", "mood", "", "a.b"}.at(below(4))] = value();
      if (one_in(2)) metadata["id"] = "turn-" + std::to_string(said_) + std::string(below(40), '-');
      turn.metadata = metadata.dump();
    }
    turn.content = std::string(40 + (one_in(30) ? below(900) : below(30)), 'w');
    ++said_;
    return turn;
  }

  void append(size_t count) {
    AppendBatch batch{.memory = "m", .turns = {}, .operation_id = {}, .operation_digest = {}, .now_us = 9};
    for (size_t i = 0; i < count; ++i) batch.turns.push_back(Model::tokenise(turn()));
    id_ = store_->append({&batch, 1}).value().at(0).value().id;
  }

  Json comparisons(const std::vector<std::string>& ordering, const std::vector<std::string>& equality, auto operand) {
    if (!equality.empty() && one_in(3)) return operand(false);
    Json all = Json::object();
    for (uint64_t left = 1 + below(2); left > 0; --left) {
      const uint64_t which = below(ordering.size() + equality.size());
      const bool orders = which < ordering.size();
      const std::string op = orders ? ordering[which] : equality[which - ordering.size()];
      all[op] = operand(orders);
      if (op == "in" || op == "nin") all[op] = Json::array({operand(false), operand(false), operand(false)});
    }
    return all;
  }

  Json filter(int depth = 0) {
    Json out = Json::object();
    for (uint64_t left = one_in(3) ? 2 : 1; left > 0; --left) {
      switch (below(depth < 3 ? 9 : 6)) {
        case 0:
          out["role"] = comparisons({}, {"eq", "ne", "in", "nin"},
                                    [&](bool) { return Json(recalld::name(static_cast<Role>(below(4)))); });
          break;
        case 1:
          out["name"] = comparisons({}, {"eq", "ne", "in", "nin"},
                                    [&](bool) { return one_in(4) ? Json(nullptr) : Json(name()); });
          break;
        case 2:
          out["time"] = comparisons({"gt", "gte", "lt", "lte"}, {}, [&](bool) { return Json(format_rfc3339(time())); });
          break;
        case 3:
          out["turn"] =
              comparisons({"gt", "gte", "lt", "lte"}, {"eq", "in"}, [&](bool) { return Json(below(said_ + 9)); });
          break;
        case 6:
          out["not"] = filter(depth + 1);
          break;
        case 7:
        case 8:
          out[one_in(2) ? "and" : "or"] = Json::array({filter(depth + 1), filter(depth + 1)});
          break;
        default:
          out["metadata." + key()] =
              comparisons({"gt", "gte", "lt", "lte"}, {"eq", "ne", "in", "nin"}, [&](bool orders) {
                for (;;) {
                  Json of = one_in(5) ? Json("turn-" + std::to_string(below(said_ + 1))) : value();
                  if (!orders || of.is_string() || of.is_number()) return of;
                }
              });
      }
    }
    return out;
  }

  struct Asked {
    SelectedChunks chunks;
    uint64_t rows = 0;  // turns that were judged by their rows
  };
  Asked ask(const std::string& json, bool with_index) {
    Json value = Json::parse(json);
    TurnQuery query = read_query(value, "filter").value();
    if (!with_index) query.condition = nullptr;
    // Nothing that was kept answers.
    const uint64_t serial = ++queries_;
    std::memcpy(query.key.data(), &serial, sizeof serial);
    Asked asked;
    query.matches = [&, matches = query.matches](uint64_t number, const Turn& turn) {
      ++asked.rows;
      return matches(number, turn);
    };
    const auto selection = store_->select(id_, query);
    EXPECT_TRUE(selection) << selection.error().message;
    asked.chunks = store_->selected_chunks(id_, **selection).value();
    return asked;
  }

  // Returns how many rows of turns the index had to leave to be read.
  uint64_t expect_same(const std::string& json) {
    const Asked walked = ask(json, false), found = ask(json, true);
    EXPECT_EQ(found.chunks.end_token, walked.chunks.end_token) << json;
    EXPECT_EQ(found.chunks.unreadable.size(), walked.chunks.unreadable.size()) << json;
    const uint64_t chunks = store_->memory(id_)->tokens / chunk_tokens + 1;
    for (uint64_t chunk = 0; chunk < chunks; ++chunk) {
      EXPECT_EQ(found.chunks.chunks.contains(chunk), walked.chunks.chunks.contains(chunk)) << chunk << " of " << json;
      if (HasFailure()) break;
    }
    return found.rows;
  }

  // No part of these stands anywhere else, so that tables have them as they are.
  const std::array<std::string, 3> words{"Zb3mPq8LtR", "kq7x9zw2vj", "w5Hd0sYc1N"};

  // Appends a turn with attributes of these words; returns its number.
  uint64_t append_told() {
    Turn told = turn();
    told.name = words[0];
    told.metadata = R"({"keypad":")" + words[1] + R"(",")" + words[2] + R"(":1})";
    AppendBatch batch{
        .memory = "m", .turns = {Model::tokenise(told)}, .operation_id = {}, .operation_digest = {}, .now_us = 9};
    EXPECT_TRUE(store_->append({&batch, 1}).value().at(0));
    return said_ - 1;
  }

  void index() {
    for (std::optional<uint64_t> turn = 0; turn;) turn = store_->index_turns(id_, *turn).value();
  }

  void expect_sound() {
    const Verification found = store_->verify(id_, {}).value();
    EXPECT_TRUE(found.problems.empty()) << found.problems[0].part << " " << found.problems[0].message;
    EXPECT_EQ(found.unindexed_turns, 0u);
  }

  const uint64_t seed_ = std::getenv("RECALLD_TEST_SEED") != nullptr ? std::stoull(std::getenv("RECALLD_TEST_SEED"))
                                                                     : std::random_device()();
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, "RECALLD_TEST_SEED=" + std::to_string(seed_)};
  std::mt19937_64 random_{seed_};
  const TempDir directory_;
  std::unique_ptr<Store> store_;
  MemoryId id_ = 0;
  uint64_t said_ = 0;
  uint64_t queries_ = 0;
};

TEST_F(FilterIndex, SelectsWhatTheRowsOfTheTurnsSelectWhateverIsAppendedForgottenAndAsked) {
  open();
  append(1);
  for (int round = 0; round < 24 && !HasFailure(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const bool many = one_in(4);  // so many that blocks get columns
    for (uint64_t left = 1 + below(6); left > 0; --left) append(many ? 1 + below(600) : 1 + below(3));
    for (int i = 0; i < 6; ++i) EXPECT_EQ(expect_same(filter().dump()), 0u);
    if (one_in(2)) {
      std::vector<TurnRange> ranges;
      for (uint64_t left = 1 + below(3); left > 0; --left) {
        const uint64_t first = below(said_);
        ranges.push_back({first, first + (one_in(5) ? below(300) : below(3))});
      }
      ASSERT_TRUE(store_->forget(id_, ranges));
      for (int i = 0; i < 6; ++i) expect_same(filter().dump());
      if (one_in(2)) append(1 + below(5));
      if (one_in(2)) index();  // what is to be erased keeps its place free
    }
    if (one_in(6)) {
      open(false);  // as an earlier version, which indexes nothing
      append(1 + below(200));
      expect_same(filter().dump());
    }
    if (one_in(3)) open();
    open();
    for (int i = 0; i < 4; ++i) expect_same(filter().dump());
    ASSERT_TRUE(store_->erase_forgotten(id_));
    index();
    for (int i = 0; i < 6; ++i) EXPECT_EQ(expect_same(filter().dump()), 0u);
    if (one_in(4)) expect_sound();
  }
  expect_sound();
}

TEST_F(FilterIndex, StoresOfEarlierVersionsAreAnsweredByTheirTurnsAndIndexedWithoutBeingDamaged) {
  open(false);
  for (int i = 0; i < 20; ++i) append(400);
  open();
  const auto unindexed = store_->verify(id_, {}).value();
  EXPECT_TRUE(unindexed.problems.empty());
  EXPECT_EQ(unindexed.unindexed_turns, 8'000u);
  append(3);
  EXPECT_EQ(store_->verify(id_, {})->unindexed_turns, 8'000u);
  const std::string asked = R"({"metadata.n":{"gte":1}})";
  EXPECT_EQ(expect_same(asked), 8'000u);
  std::optional<uint64_t> turn = store_->index_turns(id_, 0).value();
  ASSERT_TRUE(turn);
  EXPECT_LT(expect_same(asked), 8'000u);  // what is indexed so far is used
  while (turn) turn = store_->index_turns(id_, *turn).value();
  EXPECT_EQ(expect_same(asked), 0u);
  expect_sound();
}

TEST_F(FilterIndex, TheIndexerGoesThroughEverythingAndBeginsNothingOnceItIsStopped) {
  open(false);
  for (int i = 0; i < 3; ++i) append(400);
  open();
  {
    boost::asio::thread_pool upkeep(1);
    std::latch stopped(1);
    boost::asio::post(upkeep, [&] { stopped.wait(); });
    Indexer indexer(*store_, upkeep);
    indexer.start();
    indexer.index(id_);
    indexer.stop();
    stopped.count_down();
    upkeep.join();
    indexer.start();  // changes nothing
    EXPECT_EQ(store_->verify(id_, {})->unindexed_turns, 1'200u);
  }
  boost::asio::thread_pool upkeep(1);
  Indexer indexer(*store_, upkeep);
  indexer.start();
  upkeep.join();
  expect_sound();
}

TEST_F(FilterIndex, ForgettingLeavesNoTraceOfAnAttributeAndNoRowOfAMemoryThatIsDeleted) {
  open();
  for (int i = 0; i < 3; ++i) append(1'500);  // with columns, and an open block behind them
  const uint64_t number = append_told();
  append(2);
  open();  // writes it to tables
  for (const std::string& each : words) EXPECT_FALSE(files_with(data(), each).empty()) << each;
  EXPECT_EQ(expect_same(R"({"metadata.keypad":"kq7x9zw2vj"})"), 0u);
  ASSERT_TRUE(store_->forget(id_, std::array{TurnRange{number, number}}));
  EXPECT_EQ(ask(R"({"metadata.w5Hd0sYc1N":1})", true).chunks.chunks.size(), 0u);
  ASSERT_TRUE(store_->erase_forgotten(id_));
  for (const std::string& each : words) EXPECT_TRUE(files_with(data(), each).empty()) << each;
  index();
  expect_sound();
  for (const std::string& each : words) EXPECT_TRUE(files_with(data(), each).empty()) << each;

  ASSERT_TRUE(store_->erase("m"));
  const std::vector<Problem> left = store_->verify_store(false).value();
  EXPECT_TRUE(left.empty()) << left[0].message;
  store_.reset();
  EXPECT_TRUE(RawRows(data() / "catalog").all(Family::attributes).empty());
}

TEST_F(FilterIndex, ForgettingLeavesNoTraceOfAnAttributeWhoseBlockIsDamaged) {
  for (const bool with_columns : {false, true}) {
    for (const bool removed : {false, true}) {
      SCOPED_TRACE(std::string(with_columns ? "with columns" : "open") + (removed ? ", missing" : ", damaged"));
      store_.reset();
      std::filesystem::remove_all(data());
      said_ = 0;
      open();
      append(with_columns ? 100 : 4'200);
      const uint64_t number = append_told();
      append(with_columns ? 4'200 : 3);
      store_.reset();
      {
        RawRows raw(data() / "catalog");
        std::string key, value;  // of the row that begins the turn's block
        for (const auto& [each, row] : raw.all(Family::attributes))
          if (is_block_key(each) && number_of(each) <= number) key = each, value = row;
        value.back() = static_cast<char>(value.back() ^ 4);
        if (removed)
          raw.remove(Family::attributes, key);
        else
          raw.put(Family::attributes, key, value);
      }
      open();
      for (const std::string& each : words) EXPECT_FALSE(files_with(data(), each).empty()) << each;
      ASSERT_TRUE(store_->forget(id_, std::array{TurnRange{number, number}}));
      ASSERT_TRUE(store_->erase_forgotten(id_));
      for (const std::string& each : words) EXPECT_TRUE(files_with(data(), each).empty()) << each;
      index();
      expect_sound();
    }
  }
}

TEST_F(FilterIndex, DamagedRowsOfTheIndexAreNamedAnsweredAroundAndMadeAgain) {
  open();
  for (int i = 0; i < 3; ++i) append(1'500);
  append(5);
  const std::string asked =
      R"({"or":[{"metadata.id":{"gt":"turn-2"}},{"name":"Ana"},{"time":{"lt":"1970-01-01T00:00:50Z"}}]})";
  EXPECT_EQ(expect_same(asked), 0u);
  for (int i = 0; i < 12; ++i) {
    store_.reset();
    const bool removed = i % 2 == 0;
    {
      RawRows raw(data() / "catalog");
      const auto rows = raw.all(Family::attributes);
      ASSERT_GT(rows.size(), 8u);
      // First a row that begins a block, and one of an open block.
      const size_t at = i < 2 ? 0 : i < 4 ? rows.size() - 1 : below(rows.size());
      std::string value = rows[at].second;
      value.back() = static_cast<char>(value.back() ^ 4);
      if (removed)
        raw.remove(Family::attributes, rows[at].first);
      else
        raw.put(Family::attributes, rows[at].first, value);
    }
    SCOPED_TRACE("round " + std::to_string(i) + (removed ? ": a row is missing" : ": a row is damaged"));
    open();
    expect_same(asked);
    const Verification found = store_->verify(id_, {}).value();
    // An open block is one row: without it nothing of it is left to be damaged.
    EXPECT_TRUE(!found.problems.empty() || found.unindexed_turns > 0);
    for (const Problem& problem : found.problems) {
      EXPECT_EQ(problem.part, "attributes");
      EXPECT_TRUE(problem.repairable);
    }
    EXPECT_EQ(found.problems.empty(), found.attributes.empty());
    ASSERT_TRUE(store_->drop_attributes(id_, found.attributes));
    index();
    expect_sound();
    EXPECT_EQ(expect_same(asked), 0u);
  }
}

// The turns themselves are damaged: those that are indexed are found all the same, and of the others it is said that
// they could not be judged, and what to do.
TEST_F(FilterIndex, ATurnWhoseRowDoesNotMatchItsChecksumIsToldAndNeverTakenForOneThatIsNotMeant) {
  for (const bool with_index : {false, true}) {
    SCOPED_TRACE(with_index);
    store_.reset();
    std::filesystem::remove_all(data());
    said_ = 0;
    open(with_index);
    append(50);
    const StoredTurn lost = store_->turns(id_, 30, 1, 1 << 20).value().at(0);
    store_.reset();
    {
      RawRows raw(data() / "catalog");
      for (const auto& [key, value] : raw.all(Family::turns)) {
        if (key != row_key(id_, 30)) continue;
        std::string flipped = value;
        flipped[6] = static_cast<char>(flipped[6] ^ 1);
        raw.put(Family::turns, key, flipped);
      }
    }
    open(with_index);
    for (const std::string asked :
         {R"({"turn":{"gte":0}})", R"({"not":{"role":"tool"}})", R"({"metadata.nothing":1})"}) {
      for (int twice = 0; twice < 2; ++twice) {  // nothing wrong is kept
        const Asked found = ask(asked, with_index);
        if (with_index) {
          EXPECT_TRUE(found.chunks.unreadable.empty());
          continue;
        }
        ASSERT_EQ(found.chunks.unreadable.size(), 1u);
        EXPECT_EQ(found.chunks.unreadable[0].first, lost.first_token / chunk_tokens);
        EXPECT_EQ(found.chunks.unreadable[0].last, (lost.first_token + lost.tokens - 1) / chunk_tokens);
        EXPECT_THAT(found.chunks.unreadable[0].message, HasSubstr("checksum mismatch; run recall verify"));
      }
    }
    if (with_index) continue;
    // What can be indexed is, and the damage is told as before.
    open();
    index();
    const Asked found = ask(R"({"turn":{"gte":0}})", true);
    EXPECT_EQ(found.rows, 0u);
    EXPECT_EQ(found.chunks.unreadable.size(), 1u);
    EXPECT_EQ(store_->verify(id_, {})->unindexed_turns, 0u);
  }
}

}  // namespace
}  // namespace recalld
