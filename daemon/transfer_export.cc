// Export: a memory as pages of records, with a cursor that says where the next page begins.
#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <tuple>
#include <utility>

#include "base/quote.h"
#include "daemon/transfer.h"

namespace recalld {
namespace {

constexpr size_t record_overhead_bytes = 256;  // of a record's names and numbers as JSON

size_t escaped_bytes(std::string_view text) {
  size_t bytes = 0;
  for (const char c : text) bytes += static_cast<unsigned char>(c) < 0x20 ? 6 : c == '"' || c == '\\' ? 2 : 1;
  return bytes;
}

// At most what a record takes as JSON; metadata is JSON already.
size_t wire_bytes(const StoredTurn& turn) {
  return record_overhead_bytes + escaped_bytes(turn.value.content) + escaped_bytes(turn.value.name.value_or("")) +
         2 * turn.value.metadata.size();
}
size_t wire_bytes(const StoredOperation& operation) {
  return record_overhead_bytes + escaped_bytes(operation.id);
}
size_t wire_bytes_of(size_t binary) {
  return record_overhead_bytes + (binary + 2) / 3 * 4;
}

// Where an export stands, and what it saw at its beginning: what it says later is bounded by that.
struct Cursor {
  enum Phase : uint64_t { turns, operations, chunks, states, end, phases };
  uint64_t phase = turns;
  uint64_t at = 0;  // turns: the next number; chunks: the next number; states: chunks of the last one
  uint64_t encodings = 0;
  uint64_t id = 0;
  uint64_t next_turn = 0;
  uint64_t stream = 0;
  uint64_t edition = 0;
  uint64_t chunks_end = 0;
  uint64_t turns_done = 0;
  uint64_t after_high = 0, after_low = 0;  // the hash of the last operation
  uint64_t after_any = 0;                  // whether there is one

  auto fields() {
    return std::tie(phase, at, encodings, id, next_turn, stream, edition, chunks_end, turns_done, after_high, after_low,
                    after_any);
  }
  std::string text() {
    std::string out;
    std::apply([&](auto... field) { ((out += (out.empty() ? "" : ".") + std::to_string(field)), ...); }, fields());
    return out;
  }
  static std::optional<Cursor> parse(std::string_view text) {
    Cursor cursor;
    bool ok = true, first = true;
    const auto take = [&](uint64_t& field) {
      if (!first && (text.empty() || text.front() != '.')) ok = false;
      if (!ok) return;
      if (!first) text.remove_prefix(1);
      first = false;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), field);
      ok = error == std::errc{};
      text.remove_prefix(static_cast<size_t>(end - text.data()));
    };
    std::apply([&](auto&... field) { (take(field), ...); }, cursor.fields());
    if (!ok || !text.empty() || cursor.phase >= phases) return std::nullopt;
    return cursor;
  }
  std::optional<Hash128> after() const {
    if (after_any == 0) return std::nullopt;
    return std::bit_cast<Hash128>(std::array{after_high, after_low});
  }
  void set_after(const Hash128& hash) {
    const auto words = std::bit_cast<std::array<uint64_t, 2>>(hash);
    after_high = words[0];
    after_low = words[1];
    after_any = 1;
  }
};

std::unexpected<Error> changed_meanwhile(const std::string& memory) {
  return fail(ErrorKind::busy, "export memory " + in_quotes(memory) +
                                   ": turns of it were forgotten meanwhile; begin again, or leave the encodings out");
}

// A page that is being filled.
struct Page {
  std::vector<ExportRecord> records;
  size_t limit = 0;
  size_t bytes = 0;

  bool full() const { return records.size() >= limit || bytes >= export_page_bytes; }
  // Whether there is room for a record of so many bytes; one alone always has.
  bool fits(size_t more) const {
    return records.size() < limit && (records.empty() || bytes + more <= export_page_bytes);
  }
  void add(ExportRecord record, size_t more) {
    records.push_back(std::move(record));
    bytes += more;
  }
};

Expected<void> add_turns(const Store& store, Cursor& cursor, Page& page) {
  while (!page.full()) {
    RECALLD_TRY(auto turns,
                store.turns(cursor.id, cursor.at, page.limit - page.records.size(), export_page_bytes - page.bytes));
    for (StoredTurn& turn : turns) {
      if (turn.turn >= cursor.next_turn) break;
      const size_t bytes = wire_bytes(turn);
      if (!page.fits(bytes)) return {};
      cursor.at = turn.turn + 1;
      ++cursor.turns_done;
      page.add(std::move(turn), bytes);
    }
    if (!turns.empty() && turns.back().turn + 1 < cursor.next_turn) continue;
    cursor.phase = Cursor::operations;
    return {};
  }
  return {};
}

Expected<void> add_operations(const Store& store, Cursor& cursor, Page& page) {
  while (!page.full()) {
    RECALLD_TRY(auto operations, store.operations(cursor.id, cursor.after(), page.limit - page.records.size()));
    for (StoredOperation& operation : operations) {
      const size_t bytes = wire_bytes(operation);
      if (!page.fits(bytes)) return {};
      cursor.set_after(hash128(as_bytes(operation.id)));
      if (operation.last_turn >= cursor.next_turn) continue;  // later than the header
      page.add(ExportOperation{std::move(operation.id), operation.digest, operation.first_turn, operation.last_turn,
                               operation.tokens},
               bytes);
    }
    if (!operations.empty()) continue;
    cursor.phase = cursor.encodings != 0 ? Cursor::chunks : Cursor::end;
    cursor.at = 0;
    return {};
  }
  return {};
}

