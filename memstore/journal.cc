#include "memstore/journal.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "memstore/turn.h"

namespace recalld {
namespace {

// ---- Rows of `turns`

struct TurnRow {
  Turn turn;  // content: its first piece
  uint64_t first_token = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
};

std::string encode_turn(const Turn& turn, uint64_t first_token, uint64_t tokens) {
  std::string bytes;
  ByteWriter out(bytes);
  out.u8(static_cast<uint8_t>(turn.role));
  out.u8(turn.name.has_value());
  if (turn.name) out.text(*turn.name);
  out.u64(static_cast<uint64_t>(turn.time_us));
  out.varint(first_token);
  out.varint(tokens);
  out.text(turn.metadata);
  out.varint(turn.content.size());
  return bytes.append(turn.content, 0, content_piece_bytes);
}

std::optional<TurnRow> decode_turn(std::string_view bytes) {
  ByteReader in(bytes);
  TurnRow row;
  const uint8_t role = in.u8();
  if (role > static_cast<uint8_t>(Role::tool)) return std::nullopt;
  row.turn.role = static_cast<Role>(role);
  if (in.u8() != 0) row.turn.name = in.text();
  row.turn.time_us = static_cast<int64_t>(in.u64());
  row.first_token = in.varint();
  row.tokens = in.varint();
  row.turn.metadata = in.text();
  row.content_bytes = in.varint();
  if (!in.ok() || in.rest().size() != std::min<uint64_t>(row.content_bytes, content_piece_bytes)) return std::nullopt;
  row.turn.content = in.rest();
  return row;
}

// ---- Rows of `tokens`

struct TokenRun {
  uint64_t first_token = 0;
  uint64_t turn = 0;
  uint64_t first_byte = 0;  // in the turn's stream text
  uint64_t count = 0;
  std::string_view ids;      // count × u32
  std::string_view lengths;  // count × varint

  uint64_t end_token() const { return first_token + count; }

