// Import: records into the store, each checked against what is there and against the export's own order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <variant>

#include "base/quote.h"
#include "daemon/transfer.h"

namespace recalld {
namespace {

constexpr size_t batch_bytes_max = size_t{1} << 20;  // of the contents of turns that are appended in one write
constexpr size_t compared_turns = 64;                // that are read at a time, to be compared
constexpr size_t compared_bytes = size_t{1} << 20;   // of their contents, about

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};

std::unexpected<Error> refuse(std::string_view memory, const std::string& why) {
  return fail(ErrorKind::invalid_request, "import memory " + in_quotes(memory) + ": " + why);
}

bool same(const Turn& a, const Turn& b) {
  return a.role == b.role && a.name == b.name && a.content == b.content && a.time_us == b.time_us &&
         a.metadata == b.metadata;
}

// Whether bytes are numbers of these types, and none of them infinite or no number.
bool finite_bf16(std::string_view bytes) {
  for (size_t at = 0; at + sizeof(uint16_t) <= bytes.size(); at += sizeof(uint16_t)) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + at, sizeof(bits));
    if ((bits & 0x7f80) == 0x7f80) return false;
  }
  return true;
}
bool finite_float(std::string_view bytes) {
  for (size_t at = 0; at + sizeof(float) <= bytes.size(); at += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    if (!std::isfinite(value)) return false;
  }
  return true;
}

}  // namespace

Transfer::Transfer(Store& store, boost::asio::thread_pool& upkeep, Options options)
    : store_(store), options_(std::move(options)), timer_(upkeep) {}
Expected<ImportReply> Transfer::import_page(ImportRequest request) {
  ImportReply reply;
  const Expected<void> taken = take(request.memory, request.records, reply);
  if (!taken) {
    drop(request.memory);
    return std::unexpected(taken.error());
  }
  RECALLD_TRY(reply.memory, store_.memory(request.memory));
  return reply;
}

Expected<void> Transfer::take(const std::string& memory, Records records, ImportReply& reply) {
  for (auto record = records.begin(); record != records.end();) {
    if (const auto* header = std::get_if<ExportHeader>(&*record)) {
      RECALLD_CHECK(begin(memory, *header, reply));
      ++record;
      continue;
    }
    Import current;
    {
      const std::lock_guard lock(mutex_);
      const auto found = imports_.find(memory);
      if (found == imports_.end())
        return refuse(memory, "no import of it goes on, or it was broken off: begin again with the memory record");
      found->second.encoder_told = false;
      found->second.last_use = std::chrono::steady_clock::now();
      current = found->second;
    }
    RECALLD_CHECK(unchanged(current));
    const auto same_kind = std::find_if(record, records.end(),
                                        [&](const ExportRecord& other) { return other.index() != record->index(); });
    const Records run(record, same_kind);
    if (const auto* last = std::get_if<ExportEnd>(&*record)) {
      RECALLD_CHECK(enter(current, Phase::states));
      if (run.size() > 1) return refuse(memory, "a second end record; give one export at a time");
      RECALLD_CHECK(end(current, *last));
      drop(memory);
    } else {
      RECALLD_CHECK(std::visit(Overloaded{[&](const StoredTurn&) { return take_turns(current, run, reply); },
                                          [&](const ExportOperation&) { return take_operations(current, run, reply); },
                                          [&](const ExportChunk&) { return take_chunks(current, run, reply); },
                                          [&](const ExportState&) { return take_states(current, run, reply); },
                                          [&](const auto&) { return Expected<void>{}; }},
                               *record));
      if (!current.takes_encodings) options_.encode(current.id);
      const std::lock_guard lock(mutex_);
      current.last_use = std::chrono::steady_clock::now();
      imports_[memory] = current;
      watch();
    }
    record = same_kind;
  }
  return {};
}

