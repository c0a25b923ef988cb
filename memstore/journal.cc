#include "memstore/journal.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "base/bytes.h"
#include "memstore/row_walk.h"
#include "memstore/turn.h"

namespace recalld {
namespace {

// ---- Rows of `turns`

struct TurnRow {
  Turn turn;  // content: its first piece
  uint64_t first_position = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
};

std::string encode_turn(const Turn& turn, uint64_t first_position, uint64_t tokens) {
  std::string bytes;
  ByteWriter out(bytes);
  out.u8(static_cast<uint8_t>(turn.role));
  out.u8(turn.name.has_value());
  if (turn.name) out.text(*turn.name);
  out.u64(static_cast<uint64_t>(turn.time_us));
  out.varint(first_position);
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
  row.first_position = in.varint();
  row.tokens = in.varint();
  row.turn.metadata = in.text();
  row.content_bytes = in.varint();
  if (!in.ok() || in.rest().size() != std::min<uint64_t>(row.content_bytes, content_piece_bytes)) return std::nullopt;
  row.turn.content = in.rest();
  return row;
}

// ---- Rows of `tokens`

struct TokenRun {
  uint64_t first_position = 0;
  uint64_t turn = 0;
  uint64_t first_byte = 0;  // in the turn's stream text
  uint64_t count = 0;
  std::string_view ids;      // count × u32
  std::string_view lengths;  // count × varint