  void copy_ids(uint64_t from, uint64_t end, uint32_t* out) const {
    static_assert(std::endian::native == std::endian::little, "ids are copied as they lie on disk");
    std::memcpy(out, ids.data() + from * sizeof(uint32_t), (end - from) * sizeof(uint32_t));
  }
  // Where tokens [from, end) of the run lie in the stream text.
  std::pair<uint64_t, uint64_t> byte_range(uint64_t from, uint64_t end) const {
    ByteReader in(lengths);
    uint64_t at = first_byte;
    for (uint64_t i = 0; i < from; ++i) at += in.varint();
    const uint64_t start = at;
    for (uint64_t i = from; i < end; ++i) at += in.varint();
    return {start, at};
  }
};

std::string encode_run(uint64_t turn, uint64_t first_byte, std::span<const uint32_t> ids,
                       std::span<const uint32_t> ends) {
  std::string bytes;
  bytes.reserve(16 + ids.size() * 6);
  ByteWriter out(bytes);
  out.varint(turn);
  out.varint(first_byte);
  out.varint(ids.size());
  for (const uint32_t id : ids) out.u32(id);
  for (const uint32_t end : ends) {
    out.varint(end - first_byte);
    first_byte = end;
  }
  return bytes;
}

// The run borrows the bytes.
std::optional<TokenRun> decode_run(std::string_view key, std::string_view bytes) {
  ByteReader in(bytes);
  TokenRun run;
  run.first_token = number_of(key);
  run.turn = in.varint();
  run.first_byte = in.varint();
  run.count = in.varint();
  if (run.count == 0 || run.count > token_run_max) return std::nullopt;
  run.ids = in.take(run.count * sizeof(uint32_t));
  run.lengths = in.rest();
  return in.ok() ? std::optional(run) : std::nullopt;
}

Error damaged(std::string_view what, MemoryId id, uint64_t number) {
  return {ErrorKind::corrupt, "read " + std::string(what) + " " + std::to_string(number) + " of memory " +
                                  std::to_string(id) + ": its row is missing or no such row; run recall verify"};
}

// Walks the runs of a memory from the one that holds token `first` on, and calls use(run) until it returns false.
template <class Use>
Expected<void> for_each_run(const Catalog& catalog, MemoryId id, uint64_t first, Use use) {
  Catalog::Cursor rows = catalog.cursor(Family::tokens, row_key(id));
  RECALLD_TRY(bool found, rows.seek_before(row_key(id, first)));
  for (uint64_t expected = first;;) {
    const auto run = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
    if (!run || run->first_token > expected || run->end_token() <= expected)
      return std::unexpected(damaged("token", id, expected));
    if (!use(*run)) return {};
    expected = run->end_token();
    RECALLD_TRY(found, rows.next());
  }
}

// Whether no character begins at this byte.
bool continues(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

}  // namespace

// ---- Writing

void Journal::stage(MemoryId id, const Operation& operation, Catalog::Batch& batch) {
  std::string bytes;
  ByteWriter out(bytes);
  out.text(operation.id);
  bytes += as_text(operation.digest);
  out.varint(operation.reply.first_turn);
  out.varint(operation.reply.last_turn);
  out.varint(operation.reply.tokens);
  out.varint(operation.reply.end_token);
  batch.put(Family::operations, operation_key(id, operation.id), bytes);
}

void Journal::stage(MemoryId id, std::span<const NewTurn> turns, JournalRecord& memory, Catalog::Batch& batch) {
  for (const auto& [turn, ids, ends] : turns) {
    batch.put(Family::turns, row_key(id, memory.turns), encode_turn(turn, memory.tokens, ids.size()));
    const std::string_view content = turn.content;
    for (size_t from = content_piece_bytes, piece = 1; from < content.size(); from += content_piece_bytes, ++piece) {
      batch.put(Family::turns, row_key(id, memory.turns, static_cast<uint32_t>(piece)),
                content.substr(from, content_piece_bytes));
    }
    for (size_t from = 0; from < ids.size(); from += token_run_max) {
      const size_t count = std::min(token_run_max, ids.size() - from);
      batch.put(Family::tokens, row_key(id, memory.tokens + from),
                encode_run(memory.turns, from == 0 ? 0 : ends[from - 1], std::span(ids).subspan(from, count),
                           std::span(ends).subspan(from, count)));
    }
    ++memory.turns;
    memory.tokens += ids.size();
    memory.content_bytes += content.size();
  }
}

// ---- Reading

Expected<std::optional<Journal::Operation>> Journal::operation(MemoryId id, std::string_view operation_id) const {
  RECALLD_TRY(const auto bytes, catalog_.get(Family::operations, operation_key(id, operation_id)));
  if (!bytes) return std::nullopt;
  ByteReader in(*bytes);
  Operation operation;
  operation.id = in.text();
  const std::string_view digest = in.take(operation.digest.size());
  if (in.ok()) std::memcpy(operation.digest.data(), digest.data(), digest.size());
  operation.reply.id = id;
  operation.reply.first_turn = in.varint();
  operation.reply.last_turn = in.varint();
  operation.reply.tokens = in.varint();
  operation.reply.end_token = in.varint();
  operation.reply.repeated = true;
  if (!in.done())
    return fail(ErrorKind::corrupt,
                "read an operation of memory " + std::to_string(id) + ": no such row; run recall verify");
  return operation;
}

Expected<std::vector<StoredTurn>> Journal::turns(MemoryId id, uint64_t first, uint64_t end, size_t limit,
                                                 size_t bytes_max) const {
  std::vector<StoredTurn> turns;
  Catalog::Cursor rows = catalog_.cursor(Family::turns, row_key(id));
  RECALLD_TRY(bool found, rows.seek(row_key(id, first)));
  size_t bytes = 0;
  for (uint64_t number = first; number < end && turns.size() < limit && bytes <= bytes_max; ++number) {
    auto row = found && rows.key() == row_key(id, number) ? decode_turn(rows.value()) : std::nullopt;
    if (!row) return std::unexpected(damaged("turn", id, number));
    RECALLD_TRY(found, rows.next());
    for (uint32_t piece = 1; row->turn.content.size() < row->content_bytes; ++piece) {
      if (!found || rows.key() != row_key(id, number, piece)) return std::unexpected(damaged("turn", id, number));
      row->turn.content += rows.value();
      RECALLD_TRY(found, rows.next());
    }
    bytes += row->turn.content.size();
    turns.push_back({number, std::move(row->turn), row->first_token, row->tokens});
  }
  return turns;
}

Expected<std::vector<uint32_t>> Journal::tokens(MemoryId id, uint64_t first, uint64_t end) const {
  std::vector<uint32_t> ids(end - first);
  if (ids.empty()) return ids;
  uint64_t at = first;
  RECALLD_CHECK(for_each_run(catalog_, id, first, [&](const TokenRun& run) {
    const uint64_t until = std::min(end, run.end_token());
    run.copy_ids(at - run.first_token, until - run.first_token, ids.data() + (at - first));
    at = until;
    return at < end;
  }));
  return ids;
}

Expected<std::optional<uint64_t>> Journal::last_turn_within(MemoryId id, uint64_t end) const {
  std::optional<TokenRun> last;
  bool whole = false;
  Catalog::Cursor rows = catalog_.cursor(Family::tokens, row_key(id));
  RECALLD_TRY(bool found, rows.seek_before(row_key(id, end - 1)));
  if (found) last = decode_run(rows.key(), rows.value());
  if (!last || last->end_token() < end) return std::unexpected(damaged("token", id, end - 1));
  const uint64_t turn = last->turn;
  if (last->end_token() == end) {
    RECALLD_TRY(found, rows.next());
    const auto following = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
    whole = !following || following->turn != turn;
  }
  if (whole) return turn;
  return turn == 0 ? std::nullopt : std::optional(turn - 1);
}

Expected<Passage> Journal::passage(MemoryId id, uint64_t first, uint64_t end) const {
  struct Cut {
    uint64_t turn = 0;
    uint64_t from = 0;  // bytes of the turn's stream text
    uint64_t to = 0;
  };
  std::vector<Cut> cuts;  // one a turn
  uint64_t at = first;
  RECALLD_CHECK(for_each_run(catalog_, id, first, [&](const TokenRun& run) {
    const uint64_t until = std::min(end, run.end_token());
    const auto [from, to] = run.byte_range(at - run.first_token, until - run.first_token);
    if (cuts.empty() || cuts.back().turn != run.turn) cuts.push_back({run.turn, from, to});
    cuts.back().to = to;
    at = until;
    return at < end;
  }));

  Passage passage{.first_token = first, .end_token = end, .text = {}, .turns = {}};
  for (const Cut& cut : cuts) {
    RECALLD_TRY(const auto bytes, catalog_.get(Family::turns, row_key(id, cut.turn)));
    auto row = bytes ? decode_turn(*bytes) : std::nullopt;
    if (!row) return std::unexpected(damaged("turn", id, cut.turn));

    // The stream text around the cut: whole pieces of the content, the first of them beginning at byte `base`.
    const uint64_t prefix_bytes = turn_prefix(row->turn).size();
    const uint64_t text_bytes = prefix_bytes + row->content_bytes + 1;
    constexpr uint64_t character_bytes_max = 4;
    const uint64_t to_max = std::min(text_bytes, cut.to + character_bytes_max);
    std::string text;
    uint64_t base = 0;
    if (row->content_bytes <= content_piece_bytes) {
      text = stream_text(row->turn);
    } else {
      const auto piece_of = [&](uint64_t byte) {
        return byte <= prefix_bytes ? 0 : std::min(byte - prefix_bytes, row->content_bytes - 1) / content_piece_bytes;
      };
      const uint64_t first_piece = piece_of(cut.from);
      if (first_piece == 0) {
        text = turn_prefix(row->turn) + row->turn.content;
      } else {
        base = prefix_bytes + first_piece * content_piece_bytes;
      }
      for (uint64_t piece = std::max<uint64_t>(1, first_piece); piece <= piece_of(to_max - 1); ++piece) {
        RECALLD_TRY(const auto more, catalog_.get(Family::turns, row_key(id, cut.turn, static_cast<uint32_t>(piece))));
        if (!more) return std::unexpected(damaged("turn", id, cut.turn));
        text += *more;
      }
      if (to_max == text_bytes) text += '\n';
    }
    if (cut.from < base || cut.to < cut.from || base + text.size() < cut.to)
      return std::unexpected(damaged("turn", id, cut.turn));

    // A character that begins before the cut belongs to an earlier token; one that begins inside it, to the cut.
    const auto begin_of_next = [&](uint64_t byte) {
      while (byte - base < text.size() && continues(text[byte - base])) ++byte;
      return byte;
    };
    const uint64_t from = begin_of_next(cut.from);
    passage.text.append(text, from - base, begin_of_next(cut.to) - from);
    passage.turns.push_back({cut.turn, row->turn.role, std::move(row->turn.name), row->turn.time_us});
  }
  return passage;
}

}  // namespace recalld