// Makes the memory, or finds it as the export's.
Expected<void> Transfer::begin(const std::string& memory, const ExportHeader& header, ImportReply& reply) {
  auto found = store_.memory(memory);
  const bool made = !found && found.error().kind == ErrorKind::not_found;
  if (made) found = store_.restore_memory(memory, header.created_us, header.updated_us);
  RECALLD_TRY(const MemoryInfo info, found);
  if (info.created_us != header.created_us)
    return refuse(memory,
                  "there is another memory of this name, made at another time; delete it first, or import "
                  "under another name");
  ++(made ? reply.imported : reply.present);
  Import current;
  current.id = info.id;
  current.header = header;
  current.header.memory = memory;
  current.takes_encodings = header.model_hash == hex(options_.shape.model);
  current.serving = info.serving;
  current.last_use = std::chrono::steady_clock::now();

  MemoryId gives_way = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!imports_.contains(memory) && imports_.size() >= imports_max) {
      const auto idlest = std::ranges::min_element(imports_, {}, [](const auto& each) { return each.second.last_use; });
      gives_way = idlest->second.id;
      imports_.erase(idlest);
    }
    imports_[memory] = std::move(current);
    watch();
  }
  if (gives_way != 0) options_.encode(gives_way);
  return {};
}

// Fails when the memory is not the one, or its turns not those, that the import began with.
Expected<MemoryInfo> Transfer::unchanged(const Import& current) const {
  RECALLD_TRY(MemoryInfo info, store_.memory(current.id));
  if (info.next || info.serving.stream != current.serving.stream || info.serving.edition != current.serving.edition)
    return fail(ErrorKind::busy,
                "import memory " + in_quotes(info.name) + ": turns of it were forgotten meanwhile; begin again");
  return info;
}

// Goes on to the records of a phase; after the turns, the memory must hold no others.
Expected<void> Transfer::enter(Import& current, Phase phase) const {
  RECALLD_TRY(const MemoryInfo info, store_.memory(current.id));
  if (phase < current.phase) return refuse(info.name, "its records are out of order; give them as the export has them");
  if (current.phase == Phase::turns && phase != Phase::turns) {
    RECALLD_TRY(const auto others, store_.turns(current.id, current.next_turn, 1, 0));
    if (!others.empty() && others[0].turn < current.header.next_turn)
      return refuse(info.name, "the memory has a turn " + std::to_string(others[0].turn) +
                                   ", which the export has not; import under another name");
  }
  current.phase = phase;
  return {};
}

Expected<void> Transfer::take_turns(Import& current, Records records, ImportReply& reply) {
  RECALLD_CHECK(enter(current, Phase::turns));
  RECALLD_TRY(MemoryInfo info, store_.memory(current.id));
  std::vector<NewTurn> batch;
  size_t batch_bytes = 0;
  const auto flush = [&]() -> Expected<void> {
    if (batch.empty()) return {};
    RECALLD_TRY(info, store_.restore_turns(current.id, info.next_turn, batch, current.header.updated_us));
    current.end_token = info.tokens;
    reply.imported += batch.size();
    batch.clear();
    batch_bytes = 0;
    return {};
  };
  std::vector<StoredTurn> there;  // turns that the memory has, from current.next_turn on
  size_t compared = 0;
  const auto next_there = [&]() -> Expected<const StoredTurn*> {
    if (compared == there.size()) {
      RECALLD_TRY(there, store_.turns(current.id, current.next_turn, compared_turns, compared_bytes));
      compared = 0;
    }
    return there.empty() ? nullptr : &there[compared];
  };
  for (ExportRecord& record : records) {
    auto& turn = std::get<StoredTurn>(record);
    const std::string number = "turn " + std::to_string(turn.turn);
    if (turn.turn < current.next_turn) return refuse(info.name, number + " is out of order, or there twice");
    if (turn.turn >= current.header.next_turn)
      return refuse(info.name, number + " is beyond next_turn of the memory record, which is " +
                                   std::to_string(current.header.next_turn));
    if (turn.turn < info.next_turn && batch.empty()) {
      RECALLD_TRY(const StoredTurn* const stored, next_there());
      if (!stored || stored->turn > turn.turn)
        return refuse(info.name, number + " is not there any more, or was never; import under another name");
      if (stored->turn < turn.turn)
        return refuse(info.name, "the memory has a turn " + std::to_string(stored->turn) +
                                     ", which the export has not; import under another name");
      if (!same(stored->value, turn.value))
        return refuse(info.name, "another " + number + " is there; import under another name");
      current.end_token = stored->first_token + stored->tokens;
      ++compared;
      ++reply.present;
    } else {
      if (batch.empty() && current.next_turn < info.next_turn) {
        RECALLD_TRY(const StoredTurn* const stored, next_there());
        if (stored)
          return refuse(info.name, "the memory has a turn " + std::to_string(stored->turn) +
                                       ", which the export has not; import under another name");
      }
      batch_bytes += turn.value.content.size();
      batch.push_back(options_.tokenise(std::move(turn.value)));
      batch.back().number = turn.turn;
    }
    current.next_turn = turn.turn + 1;
    ++current.turns;
    if (batch_bytes >= batch_bytes_max) RECALLD_CHECK(flush());
  }
  return flush();
}

