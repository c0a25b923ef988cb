#include "memstore/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <array>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <iomanip>
#include <random>
#include <sstream>
#include <thread>

#include "base/crc32c.h"
#include "memstore/catalog.h"
#include "memstore/rows.h"
#include "memstore/store_shares.h"
#include "memstore/turn.h"
#include "tests/support/faulty_file_io.h"
#include "tests/support/files_with.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr uint32_t dim = 64, kv_bytes = 1000, state_bytes = 300;

RecordShape shape(std::string_view model = "a model") {
  return {.kv_bytes = kv_bytes, .landmark_dim = dim, .state_bytes = state_bytes, .model = hash128(as_bytes(model))};
}

// A turn whose tokens cover `token_bytes` bytes each, with ids that count on from `first_id`.
NewTurn new_turn(std::string content, size_t token_bytes = 4, uint32_t first_id = 0) {
  NewTurn turn{.turn = {.role = Role::user, .name = {}, .content = std::move(content), .time_us = 5, .metadata = {}},
               .ids = {},
               .ends = {}};
  const size_t bytes = stream_text(turn.turn).size();
  for (size_t end = 0; end < bytes;) {
    end = std::min(bytes, end + token_bytes);
    turn.ids.push_back(first_id++);
    turn.ends.push_back(static_cast<uint32_t>(end));
  }
  return turn;
}

// A turn of exactly this many tokens.
NewTurn turn_of_tokens(uint32_t count, uint32_t first_id = 0) {
  return new_turn(std::string(count * 4 - sizeof("User: \n") + 1, 'x'), 4, first_id);
}

AppendBatch batch(std::string memory, std::vector<NewTurn> turns, std::string operation_id = {},
                  std::string_view digest = {}) {
  return {.memory = std::move(memory),
          .turns = std::move(turns),
          .operation_id = std::move(operation_id),
          .operation_digest = hash128(as_bytes(digest)),
          .now_us = 1000};
}

// What a model might leave behind for a chunk: numbers that the memory and the chunk alone decide.
struct Encoded {
  std::vector<Bf16> landmark;
  std::vector<std::byte> kv;

  Encoded(uint64_t seed, uint64_t chunk) : landmark(dim), kv(kv_bytes) {
    std::mt19937_64 random(seed * 1000003 + chunk);
    for (Bf16& x : landmark) x = to_bf16(static_cast<float>(random() % 2001) / 1000.0f - 1);
    for (std::byte& b : kv) b = static_cast<std::byte>(random());
  }
};

std::string state_of(uint64_t chunks) {
  std::string state(state_bytes, static_cast<char>('a' + chunks % 26));
  return state.replace(0, 8, std::to_string(10000000 + chunks));
}

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override { open(); }

  StoreOptions options(uint64_t budget_bytes = 16 << 20) const {
    return {.shape = shape(), .memory_budget_bytes = budget_bytes, .file_io = {}};
  }
  Expected<std::unique_ptr<Store>> try_open(const StoreOptions& options) { return Store::open(data(), options); }
  void open(uint64_t budget_bytes = 16 << 20) {
    store_.reset();
    auto store = try_open(options(budget_bytes));
    ASSERT_TRUE(store) << store.error().message;
    store_ = *std::move(store);
  }

  // Changes rows of the closed store behind its back, and opens it again as far as it can.
  Expected<void> tamper(const std::function<void(Catalog::Batch&)>& change) {
    store_.reset();
    {
      RECALLD_TRY(const auto catalog, Catalog::open({data() / "catalog", 4 << 20, 1 << 20}));
      Catalog::Batch rows(*catalog);
      change(rows);
      RECALLD_CHECK(catalog->write(rows));
    }
    RECALLD_TRY(store_, try_open(options()));
    return {};
  }

  std::filesystem::path data() const { return directory_.path() / "data"; }

  Appended append(const AppendBatch& batch) {
    auto replies = store_->append({&batch, 1});
    if (!replies) throw std::runtime_error(replies.error().message);
    if (!replies->at(0)) throw std::runtime_error(replies->at(0).error().message);
    return *replies->at(0);
  }

  // Appends tokens for `chunks` chunks to a memory and encodes all that wait, `at_once` a put.
  MemoryId fill(const std::string& name, uint64_t chunks, uint64_t at_once = 7, uint64_t state_every = 0) {
    std::vector<NewTurn> turns;
    for (uint64_t i = 0; i < chunks; ++i) turns.push_back(turn_of_tokens(chunk_tokens, static_cast<uint32_t>(i)));
    const MemoryId id = append(batch(name, std::move(turns))).id;
    const auto encoded = encode(id, at_once, state_every);
    if (!encoded) throw std::runtime_error(encoded.error().message);
    return id;
  }

  Expected<void> encode(MemoryId id, uint64_t at_once = 7, uint64_t state_every = 0) {
    for (;;) {
      RECALLD_TRY(const MemoryInfo info, store_->memory(id));
      uint64_t count = std::min(info.waiting_chunks(), at_once);
      if (count == 0) return {};
      if (state_every > 0) count = std::min(count, state_every - info.encoded_chunks % state_every);
      std::vector<Encoded> chunks;
      for (uint64_t i = 0; i < count; ++i) chunks.emplace_back(id, info.encoded_chunks + i);
      std::vector<EncodedChunkView> views;
      for (const Encoded& chunk : chunks) views.push_back({chunk.landmark, chunk.kv});
      const std::string state = state_of(info.encoded_chunks + count);
      const bool keep = state_every > 0 && (info.encoded_chunks + count) % state_every == 0;
      RECALLD_CHECK(store_->put(id, info.encoded_chunks, views, keep ? std::optional(as_bytes(state)) : std::nullopt));
    }
  }

  std::vector<std::pair<uint64_t, float>> top_k(MemoryId id, size_t k, size_t threads = 2) {
    WorkerPool pool(threads);
    const Encoded query(99, 7);
    const auto best = store_->top_k(id, query.landmark, k, pool);
    if (!best) throw std::runtime_error(best.error().message);
    std::vector<std::pair<uint64_t, float>> result;
    for (const ScoredChunk& chunk : *best) result.emplace_back(chunk.chunk, chunk.dot);
    return result;
  }

  std::string passage(MemoryId id, uint64_t first, uint64_t end) {
    const auto passage = store_->passage(id, first, end);
    return passage ? passage->text : "error: " + passage.error().message;
  }

  TempDir directory_;
  std::unique_ptr<Store> store_;
};

