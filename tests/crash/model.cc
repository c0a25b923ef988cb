#include "tests/crash/model.h"

#include <algorithm>
#include <cstring>

#include "memstore/turn.h"
#include "memstore/words.h"

namespace recalld::crash {
namespace {

constexpr uint64_t kept_state_chunks = 1024;           // a state at a multiple of it is kept for good
constexpr uint64_t page_bytes = 131072;                // of landmarks
constexpr size_t trace_bytes = 40, trace_tokens = 10;  // looked for: enough to be of this turn alone

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

// Of the beginning of the turn's text, and of its tokens.
MemoryModel::Traces traces_of(MemoryId id, uint64_t number, const NewTurn& turn) {
  const std::string of = "turn " + std::to_string(number) + " of memory " + std::to_string(id);
  MemoryModel::Traces traces;
  if (turn.turn.content.size() >= trace_bytes / 2)
    traces.texts.emplace_back("the text of " + of, turn.turn.content.substr(0, trace_bytes));
  if (turn.ids.size() >= trace_tokens)
    traces.texts.emplace_back("tokens of " + of, as_text(std::as_bytes(std::span(turn.ids).subspan(0, trace_tokens))));
  return traces;
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
    text();
    operations();
    chunks();
    words();
    generation("", serving_, memory_.serving);
    if (next_) generation(" of the next generation", *next_, *memory_.next);
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
    expect_equal("as its next turn", info->next_turn, memory_.next_turn);
    expect_equal("tokens", info->tokens, memory_.serving.tokens.size());
    expect_equal("encoded chunks", info->encoded_chunks, memory_.serving.chunks);
    expect_equal("bytes", info->content_bytes, memory_.content_bytes);
    expect_equal("as its creation", static_cast<uint64_t>(info->created_us), static_cast<uint64_t>(memory_.created_us));
    expect_equal("as its last append", static_cast<uint64_t>(info->updated_us),
                 static_cast<uint64_t>(memory_.updated_us));
    expect_equal("next generations", info->next ? 1 : 0, memory_.next ? 1 : 0);
    if (info->next && memory_.next) {
      expect_equal("as where the next generation began", info->next_first_chunk, memory_.next->first_chunk());
      expect_equal("encoded chunks of the next generation", info->next->chunks, memory_.next->chunks);
    }
    serving_ = info->serving;
    next_ = info->next;
  }

  void turns() {
    const auto turns = store_.turns(memory_.id, 0, SIZE_MAX, SIZE_MAX);
    if (!fine("read turns", turns)) return;
    expect_equal("turns read", turns->size(), memory_.turns.size());
    std::map<uint64_t, uint64_t> first_tokens;
    for (size_t i = memory_.serving.tokens.size(); i-- > 0;) first_tokens[memory_.serving.tokens[i].turn] = i;
    auto expected = memory_.turns.begin();
    for (size_t i = 0; i < std::min(turns->size(), memory_.turns.size()); ++i, ++expected) {
      const StoredTurn& got = (*turns)[i];
      const auto& [number, turn] = *expected;
      if (got.turn != number || !same_turn(got.value, turn->turn) || got.first_token != first_tokens[number] ||
          got.tokens != turn->ids.size())
        complain("turn " + std::to_string(number) + " is another one");
    }
  }

  void text() {
    if (memory_.serving.tokens.empty()) return;
    std::string text;
    for (const auto& [number, turn] : memory_.turns) text += stream_text(turn->turn);
    const auto passage = store_.passage(memory_.id, 0, memory_.serving.tokens.size());
    if (!fine("read its text", passage)) return;
    if (passage->text != text) complain("its text is another one");
    expect_equal("turns in its text", passage->turns.size(), memory_.turns.size());
  }