Expected<void> Transfer::take_operations(Import& current, Records records, ImportReply& reply) {
  RECALLD_CHECK(enter(current, Phase::operations));
  std::vector<StoredOperation> operations;
  for (ExportRecord& record : records) {
    auto& [id, digest, first, last, tokens] = std::get<ExportOperation>(record);
    if (id.empty() || id.size() > operation_id_bytes_max || first > last || last >= current.header.next_turn)
      return refuse(current.header.memory, "an operation has no operation_id, or one of more than " +
                                               std::to_string(operation_id_bytes_max) +
                                               " bytes, or turns that are none of the memory's");
    operations.push_back({std::move(id), digest, first, last, tokens});
  }
  RECALLD_TRY(const uint64_t added, store_.restore_operations(current.id, operations));
  reply.imported += added;
  reply.present += operations.size() - added;
  return {};
}

Expected<void> Transfer::take_chunks(Import& current, Records records, ImportReply& reply) {
  RECALLD_CHECK(enter(current, Phase::chunks));
  const RecordShape& shape = options_.shape;
  const std::string& name = current.header.memory;
  if (current.header.model_hash.empty())
    return refuse(name, "it has chunks, and its memory record has no model_hash to say whose they are");
  for (const ExportRecord& record : records) {
    const auto& [chunk, landmark, kv] = std::get<ExportChunk>(record);
    const std::string number = "chunk " + std::to_string(chunk);
    if (chunk != current.chunks)
      return refuse(name, number + " stands where chunk " + std::to_string(current.chunks) + " should");
    ++current.chunks;
    if (!current.takes_encodings) continue;
    if (landmark.size() != shape.landmark_dim * sizeof(Bf16) || kv.size() != shape.kv_bytes)
      return refuse(name, number + " has a landmark of " + std::to_string(landmark.size()) + " bytes and K/V of " +
                              std::to_string(kv.size()) + ", this model's have " +
                              std::to_string(shape.landmark_dim * sizeof(Bf16)) + " and " +
                              std::to_string(shape.kv_bytes));
    if (!finite_bf16(landmark) || !finite_bf16(kv)) return refuse(name, number + " holds what is no finite number");
    if (current.chunks * chunk_tokens > current.end_token)
      return refuse(name, number + " is of tokens that its turns do not have");
  }
  if (!current.takes_encodings) {
    reply.ignored += records.size();
    return {};
  }

  const uint64_t first = current.chunks - records.size();
  std::vector<std::vector<Bf16>> landmarks;
  std::vector<EncodedChunkView> views;
  for (const ExportRecord& record : records) {
    const auto& chunk = std::get<ExportChunk>(record);
    std::vector<Bf16>& landmark = landmarks.emplace_back(shape.landmark_dim);
    std::memcpy(landmark.data(), chunk.landmark.data(), chunk.landmark.size());
  }
  for (size_t i = 0; i < records.size(); ++i)
    views.push_back({landmarks[i], as_bytes(std::get<ExportChunk>(records[i]).kv)});
  constexpr int attempts_max = 8;
  for (int attempt = 1;; ++attempt) {
    RECALLD_TRY(const MemoryInfo info, unchanged(current));
    const uint64_t encoded = info.encoded_chunks;
    if (encoded < first)
      return fail(ErrorKind::busy, "import memory " + in_quotes(info.name) + ": chunk " + std::to_string(encoded) +
                                       " is not there any more; begin again");
    const uint64_t present = std::min<uint64_t>(views.size(), encoded - first);
    if (present < views.size()) {
      const auto put = store_.put(info.serving, std::span(views).subspan(present), std::nullopt);
      // The encoder may have stored the same chunk just now.
      if (!put && put.error().kind == ErrorKind::busy && attempt < attempts_max) continue;
      RECALLD_CHECK(put);
    }
    reply.present += present;
    reply.imported += views.size() - present;
    return {};
  }
}