// ---- The journal

TEST_F(StoreTest, TurnsComeBackAsTheyWereAppendedAfterReopening) {
  NewTurn first = new_turn("The lock gates close at six.");
  first.turn.name = "Mara";
  first.turn.role = Role::assistant;
  first.turn.metadata = R"({"channel":"harbour"})";
  first = [&] {
    NewTurn again = new_turn("");
    again.turn = first.turn;
    again.ids = {1, 2};
    again.ends = {5, static_cast<uint32_t>(stream_text(first.turn).size())};
    return again;
  }();
  const Appended appended = append(batch("port/log", {first, new_turn(std::string("with\0NUL", 8), 3)}));
  EXPECT_EQ(appended.first_turn, 0u);
  EXPECT_EQ(appended.last_turn, 1u);
  EXPECT_EQ(appended.end_token, appended.tokens);
  open();

  const auto info = store_->memory("port/log");
  ASSERT_TRUE(info) << info.error().message;
  EXPECT_EQ(info->id, appended.id);
  EXPECT_EQ(info->turns, 2u);
  EXPECT_EQ(info->tokens, appended.tokens);
  EXPECT_EQ(info->created_us, 1000);
  const auto turns = store_->turns(info->id, 0, 10, 1 << 20);
  ASSERT_TRUE(turns) << turns.error().message;
  ASSERT_EQ(turns->size(), 2u);
  EXPECT_EQ(turns->at(0).value.content, first.turn.content);
  EXPECT_EQ(turns->at(0).value.name, "Mara");
  EXPECT_EQ(turns->at(0).value.role, Role::assistant);
  EXPECT_EQ(turns->at(0).value.metadata, first.turn.metadata);
  EXPECT_EQ(turns->at(0).value.time_us, 5);
  EXPECT_EQ(turns->at(1).value.content, std::string("with\0NUL", 8));
  EXPECT_EQ(turns->at(1).first_token, 2u);
  EXPECT_EQ(turns->at(1).tokens, info->tokens - 2);
}

