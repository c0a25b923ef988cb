#include "tests/crash/model.h"

#include <algorithm>
#include <cstring>

#include "memstore/turn.h"

namespace recalld::crash {
namespace {

constexpr uint64_t kept_state_chunks = 1024;  // a state at a multiple of it is kept for good

// Numbers that follow from a hash and a word.
class Numbers {
 public:
  Numbers(const Hash128& hash, uint64_t word) : state_(word) {
    uint64_t half = 0;
    std::memcpy(&half, hash.data(), sizeof half);
    state_ += half;
  }
  uint64_t next() {  // SplitMix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  void fill(ByteSpan out) {
    for (size_t at = 0; at < out.size(); at += sizeof(uint64_t)) {
      const uint64_t number = next();
      std::memcpy(&out[at], &number, std::min(sizeof number, out.size() - at));
    }
  }

 private:
  uint64_t state_;
};

bool same_turn(const Turn& a, const Turn& b) {
  return a.role == b.role && a.name == b.name && a.content == b.content && a.time_us == b.time_us &&
         a.metadata == b.metadata;
}

std::string in_words(const Appended& reply) {
  return "memory " + std::to_string(reply.id) + ", turns " + std::to_string(reply.first_turn) + " to " +
         std::to_string(reply.last_turn) + ", " + std::to_string(reply.tokens) + " tokens up to " +
         std::to_string(reply.end_token) + (reply.repeated ? ", repeated" : "");
}

// Gathers what differs in one memory.
class Comparison {
 public:
  Comparison(Store& store, std::string name, const MemoryModel& memory, const RecordShape& shape)
      : store_(store), name_(std::move(name)), memory_(memory), shape_(shape) {}

  std::vector<std::string> run() {
    info();
    if (!complaints_.empty()) return complaints_;
    turns();
    tokens();
    operations();
    chunks();
    states();
    return complaints_;
  }

 private:
  void complain(const std::string& what) { complaints_.push_back("memory " + name_ + ": " + what); }
  void expect_equal(std::string_view what, uint64_t got, uint64_t expected) {
    if (got != expected)
      complain(std::to_string(got) + " " + std::string(what) + " instead of " + std::to_string(expected));
  }
  template <class T>
  bool fine(std::string_view action, const Expected<T>& result) {
    if (!result) complain(std::string(action) + ": " + result.error().message);
    return result.has_value();
  }

  void info() {
    const auto info = store_.memory(name_);
    if (!fine("look up", info)) return;
    expect_equal("as its id", info->id, memory_.id);
    expect_equal("turns", info->turns, memory_.turns.size());
    expect_equal("tokens", info->tokens, memory_.tokens.size());
    expect_equal("encoded chunks", info->encoded_chunks, memory_.encoded_chunks);
    expect_equal("bytes", info->content_bytes, memory_.content_bytes);
    expect_equal("as its creation", static_cast<uint64_t>(info->created_us), static_cast<uint64_t>(memory_.created_us));
    expect_equal("as its last append", static_cast<uint64_t>(info->updated_us),
                 static_cast<uint64_t>(memory_.updated_us));
  }

  void turns() {
    const auto turns = store_.turns(memory_.id, 0, SIZE_MAX, SIZE_MAX);
    if (!fine("read turns", turns)) return;
    expect_equal("turns read", turns->size(), memory_.turns.size());
    for (size_t i = 0; i < std::min(turns->size(), memory_.turns.size()); ++i) {
      const StoredTurn& got = (*turns)[i];
      const NewTurn& expected = *memory_.turns[i];
      if (got.turn != i || !same_turn(got.value, expected.turn) || got.first_token != memory_.first_tokens[i] ||
          got.tokens != expected.ids.size())
        complain("turn " + std::to_string(i) + " is another one");
    }
  }

  void tokens() {
    const auto tokens = store_.tokens(memory_.id, 0, memory_.tokens.size() + 1);
    if (fine("read tokens", tokens) && *tokens != memory_.tokens) complain("its tokens are others");
    if (memory_.tokens.empty()) return;
    std::string text;
    for (const auto& turn : memory_.turns) text += stream_text(turn->turn);
    const auto passage = store_.passage(memory_.id, 0, memory_.tokens.size());
    if (!fine("read its text", passage)) return;
    if (passage->text != text) complain("its text is another one");
    expect_equal("turns in its text", passage->turns.size(), memory_.turns.size());
  }