Expected<void> Transfer::take_states(Import& current, Records records, ImportReply& reply) {
  RECALLD_CHECK(enter(current, Phase::states));
  for (const ExportRecord& record : records) {
    const auto& [chunks, state] = std::get<ExportState>(record);
    const std::string which = "the state after chunk " + std::to_string(chunks);
    if (chunks <= current.state_chunks || chunks > current.chunks)
      return refuse(current.header.memory, which + " is out of order, or beyond the chunks");
    current.state_chunks = chunks;
    if (!current.takes_encodings) {
      ++reply.ignored;
      continue;
    }
    if (state.size() != options_.shape.state_bytes)
      return refuse(current.header.memory, which + " has " + std::to_string(state.size()) +
                                               " bytes, this model's have " +
                                               std::to_string(options_.shape.state_bytes));
    if (!finite_float(state)) return refuse(current.header.memory, which + " holds what is no finite number");
    RECALLD_TRY(const MemoryInfo info, unchanged(current));
    const auto there = [&]() -> Expected<bool> {
      RECALLD_TRY(const auto kept, store_.state(info.serving, chunks));
      return kept && kept->chunks == chunks;
    };
    RECALLD_TRY(bool known, there());
    if (known) {
      ++reply.present;
      continue;
    }
    RECALLD_CHECK(store_.put_state(info.serving, chunks, as_bytes(state)));
    RECALLD_TRY(known, there());  // not when a newer one is
    ++(known ? reply.imported : reply.ignored);
  }
  return {};
}

Expected<void> Transfer::end(const Import& current, const ExportEnd& end) {
  if (end.turns != current.turns || end.chunks != current.chunks)
    return refuse(current.header.memory, "its end record counts " + std::to_string(end.turns) + " turns and " +
                                             std::to_string(end.chunks) + " chunks, and there were " +
                                             std::to_string(current.turns) + " and " + std::to_string(current.chunks) +
                                             ": the file is not whole");
  RECALLD_CHECK(store_.restore_end(current.id, current.header.next_turn, current.header.updated_us));
  return {};
}

// ---- Imports that ended or were broken off

void Transfer::drop(const std::string& memory) {
  MemoryId id = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = imports_.find(memory);
    if (found == imports_.end()) return;
    id = found->second.id;
    imports_.erase(found);
  }
  options_.encode(id);
}

void Transfer::watch() {
  if (watching_ || stopped_) return;
  watching_ = true;
  timer_.expires_after(options_.idle_max);
  timer_.async_wait([this](boost::system::error_code) {
    std::vector<MemoryId> idle;
    {
      const std::lock_guard lock(mutex_);
      watching_ = false;
      if (stopped_) return;
      const auto now = std::chrono::steady_clock::now();
      bool more = false;
      for (auto& [name, current] : imports_) {
        if (!current.encoder_told && now - current.last_use >= options_.idle_max) {
          current.encoder_told = true;
          idle.push_back(current.id);
        }
        more = more || !current.encoder_told;
      }
      if (more) watch();
    }
    for (const MemoryId id : idle) options_.encode(id);
  });
}

void Transfer::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  timer_.cancel();
}

}  // namespace recalld