TEST_F(StoreTest, AGroupCommitsAllBatchesButTheRefusedOne) {
  append(batch("a", {new_turn("before")}, "op", "what"));
  const std::vector<AppendBatch> group{batch("a", {new_turn("one")}), batch("a", {new_turn("other")}, "op", "changed"),
                                       batch("b", {new_turn("two"), new_turn("three")}),
                                       batch("a", {new_turn("four")})};
  const auto replies = store_->append(group);
  ASSERT_TRUE(replies) << replies.error().message;
  ASSERT_EQ(replies->size(), 4u);
  EXPECT_EQ(replies->at(0)->first_turn, 1u);
  ASSERT_FALSE(replies->at(1));
  EXPECT_EQ(replies->at(1).error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(replies->at(1).error().message, HasSubstr("operation_id"));
  EXPECT_EQ(replies->at(2)->last_turn, 1u);
  EXPECT_EQ(replies->at(3)->first_turn, 2u);
  EXPECT_NE(replies->at(2)->id, replies->at(3)->id);
  const auto turns = store_->turns(replies->at(0)->id, 0, 10, 1 << 20);
  ASSERT_TRUE(turns);
  std::vector<std::string> contents;
  for (const StoredTurn& turn : *turns) contents.push_back(turn.value.content);
  EXPECT_THAT(contents, ElementsAre("before", "one", "four"));
}

TEST_F(StoreTest, AnOperationSentTwiceIsCarriedOutOnceAlsoWithinOneGroupAndAfterReopening) {
  const std::vector<AppendBatch> group{batch("m", {new_turn("once")}, "id 1", "what"),
                                       batch("m", {new_turn("once")}, "id 1", "what")};
  const auto replies = store_->append(group);
  ASSERT_TRUE(replies);
  EXPECT_FALSE(replies->at(0)->repeated);
  EXPECT_TRUE(replies->at(1)->repeated);
  append(batch("m", {new_turn("more")}));
  open();
  const Appended again = append(batch("m", {new_turn("once")}, "id 1", "what"));
  EXPECT_TRUE(again.repeated);
  EXPECT_EQ(again.id, replies->at(0)->id);
  EXPECT_EQ(again.last_turn, 0u);
  EXPECT_EQ(again.end_token, replies->at(0)->end_token);
  EXPECT_EQ(store_->memory("m")->turns, 2u);
  EXPECT_FALSE(append(batch("other", {new_turn("once")}, "id 1", "what")).repeated);
}

TEST_F(StoreTest, AnOperationThatCannotBeReadFailsItsOwnBatchAlone) {
  const MemoryId id = append(batch("a", {new_turn("first")}, "op", "what")).id;
  const auto opened = tamper([&](auto& rows) { rows.put(Family::operations, operation_key(id, "op"), "damaged"); });
  ASSERT_TRUE(opened) << opened.error().message;
  const std::vector<AppendBatch> group{batch("b", {new_turn("other")}), batch("a", {new_turn("again")}, "op", "what"),
                                       batch("a", {new_turn("second")})};
  const auto replies = store_->append(group);
  ASSERT_TRUE(replies) << replies.error().message;
  EXPECT_TRUE(replies->at(0));
  ASSERT_FALSE(replies->at(1));
  EXPECT_EQ(replies->at(1).error().kind, ErrorKind::corrupt);
  ASSERT_TRUE(replies->at(2));
  EXPECT_EQ(replies->at(2)->first_turn, 1u);
  EXPECT_EQ(store_->memory("a")->turns, 2u);
}

TEST_F(StoreTest, MemoriesAreListedByNameInPages) {
  for (const char* name : {"b", "team/x", "a", "team/y", "team/z", "teams"}) append(batch(name, {new_turn("t")}));
  const auto names = [&](std::string_view prefix, std::string_view after, size_t limit) {
    std::vector<std::string> found;
    const auto page = *store_->memories(prefix, after, limit);
    for (const MemoryInfo& memory : page.memories) found.push_back(memory.name);
    found.push_back("next " + page.next);
    return found;
  };
  EXPECT_THAT(names("", "", 10), ElementsAre("a", "b", "team/x", "team/y", "team/z", "teams", "next "));
  EXPECT_THAT(names("team/", "", 2), ElementsAre("team/x", "team/y", "next team/y"));
  EXPECT_THAT(names("team/", "team/y", 2), ElementsAre("team/z", "next "));
  EXPECT_THAT(names("none", "", 2), ElementsAre("next "));
}

TEST_F(StoreTest, TokensAreFoundAtEveryPlaceOfTheStream) {
  std::vector<uint32_t> expected;
  for (const uint32_t count : {3u, 64u, 9000u, 4096u, 1000u}) {
    const NewTurn turn = turn_of_tokens(count, static_cast<uint32_t>(expected.size()));
    expected.insert(expected.end(), turn.ids.begin(), turn.ids.end());
    append(batch("m", {turn}));
  }
  const MemoryId id = store_->memory("m")->id;
  for (const auto& [first, count] : std::vector<std::pair<size_t, size_t>>{
           {0, 1}, {2, 2}, {0, 20000}, {66, 1}, {67, 9000}, {4000, 500}, {14162, 100}, {9066, 2}}) {
    const auto tokens = store_->tokens(id, first, count);
    ASSERT_TRUE(tokens) << tokens.error().message;
    const auto end = std::min(first + count, expected.size());
    EXPECT_EQ(*tokens, std::vector(expected.begin() + static_cast<ptrdiff_t>(first),
                                   expected.begin() + static_cast<ptrdiff_t>(end)))
        << first;
  }
  EXPECT_TRUE(store_->tokens(id, expected.size(), 5)->empty());
  EXPECT_TRUE(store_->tokens(id, expected.size() + 10, SIZE_MAX)->empty());
}

TEST_F(StoreTest, AChunkOfTextGivesACharacterToTheTokenThatHoldsItsFirstByte) {
  // Two-byte and four-byte characters and a NUL, in tokens of every width.
  const std::string content = std::string("g\u00e5\u00e5s\0\U0001F41F\U0001F41Fz", 17);
  for (size_t width = 1; width <= 7; ++width) {
    const NewTurn turn = new_turn(content, width);
    const MemoryId id = append(batch("w" + std::to_string(width), {turn, turn})).id;
    const std::string text = stream_text(turn.turn) + stream_text(turn.turn);
    const uint64_t tokens = turn.ids.size() * 2;
    for (uint64_t first = 0; first < tokens; ++first) {
      std::vector<size_t> ends;
      const auto whole = store_->passage(id, first, tokens, &ends);
      ASSERT_TRUE(whole);
      ASSERT_EQ(ends.size(), tokens - first);
      std::string joined;
      for (uint64_t i = first; i < tokens; ++i) {
        joined += passage(id, i, i + 1);
        EXPECT_EQ(joined, whole->text.substr(0, ends[i - first]));
      }
      EXPECT_EQ(joined, whole->text);
    }
    EXPECT_EQ(passage(id, 0, tokens), text);
  }
  const MemoryId one = store_->memory("w1")->id;
  EXPECT_EQ(passage(one, 7, 8), "\u00e5");
  EXPECT_EQ(passage(one, 8, 9), "");
  EXPECT_EQ(passage(one, 12, 13), std::string(1, '\0'));
}

TEST_F(StoreTest, APassageNamesTheTurnsThatItsTokensComeFrom) {
  const MemoryId id = append(batch("m", {turn_of_tokens(10), turn_of_tokens(5), turn_of_tokens(20)})).id;
  const auto turns = [&](uint64_t first, uint64_t end) {
    std::vector<uint64_t> numbers;
    const auto passage = store_->passage(id, first, end);
    for (const auto& source : passage->turns) numbers.push_back(source.turn);
    return numbers;
  };
  EXPECT_THAT(turns(0, 10), ElementsAre(0));
  EXPECT_THAT(turns(9, 16), ElementsAre(0, 1, 2));
  EXPECT_THAT(turns(10, 15), ElementsAre(1));
  EXPECT_FALSE(store_->passage(id, 0, 36));
  EXPECT_FALSE(store_->passage(id, 3, 3));
}

TEST_F(StoreTest, APassageTellsWhichTurnsItCuts) {
  const NewTurn turn = new_turn("The code is 4718.", 3);  // a token has 3 bytes of "User: The code is 4718.\n"
  const MemoryId id = append(batch("m", {turn, turn})).id;
  const uint64_t tokens = turn.ids.size();
  ASSERT_EQ(tokens, 8u);
  const auto cuts = [&](uint64_t first, uint64_t end) {
    std::vector<std::pair<bool, bool>> of_turns;
    const auto passage = store_->passage(id, first, end);
    for (const auto& source : passage->turns) of_turns.emplace_back(source.cut_before, source.cut_after);
    return of_turns;
  };
  EXPECT_THAT(cuts(0, tokens), ElementsAre(Pair(false, false)));
  EXPECT_THAT(cuts(0, 2 * tokens), ElementsAre(Pair(false, false), Pair(false, false)));
  EXPECT_THAT(cuts(0, tokens - 1), ElementsAre(Pair(false, true)));
  EXPECT_THAT(cuts(1, tokens - 1), ElementsAre(Pair(true, true)));
  EXPECT_THAT(cuts(1, tokens), ElementsAre(Pair(true, false)));
  EXPECT_THAT(cuts(tokens - 1, tokens + 1), ElementsAre(Pair(true, false), Pair(false, true)));

  const NewTurn odd = new_turn("The code is 4718", 2);  // its newline is a token
  const auto passage = store_->passage(append(batch("odd", {odd})).id, 0, odd.ids.size() - 1);
  EXPECT_TRUE(passage->text.ends_with("4718"));
  EXPECT_FALSE(passage->turns.at(0).cut_after);
}

TEST_F(StoreTest, ALongTurnIsCutAnywhere) {
  std::string content;
  for (int i = 0; content.size() < 300'000; ++i) content += std::to_string(i) + "\u20ac ";
  const NewTurn turn = new_turn(content, 5);
  const std::string text = stream_text(turn.turn);
  const MemoryId id = append(batch("long", {new_turn("before"), turn, new_turn("after")})).id;
  const uint64_t start = store_->turns(id, 1, 1, 1)->at(0).first_token;
  EXPECT_EQ(store_->turns(id, 1, 1, 1)->at(0).value.content, content);
  const auto cut = [&](uint64_t token) {
    size_t byte = std::min<size_t>(token * 5, text.size());
    while (byte < text.size() && (static_cast<unsigned char>(text[byte]) & 0xc0) == 0x80) ++byte;
    return byte;
  };
  const uint64_t tokens = turn.ids.size();
  for (uint64_t first = 0; first < tokens; first += 997) {
    const uint64_t end = std::min(first + 64, tokens);
    EXPECT_EQ(passage(id, start + first, start + end), text.substr(cut(first), cut(end) - cut(first))) << first;
  }
  EXPECT_EQ(passage(id, start, start + tokens), text);
  EXPECT_EQ(passage(id, start + tokens - 1, start + tokens + 1), text.substr(cut(tokens - 1)) + "User");
}

TEST_F(StoreTest, TheLastWholeTurnWithinSomeTokensIsFound) {
  const MemoryId id = append(batch("m", {turn_of_tokens(10), turn_of_tokens(9000), turn_of_tokens(20)})).id;
  const auto last = [&](uint64_t tokens) { return store_->last_turn_within(id, tokens).value(); };
  EXPECT_EQ(last(0), std::nullopt);
  EXPECT_EQ(last(9), std::nullopt);
  EXPECT_EQ(last(10), 0u);
  EXPECT_EQ(last(4106), 0u);
  EXPECT_EQ(last(9009), 0u);
  EXPECT_EQ(last(9010), 1u);
  EXPECT_EQ(last(9029), 1u);
  EXPECT_EQ(last(9030), 2u);
  EXPECT_EQ(last(100000), 2u);
}

TEST_F(StoreTest, TurnsStopAtTheLimitsOfAPage) {
  const MemoryId id = append(batch("m", std::vector(10, new_turn(std::string(1000, 'y'))))).id;
  EXPECT_EQ(store_->turns(id, 0, 3, 1 << 20)->size(), 3u);
  EXPECT_EQ(store_->turns(id, 8, 5, 1 << 20)->size(), 2u);
  EXPECT_EQ(store_->turns(id, 10, 5, 1 << 20)->size(), 0u);
  EXPECT_EQ(store_->turns(id, 0, 10, 2500)->size(), 3u);
}

// ---- Encodings

TEST_F(StoreTest, EncodingsComeBackAfterReopeningAndWithAnyCacheAndThreadCount) {
  const MemoryId id = fill("m", 3000, 16);  // three pages of landmarks, the last one begun
  const auto best = top_k(id, 40);
  ASSERT_EQ(best.size(), 40u);
  TopK expected(40);
  const Encoded query(99, 7);
  for (uint64_t chunk = 0; chunk < 3000; ++chunk) {
    float dot = 0;
    landmark_dots_reference(query.landmark, Encoded(id, chunk).landmark.data(), 1, &dot);
    expected.offer({chunk, dot});
  }
  const auto reference = expected.take();
  for (size_t i = 0; i < best.size(); ++i) EXPECT_EQ(best[i], std::pair(reference[i].chunk, reference[i].dot));
  EXPECT_EQ(top_k(id, 40, 1), best);
  EXPECT_EQ(top_k(id, 5000).size(), 3000u);

  const uint64_t other = fill("other", 10);
  open(8 << 20);
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 3000u);
  EXPECT_EQ(top_k(id, 40, 3), best);
  EXPECT_EQ(top_k(id, 40, 3), best);
  std::vector<std::byte> kv(3 * kv_bytes);
  const std::vector<uint64_t> chunks{2999, 0, 511};
  const auto fetched = store_->fetch(id, chunks, kv);
  ASSERT_TRUE(fetched) << fetched.error().message;
  for (size_t i = 0; i < chunks.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(std::span(kv).subspan(i * kv_bytes, kv_bytes), Encoded(id, chunks[i]).kv));
    const auto landmark = store_->landmark(id, chunks[i]);
    ASSERT_TRUE(landmark) << landmark.error().message;
    EXPECT_TRUE(std::ranges::equal(*landmark, Encoded(id, chunks[i]).landmark, {}, &Bf16::bits, &Bf16::bits));
  }
  EXPECT_EQ(top_k(other, 40).size(), 10u);
  EXPECT_EQ(store_->chunk(id, 3000).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->landmark(id, 3000).error().kind, ErrorKind::not_found);
}