  // Each one again: the first reply, and nothing added.
  void operations() {
    std::vector<AppendBatch> again;
    std::vector<Expected<Appended>> expected;
    Random random(memory_.id);
    for (const auto& [id, operation] : memory_.operations) {
      again.push_back({name_, {make_turn(random, 10)}, id, operation.digest, 1});
      expected.emplace_back(operation.reply);
      expected.back()->repeated = true;
      again.push_back({name_, {make_turn(random, 10)}, id, hash128(as_bytes("others")), 1});
      expected.push_back(fail(ErrorKind::invalid_request, "other content"));
    }
    if (again.empty()) return;
    const auto replies = store_.append(again);
    if (!fine("repeat its operations", replies)) return;
    for (size_t i = 0; i < again.size(); ++i) {
      const std::string wrong = difference((*replies)[i], expected[i]);
      if (!wrong.empty()) complain("operation " + again[i].operation_id + ": " + wrong);
    }
  }

  void chunks() {
    std::vector<uint64_t> numbers;
    for (uint64_t i = 0; i < memory_.encoded_chunks; ++i) numbers.push_back(i);
    std::vector<std::byte> kv(numbers.size() * shape_.kv_bytes);
    const bool fetched = numbers.empty() || fine("fetch its chunks", store_.fetch(memory_.id, numbers, kv));
    for (const uint64_t i : numbers) {
      const Encoded expected(memory_.past[i + 1], shape_);
      const auto landmark = store_.landmark(memory_.id, i);
      if (fine("read landmark " + std::to_string(i), landmark) &&
          std::memcmp(landmark->data(), expected.landmark.data(), expected.landmark.size() * sizeof(Bf16)) != 0)
        complain("landmark " + std::to_string(i) + " is another one");
      if (fetched && !std::ranges::equal(expected.kv, ByteView(kv).subspan(i * shape_.kv_bytes, shape_.kv_bytes)))
        complain("the K/V of chunk " + std::to_string(i) + " is another one");
    }
  }

  void states() {
    for (const uint64_t chunks : memory_.states) {
      const auto state = store_.state(memory_.id, chunks);
      if (!fine("read the state after chunk " + std::to_string(chunks), state)) continue;
      if (!*state || (*state)->chunks != chunks || (*state)->bytes != state_of(memory_.past[chunks], shape_))
        complain("the state after chunk " + std::to_string(chunks) + " is missing or another one");
    }
    const auto newest = store_.state(memory_.id, UINT64_MAX);
    if (fine("read its newest state", newest))
      expect_equal("chunks in its newest state", *newest ? (*newest)->chunks : 0, memory_.state_chunks);
  }