  // Which chunks have any of the words with which a turn begins: those in which they begin, and none that holds what is
  // being forgotten.
  void words() {
    if (memory_.turns.empty()) return;
    constexpr size_t query_bytes = 200;
    const std::string query = memory_.turns.rbegin()->second->turn.content.substr(0, query_bytes);
    const std::vector<Term> terms = WordReader().terms(query);
    std::map<uint64_t, uint64_t> first_tokens;
    std::set<uint64_t> found, hidden;
    for (size_t i = memory_.serving.tokens.size(); i-- > 0;) {
      first_tokens[memory_.serving.tokens[i].turn] = i;
      if (!memory_.turns.contains(memory_.serving.tokens[i].turn)) hidden.insert(i / chunk_tokens);
    }
    for (const auto& [number, turn] : memory_.turns) {
      const std::string text = stream_text(turn->turn);
      std::vector<Word> words;
      WordReader().read(text, 0, text.size(), words);
      size_t token = 0;
      for (const Word& word : words) {
        while (turn->ends[token] <= word.begin) ++token;
        if (std::ranges::binary_search(terms, word.term)) found.insert((first_tokens[number] + token) / chunk_tokens);
      }
    }
    std::vector<uint64_t> all;
    for (uint64_t chunk = 0; chunk * chunk_tokens < memory_.serving.tokens.size(); ++chunk) all.push_back(chunk);
    const auto ranking =
        store_.lexical_top_k(memory_.id, {.text = query, .end_token = memory_.serving.tokens.size(), .also = all});
    if (!fine("rank by words", ranking)) return;
    expect_equal("chunks without an index of words", ranking->unindexed_chunks, 0);
    expect_equal("chunks whose words cannot be read", ranking->unreadable.size(), 0);
    for (const LexicalScore& score : ranking->also) {
      const bool has = found.contains(score.chunk) && !hidden.contains(score.chunk);
      if (has != (score.bm25 > 0))
        complain("words find chunk " + std::to_string(score.chunk) + (has ? " no more" : ", which has none of them"));
    }
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
    const GenerationModel& serving = memory_.serving;
    std::vector<uint64_t> numbers;
    for (uint64_t i = 0; i < serving.chunks; ++i) numbers.push_back(i);
    std::vector<std::byte> kv(numbers.size() * shape_.kv_bytes);
    const bool fetched = numbers.empty() || fine("fetch its chunks", store_.fetch(memory_.id, numbers, kv));
    for (const uint64_t i : numbers) {
      const Encoded expected(serving.past[i + 1], shape_);
      const auto landmark = store_.landmark(memory_.id, i);
      if (fine("read landmark " + std::to_string(i), landmark) &&
          std::memcmp(landmark->data(), expected.landmark.data(), expected.landmark.size() * sizeof(Bf16)) != 0)
        complain("landmark " + std::to_string(i) + " is another one");
      if (fetched && !std::ranges::equal(expected.kv, ByteView(kv).subspan(i * shape_.kv_bytes, shape_.kv_bytes)))
        complain("the K/V of chunk " + std::to_string(i) + " is another one");
    }
  }

  // What an encoder reads of it.
  void generation(const std::string& of, const StreamInfo& got, const GenerationModel& expected) {
    expect_equal("as the stream" + of, got.stream, expected.stream());
    const auto tokens = store_.tokens(got, 0, expected.tokens.size() + 1);
    const bool forgotten =
        std::ranges::any_of(expected.tokens, [&](const auto& token) { return !memory_.turns.contains(token.turn); });
    if (forgotten) {
      if (tokens || tokens.error().kind != ErrorKind::busy) complain("tokens of forgotten turns are read" + of);
    } else if (fine("read tokens" + of, tokens) && *tokens != expected.ids()) {
      complain("its tokens are others" + of);
    }
    const auto states = memory_.states_of(expected);
    for (const uint64_t chunks : states) {
      const std::string which = "the state after chunk " + std::to_string(chunks) + of;
      const auto state = store_.state(got, chunks);
      if (!fine("read " + which, state)) continue;
      if (!*state || (*state)->chunks != chunks || (*state)->bytes != state_of(expected.past[chunks], shape_))
        complain(which + " is missing or another one");
    }
    const auto newest = store_.state(got, UINT64_MAX);
    if (fine("read its newest state" + of, newest))
      expect_equal("chunks in its newest state" + of, *newest ? (*newest)->chunks : 0,
                   states.empty() ? 0 : *states.rbegin());
  }