TEST_F(StoreTest, TheLandmarksOfManyChunksAreReadAtOnce) {
  const MemoryId id = fill("m", 2500, 16);
  for (const uint64_t first : {0, 1000, 2499}) {
    std::vector<Bf16> landmarks((2500 - first) * dim);
    const auto read = store_->landmarks(id, first, landmarks);
    ASSERT_TRUE(read) << read.error().message;
    for (uint64_t chunk = first; chunk < 2500; ++chunk)
      ASSERT_TRUE(std::ranges::equal(std::span(landmarks).subspan((chunk - first) * dim, dim),
                                     *store_->landmark(id, chunk), {}, &Bf16::bits, &Bf16::bits))
          << chunk;
  }
  std::vector<Bf16> two(2 * dim);
  const auto fewer = store_->landmarks(id, 2499, two);
  ASSERT_FALSE(fewer);
  EXPECT_EQ(fewer.error().kind, ErrorKind::busy);
  EXPECT_THAT(fewer.error().message, HasSubstr("2500 chunks"));
  EXPECT_EQ(store_->landmarks(id, UINT64_MAX, two).error().kind, ErrorKind::busy);
  ASSERT_TRUE(store_->remove("m"));
  EXPECT_EQ(store_->landmarks(id, 0, two).error().kind, ErrorKind::not_found);
}

TEST_F(StoreTest, LandmarksThatCannotBeReadAreToldOrAnError) {
  const MemoryId id = fill("m", 2500, 16);
  const auto is_nan = [](Bf16 value) { return value.bits == 0x7fc0; };
  const uint64_t page = store_->page_chunks();
  ASSERT_LT(2 * page, 2500u);
  ASSERT_TRUE(tamper([&](Catalog::Batch& rows) { rows.remove(Family::landmarks, row_key(id, 1)); }));
  std::vector<Bf16> landmarks(2500 * dim);
  const auto refused = store_->landmarks(id, 0, landmarks);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(refused.error().message, HasSubstr("page 1"));
  std::vector<Unreadable> unreadable;
  ASSERT_TRUE(store_->landmarks(id, 0, landmarks, &unreadable));
  ASSERT_EQ(unreadable.size(), 1u);
  EXPECT_EQ(unreadable[0].first, page);
  EXPECT_EQ(unreadable[0].last, 2 * page - 1);
  EXPECT_EQ(std::ranges::count_if(landmarks, is_nan), static_cast<ptrdiff_t>(page * dim));
  EXPECT_EQ(std::ranges::find_if(landmarks, is_nan) - landmarks.begin(), static_cast<ptrdiff_t>(page * dim));
}

