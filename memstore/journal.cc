#include "memstore/journal.h"

#include <algorithm>
#include <utility>

#include "memstore/journal_rows.h"

namespace recalld {
namespace {

void stage_runs(MemoryId id, uint64_t turn, uint64_t first_position, std::span<const uint32_t> ids,
                std::span<const uint32_t> ends, Catalog::Batch& batch) {
  for (size_t from = 0; from < ids.size(); from += token_run_max) {
    const size_t count = std::min(token_run_max, ids.size() - from);
    batch.put(Family::tokens, row_key(id, first_position + from),
              encode_run(turn, from == 0 ? 0 : ends[from - 1], ids.subspan(from, count), ends.subspan(from, count)));
  }
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

// Part of a turn's stream text.
struct TextPart {
  std::string text;
  uint64_t base = 0;  // its first byte
};

// The text of a turn from byte `from`, or before, up to byte `to`, or behind, or to its end. It is whole pieces of the
// content.
Expected<TextPart> text_around(const Catalog& catalog, MemoryId id, uint64_t turn, const TurnRow& row, uint64_t from,
                               uint64_t to) {
  if (row.content_bytes <= content_piece_bytes) return TextPart{stream_text(row.turn), 0};
  const uint64_t prefix_bytes = turn_prefix(row.turn).size();
  const uint64_t text_bytes = prefix_bytes + row.content_bytes + 1;
  const uint64_t end = std::min(text_bytes, to);
  const auto piece_of = [&](uint64_t byte) {
    return byte <= prefix_bytes ? 0 : std::min(byte - prefix_bytes, row.content_bytes - 1) / content_piece_bytes;
  };
  TextPart part;
  const uint64_t first_piece = piece_of(from);
  if (first_piece == 0)
    part.text = turn_prefix(row.turn) + row.turn.content;
  else
    part.base = prefix_bytes + first_piece * content_piece_bytes;
  for (uint64_t piece = std::max<uint64_t>(1, first_piece); end > 0 && piece <= piece_of(end - 1); ++piece) {
    RECALLD_TRY(const auto more, catalog.get(Family::turns, row_key(id, turn, static_cast<uint32_t>(piece))));
    if (!more) return std::unexpected(damaged("turn", id, turn));
    part.text += *more;
  }
  if (end == text_bytes) part.text += '\n';
  return part;
}

// Whether no character begins at this byte.
bool continues(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

}  // namespace

// ---- Writing
void Journal::stage(MemoryId id, const Operation& operation, Catalog::Batch& batch) {
  batch.put(Family::operations, operation_key(id, operation.id), encode_operation(operation));
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
                                   uint64_t end, std::vector<size_t>* token_ends) const {
  struct Cut {
    uint64_t turn = 0;
    uint64_t from = 0;  // bytes of the turn's stream text
    uint64_t to = 0;
    std::vector<std::pair<uint64_t, uint64_t>> ends = {};  // tokens, and where they end, when that is asked for
  };
  std::vector<Cut> cuts;  // one a turn
  RECALLD_CHECK(for_each_run(
      catalog_, id, gaps, journal_gaps, first, end,
      [&](const TokenRun& run, uint64_t token) {
        const uint64_t in_run = gaps.position_of(token) - run.first_position;
        const auto [from, to] = run.byte_range(in_run, std::min(run.count, in_run + (end - token)));
        if (cuts.empty() || cuts.back().turn != run.turn) cuts.push_back({run.turn, from, to});
        cuts.back().to = to;
        if (token_ends == nullptr) return true;
        ByteReader lengths(run.lengths);
        uint64_t at = run.first_byte;
        for (uint64_t i = 0; i < std::min(run.count, in_run + (end - token)); ++i) {
          at += lengths.varint();
          if (i >= in_run) cuts.back().ends.emplace_back(token + (i - in_run), at);
        }
        return true;
      },
      [](uint64_t) { return true; }));

  Passage passage{.first_token = first, .end_token = end, .text = {}, .turns = {}};
  if (token_ends != nullptr) token_ends->assign(end - first, 0);
  for (const Cut& cut : cuts) {
    RECALLD_TRY(const auto bytes, catalog_.get(Family::turns, row_key(id, cut.turn)));
    auto row = bytes ? decode_turn(*bytes) : std::nullopt;
    if (!row) return std::unexpected(damaged("turn", id, cut.turn));

    constexpr uint64_t character_bytes_max = 4;
    RECALLD_TRY(const TextPart part, text_around(catalog_, id, cut.turn, *row, cut.from, cut.to + character_bytes_max));
    const auto& [text, base] = part;
    if (cut.from < base || cut.to < cut.from || base + text.size() < cut.to)
      return std::unexpected(damaged("turn", id, cut.turn));

    // A character that begins before the cut belongs to an earlier token; one that begins inside it, to the cut.
    const auto begin_of_next = [&](uint64_t byte) {
      while (byte - base < text.size() && continues(text[byte - base])) ++byte;
      return byte;
    };
    const uint64_t from = begin_of_next(cut.from);
    for (const auto& [token, byte] : cut.ends) {
      if (byte < cut.from || byte > cut.to) return std::unexpected(damaged("token", id, token));
      (*token_ends)[token - first] = passage.text.size() + (std::max(from, begin_of_next(byte)) - from);
    }
    const uint64_t to = begin_of_next(cut.to), text_end = turn_prefix(row->turn).size() + row->content_bytes;
    passage.text.append(text, from - base, to - from);
    passage.turns.push_back({.turn = cut.turn,
                             .role = row->turn.role,
                             .name = std::move(row->turn.name),
                             .time_us = row->turn.time_us,
                             .cut_before = from > 0,
                             .cut_after = to < text_end});
  }
  // A token without a run is being forgotten: it has nothing of the text.
  for (size_t i = 1; token_ends != nullptr && i < token_ends->size(); ++i)
    (*token_ends)[i] = std::max((*token_ends)[i], (*token_ends)[i - 1]);
  return passage;
}

Expected<std::vector<ChunkWords>> Journal::words(MemoryId id, const Gaps& gaps, const Gaps& journal_gaps,
                                                 uint64_t chunk, uint64_t end, WordReader& reader) const {
  struct Piece {
    size_t chunk = 0;   // counted from the first
    uint64_t from = 0;  // bytes of the turn's stream text
    uint64_t to = 0;
  };
  struct Part {
    uint64_t turn = 0;
    std::vector<Piece> pieces;
  };
  std::vector<Part> parts;
  const uint64_t first = chunk * chunk_tokens;
  if (end <= first) return std::vector<ChunkWords>();
  RECALLD_CHECK(for_each_run(
      catalog_, id, gaps, journal_gaps, first, end,
      [&](const TokenRun& run, uint64_t token) {
        const uint64_t in_run = gaps.position_of(token) - run.first_position;
        const uint64_t until = std::min(run.count, in_run + (end - token));
        if (parts.empty() || parts.back().turn != run.turn) parts.push_back({.turn = run.turn, .pieces = {}});
        std::vector<Piece>& pieces = parts.back().pieces;
        ByteReader lengths(run.lengths);
        uint64_t at = run.first_byte;
        for (uint64_t i = 0; i < in_run; ++i) at += lengths.varint();
        for (uint64_t i = in_run; i < until; ++i) {
          const size_t of = (token + (i - in_run) - first) / chunk_tokens;
          if (pieces.empty() || pieces.back().chunk != of) pieces.push_back({of, at, at});
          at += lengths.varint();
          pieces.back().to = at;
        }
        return true;
      },
      [](uint64_t) { return true; }));

  std::vector<std::vector<Term>> terms((end - first + chunk_tokens - 1) / chunk_tokens);
  std::vector<Word> found;
  for (const auto& [turn, pieces] : parts) {
    RECALLD_TRY(const auto bytes, catalog_.get(Family::turns, row_key(id, turn)));
    const auto row = bytes ? decode_turn(*bytes) : std::nullopt;
    if (!row) return std::unexpected(damaged("turn", id, turn));
    const uint64_t from = pieces.front().from, to = pieces.back().to;
    RECALLD_TRY(
        const TextPart part,
        text_around(catalog_, id, turn, *row, from - std::min<uint64_t>(from, word_bytes_before), to + word_bytes_max));
    if (from < part.base || to < from || part.base + part.text.size() < to)
      return std::unexpected(damaged("turn", id, turn));
    for (const Piece& piece : pieces) {
      found.clear();
      reader.read(part.text, piece.from - part.base, piece.to - part.base, found);
      for (const Word& word : found) terms[piece.chunk].push_back(word.term);
    }
  }
  std::vector<ChunkWords> words;
  words.reserve(terms.size());
  for (std::vector<Term>& of_chunk : terms) words.push_back(ChunkWords::of(std::move(of_chunk)));
  return words;
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
// ---- Mending

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