Expected<void> add_chunks(const Store& store, const RecordShape& shape, Cursor& cursor, Page& page) {
  const size_t chunk_bytes = wire_bytes_of(shape.kv_bytes) + wire_bytes_of(shape.landmark_dim * sizeof(Bf16));
  while (cursor.at < cursor.chunks_end && page.fits(chunk_bytes)) {
    const size_t room =
        std::max<size_t>(1, (export_page_bytes - std::min(page.bytes, export_page_bytes)) / chunk_bytes);
    std::vector<uint64_t> chunks(std::min({page.limit - page.records.size(), room, cursor.chunks_end - cursor.at}));
    for (size_t i = 0; i < chunks.size(); ++i) chunks[i] = cursor.at + i;
    std::vector<std::byte> kv(chunks.size() * shape.kv_bytes);
    RECALLD_CHECK(store.fetch(cursor.id, chunks, kv));
    for (size_t i = 0; i < chunks.size(); ++i) {
      RECALLD_TRY(const auto landmark, store.landmark(cursor.id, chunks[i]));
      page.add(ExportChunk{chunks[i], std::string(as_text(std::as_bytes(std::span(landmark)))),
                           std::string(as_text(ByteView(kv).subspan(i * shape.kv_bytes, shape.kv_bytes)))},
               chunk_bytes);
    }
    cursor.at += chunks.size();
  }
  if (cursor.at < cursor.chunks_end) return {};
  cursor.phase = Cursor::states;
  cursor.at = 0;
  return {};
}

Expected<void> add_states(const Store& store, const RecordShape& shape, const StreamInfo& of, Cursor& cursor,
                          Page& page) {
  const size_t state_bytes = wire_bytes_of(shape.state_bytes);
  // One that no request can bring back is left out: it can be made again from the turns.
  if (state_bytes > export_state_bytes_max) {
    cursor.phase = Cursor::end;
    return {};
  }
  while (page.fits(state_bytes)) {
    RECALLD_TRY(auto state, store.next_state(of, cursor.at, cursor.chunks_end));
    if (!state) {
      cursor.phase = Cursor::end;
      return {};
    }
    cursor.at = state->chunks;
    page.add(ExportState{state->chunks, std::move(state->bytes)}, state_bytes);
  }
  return {};
}
}  // namespace

Expected<ExportReply> Transfer::export_page(const ExportRequest& request) const {
  RECALLD_TRY(const MemoryInfo memory, store_.memory(request.memory));
  Page page{.records = {}, .limit = std::max<size_t>(1, request.limit), .bytes = 0};
  Cursor cursor;
  if (request.after.empty()) {
    cursor.encodings = request.encodings ? 1 : 0;
    cursor.id = memory.id;
    cursor.next_turn = memory.next_turn;
    cursor.stream = memory.serving.stream;
    cursor.edition = memory.serving.edition;
    cursor.chunks_end = request.encodings ? memory.encoded_chunks : 0;
    page.add(ExportHeader{.memory = memory.name,
                          .created_us = memory.created_us,
                          .updated_us = memory.updated_us,
                          .next_turn = memory.next_turn,
                          .model_hash = request.encodings ? hex(options_.shape.model) : ""},
             record_overhead_bytes + memory.name.size());
  } else {
    const auto parsed = Cursor::parse(request.after);
    if (!parsed || parsed->id != memory.id || (parsed->encodings != 0) != request.encodings)
      return fail(ErrorKind::invalid_request,
                  "export memory " + in_quotes(request.memory) +
                      ": this cursor is of another export, or the memory was deleted and made again; begin again");
    cursor = *parsed;
  }
  StreamInfo of = memory.serving;
  of.stream = cursor.stream;
  of.edition = cursor.edition;
  const auto changed = [&](const MemoryInfo& now) {
    return request.encodings && (now.next || now.serving.stream != of.stream || now.serving.edition != of.edition);
  };
  if (changed(memory)) return changed_meanwhile(request.memory);

  const auto filled = [&]() -> Expected<void> {
    if (cursor.phase == Cursor::turns) RECALLD_CHECK(add_turns(store_, cursor, page));
    if (cursor.phase == Cursor::operations) RECALLD_CHECK(add_operations(store_, cursor, page));
    if (cursor.phase == Cursor::chunks) RECALLD_CHECK(add_chunks(store_, options_.shape, cursor, page));
    if (cursor.phase == Cursor::states) RECALLD_CHECK(add_states(store_, options_.shape, of, cursor, page));
    return {};
  }();
  // What was read may be of two generations.
  RECALLD_TRY(const MemoryInfo now, store_.memory(cursor.id));
  if (changed(now)) return changed_meanwhile(request.memory);
  RECALLD_CHECK(filled);

  ExportReply reply;
  if (cursor.phase == Cursor::end && page.fits(record_overhead_bytes))
    page.add(ExportEnd{cursor.turns_done, cursor.chunks_end}, record_overhead_bytes);
  else
    reply.next_after = cursor.text();
  reply.records = std::move(page.records);
  return reply;
}

}  // namespace recalld