TEST_F(StoreTest, MemoriesThatWaitForEncodingAreListed) {
  const MemoryId a = append(batch("a", {turn_of_tokens(64)})).id;
  const MemoryId b = append(batch("b", {turn_of_tokens(62)})).id;
  const MemoryId c = append(batch("c", {turn_of_tokens(200)})).id;
  EXPECT_THAT(*store_->unencoded(0, 10), ElementsAre(a, c));
  EXPECT_THAT(*store_->unencoded(0, 1), ElementsAre(a));
  EXPECT_THAT(*store_->unencoded(a, 10), ElementsAre(c));
  ASSERT_TRUE(encode(a));
  append(batch("b", {turn_of_tokens(2)}));
  open();
  EXPECT_THAT(*store_->unencoded(0, 10), ElementsAre(b, c));
}

TEST_F(StoreTest, TheNewestStateIsKeptAndOneIn1024ChunksForGood) {
  const MemoryId id = fill("m", 1300, 64, 64);
  const auto covered = [&](uint64_t chunks_max) {
    const auto state = store_->state(id, chunks_max).value();
    if (state) {
      EXPECT_EQ(state->bytes, state_of(state->chunks));
    }
    return state ? state->chunks : 0;
  };
  EXPECT_EQ(covered(1300), 1280u);
  EXPECT_EQ(covered(1279), 1024u);
  EXPECT_EQ(covered(1023), 0u);
  ASSERT_TRUE(store_->put_state(id, 1290, as_bytes(state_of(1290))));
  EXPECT_EQ(covered(1300), 1290u);
  EXPECT_EQ(covered(1289), 1024u);
  ASSERT_TRUE(store_->put_state(id, 1285, as_bytes(state_of(1285))));  // older than the newest
  open();
  EXPECT_EQ(covered(1289), 1024u);
  EXPECT_EQ(covered(1300), 1290u);
}

TEST_F(StoreTest, AFlippedBitInASegmentIsReportedWithMemoryAndChunk) {
  const MemoryId id = fill("m", 5);
  const ChunkEntry entry = *store_->chunk(id, 3);
  store_.reset();
  {
    std::fstream segment(data() / "kv" / "000000.seg", std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(entry.slot) * 4096 + 500;
    segment.seekg(at);
    const char byte = static_cast<char>(segment.get() ^ 4);
    segment.seekp(at);
    segment.put(byte);
    ASSERT_TRUE(segment.good());
  }
  open();
  std::vector<std::byte> kv(kv_bytes);
  const auto fetched = store_->fetch(id, std::vector<uint64_t>{3}, kv);
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().kind, ErrorKind::corrupt);
  EXPECT_THAT(fetched.error().message, HasSubstr("chunk 3 of memory " + std::to_string(id)));
  EXPECT_THAT(fetched.error().message, HasSubstr("000000.seg"));
  EXPECT_TRUE(store_->fetch(id, std::vector<uint64_t>{2}, kv));
}

TEST_F(StoreTest, DamagedChunksOfAFetchAreToldOneByOneAndTheOthersAreWhole) {
  const MemoryId id = fill("m", 9);
  const ChunkEntry rotten = *store_->chunk(id, 3);
  {
    std::fstream segment(data() / "kv" / "000000.seg", std::ios::in | std::ios::out | std::ios::binary);
    segment.seekp(static_cast<std::streamoff>(rotten.slot) * 4096 + 500);
    segment << "rot";
    ASSERT_TRUE(segment.good());
  }
  ASSERT_TRUE(tamper([&](Catalog::Batch& rows) {
    ChunkEntry elsewhere = rotten;
    elsewhere.segment = 77;
    rows.put(Family::chunks, row_key(id, 5), recalld::encode(elsewhere));
    rows.remove(Family::chunks, row_key(id, 6));
  }));
  const std::vector<uint64_t> chunks = {8, 6, 5, 0, 3, 4};
  std::vector<std::byte> kv(chunks.size() * kv_bytes);
  EXPECT_EQ(store_->fetch(id, chunks, kv).error().kind, ErrorKind::corrupt);
  std::vector<Unreadable> unreadable;
  const auto fetched = store_->fetch(id, chunks, kv, &unreadable);
  ASSERT_TRUE(fetched) << fetched.error().message;
  ASSERT_EQ(unreadable.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(unreadable[i].first, (std::array{6, 5, 3}[i]));
  EXPECT_THAT(unreadable[0].message, HasSubstr("its row is missing"));
  EXPECT_THAT(unreadable[1].message, HasSubstr("000077.seg"));
  EXPECT_THAT(unreadable[2].message, HasSubstr("checksum mismatch"));
  for (const size_t i : {0, 3, 5})
    EXPECT_TRUE(std::ranges::equal(std::span(kv).subspan(i * kv_bytes, kv_bytes), Encoded(id, chunks[i]).kv)) << i;
  EXPECT_EQ(store_->fetch(id, std::vector<uint64_t>{3, 9}, std::span(kv).first(2 * kv_bytes), &unreadable).error().kind,
            ErrorKind::not_found);
}

// ---- Erasing

TEST_F(StoreTest, AnErasedMemoryIsGoneAndItsNameBeginsAfresh) {
  const MemoryId kept = fill("kept", 20);
  const MemoryId id = fill("m", 600, 16, 64);
  append(batch("m", {new_turn("an operation")}, "op", "what"));
  const auto best = top_k(kept, 5);
  ASSERT_TRUE(store_->erase("m"));
  EXPECT_EQ(store_->memory("m").error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->erase("m").error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->turns(id, 0, 1, 1).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->tokens(id, 0, 1).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->chunk(id, 0).error().kind, ErrorKind::not_found);
  EXPECT_EQ(encode(id).error().kind, ErrorKind::not_found);
  EXPECT_EQ(store_->put_state(id, 1, as_bytes(state_of(1))).error().kind, ErrorKind::not_found);

  const Appended again = append(batch("m", {turn_of_tokens(70)}, "op", "other"));
  EXPECT_FALSE(again.repeated);
  EXPECT_EQ(again.first_turn, 0u);
  EXPECT_NE(again.id, id);
  ASSERT_TRUE(encode(again.id));
  EXPECT_EQ(top_k(again.id, 9).size(), 1u);
  EXPECT_EQ(store_->state(again.id, 1).value(), std::nullopt);
  open();
  EXPECT_EQ(store_->memory("m")->id, again.id);
  EXPECT_EQ(top_k(kept, 5), best);
  ASSERT_TRUE(store_->erase("m"));
  open();
  EXPECT_GT(append(batch("new", {new_turn("t")})).id, again.id);
}

TEST_F(StoreTest, NoByteOfAnErasedMemoryIsLeftInTheDirectory) {
  append(batch("kept", {new_turn("the kept ferry timetable")}));
  append(batch("secret-harbour", {new_turn("the pilot's passphrase is gannet-41")}, "op-plover", "what"));
  ASSERT_TRUE(encode(store_->memory("kept")->id));
  ASSERT_FALSE(files_with(data(), "gannet-41").empty());
  ASSERT_TRUE(store_->erase("secret-harbour"));
  for (const char* words : {"gannet-41", "passphrase", "secret-harbour", "op-plover"})
    EXPECT_THAT(files_with(data(), words), ElementsAre()) << words;
  EXPECT_EQ(passage(store_->memory("kept")->id, 0, 2), "User: th");
}

TEST_F(StoreTest, ErasingReturnsTheSpaceOfItsChunks) {
  fill("kept", 3);
  fill("m", 300);
  const uint64_t live = store_->stats()->kv_bytes_on_disk;
  ASSERT_TRUE(store_->erase("m"));
  EXPECT_LE(store_->stats()->kv_bytes_on_disk + 300 * 4096, live);
  std::vector<std::byte> kv(kv_bytes);
  EXPECT_TRUE(store_->fetch(store_->memory("kept")->id, std::vector<uint64_t>{2}, kv));
}

// ---- A disk that fails

// A store whose segments lie on a disk that fails when told to.
class StoreOnAFaultyDiskTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreOptions faulty = options();
    faulty.file_io = [this]() -> Expected<std::unique_ptr<FileIo>> {
      auto disk = std::make_unique<FaultyFileIo>(open_file_io_posix(DirectIo::never), 41);
      disk_ = disk.get();
      return disk;
    };
    auto store = try_open(faulty);
    ASSERT_TRUE(store) << store.error().message;
    store_ = *std::move(store);
  }

  FaultyFileIo* disk_ = nullptr;  // of store_
};

