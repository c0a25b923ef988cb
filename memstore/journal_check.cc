// Checking the journal: whether its rows of turns, tokens and operations are all there and fit each other.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "memstore/journal_rows.h"
#include "memstore/row_walk.h"

namespace recalld {
namespace {

constexpr std::string_view from_backup = "; restore it from a backup";

Problem problem(std::string_view part, uint64_t first, uint64_t last, std::string message, bool repairable = false) {
  return {
      .part = std::string(part), .first = first, .last = last, .message = std::move(message), .repairable = repairable};
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

}  // namespace recalld