  Store& store_;
  const std::string name_;
  const MemoryModel& memory_;
  const RecordShape& shape_;
  std::vector<std::string> complaints_;
};

}  // namespace

RecordShape shape(uint32_t landmark_dim) {
  return {.kv_bytes = 1000, .landmark_dim = landmark_dim, .state_bytes = 300, .model = hash128(as_bytes("a model"))};
}

NewTurn make_turn(Random& random, size_t bytes) {
  NewTurn turn;
  turn.turn.role = static_cast<Role>(below(random, 4));
  if (happens(random, 4)) turn.turn.name = "Runa";
  if (happens(random, 4)) turn.turn.metadata = R"({"page":)" + std::to_string(below(random, 1000)) + "}";
  turn.turn.time_us = static_cast<int64_t>(random() >> 12);
  const std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,. ";
  while (turn.turn.content.size() < std::max<size_t>(bytes, 1)) {
    const uint64_t die = below(random, 64);
    if (die == 0) {
      turn.turn.content += '\0';
    } else if (die == 1) {
      turn.turn.content += "\xc3\xb8";
    } else if (die == 2) {
      turn.turn.content += "\xf0\x9f\x90\x9f";
    } else {
      turn.turn.content += letters[below(random, letters.size())];
    }
  }
  const size_t text_bytes = stream_text(turn.turn).size();
  const uint64_t token_bytes_max = text_bytes > 20'000 ? 80 : 7;
  for (size_t end = 0; end < text_bytes;) {
    end = std::min(text_bytes, end + below(random, token_bytes_max + 1));
    turn.ids.push_back(static_cast<uint32_t>(random() >> 40));
    turn.ends.push_back(static_cast<uint32_t>(end));
  }
  return turn;
}

Encoded::Encoded(const Hash128& past, const RecordShape& shape) : landmark(shape.landmark_dim), kv(shape.kv_bytes) {
  Numbers numbers(past, 1);
  for (Bf16& x : landmark) x = to_bf16(static_cast<float>(numbers.next() % 2001) / 1000.0f - 1);
  Numbers(past, 2).fill(kv);
}

std::string state_of(const Hash128& past, const RecordShape& shape) {
  std::string state(shape.state_bytes, '\0');
  Numbers(past, 3).fill(std::as_writable_bytes(std::span(state)));
  return state;
}

void MemoryModel::add(const NewTurn& turn) {
  turns.push_back(std::make_shared<const NewTurn>(turn));
  first_tokens.push_back(tokens.size());
  tokens.insert(tokens.end(), turn.ids.begin(), turn.ids.end());
  content_bytes += turn.turn.content.size();
  while (past.size() <= tokens.size() / chunk_tokens) {
    std::string both(as_text(past.back()));
    both += as_text(std::as_bytes(std::span(tokens).subspan((past.size() - 1) * chunk_tokens, chunk_tokens)));
    past.push_back(hash128(as_bytes(both)));
  }
}

void MemoryModel::add_state(uint64_t chunks) {
  if (state_chunks % kept_state_chunks != 0) states.erase(state_chunks);
  states.insert(chunks);
  state_chunks = chunks;
}

Expected<Appended> Model::append(const AppendBatch& batch) {
  MemoryModel& memory = memories[batch.memory];
  if (memory.id == 0) {
    memory.id = next_memory++;
    memory.created_us = batch.now_us;
  }
  if (const auto known = memory.operations.find(batch.operation_id); known != memory.operations.end()) {
    if (known->second.digest != batch.operation_digest) return fail(ErrorKind::invalid_request, "other content");
    Appended reply = known->second.reply;
    reply.repeated = true;
    return reply;
  }
  Appended reply{.id = memory.id, .first_turn = memory.turns.size()};
  const uint64_t tokens_before = memory.tokens.size();
  for (const NewTurn& turn : batch.turns) memory.add(turn);
  memory.updated_us = batch.now_us;
  reply.last_turn = memory.turns.size() - 1;
  reply.end_token = memory.tokens.size();
  reply.tokens = reply.end_token - tokens_before;
  if (!batch.operation_id.empty()) memory.operations[batch.operation_id] = {batch.operation_digest, reply};
  return reply;
}

std::vector<std::string> differences(Store& store, const Model& model, const RecordShape& shape) {
  std::vector<std::string> complaints;
  const auto page = store.memories("", "", SIZE_MAX);
  if (!page) return {"list memories: " + page.error().message};
  for (const MemoryInfo& memory : page->memories) {
    if (!model.memories.contains(memory.name)) complaints.push_back("memory " + memory.name + " should not be there");
  }
  std::vector<MemoryId> waiting;
  std::set<std::pair<uint32_t, uint32_t>> places;
  for (const auto& [name, memory] : model.memories) {
    for (std::string& complaint : Comparison(store, name, memory, shape).run())
      complaints.push_back(std::move(complaint));
    for (uint64_t i = 0; i < memory.encoded_chunks; ++i) {
      const auto entry = store.chunk(memory.id, i);
      if (entry && !places.emplace(entry->segment, entry->slot).second)
        complaints.push_back("memory " + name + ": chunk " + std::to_string(i) + " shares its record with another one");
    }
    if (memory.waiting_chunks() > 0) waiting.push_back(memory.id);
  }
  for (const auto& [id, memory] : model.erased) {
    if (store.memory(id)) complaints.push_back("memory " + std::to_string(id) + " is back after it was erased");
  }
  std::ranges::sort(waiting);
  const auto unencoded = store.unencoded(0, SIZE_MAX);
  if (!unencoded || *unencoded != waiting) complaints.emplace_back("other memories wait for encoding than should");
  return complaints;
}

std::string difference(const Expected<Appended>& got, const Expected<Appended>& expected) {
  const auto words = [](const Expected<Appended>& reply) {
    return reply ? in_words(*reply) : std::string(name(reply.error().kind)) + " (" + reply.error().message + ")";
  };
  const bool same = got && expected ? in_words(*got) == in_words(*expected)
                                    : !got && !expected && got.error().kind == expected.error().kind;
  return same ? "" : "answered " + words(got) + " instead of " + words(expected);
}

}  // namespace recalld::crash