TEST_F(StoreOnAFaultyDiskTest, AFailedSyncShowsNoChunkAndTheSamePutWorksAfterwards) {
  SCOPED_TRACE(disk_->describe());
  const MemoryId id = fill("m", 10);
  append(batch("m", {turn_of_tokens(5 * chunk_tokens)}));
  disk_->set({.reads_failed = 0, .reads_flipped = 0, .writes_failed = 0, .syncs_failed = 1});
  ASSERT_FALSE(encode(id));
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 10u);
  EXPECT_EQ(store_->chunk(id, 10).error().kind, ErrorKind::not_found);
  EXPECT_EQ(top_k(id, 50).size(), 10u);
  disk_->set({});
  ASSERT_TRUE(encode(id));
  std::vector<std::byte> kv(kv_bytes);
  for (uint64_t chunk = 0; chunk < 15; ++chunk) {
    ASSERT_TRUE(store_->fetch(id, std::vector<uint64_t>{chunk}, kv));
    EXPECT_EQ(kv, Encoded(id, chunk).kv);
  }
}

TEST_F(StoreOnAFaultyDiskTest, EveryChunkThatIsToldSurvivesALossOfPower) {
  SCOPED_TRACE(disk_->describe());
  const MemoryId id = fill("m", 10);
  append(batch("m", {turn_of_tokens(20 * chunk_tokens)}));
  disk_->set({.reads_failed = 0, .reads_flipped = 0, .writes_failed = 3, .syncs_failed = 3});
  while (!encode(id, 2)) {
  }
  append(batch("m", {turn_of_tokens(3 * chunk_tokens)}));
  disk_->set({.reads_failed = 0, .reads_flipped = 0, .writes_failed = 0, .syncs_failed = 1});
  ASSERT_FALSE(encode(id));  // written, never synced
  ASSERT_TRUE(disk_->cut_power());
  open();
  EXPECT_EQ(store_->memory(id)->encoded_chunks, 30u);
  ASSERT_TRUE(encode(id));
  std::vector<std::byte> kv(kv_bytes);
  for (uint64_t chunk = 0; chunk < 33; ++chunk) {
    const auto fetched = store_->fetch(id, std::vector<uint64_t>{chunk}, kv);
    ASSERT_TRUE(fetched) << fetched.error().message;
    EXPECT_EQ(kv, Encoded(id, chunk).kv);
  }
}

TEST_F(StoreOnAFaultyDiskTest, AnErasureThatWasCutOffIsGoneAtOnceAndCanBeFinishedAfterTheNextOpen) {
  SCOPED_TRACE(disk_->describe());
  const MemoryId kept = fill("kept", 5);
  const MemoryId id = fill("m", 300);
  const uint64_t before = store_->stats()->kv_bytes_on_disk;
  ASSERT_TRUE(disk_->cut_power());
  ASSERT_FALSE(store_->erase("m"));
  EXPECT_EQ(store_->memory("m").error().kind, ErrorKind::not_found);
  open();
  EXPECT_EQ(store_->memory(id).error().kind, ErrorKind::not_found);
  EXPECT_THAT(store_->to_erase().value(), ElementsAre(id));
  const auto erased = store_->erase_forgotten(id);
  ASSERT_TRUE(erased) << erased.error().message;
  ASSERT_EQ(erased->segments.size(), 1u);
  EXPECT_EQ(erased->segments[0].records, 300u);
  EXPECT_EQ(erased->segments[0].bytes, 300u * 4096);
  EXPECT_THAT(store_->to_erase().value(), ElementsAre());
  EXPECT_LE(store_->stats()->kv_bytes_on_disk + 300 * 4096, before);
  EXPECT_EQ(top_k(kept, 9).size(), 5u);
  open();
  EXPECT_EQ(store_->memories("", "", 9)->memories.size(), 1u);
}

