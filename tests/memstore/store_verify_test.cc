// Damage of every kind, put behind the store's back: found, named, answered around, and mended where the journal
// allows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <string>

#include "memstore/catalog.h"
#include "memstore/kv_file.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "tests/support/fake_model.h"
#include "tests/support/raw_rows.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Sixteen landmarks fit on a page of 128 KiB.
using Model = FakeModelOf<4096, 31>;
constexpr uint64_t page_chunks = 16, slot_bytes = 4096;

// Everything that a memory's encodings hold.
struct Contents {
  std::vector<std::vector<std::byte>> kv;
  std::vector<std::vector<Bf16>> landmarks;
  std::map<uint64_t, std::string> states;
};

class StoreVerifyTest : public ::testing::Test {
 protected:
  // A store of three memories: one with a long turn and one forgotten turn, a small one, and one whose next generation
  // is being encoded.
  void SetUp() override {
    auto made = Model::open(base());
    Store& store = *made;
    const MemoryId lighthouse =
        Model::append(store, "lighthouse", {said(0, 4'000), said(1, 500), said(2, 6'000)}, "first");
    Model::append(store, "lighthouse", {said(3, 150'000)}, "second");
    Model::append(store, "lighthouse", {said(4, 30'000), said(5, 3'000)}, "third");
    settle(store, lighthouse);
    ASSERT_TRUE(store.forget(lighthouse, std::array{TurnRange{1, 1}}));
    settle(store, lighthouse);
    ASSERT_TRUE(store.erase_forgotten(lighthouse));
    const MemoryId garden = Model::append(store, "garden", {said(10, 20'000), said(11, 3'000)}, "only");
    settle(store, garden);
    const MemoryId harbour = Model::append(store, "harbour", {said(20, 40'000), said(21, 30'000), said(22, 9'000)});
    settle(store, harbour);
    ASSERT_TRUE(store.forget(harbour, std::array{TurnRange{1, 1}}));
    ASSERT_TRUE(store.erase_forgotten(harbour));
    ASSERT_TRUE(Model::encode(store, *store.memory(harbour)->next, 3));
    for (const MemoryId id : {lighthouse, garden, harbour}) {
      const auto memory = store.memory(id);
      owners_[id] = owners_[memory->serving.stream] = id;
      if (memory->next) owners_[memory->next->stream] = id;
      clean_[id] = mended_[id] = contents(store, id);
      ids_.push_back(id);
    }
    made.reset();
    auto settled = open(copy());
    ASSERT_TRUE(settled);
    settle(**settled, harbour);
    mended_[harbour] = contents(**settled, harbour);
  }

  static std::string said(uint64_t number, size_t bytes) {
    std::mt19937_64 random(number);
    std::string text = "Entry " + std::to_string(number) + ":";
    while (text.size() < bytes) text += " swell " + std::to_string(random() % 100'000);
    text.resize(bytes);
    return text;
  }
  static void settle(Store& store, MemoryId id) {
    const auto settled = Model::settle(store, id);
    ASSERT_TRUE(settled) << settled.error().message;
  }
  static Contents contents(const Store& store, MemoryId id) {
    Contents out;
    const auto info = store.memory(id);
    EXPECT_TRUE(info);
    for (uint64_t chunk = 0; chunk < info->encoded_chunks; ++chunk) {
      out.kv.emplace_back(Model::kv_bytes);
      const auto fetched = store.fetch(id, std::array{chunk}, out.kv.back());
      EXPECT_TRUE(fetched) << fetched.error().message;
      const auto landmark = store.landmark(id, chunk);
      EXPECT_TRUE(landmark) << landmark.error().message;
      out.landmarks.push_back(landmark ? *landmark : std::vector<Bf16>());
    }
    for (const auto& stream : {std::optional(info->serving), info->next}) {
      if (!stream) continue;
      const auto state = store.state(*stream, stream->chunks);
      EXPECT_TRUE(state);
      if (state && *state) out.states[(*state)->chunks + 1'000'000 * stream->stream] = (*state)->bytes;
    }
    return out;
  }
  static void expect_equal(const Contents& a, const Contents& b) {
    EXPECT_TRUE(a.kv == b.kv);
    EXPECT_TRUE(a.states == b.states);
    ASSERT_EQ(a.landmarks.size(), b.landmarks.size());
    for (size_t i = 0; i < a.landmarks.size(); ++i)
      EXPECT_EQ(as_text(std::as_bytes(std::span(a.landmarks[i]))), as_text(std::as_bytes(std::span(b.landmarks[i]))))
          << i;
  }

  // Everything that verification says of the whole store.
  std::vector<Problem> verify(Store& store, bool repair = false) const {
    auto of_store = store.verify_store(repair);
    EXPECT_TRUE(of_store) << of_store.error().message;
    std::vector<Problem> problems = of_store ? *of_store : std::vector<Problem>();
    const auto all = store.all_memories(0, 100);
    EXPECT_TRUE(all);
    for (const MemoryId id : all ? *all : std::vector<MemoryId>()) {
      auto found = store.verify(id, {});
      EXPECT_TRUE(found) << found.error().message;
      if (found) std::ranges::move(found->problems, std::back_inserter(problems));
    }
    return problems;
  }
  // Mends everything that can be, as the daemon does.
  void repair(Store& store) const {
    ASSERT_TRUE(store.verify_store(true));
    for (int round = 0; round < 2; ++round) {
      const auto all = store.all_memories(0, 100);
      ASSERT_TRUE(all);
      for (const MemoryId id : *all) {
        const auto found = store.verify(id, {});
        ASSERT_TRUE(found);
        if (found->rows) {
          ASSERT_TRUE(store.mend_rows(id));
        }
        for (const uint64_t number : found->untokenised) {
          const auto turn = store.turn(id, number);
          ASSERT_TRUE(turn) << turn.error().message;
          const NewTurn again = Model::user_turn(turn->value.content);
          const auto mended = store.mend_tokens(id, number, again.ids, again.ends);
          ASSERT_TRUE(mended) << mended.error().message;
        }
        for (const Verification::Lost& lost : found->lost) {
          if (lost.to_drop()) {
            ASSERT_TRUE(store.drop(lost));
          }
          if (lost.to_make()) mend(store, lost);
        }
      }
    }
    ASSERT_TRUE(store.verify_store(true));
  }
  static void mend(Store& store, const Verification::Lost& lost) {
    const std::set<uint64_t> kv(lost.chunks.begin(), lost.chunks.end());
    const std::set<uint64_t> landmarks(lost.landmarks.begin(), lost.landmarks.end());
    const std::set<uint64_t> states(lost.states.begin(), lost.states.end());
    Model model;
    for (uint64_t page = 0; page * page_chunks < lost.of.chunks; ++page) {
      struct Made {
        std::vector<Bf16> landmark;
        std::vector<Bf16> kv;
      };
      std::vector<Made> made(page_chunks);
      std::vector<MendedChunk> chunks;
      std::vector<StateCheckpoint> made_states;
      for (uint64_t chunk = page * page_chunks; chunk < std::min(lost.of.chunks, (page + 1) * page_chunks); ++chunk) {
        const auto tokens = store.tokens(lost.of, chunk * chunk_tokens, chunk_tokens);
        if (!tokens) return;  // the journal is damaged
        model.read(*tokens);
        Made& one = made[chunk % page_chunks] = {model.landmark(), model.kv()};
        if (kv.contains(chunk) || landmarks.contains(chunk))
          chunks.push_back(
              {chunk, {one.landmark, std::as_bytes(std::span(one.kv))}, kv.contains(chunk), landmarks.contains(chunk)});
        if (states.contains(chunk + 1)) made_states.push_back({chunk + 1, model.to_bytes()});
      }
      if (chunks.empty() && made_states.empty()) continue;
      const auto mended = store.mend(lost.of, chunks, made_states);
      ASSERT_TRUE(mended) << mended.error().message;
    }
  }

  // A copy of the store to be damaged.
  std::filesystem::path copy() {
    const auto to = directory_.path() / "copy";
    std::filesystem::remove_all(to);
    const std::string command = "cp -r --sparse=always --reflink=auto " + base().string() + " " + to.string();
    if (std::system(command.c_str()) != 0) throw std::runtime_error(command);  // NOLINT(concurrency-mt-unsafe)
    return to;
  }
  static Expected<std::unique_ptr<Store>> open(const std::filesystem::path& data) {
    return Store::open(data, {.shape = Model::shape(), .memory_budget_bytes = 16 << 20, .file_io = {}});
  }
  std::filesystem::path base() const { return directory_.path() / "base"; }

  const TempDir directory_;
  std::map<uint64_t, MemoryId> owners_;  // of streams
  std::map<MemoryId, Contents> clean_;
  std::map<MemoryId, Contents> mended_;  // when forgetting has come to its end
  std::vector<MemoryId> ids_;
};

// A fault that was injected, and what has to be said of it: one of `named` at the least for each of `numbers`.
struct Fault {
  std::string text{};
  std::set<std::string> parts{};
  std::optional<MemoryId> memory{};
  std::vector<uint64_t> numbers{};
  bool repairable = false;
  bool may_refuse_to_open = false;
};

TEST_F(StoreVerifyTest, AWholeStoreHasNoProblemAndIsReadCompletely) {
  auto store = open(base());
  ASSERT_TRUE(store) << store.error().message;
  for (const Problem& problem : verify(**store)) ADD_FAILURE() << problem.part << problem.first << problem.message;
  for (const MemoryId id : ids_) {
    uint64_t last = 0;
    const auto found = (*store)->verify(id, [&](uint64_t done, uint64_t total) {
      EXPECT_LE(last, done);
      EXPECT_LE(done, total);
      last = done;
      return true;
    });
    ASSERT_TRUE(found);
    EXPECT_TRUE(found->ended);
    const auto memory = (*store)->memory(id);
    EXPECT_EQ(found->turns, memory->turns);
    EXPECT_GE(found->chunks, memory->encoded_chunks);
    EXPECT_GE(found->bytes,
              memory->content_bytes + memory->encoded_chunks * (Model::kv_bytes + Model::dim * sizeof(Bf16)));
    EXPECT_FALSE((*store)->verify(id, [](uint64_t, uint64_t) { return false; })->ended);
  }
}

TEST_F(StoreVerifyTest, EveryInjectedFaultIsDetectedNamedAnsweredAroundAndMendedWhereItCanBe) {
  const char* const wanted = std::getenv("RECALLD_FAULTS");  // NOLINT(concurrency-mt-unsafe)
  const int count = wanted ? std::atoi(wanted) : 72;
  const char* const given = std::getenv("RECALLD_SEED");  // NOLINT(concurrency-mt-unsafe)
  const uint64_t seed = given ? std::strtoull(given, nullptr, 10) : 20261126;
  std::cout << "seed " << seed << std::endl;
  std::mt19937_64 random(seed);
  const auto below = [&](uint64_t n) { return random() % n; };

  struct Named {
    MemoryId memory;
    uint64_t chunk;
    ChunkEntry entry;
  };
  std::vector<Named> named;
  {
    auto store = open(base());
    ASSERT_TRUE(store);
    for (const MemoryId id : ids_)
      for (uint64_t chunk = 0; chunk < (*store)->memory(id)->encoded_chunks; ++chunk)
        named.push_back({id, chunk, (*store)->chunk(id, chunk).value()});
  }
  const auto any_chunk = [&]() -> const Named& { return named[below(named.size())]; };
  const auto segment_of_copy = [](const std::filesystem::path& data) { return data / "kv" / segment_name(0); };
  const auto slot_of = [](const Named& chunk) { return static_cast<std::streamoff>(chunk.entry.slot * slot_bytes); };
  const auto read_at = [](std::fstream& file, std::streamoff at) {
    std::string bytes(Model::kv_bytes, '\0');
    file.seekg(at).read(bytes.data(), Model::kv_bytes);
    return bytes;
  };

  // A row of a family is damaged: its owner and number must be named.
  const auto row_fault = [&](const std::filesystem::path& data, Family family, int how) {
    RawRows rows(data / "catalog");
    const auto all = rows.all(family);
    EXPECT_FALSE(all.empty());
    const auto& [key, value] = all[below(all.size())];
    Fault fault;
    const auto expect = [&](const std::string& of) {
      ByteReader in(of);
      if (family != Family::counters) {
        const uint64_t owner = in.key64();
        if (owner != 0 && owners_.contains(owner)) fault.memory = owners_.at(owner);
        const uint64_t number = in.key64();
        if (family == Family::turns || family == Family::chunks || family == Family::states)
          fault.numbers.push_back(number);
        if (family == Family::landmarks) fault.numbers.push_back(number * page_chunks);
      }
    };
    expect(key);
    switch (how) {
      case 0: {
        std::string flipped = value;
        const uint64_t bit = below(flipped.size() * 8);
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
        rows.put(family, key, flipped);
        fault.text = "flip";
        break;
      }
      case 1:
        rows.remove(family, key);
        fault.text = "drop";
        break;
      default: {
        const auto& [other, other_value] = all[below(all.size())];
        fault.text = "swap";
        if (other == key || other_value == value) {  // nothing to swap: what is put there is another row's all the same
          rows.put(family, key, value + "x");
          break;
        }
        rows.put(family, key, other_value);
        rows.put(family, other, value);
        const auto first_memory = fault.memory;
        const auto first_numbers = fault.numbers;
        expect(other);
        if (fault.memory != first_memory) {
          fault.memory = first_memory;
          fault.numbers = first_numbers;
        }
      }
    }
    fault.text += " a row of " + std::string(name(family));
    switch (family) {
      case Family::turns:
        fault.parts = {"turn"};
        break;
      case Family::tokens:
        fault.parts = {"tokens"};
        fault.repairable = true;
        break;
      case Family::operations:
        fault.parts = {"operation"};
        break;
      case Family::chunks:
        fault.parts = {"chunk"};
        fault.repairable = true;
        break;
      case Family::landmarks:
        fault.parts = {"landmark"};
        fault.repairable = true;
        break;
      case Family::states:
        fault.parts = {"state"};
        fault.repairable = true;
        break;
      case Family::counters:
        fault.parts = {"counter"};
        fault.may_refuse_to_open = true;
        break;
      default:
        fault.memory.reset();
        break;  // a row of `memories` may have any consequence
    }
    return fault;
  };
  const std::array families{Family::counters,   Family::memories, Family::turns,     Family::tokens,
                            Family::operations, Family::chunks,   Family::landmarks, Family::states};
  constexpr size_t file_faults = 6;
  const size_t kinds = file_faults + families.size() * 3;

  int detected = 0;
  for (int i = 0; i < count; ++i) {
    const std::filesystem::path data = copy();
    const size_t kind = static_cast<size_t>(i) % kinds;
    Fault fault;
    if (kind < file_faults) {
      std::fstream segment(segment_of_copy(data), std::ios::in | std::ios::out | std::ios::binary);
      const Named &a = any_chunk(), &b = any_chunk();
      fault = {.parts = {"kv"}, .memory = a.memory, .numbers = {a.chunk}, .repairable = true};
      const std::string of_a = read_at(segment, slot_of(a)), of_b = read_at(segment, slot_of(b));
      switch (kind) {
        case 0: {
          fault.text = "flip a bit of a record";
          std::string flipped = of_a;
          const uint64_t bit = below(Model::kv_bytes * 8);
          flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
          segment.seekp(slot_of(a)).write(flipped.data(), Model::kv_bytes);
          break;
        }
        case 1:
          fault.text = "misdirect a record";
          segment.seekp(slot_of(a))
              .write((of_a == of_b ? std::string(Model::kv_bytes, '\1') : of_b).data(), Model::kv_bytes);
          break;
        case 2:
          fault.text = "lose the write of a record";
          segment.seekp(slot_of(a)).write(std::string(Model::kv_bytes, '\0').data(), Model::kv_bytes);
          break;
        case 3:
          fault.text = "truncate a segment";
          segment.close();
          std::filesystem::resize_file(segment_of_copy(data),
                                       static_cast<uint64_t>(slot_of(a)) + below(Model::kv_bytes));
          break;
        case 4:
          fault.text = "delete a segment";
          segment.close();
          std::filesystem::remove(segment_of_copy(data));
          break;
        default: {
          fault = {.text = "damage a table"};
          segment.close();
          std::vector<std::filesystem::path> tables;
          for (const auto& file : std::filesystem::directory_iterator(data / "catalog"))
            if (file.path().extension() == ".sst" && file.file_size() > 8'192) tables.push_back(file.path());
          std::ranges::sort(tables);
          const auto& table = tables[below(tables.size())];
          // Where its rows are: what follows them helps to find rows, and hides none when it is damaged.
          const uint64_t at = below(std::filesystem::file_size(table) / 2);
          std::fstream file(table, std::ios::in | std::ios::out | std::ios::binary);
          const int byte = file.seekg(static_cast<std::streamoff>(at)).get();
          file.seekp(static_cast<std::streamoff>(at)).put(static_cast<char>(byte ^ (1 << below(8))));
          fault.may_refuse_to_open = true;
        }
      }
    } else {
      fault = row_fault(data, families[(kind - file_faults) / 3], static_cast<int>((kind - file_faults) % 3));
    }
    SCOPED_TRACE("fault " + std::to_string(i) + ": " + fault.text);

    auto opened = open(data);
    if (!opened) {
      EXPECT_TRUE(fault.may_refuse_to_open) << opened.error().message;
      EXPECT_EQ(opened.error().kind, ErrorKind::corrupt) << opened.error().message;
      detected += opened.error().kind == ErrorKind::corrupt;
      continue;
    }
    Store& store = **opened;
    const std::vector<Problem> problems = verify(store);
    const uint64_t slack = fault.parts.contains("landmark") ? page_chunks - 1 : 0;  // any chunk of the page will do
    const auto tells = [&](uint64_t number) {
      return std::ranges::any_of(problems, [&](const Problem& problem) {
        return (fault.parts.empty() || fault.parts.contains(problem.part)) &&
               (!fault.memory || problem.id == *fault.memory) &&
               (fault.numbers.empty() || (problem.first <= number + slack && number <= problem.last));
      });
    };
    const bool all_told = fault.numbers.empty() ? tells(0) : std::ranges::all_of(fault.numbers, tells);
    detected += all_told;
    EXPECT_TRUE(all_told) << "not told, of " << (fault.memory ? *fault.memory : 0);
    if (!all_told)
      for (const Problem& problem : problems)
        std::cout << problem.id << " " << problem.part << " " << problem.first << " " << problem.last << " "
                  << problem.message << std::endl;

    // The rest is served, in the right order.
    WorkerPool pool(1);
    const std::vector<Bf16> query = Model{99}.landmark();
    for (const MemoryId id : ids_) {
      std::vector<Unreadable> unreadable;
      const auto best = store.top_k(id, query, 1'000, pool, &unreadable);
      if (!best) {
        EXPECT_TRUE(best.error().kind == ErrorKind::corrupt || best.error().kind == ErrorKind::not_found);
        continue;
      }
      std::vector<std::pair<float, uint64_t>> expected;
      const auto memory = store.memory(id);
      if (!memory || memory->encoded_chunks != clean_[id].landmarks.size()) continue;  // its rows are damaged
      for (uint64_t chunk = 0; chunk < clean_[id].landmarks.size(); ++chunk) {
        const auto lost = [&](const Unreadable& each) { return each.first <= chunk && chunk <= each.last; };
        if (std::ranges::any_of(unreadable, lost)) continue;
        float dot = 0;
        landmark_dots_cpu(query, clean_[id].landmarks[chunk].data(), 1, &dot);
        expected.emplace_back(-dot, chunk);
      }
      std::ranges::sort(expected);
      ASSERT_EQ(best->size(), expected.size());
      for (size_t rank = 0; rank < expected.size(); ++rank) EXPECT_EQ((*best)[rank].chunk, expected[rank].second);
    }
    // Appends go on in every memory that can be told, and in new ones.
    Model::append(store, "new", {said(77, 100)});

    repair(store);
    if (!fault.repairable) continue;
    // What forgotten turns are still in cannot be encoded again: the generation without them takes its place.
    settle(store, ids_.back());
    ASSERT_TRUE(store.erase_forgotten(ids_.back()));
    repair(store);
    for (const Problem& left : verify(store))
      ADD_FAILURE() << "left: " << left.id << " " << left.part << " " << left.first << " " << left.message;
    for (const MemoryId id : ids_) expect_equal(contents(store, id), mended_[id]);
  }
  std::cout << detected << " of " << count << " injected faults detected" << std::endl;
  EXPECT_EQ(detected, count);
}

}  // namespace
}  // namespace recalld