  Store& store_;
  const std::string name_;
  const MemoryModel& memory_;
  const RecordShape& shape_;
  StreamInfo serving_;
  std::optional<StreamInfo> next_;
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

uint64_t page_chunks(const RecordShape& shape) {
  return std::max<uint64_t>(1, page_bytes / (shape.landmark_dim * sizeof(Bf16)));
}

// ---- Generations

void GenerationModel::add(std::span<const Token> more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  sum_up();
}

void GenerationModel::take(const std::set<uint64_t>& turns, uint64_t from) {
  const auto first = tokens.begin() + static_cast<ptrdiff_t>(from);
  tokens.erase(std::remove_if(first, tokens.end(), [&](const Token& token) { return turns.contains(token.turn); }),
               tokens.end());
  past.resize(from / chunk_tokens + 1);
  sum_up();
}

std::vector<uint32_t> GenerationModel::ids() const {
  std::vector<uint32_t> ids;
  for (const Token& token : tokens) ids.push_back(token.id);
  return ids;
}

void GenerationModel::sum_up() {
  while (past.size() <= tokens.size() / chunk_tokens) {
    std::string both(as_text(past.back()));
    for (uint64_t i = (past.size() - 1) * chunk_tokens; i < past.size() * chunk_tokens; ++i)
      both += as_text(std::as_bytes(std::span(&tokens[i].id, 1)));
    past.push_back(hash128(as_bytes(both)));
  }
}

// ---- Memories

void MemoryModel::Traces::add(const Traces& more) {
  texts.insert(texts.end(), more.texts.begin(), more.texts.end());
  pasts.insert(more.pasts.begin(), more.pasts.end());
}

void MemoryModel::add(const NewTurn& turn) {
  const uint64_t number = turn.number.value_or(next_turn);
  std::vector<GenerationModel::Token> tokens;
  for (const uint32_t token : turn.ids) tokens.push_back({next_position++, number, token});
  serving.add(tokens);
  if (next) next->add(tokens);
  turns[number] = std::make_shared<const NewTurn>(turn);
  next_turn = number + 1;
  content_bytes += turn.turn.content.size();
}

void MemoryModel::add_state(GenerationModel& to, uint64_t chunks) {
  // What is there already, or would lie among what another generation has too, is not taken.
  if (chunks <= to.state_chunks || chunks <= to.first_chunk()) return;
  if (to.state_chunks % kept_state_chunks != 0) states.erase({to.stream(), to.state_chunks});
  states.emplace(to.stream(), chunks);
  to.state_chunks = chunks;
}

std::set<uint64_t> MemoryModel::states_of(const GenerationModel& generation) const {
  std::set<uint64_t> found;
  for (size_t i = 0; i < generation.extents.size(); ++i) {
    const auto& [first, stream] = generation.extents[i];
    const uint64_t end = i + 1 < generation.extents.size() ? generation.extents[i + 1].first_chunk : UINT64_MAX;
    for (const auto& [of, chunks] : states) {
      if (of == stream && chunks > first && chunks <= end) found.insert(chunks);
    }
  }
  return found;
}

void MemoryModel::doom(const GenerationModel& generation, uint64_t first_chunk) {
  for (uint64_t i = first_chunk; i < generation.chunks; ++i) doomed.pasts.insert(generation.past[i + 1]);
}

MemoryModel::Forgetting MemoryModel::forget(std::span<const TurnRange> ranges, uint64_t page_chunks,
                                            StreamId new_stream) {
  std::set<uint64_t> taken;
  Forgetting forgetting{.reply = {.id = id}};
  uint64_t first_position = UINT64_MAX;
  for (const auto& [number, turn] : turns) {
    if (std::ranges::none_of(ranges, [&](const TurnRange& of) { return of.first <= number && number <= of.last; }))
      continue;
    taken.insert(number);
    ++forgetting.reply.turn_count;
    forgetting.reply.tokens += turn->ids.size();
    forgetting.reply.content_bytes += turn->turn.content.size();
    doomed.add(traces_of(id, number, *turn));
  }
  forgetting.reply.rebuilding = next.has_value();
  if (taken.empty()) return forgetting;
  for (const auto& token : serving.tokens) {
    if (taken.contains(token.turn)) first_position = std::min(first_position, token.position);
  }
  for (const uint64_t number : taken) turns.erase(number);
  content_bytes -= forgetting.reply.content_bytes;
  forgetting.erasures = 1;

  // What is encoded stays in what serves.
  serving.take(taken, serving.chunks * chunk_tokens);
  if (next && first_position < next->end_position()) {
    doom(*next, next->first_chunk());
    ++forgetting.erasures;
    next.reset();
  } else if (next) {
    next->take(taken, next->chunks * chunk_tokens);
  }
  const auto gone = [&](const GenerationModel::Token& token) { return !turns.contains(token.turn); };
  const auto first = std::ranges::find_if(serving.tokens, gone);
  forgetting.reply.rebuilding = first != serving.tokens.end();
  if (!forgetting.reply.rebuilding) return forgetting;
  const uint64_t first_chunk = static_cast<uint64_t>(first - serving.tokens.begin()) / chunk_tokens;
  forgetting.reply.chunks = serving.chunks - first_chunk;
  if (next) return forgetting;
  const uint64_t shared = first_chunk / page_chunks * page_chunks;
  GenerationModel made;
  for (const Extent& extent : serving.extents) {
    if (extent.first_chunk < shared) made.extents.push_back(extent);
  }
  made.extents.push_back({shared, new_stream});
  std::vector<GenerationModel::Token> left;
  std::ranges::remove_copy_if(serving.tokens, std::back_inserter(left), gone);
  made.add(left);
  made.chunks = shared;
  next = std::move(made);
  return forgetting;
}

std::optional<uint64_t> MemoryModel::swap(bool at_once) {
  if (!next) return std::nullopt;
  const bool caught_up = next->waiting_chunks() == 0 || next->end_position() >= serving.end_position();
  if (!at_once && !caught_up) return std::nullopt;
  uint64_t erasures = 0;
  const uint64_t shared = next->first_chunk();
  for (size_t i = 0; i < serving.extents.size(); ++i) {
    if (i + 1 == serving.extents.size() || serving.extents[i + 1].first_chunk > shared) ++erasures;
  }
  doom(serving, shared);
  // Among what both have only the states that are kept for good belong.
  for (const uint64_t chunks : states_of(*next)) {
    if (chunks > shared || chunks % kept_state_chunks == 0) continue;
    std::erase_if(states, [&](const auto& state) { return state.first != next->stream() && state.second == chunks; });
  }
  serving = *std::move(next);
  next.reset();
  return erasures;
}

MemoryModel::Traces MemoryModel::everything() const {
  Traces traces = doomed;
  for (const auto& [number, turn] : turns) traces.add(traces_of(id, number, *turn));
  for (const auto& [operation, of] : operations)
    traces.texts.emplace_back("an operation of memory " + std::to_string(id), operation);
  for (const GenerationModel* generation : {&serving, next ? &*next : nullptr}) {
    for (uint64_t i = 0; generation != nullptr && i < generation->chunks; ++i)
      traces.pasts.insert(generation->past[i + 1]);
  }
  return traces;
}

// ---- The store

Expected<Appended> Model::append(const AppendBatch& batch) {
  MemoryModel& memory = memories[batch.memory];
  if (memory.id == 0) {
    memory.id = next_number++;
    memory.serving.extents = {{0, memory.id}};
    memory.created_us = batch.now_us;
  }
  if (const auto known = memory.operations.find(batch.operation_id); known != memory.operations.end()) {
    if (known->second.digest != batch.operation_digest) return fail(ErrorKind::invalid_request, "other content");
    Appended reply = known->second.reply;
    reply.repeated = true;
    return reply;
  }
  Appended reply{.id = memory.id, .first_turn = batch.turns.front().number.value_or(memory.next_turn)};
  const uint64_t tokens_before = memory.tokens();
  for (const NewTurn& turn : batch.turns) memory.add(turn);
  memory.updated_us = batch.now_us;
  reply.last_turn = memory.next_turn - 1;
  reply.end_token = memory.tokens();
  reply.tokens = reply.end_token - tokens_before;
  if (!batch.operation_id.empty()) memory.operations[batch.operation_id] = {batch.operation_digest, reply};
  return reply;
}

Forgotten Model::forget(const std::string& name, std::span<const TurnRange> ranges, uint64_t page_chunks) {
  MemoryModel& memory = memories.at(name);
  const auto [reply, erasures] = memory.forget(ranges, page_chunks, next_number);
  if (reply.turn_count > 0) {
    next_number += 1 + erasures;
    to_erase.insert(memory.id);
  }
  return reply;
}

bool Model::swap(const std::string& name, bool at_once) {
  MemoryModel& memory = memories.at(name);
  const auto erasures = memory.swap(at_once);
  if (!erasures) return false;
  next_number += *erasures;
  to_erase.insert(memory.id);
  return true;
}

void Model::remove(const std::string& name) {
  const auto found = memories.find(name);
  MemoryModel memory = std::move(found->second);
  memories.erase(found);
  std::set<StreamId> streams;
  for (const Extent& extent : memory.serving.extents) streams.insert(extent.stream);
  if (memory.next) {
    for (const Extent& extent : memory.next->extents) streams.insert(extent.stream);
  }
  next_number += streams.size() + 1;
  memory.doomed = memory.everything();
  const MemoryId id = memory.id;
  to_erase.insert(id);
  removed[id] = std::move(memory);
}

void Model::erase_forgotten(MemoryId id) {
  if (to_erase.erase(id) == 0) return;
  if (const auto memory = removed.find(id); memory != removed.end())
    gone[id].add(std::exchange(memory->second.doomed, {}));
  for (auto& [name, memory] : memories) {
    if (memory.id == id) gone[id].add(std::exchange(memory.doomed, {}));
  }
}

bool Model::settled() const {
  return to_erase.empty() && std::ranges::all_of(memories, [](const auto& memory) {
           return !memory.second.next && memory.second.serving.waiting_chunks() == 0;
         });
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
  StoreStats sums;
  for (const auto& [name, memory] : model.memories) {
    for (std::string& complaint : Comparison(store, name, memory, shape).run())
      complaints.push_back(std::move(complaint));
    for (uint64_t i = 0; i < memory.serving.chunks; ++i) {
      const auto entry = store.chunk(memory.id, i);
      if (entry && !places.emplace(entry->segment, entry->slot).second)
        complaints.push_back("memory " + name + ": chunk " + std::to_string(i) + " shares its record with another one");
    }
    if (memory.serving.waiting_chunks() > 0 || memory.next) waiting.push_back(memory.id);
    ++sums.memories;
    sums.turns += memory.turns.size();
    sums.tokens += memory.tokens();
    sums.encoded_chunks += memory.serving.chunks;
    sums.waiting_chunks += memory.serving.waiting_chunks() + (memory.next ? memory.next->waiting_chunks() : 0);
  }
  for (const auto& [id, memory] : model.removed) {
    if (store.memory(id)) complaints.push_back("memory " + std::to_string(id) + " is back after it was removed");
  }
  std::ranges::sort(waiting);
  const auto unencoded = store.unencoded(0, SIZE_MAX);
  if (!unencoded || *unencoded != waiting) complaints.emplace_back("other memories wait for encoding than should");
  const auto to_erase = store.to_erase();
  if (!to_erase || !std::ranges::equal(*to_erase, model.to_erase))
    complaints.emplace_back("other memories are to be erased than should");
  const auto stats = store.stats();
  if (!stats) return complaints.push_back("sum up: " + stats.error().message), complaints;
  const auto expect_sum = [&](std::string_view what, uint64_t got, uint64_t expected) {
    if (got != expected)
      complaints.push_back(std::to_string(got) + " " + std::string(what) + " in all instead of " +
                           std::to_string(expected));
  };
  expect_sum("memories", stats->memories, sums.memories);
  expect_sum("turns", stats->turns, sums.turns);
  expect_sum("tokens", stats->tokens, sums.tokens);
  expect_sum("encoded chunks", stats->encoded_chunks, sums.encoded_chunks);
  expect_sum("waiting chunks", stats->waiting_chunks, sums.waiting_chunks);
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

std::string difference(const Expected<Forgotten>& got, const Forgotten& expected) {
  const auto words = [](const Forgotten& reply) {
    return std::to_string(reply.turn_count) + " turns of memory " + std::to_string(reply.id) + ", " +
           std::to_string(reply.tokens) + " tokens, " + std::to_string(reply.content_bytes) + " bytes, " +
           std::to_string(reply.chunks) + " chunks" + (reply.rebuilding ? ", rebuilding" : "");
  };
  const std::string answer = got ? words(*got) : got.error().message;
  return answer == words(expected) ? "" : "answered " + answer + " instead of " + words(expected);
}

}  // namespace recalld::crash