TEST_F(StoreTest, AnErasureThatCannotBeFinishedKeepsNoOtherMemoryFromBeingOpened) {
  const MemoryId id = fill("m", 3);
  append(batch("kept", {new_turn("the ferry leaves at nine")}));
  ASSERT_TRUE(store_->remove("m"));
  store_.reset();
  const auto segment = data() / "kv" / segment_name(0);
  std::filesystem::rename(segment, directory_.path() / "aside");
  std::filesystem::create_directory(segment);  // cannot be opened as a file
  open();
  EXPECT_FALSE(store_->erase_forgotten(id));
  EXPECT_EQ(passage(store_->memory("kept")->id, 0, 2), "User: th");
  EXPECT_EQ(store_->memory("m").error().kind, ErrorKind::not_found);
  store_.reset();
  std::filesystem::remove(segment);
  std::filesystem::rename(directory_.path() / "aside", segment);
  open();
  ASSERT_TRUE(store_->erase_forgotten(id));
  EXPECT_LE(store_->stats()->kv_bytes_on_disk, kv_segment_bytes - 3 * 4096);
}

TEST_F(StoreTest, MemoriesCostTheDiskAndNotTheHeap) {
  open(8 << 20);
  const auto make = [&](int from, int to) {
    for (int first = from; first < to; first += 500) {
      std::vector<AppendBatch> batches;
      for (int i = first; i < first + 500; ++i)
        batches.push_back(batch("users/" + std::to_string(i), {turn_of_tokens(chunk_tokens)}));
      const auto replies = store_->append(batches);
      ASSERT_TRUE(replies) << replies.error().message;
    }
  };
  const auto heap_bytes = [] { return mallinfo2().uordblks; };
  make(0, 5'000);
  const size_t before = heap_bytes();
  make(5'000, 40'000);
  EXPECT_LE(heap_bytes(), before + (4 << 20)) << "35,000 memories would be some 10 MiB in a table";
  EXPECT_EQ(store_->stats()->memories, 40'000u);
  EXPECT_EQ(store_->stats()->waiting_chunks, 40'000u);
  EXPECT_EQ(store_->memories("users/3999", "users/39990", 3)->memories.size(), 3u);
  open(8 << 20);
  EXPECT_EQ(store_->memory("users/20000")->turns, 1u);
  EXPECT_EQ(store_->unencoded(0, 7)->size(), 7u);
}

// ---- Opening

TEST_F(StoreTest, NobodyElseMayLookIntoTheDirectory) {
  EXPECT_EQ(std::filesystem::status(data()).permissions(), std::filesystem::perms::owner_all);
}

TEST_F(StoreTest, ASecondOpenIsRefusedWhileTheFirstHoldsTheDirectory) {
  const auto second = try_open(options());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind, ErrorKind::busy);
  EXPECT_THAT(second.error().message, HasSubstr(data().string()));
  store_.reset();
  EXPECT_TRUE(try_open(options()));
}

TEST_F(StoreTest, AnotherModelIsRefusedWithTheChoice) {
  store_.reset();
  StoreOptions other = options();
  other.shape = shape("another model");
  const auto opened = try_open(other);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(opened.error().message, HasSubstr(hex(shape().model)));
  EXPECT_THAT(opened.error().message, HasSubstr("--model"));
  EXPECT_TRUE(try_open(options()));
}

TEST_F(StoreTest, ADirectoryWithOtherThingsInItIsLeftAlone) {
  const TempDir elsewhere;
  std::ofstream(elsewhere.path() / "thesis.txt") << "not ours";
  const auto foreign = Store::open(elsewhere.path(), options());
  ASSERT_FALSE(foreign);
  EXPECT_EQ(foreign.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(foreign.error().message, HasSubstr("thesis.txt"));
  EXPECT_FALSE(std::filesystem::exists(elsewhere.path() / "LOCK"));
  const auto file = Store::open(elsewhere.path() / "thesis.txt", options());
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, HasSubstr("not a directory"));
  // What a start that was cut short leaves is ours.
  std::filesystem::remove(elsewhere.path() / "thesis.txt");
  std::ofstream(elsewhere.path() / "LOCK").flush();
  std::ofstream(elsewhere.path() / "FORMAT.new") << "recalld";
  EXPECT_TRUE(Store::open(elsewhere.path(), options()));
}

TEST_F(StoreTest, ADirectoryWithoutOurStampIsRefusedClearly) {
  store_.reset();
  const auto stamp = data() / "FORMAT";
  std::ostringstream stamped;
  stamped << std::ifstream(stamp).rdbuf();
  const std::string written = stamped.str();
  const auto error_with = [&](const std::string& text) {
    std::ofstream(stamp, std::ios::trunc | std::ios::binary) << text;
    const auto opened = try_open(options());
    return opened ? Error{ErrorKind::internal, "opened"} : opened.error();
  };
  EXPECT_EQ(error_with("PNG").kind, ErrorKind::corrupt);
  EXPECT_EQ(error_with("").kind, ErrorKind::corrupt);
  std::string flipped = written;
  flipped[written.find("model") + 8] ^= 1;
  EXPECT_EQ(error_with(flipped).kind, ErrorKind::corrupt);
  EXPECT_THAT(error_with(flipped).message, HasSubstr("FORMAT"));
  std::string later = written.substr(0, written.find("crc32c"));
  later.replace(later.find("format 2"), 8, "format 3");
  std::ostringstream crc;
  crc << "crc32c " << std::hex << std::setw(8) << std::setfill('0') << crc32c(as_bytes(later)) << "\n";
  EXPECT_EQ(error_with(later + crc.str()).kind, ErrorKind::invalid_request);
  EXPECT_THAT(error_with(later + crc.str()).message, HasSubstr("format 3"));
  EXPECT_EQ(error_with(written).message, "opened");
  std::filesystem::remove(stamp);
  const auto opened = try_open(options());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::corrupt);
  std::filesystem::create_directory(stamp);  // something that is there and cannot be read
  const auto unread = try_open(options());
  ASSERT_FALSE(unread);
  EXPECT_EQ(unread.error().kind, ErrorKind::io);
  EXPECT_THAT(unread.error().message, HasSubstr("cannot be read"));
}

TEST_F(StoreTest, SegmentsThatNoChunkNamesAreRemovedOnOpening) {
  const MemoryId id = fill("m", 3);
  const auto segment = [&](uint32_t number) { return data() / "kv" / segment_name(number); };
  for (const uint32_t number : {1, 2, 3, 4}) std::ofstream(segment(number)) << "left behind";
  const auto opened = tamper([](auto& rows) {
    rows.put(Family::counters, next_place_key, recalld::encode(KvPlace{.segment = 3, .slot = 2}));
  });
  ASSERT_TRUE(opened) << opened.error().message;
  for (const uint32_t number : {1, 2, 4}) EXPECT_FALSE(std::filesystem::exists(segment(number))) << number;
  EXPECT_TRUE(std::filesystem::exists(segment(3)));  // the next record goes there
  std::vector<std::byte> kv(kv_bytes);
  EXPECT_TRUE(store_->fetch(id, std::vector<uint64_t>{2}, kv));
}

TEST_F(StoreTest, ACatalogThatForgotWhereTheNextRecordGoesCostsNoSegment) {
  fill("m", 3);
  const auto opened = tamper([](auto& rows) { rows.remove(Family::counters, next_place_key); });
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::corrupt);
  EXPECT_TRUE(std::filesystem::exists(data() / "kv" / segment_name(0)));
}