  uint64_t end_position() const { return first_position + count; }

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

void stage_runs(MemoryId id, uint64_t turn, uint64_t first_position, std::span<const uint32_t> ids,
                std::span<const uint32_t> ends, Catalog::Batch& batch) {
  for (size_t from = 0; from < ids.size(); from += token_run_max) {
    const size_t count = std::min(token_run_max, ids.size() - from);
    batch.put(Family::tokens, row_key(id, first_position + from),
              encode_run(turn, from == 0 ? 0 : ends[from - 1], ids.subspan(from, count), ends.subspan(from, count)));
  }
}

// The run borrows the bytes.
std::optional<TokenRun> decode_run(std::string_view key, std::string_view bytes) {
  ByteReader in(bytes);
  TokenRun run;
  run.first_position = number_of(key);
  run.turn = in.varint();
  run.first_byte = in.varint();
  run.count = in.varint();
  if (run.count == 0 || run.count > token_run_max) return std::nullopt;
  run.ids = in.take(run.count * sizeof(uint32_t));
  run.lengths = in.rest();
  return in.ok() ? std::optional(run) : std::nullopt;
}

std::optional<Journal::Operation> decode_operation(std::string_view bytes) {
  ByteReader in(bytes);
  Journal::Operation operation;
  operation.id = in.text();
  const std::string_view digest = in.take(operation.digest.size());
  if (in.ok()) std::memcpy(operation.digest.data(), digest.data(), digest.size());
  operation.reply.first_turn = in.varint();
  operation.reply.last_turn = in.varint();
  operation.reply.tokens = in.varint();
  operation.reply.end_token = in.varint();
  return in.done() ? std::optional(std::move(operation)) : std::nullopt;
}

Error damaged(std::string_view what, MemoryId id, uint64_t number) {
  return {ErrorKind::corrupt, "read " + std::string(what) + " " + std::to_string(number) + " of memory " +
                                  std::to_string(id) + ": its row is missing or no such row; run recall verify"};
}

// Walks the runs of a memory from the one that holds token `first` on, and calls use(run, token), with the number of
// the run's first token that is meant, until it returns false. Tokens that are being forgotten have no run any more:
// forgotten(token) is told where they begin, and ends the walk by returning false.
template <class Use, class Forgotten>
Expected<void> for_each_run(const Catalog& catalog, MemoryId id, const Gaps& gaps, const Gaps& journal_gaps,
                            uint64_t first, uint64_t end, Use use, Forgotten forgotten) {
  Catalog::Cursor rows = catalog.cursor(Family::tokens, row_key(id));
  RECALLD_TRY(bool found, rows.seek_before(row_key(id, gaps.position_of(first))));
  if (!found) {
    RECALLD_TRY(found, rows.first());
  }
  for (uint64_t token = first; token < end;) {
    const uint64_t position = gaps.position_of(token);
    auto run = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
    if (found && !run) return std::unexpected(damaged("token", id, token));
    if (run && run->end_position() <= position) {  // only the first one can be: it stands before what is forgotten
      RECALLD_TRY(found, rows.next());
      run = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
      if (found && !run) return std::unexpected(damaged("token", id, token));
    }
    if (run && run->first_position <= position) {
      if (!use(*run, token)) return {};
      token = gaps.token_of(run->end_position());
      RECALLD_TRY(found, rows.next());
      continue;
    }
    // Nothing between here and the next run may be there still.
    const uint64_t until =
        run ? std::min(run->first_position, gaps.position_of(end - 1) + 1) : gaps.position_of(end - 1) + 1;
    if (journal_gaps.token_of(position) != journal_gaps.token_of(until))
      return std::unexpected(damaged("token", id, token));
    if (!forgotten(token)) return {};
    token = gaps.token_of(until);
  }
  return {};
}

Expected<Journal::Operation> read_operation(MemoryId id, std::string_view bytes) {
  auto operation = decode_operation(bytes);
  if (!operation)
    return fail(ErrorKind::corrupt,
                "read an operation of memory " + std::to_string(id) + ": no such row; run recall verify");
  operation->reply.id = id;
  operation->reply.repeated = true;
  return *std::move(operation);
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
  for (const NewTurn& next : turns) {
    const auto& [turn, ids, ends, number] = next;
    memory.next_turn = number.value_or(memory.next_turn);
    batch.put(Family::turns, row_key(id, memory.next_turn), encode_turn(turn, memory.next_position, ids.size()));
    const std::string_view content = turn.content;
    for (size_t from = content_piece_bytes, piece = 1; from < content.size(); from += content_piece_bytes, ++piece) {
      batch.put(Family::turns, row_key(id, memory.next_turn, static_cast<uint32_t>(piece)),
                content.substr(from, content_piece_bytes));
    }
    stage_runs(id, memory.next_turn, memory.next_position, ids, ends, batch);
    ++memory.next_turn;
    ++memory.turns;
    memory.next_position += ids.size();
    memory.content_bytes += content.size();
  }
}

// ---- Reading

Expected<std::optional<Journal::Operation>> Journal::operation(MemoryId id, std::string_view operation_id) const {
  RECALLD_TRY(const auto bytes, catalog_.get(Family::operations, operation_key(id, operation_id)));
  if (!bytes) return std::nullopt;
  return read_operation(id, *bytes);
}

Expected<std::vector<StoredOperation>> Journal::operations(MemoryId id, const std::optional<Hash128>& after,
                                                           size_t limit) const {
  std::vector<StoredOperation> operations;
  Catalog::Cursor rows = catalog_.cursor(Family::operations, row_key(id));
  // A zero byte behind the key of that one makes the next key that there can be.
  RECALLD_TRY(bool found, after ? rows.seek((row_key(id) += as_text(*after)) += '\0') : rows.first());
  while (found && operations.size() < limit) {
    RECALLD_TRY(Operation each, read_operation(id, rows.value()));
    operations.push_back(
        {std::move(each.id), each.digest, each.reply.first_turn, each.reply.last_turn, each.reply.tokens});
    RECALLD_TRY(found, rows.next());
  }
  return operations;
}

Expected<std::vector<StoredTurn>> Journal::turns(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps,
                                                 uint64_t first, uint64_t end, uint64_t end_position, size_t limit,
                                                 size_t bytes_max) const {
  std::vector<StoredTurn> turns;
  Catalog::Cursor rows = catalog_.cursor(Family::turns, row_key(id));
  size_t bytes = 0;
  // Numbers that are left out must be those of forgotten turns: no token that counts may lie between two neighbours.
  std::optional<uint64_t> position;  // where the next turn's tokens begin
  if (first == 0) position = 0;
  RECALLD_TRY(bool found, rows.seek(row_key(id, first)));
  for (uint64_t number = first; number < end && turns.size() < limit && bytes <= bytes_max; ++number) {
    if (!found) {
      if (position && journal_gaps.token_of(*position) != journal_gaps.token_of(end_position))
        return std::unexpected(damaged("turn", id, number));
      break;
    }
    auto row = rows.key().size() == row_key(id, number).size() ? decode_turn(rows.value()) : std::nullopt;
    const uint64_t there = number_of(rows.key());
    if (!row) return std::unexpected(damaged("turn", id, there));
    if (position && journal_gaps.token_of(*position) != journal_gaps.token_of(row->first_position))
      return std::unexpected(damaged("turn", id, number));
    if (there >= end) break;
    number = there;
    position = row->first_position + row->tokens;
    RECALLD_TRY(found, rows.next());
    for (uint32_t piece = 1; row->turn.content.size() < row->content_bytes; ++piece) {
      if (!found || rows.key() != row_key(id, number, piece)) return std::unexpected(damaged("turn", id, number));
      row->turn.content += rows.value();
      RECALLD_TRY(found, rows.next());
    }
    bytes += row->turn.content.size();
    const uint64_t first_token = gaps.token_of(row->first_position);
    turns.push_back({number, std::move(row->turn), first_token, row->tokens});
  }
  return turns;
}

Expected<std::vector<uint32_t>> Journal::tokens(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps, uint64_t first,
                                                uint64_t end) const {
  std::vector<uint32_t> ids(end - first);
  bool forgotten = false;
  RECALLD_CHECK(for_each_run(
      catalog_, id, gaps, journal_gaps, first, end,
      [&](const TokenRun& run, uint64_t token) {
        const uint64_t from = gaps.position_of(token) - run.first_position;
        const uint64_t until = std::min(run.count, from + (end - token));
        run.copy_ids(from, until, ids.data() + (token - first));
        return true;
      },
      [&](uint64_t) {
        forgotten = true;
        return false;
      }));
  if (forgotten)
    return fail(ErrorKind::busy, "read tokens " + std::to_string(first) + " to " + std::to_string(end) + " of memory " +
                                     std::to_string(id) +
                                     ": some of them are being forgotten; ask again when that is done");
  return ids;
}

Expected<std::optional<uint64_t>> Journal::last_turn_within(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps,
                                                            uint64_t end) const {
  const uint64_t position = gaps.position_of(end - 1);
  Catalog::Cursor rows = catalog_.cursor(Family::tokens, row_key(id));
  RECALLD_TRY(bool found, rows.seek_before(row_key(id, position)));
  const uint64_t expected = journal_gaps.token_of(position + 1);  // of the journal's tokens up to there
  if (!found && expected == 0) return std::nullopt;
  auto last = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
  if (!last || journal_gaps.token_of(last->end_position()) < expected)
    return std::unexpected(damaged("token", id, end - 1));
  const uint64_t turn = last->turn;
  if (last->end_position() <= position + 1) {
    RECALLD_TRY(found, rows.next());
    const auto following = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
    if (!following || following->turn != turn) return turn;
  }
  // The turn goes on behind `end`: the one before it is meant.
  RECALLD_TRY(const auto row, catalog_.get(Family::turns, row_key(id, turn)));
  const auto whole = row ? decode_turn(*row) : std::nullopt;
  if (!whole) return std::unexpected(damaged("turn", id, turn));
  if (whole->first_position == 0) return std::nullopt;
  RECALLD_TRY(found, rows.seek_before(row_key(id, whole->first_position - 1)));
  last = found ? decode_run(rows.key(), rows.value()) : std::nullopt;
  if (found && !last) return std::unexpected(damaged("token", id, end - 1));
  return last ? std::optional(last->turn) : std::nullopt;
}

Expected<Passage> Journal::passage(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps, uint64_t first,
                                   uint64_t end) const {
  struct Cut {
    uint64_t turn = 0;
    uint64_t from = 0;  // bytes of the turn's stream text
    uint64_t to = 0;
  };
  std::vector<Cut> cuts;  // one a turn
  RECALLD_CHECK(for_each_run(
      catalog_, id, gaps, journal_gaps, first, end,
      [&](const TokenRun& run, uint64_t token) {
        const uint64_t in_run = gaps.position_of(token) - run.first_position;
        const auto [from, to] = run.byte_range(in_run, std::min(run.count, in_run + (end - token)));
        if (cuts.empty() || cuts.back().turn != run.turn) cuts.push_back({run.turn, from, to});
        cuts.back().to = to;
        return true;
      },
      [](uint64_t) { return true; }));

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

// ---- Removing

Expected<Journal::Removal> Journal::find(MemoryId id, std::span<const TurnRange> ranges) const {
  Removal removal;
  Catalog::Cursor rows = catalog_.cursor(Family::turns, row_key(id));
  for (const TurnRange& range : ranges) {
    RECALLD_TRY(bool found, rows.seek(row_key(id, range.first)));
    while (found) {
      const uint64_t number = number_of(rows.key());
      if (number > range.last) break;
      const auto row = decode_turn(rows.value());
      if (!row) return std::unexpected(damaged("turn", id, number));
      const bool follows = !removal.turns.empty() && removal.turns.back().last + 1 == number &&
                           removal.gaps.back().end() == row->first_position;
      if (follows) {
        removal.turns.back().last = number;
        removal.gaps.back().tokens += row->tokens;
      } else {
        removal.turns.push_back({number, number});
        removal.gaps.push_back({row->first_position, row->tokens});
      }
      ++removal.turn_count;
      removal.content_bytes += row->content_bytes;
      RECALLD_TRY(found, rows.seek(row_key(id, number + 1)));
    }
  }
  return removal;
}

void Journal::stage(MemoryId id, const Removal& removal, Catalog::Batch& batch) {
  for (const TurnRange& range : removal.turns)
    batch.remove_range(Family::turns, row_key(id, range.first), row_key(id, range.last + 1));
  for (const Gaps::Gap& gap : removal.gaps)
    batch.remove_range(Family::tokens, row_key(id, gap.position), row_key(id, gap.end()));
}

// ---- Verifying

namespace {

constexpr std::string_view from_backup = "; restore it from a backup";

Problem problem(std::string_view part, uint64_t first, uint64_t last, std::string message, bool repairable = false) {
  return {.id = 0,
          .memory = {},
          .part = std::string(part),
          .first = first,
          .last = last,
          .message = std::move(message),
          .repairable = repairable,
          .repaired = false};
}

// What the rows say of a turn.
struct SeenTurn {
  uint64_t number = 0;
  uint64_t first_position = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
  uint64_t text_bytes = 0;  // of its stream text
  uint64_t read_bytes = 0;  // of its content
  bool whole = true;

  uint64_t end_position() const { return first_position + tokens; }
};

struct SeenRun {
  uint64_t count = 0;
  uint64_t turn = 0;
  uint64_t first_byte = 0;
  uint64_t bytes = 0;
  bool used = false;
};

// One stretch of a memory's turns and their tokens.
class Stretch {
 public:
  Stretch(const Catalog& catalog, MemoryId id, const JournalRecord& memory, const Gaps& gaps, const Gaps& journal_gaps)
      : catalog_(catalog), id_(id), memory_(memory), gaps_(gaps), journal_gaps_(journal_gaps) {}

  Journal::Checked check(Journal::Place from, size_t turns_max) {
    read_turns(from, turns_max);
    end_position_ = checked_.next ? turns_.back().end_position() : UINT64_MAX;
    read_runs(from.position);
    if (checked_.next) checked_.next->position = end_position_;

    uint64_t position = from.position;
    uint64_t number = from.turn;  // that may come next
    for (const SeenTurn& turn : turns_) {
      compare_hole(position, turn.first_position, number, turn.number);
      compare_runs(turn);
      position = turn.end_position();
      number = turn.number + 1;
    }
    const uint64_t end = checked_.next ? end_position_ : memory_.next_position;
    compare_hole(position, std::max(position, end), number, checked_.next ? checked_.next->turn : memory_.next_turn);
    for (const auto& [at, message] : bad_runs_) tokens_problem(at, at + 1, message, std::nullopt);
    for (const auto& [at, run] : runs_) {
      if (!run.used)
        tokens_problem(at, at + run.count, "a row of them stands where none belongs", std::optional(run.turn));
    }
    return std::move(checked_);
  }

 private:
  void read_turns(Journal::Place from, size_t turns_max) {
    std::optional<uint64_t> current;  // whose rows are being read
    uint32_t pieces = 0;
    const auto spoil = [&](uint64_t number, std::string message) {
      checked_.counted = false;
      if (damaged_.insert(number).second)
        checked_.problems.push_back(problem("turn", number, number, message += from_backup));
      if (!turns_.empty() && turns_.back().number == number) turns_.back().whole = false;
    };
    const auto finish = [&] {
      if (turns_.empty() || current != turns_.back().number || !turns_.back().whole) return;
      if (turns_.back().read_bytes != turns_.back().content_bytes)
        spoil(turns_.back().number, "part of its content is missing");
    };
    walk_rows(
        catalog_, Family::turns, id_, from.turn, UINT64_MAX,
        [&](uint64_t number, std::string_view key, const Expected<std::string_view>& value) {
          if (current != number) {
            finish();
            // A stretch ends behind a turn of which it is known where its tokens end.
            if (turns_.size() >= turns_max && current == turns_.back().number) {
              checked_.next = {.turn = number, .position = 0};
              return false;
            }
            current = number;
            pieces = 0;
            ++checked_.turns;
            if (number >= memory_.next_turn) {
              spoil(number, "it stands behind the memory's last turn");
              return true;
            }
            if (key.size() != row_key(0, 0).size()) {
              spoil(number, "its first row is missing");
              return true;
            }
            const auto row = value ? decode_turn(*value) : std::nullopt;
            if (!row) {
              spoil(number, value ? "its row is no turn" : "its row does not match its checksum");
              return true;
            }
            checked_.bytes += value->size();
            const bool in_order =
                row->first_position >= (turns_.empty() ? from.position : turns_.back().end_position());
            if (!in_order || row->first_position + row->tokens > memory_.next_position || row->tokens == 0) {
              spoil(number, "its tokens are those of another turn");
              return true;
            }
            checked_.content_bytes += row->content_bytes;
            turns_.push_back({.number = number,
                              .first_position = row->first_position,
                              .tokens = row->tokens,
                              .content_bytes = row->content_bytes,
                              .text_bytes = turn_prefix(row->turn).size() + row->content_bytes + 1,
                              .read_bytes = row->turn.content.size()});
            return true;
          }
          if (damaged_.contains(number)) return true;
          SeenTurn& turn = turns_.back();
          if (!value) {
            spoil(number, "part of its content does not match its checksum");
            return true;
          }
          checked_.bytes += value->size();
          const uint64_t wanted = std::min<uint64_t>(content_piece_bytes, turn.content_bytes - turn.read_bytes);
          if (key != row_key(id_, number, ++pieces) || value->size() != wanted)
            spoil(number, "part of its content is missing or not its own");
          else
            turn.read_bytes += value->size();
          return true;
        },
        [&](uint64_t number, const Error& error) {
          checked_.counted = false;
          if (number < memory_.next_turn) unlisted_turns_.push_back({number, error.message});
          return number < memory_.next_turn ? number + 1 : UINT64_MAX;
        });
    if (!checked_.next) finish();
    // Numbers that cannot be listed may be those of forgotten turns: the tokens will tell.
  }

  void read_runs(uint64_t first) {
    walk_rows(
        catalog_, Family::tokens, id_, first, end_position_,
        [&](uint64_t position, std::string_view key, const Expected<std::string_view>& value) {
          const auto run = value && key.size() == row_key(0, 0).size() ? decode_run(key, *value) : std::nullopt;
          if (!run) {
            bad_runs_[position] = value ? "a row of them is no such row" : "a row of them does not match its checksum";
            return true;
          }
          checked_.bytes += value->size();
          ByteReader lengths(run->lengths);
          uint64_t bytes = 0;
          for (uint64_t i = 0; i < run->count; ++i) bytes += lengths.varint();
          if (lengths.done())
            runs_[position] = {.count = run->count, .turn = run->turn, .first_byte = run->first_byte, .bytes = bytes};
          else
            bad_runs_[position] = "a row of them is no such row";
          return true;
        },
        [&](uint64_t position, const Error& error) {
          unlisted_runs_ = error.message;
          // Where the next row of a turn that is known begins.
          const auto turn = std::ranges::upper_bound(turns_, position, {}, &SeenTurn::end_position);
          if (turn == turns_.end()) return end_position_;
          if (turn->first_position > position) return turn->first_position;
          const uint64_t run =
              turn->first_position + ((position - turn->first_position) / token_run_max + 1) * token_run_max;
          return std::min(run, turn->end_position());
        });
  }

  void tokens_problem(uint64_t from, uint64_t end, std::string message, std::optional<uint64_t> turn,
                      bool repairable = false) {
    message += turn ? " (turn " + std::to_string(*turn) + ")" : std::string();
    message += repairable ? "; recall verify --repair makes them again" : from_backup;
    const uint64_t first = gaps_.token_of(from);
    checked_.problems.push_back(problem("tokens", first,
                                        std::max(first, gaps_.token_of(end) - (gaps_.token_of(end) > first ? 1 : 0)),
                                        std::move(message), repairable));
  }

  // Nothing that is there says why the tokens from `begin` on cannot be had.
  std::string why(uint64_t begin, uint64_t end) {
    const auto bad = bad_runs_.lower_bound(begin);
    if (bad != bad_runs_.end() && bad->first < end) return bad->second;
    return unlisted_runs_.empty() ? "a row of them is missing" : "their rows cannot be read: " + unlisted_runs_;
  }

  // The tokens of a turn whose row is there.
  void compare_runs(const SeenTurn& turn) {
    if (journal_gaps_.token_of(turn.end_position()) - journal_gaps_.token_of(turn.first_position) != turn.tokens)
      checked_.problems.push_back(
          problem("turn", turn.number, turn.number, "it was forgotten, and is there again; forget it again"));
    bool broken = false;
    uint64_t byte = 0;
    for (uint64_t at = turn.first_position; at < turn.end_position();) {
      const auto run = runs_.find(at);
      if (run != runs_.end() && run->second.turn == turn.number && run->second.first_byte == byte &&
          at + run->second.count <= turn.end_position()) {
        run->second.used = true;
        byte += run->second.bytes;
        at += run->second.count;
        continue;
      }
      // Up to the next row that belongs to it.
      auto next = runs_.upper_bound(at);
      while (next != runs_.end() && next->first < turn.end_position() && next->second.turn != turn.number) ++next;
      const bool more = next != runs_.end() && next->first < turn.end_position();
      const uint64_t end = more ? next->first : turn.end_position();
      std::string message = why(at, end);
      if (run != runs_.end()) {
        run->second.used = true;
        message = "a row of them is not theirs";
      }
      bad_runs_.erase(bad_runs_.lower_bound(at), bad_runs_.lower_bound(end));
      tokens_problem(at, end, std::move(message), turn.number, turn.whole);
      broken = true;
      if (more) byte = next->second.first_byte;
      at = end;
    }
    if (!broken && byte != turn.text_bytes) {
      tokens_problem(turn.first_position, turn.end_position(), "they do not cover the text of their turn", turn.number,
                     turn.whole);
      broken = true;
    }
    if (broken && turn.whole) checked_.untokenised.push_back(turn.number);
  }

  // Positions [from, end) that belong to no turn that is there; `first` and `after` bound the turns they could be of.
  void compare_hole(uint64_t from, uint64_t end, uint64_t first, uint64_t after) {
    const uint64_t missing = journal_gaps_.token_of(end) - journal_gaps_.token_of(from);
    uint64_t covered = 0;
    bool told = false;
    for (auto number = damaged_.lower_bound(first); number != damaged_.end() && *number < after; ++number) told = true;
    for (auto run = runs_.lower_bound(from); run != runs_.end() && run->first < end; ++run) {
      const uint64_t counts =
          journal_gaps_.token_of(run->first + run->second.count) - journal_gaps_.token_of(run->first);
      if (counts == 0) continue;  // forgotten: it is reported as one too many
      run->second.used = true;
      covered += counts;
      told = true;
      const uint64_t number = run->second.turn;
      if (damaged_.insert(number).second) {
        checked_.counted = false;
        const bool unlisted = std::ranges::find(unlisted_turns_, number, &Unlisted::number) != unlisted_turns_.end();
        checked_.problems.push_back(
            problem("turn", number, number,
                    (unlisted ? "its row cannot be read" : "its row is missing") + std::string(from_backup)));
      }
    }
    if (missing == 0) return;
    if (covered < missing && told) {
      tokens_problem(from, end, why(from, end), std::nullopt);
      bad_runs_.erase(bad_runs_.lower_bound(from), bad_runs_.lower_bound(end));
    }
    if (told) return;
    std::optional<TurnRange> turns;
    if (after > first) turns = TurnRange{first, after - 1};
    bad_runs_.erase(bad_runs_.lower_bound(from), bad_runs_.lower_bound(end));
    checked_.holes.push_back({{from, end - from}, turns});
  }

  struct Unlisted {
    uint64_t number = 0;
    std::string message;
  };

  const Catalog& catalog_;
  const MemoryId id_;
  const JournalRecord& memory_;
  const Gaps& gaps_;
  const Gaps& journal_gaps_;
  Journal::Checked checked_;
  std::vector<SeenTurn> turns_;  // of which it is known where their tokens are
  std::set<uint64_t> damaged_;
  std::vector<Unlisted> unlisted_turns_;
  std::map<uint64_t, SeenRun> runs_;  // by position
  std::map<uint64_t, std::string> bad_runs_;
  std::string unlisted_runs_;  // why some rows of tokens cannot be listed
  uint64_t end_position_ = 0;
};

}  // namespace

Journal::Checked Journal::check(MemoryId id, const JournalRecord& memory, const Gaps& gaps, const Gaps& journal_gaps,
                                Place from, size_t turns_max) const {
  return Stretch(catalog_, id, memory, gaps, journal_gaps).check(from, turns_max);
}

Journal::CheckedOperations Journal::check_operations(MemoryId id, const JournalRecord& memory) const {
  CheckedOperations checked;
  const auto spoil = [&](std::string message) {
    checked.problems.push_back(problem("operation", checked.operations, checked.operations, message += from_backup));
  };
  walk_rows(
      catalog_, Family::operations, id, 0, UINT64_MAX,
      [&](uint64_t, std::string_view key, const Expected<std::string_view>& value) {
        const auto row = value ? decode_operation(*value) : std::nullopt;
        if (!row)
          spoil(value ? "its row is no operation" : "its row does not match its checksum");
        else if (operation_key(id, row->id) != key || row->reply.last_turn >= memory.next_turn)
          spoil("its row is that of another operation");
        ++checked.operations;
        return true;
      },
      [&](uint64_t number, const Error& error) {
        if (checked.counted) spoil("rows of operations cannot be read: " + error.message);
        checked.counted = false;
        constexpr uint64_t step = uint64_t{1} << 56;  // keys are hashes, spread evenly
        return number / step == UINT64_MAX / step ? UINT64_MAX : (number / step + 1) * step;
      });
  return checked;
}

Expected<StoredTurn> Journal::turn(MemoryId id, const Gaps& gaps, uint64_t number) const {
  RECALLD_TRY(const auto bytes, catalog_.get(Family::turns, row_key(id, number)));
  auto row = bytes ? decode_turn(*bytes) : std::nullopt;
  if (!row) return std::unexpected(damaged("turn", id, number));
  for (uint32_t piece = 1; row->turn.content.size() < row->content_bytes; ++piece) {
    RECALLD_TRY(const auto more, catalog_.get(Family::turns, row_key(id, number, piece)));
    if (!more) return std::unexpected(damaged("turn", id, number));
    row->turn.content += *more;
  }
  const uint64_t first_token = gaps.token_of(row->first_position);
  return StoredTurn{number, std::move(row->turn), first_token, row->tokens};
}

void Journal::stage_tokens(MemoryId id, uint64_t turn, uint64_t first_position, std::span<const uint32_t> ids,
                           std::span<const uint32_t> ends, Catalog::Batch& batch) {
  batch.remove_range(Family::tokens, row_key(id, first_position), row_key(id, first_position + ids.size()));
  stage_runs(id, turn, first_position, ids, ends, batch);
}

}  // namespace recalld