TEST_F(StoreTest, ABudgetUnderEightMiBIsRefused) {
  store_.reset();
  const auto opened = try_open(options((8 << 20) - 1));
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind, ErrorKind::invalid_request);
}

TEST_F(StoreTest, LandmarksHaveLessRoomWhereStatesAreLarge) {
  constexpr uint64_t budget_bytes = 16 << 20, chunks = 384;
  RecordShape wide{.kv_bytes = kv_bytes, .landmark_dim = 8192, .state_bytes = state_bytes, .model = {}};
  const std::vector<Bf16> landmark(wide.landmark_dim);
  const std::vector<std::byte> kv(kv_bytes);
  const std::vector<EncodedChunkView> views(chunks / 4, {landmark, kv});
  const auto cached_bytes = [&](const std::string& name) {
    auto store =
        Store::open(directory_.path() / name, {.shape = wide, .memory_budget_bytes = budget_bytes, .file_io = {}});
    EXPECT_TRUE(store);
    const AppendBatch turns = batch("m", std::vector(chunks, turn_of_tokens(chunk_tokens)));
    EXPECT_TRUE((*store)->append({&turns, 1}));
    for (int i = 0; i < 4; ++i) EXPECT_TRUE((*store)->put((*store)->memory("m")->serving, views, {}));
    return (*store)->stats()->landmark_cache_bytes;
  };
  const uint64_t with_small = cached_bytes("small");
  EXPECT_LE(with_small, StoreShares::of(budget_bytes, wide).landmark_bytes);
  wide.state_bytes = 7'000'000;
  const uint64_t with_large = cached_bytes("large"), room = StoreShares::of(budget_bytes, wide).landmark_bytes;
  EXPECT_LE(with_large, room);
  EXPECT_GT(with_small, room);
}

TEST_F(StoreTest, AHundredThousandTurnsAreAppendedAndReadBackQuickly) {
  const auto start = std::chrono::steady_clock::now();
  uint64_t tokens = 0;
  for (int group = 0; group < 100; ++group)
    tokens = append(batch("m", std::vector(1000, turn_of_tokens(12)))).end_token;
  EXPECT_EQ(tokens, 1'200'000u);
  const MemoryId id = store_->memory("m")->id;
  EXPECT_EQ(store_->tokens(id, 0, tokens)->size(), tokens);
  for (uint64_t token = 0; token < tokens; token += 3001) EXPECT_EQ(passage(id, token, token + 1).size(), 4u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(1));  // 2 s on an idle machine
}

// ---- Together

TEST_F(StoreTest, AppendsPutsSearchesAndErasuresGoOnAtOnce) {
  std::atomic<bool> stop = false;
  const MemoryId steady = fill("steady", 600);
  const auto expected = top_k(steady, 10);
  const uint64_t cached_bytes = store_->stats()->landmark_cache_bytes;
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    for (int i = 0; !stop; ++i) append(batch("m" + std::to_string(i % 3), {turn_of_tokens(150)}));
  });
  threads.emplace_back([&] {
    while (!stop) {
      const auto waiting = store_->unencoded(0, 100);
      for (const MemoryId id : *waiting) {
        const auto encoded = encode(id, 5, 4);
        if (!encoded) {
          EXPECT_EQ(encoded.error().kind, ErrorKind::not_found) << encoded.error().message;
        }
      }
    }
  });
  threads.emplace_back([&] {
    WorkerPool pool(2);
    const Encoded query(99, 7);
    std::vector<std::byte> kv(kv_bytes);
    while (!stop) {
      const auto page = store_->memories("", "", 10);
      for (const MemoryInfo& memory : page->memories) {
        const auto best = store_->top_k(memory.id, query.landmark, 10, pool);
        const auto text = store_->passage(memory.id, 0, std::min<uint64_t>(memory.tokens, 64));
        Expected<void> fetched;
        if (best && !best->empty()) fetched = store_->fetch(memory.id, std::vector<uint64_t>{best->at(0).chunk}, kv);
        const Error* error = !best ? &best.error() : !text ? &text.error() : !fetched ? &fetched.error() : nullptr;
        if (error) {
          EXPECT_EQ(error->kind, ErrorKind::not_found) << error->message;
        }
      }
      EXPECT_EQ(top_k(steady, 10), expected);
      EXPECT_TRUE(store_->stats());
    }
  });
  for (int i = 0; i < 12; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto erased = store_->erase("m" + std::to_string(i % 3));
    if (!erased) {
      EXPECT_EQ(erased.error().kind, ErrorKind::not_found) << erased.error().message;
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const char* name : {"m0", "m1", "m2"}) static_cast<void>(store_->erase(name));
  EXPECT_EQ(store_->stats()->landmark_cache_bytes, cached_bytes);  // nothing of what is gone
  open();
  EXPECT_EQ(top_k(steady, 10), expected);
}

}  // namespace
}  // namespace recalld
