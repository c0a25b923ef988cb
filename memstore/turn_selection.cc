#include "memstore/turn_selection.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "memstore/attribute_index.h"
#include "memstore/journal_rows.h"
#include "memstore/row_walk.h"

namespace recalld {

// ---- A selection

void TurnSelection::add(uint64_t position, uint64_t tokens) {
  if (tokens == 0) return;
  if (open_.tokens > 0 && open_.end() == position) {
    open_.tokens += tokens;
    return;
  }
  close();
  open_ = {position, tokens};
}

// The last run stays out of the packed ones, so that turns which follow it make it longer.
void TurnSelection::close() {
  if (open_.tokens == 0) return;
  ByteWriter out(runs_);
  out.varint(open_.position - runs_end_);
  out.varint(open_.tokens);
  runs_end_ = open_.end();
  open_ = {};
}

void TurnSelection::lose(Gaps::Gap at, const std::string& cause) {
  if (at.tokens > 0) lost_.push_back({at, cause});
}

void TurnSelection::looked_at(uint64_t end_turn, uint64_t end_position) {
  end_turn_ = end_turn;
  end_position_ = end_position;
}

// One walk over the runs and both lists of gaps: all three are in order.
ChunkSet TurnSelection::chunks(const Gaps& gaps, const Gaps& journal_gaps, uint64_t tokens) const {
  ChunkSet set((tokens + chunk_tokens - 1) / chunk_tokens);
  auto of_generation = gaps.gaps().begin();
  const auto generation_end = gaps.gaps().end();
  uint64_t left_out = 0;  // positions in gaps of the generation before the one that comes next
  const auto mark = [&](uint64_t position, uint64_t end) {
    if (position >= end) return;
    for (; of_generation != generation_end && of_generation->end() <= position; ++of_generation)
      left_out += of_generation->tokens;
    const uint64_t first = position - left_out, behind = std::min(end - left_out, tokens);
    if (first < behind) set.add(first / chunk_tokens, (behind - 1) / chunk_tokens + 1);
  };
  auto of_journal = journal_gaps.gaps().begin();
  const auto journal_end = journal_gaps.gaps().end();
  const auto mark_run = [&](uint64_t position, uint64_t end) {
    while (of_journal != journal_end && of_journal->end() <= position) ++of_journal;
    for (auto gap = of_journal; gap != journal_end && gap->position < end; ++gap) {
      mark(position, gap->position);
      position = std::max(position, gap->end());
    }
    mark(position, end);
  };
  uint64_t at = 0;
  for (ByteReader in(runs_); !in.rest().empty();) {
    const uint64_t position = at + in.varint();
    at = position + in.varint();
    mark_run(position, at);
  }
  if (open_.tokens > 0) mark_run(open_.position, open_.end());
  return set;
}

// ---- Selecting

Expected<std::shared_ptr<const TurnSelection>> TurnSelector::select(const MemoryRecord& memory,
                                                                    const TurnQuery& query) {
  const std::shared_ptr<const TurnSelection> known = find(memory.id, query.key);
  if (known && known->end_turn() >= memory.journal.next_turn) return known;
  auto selection = known ? std::make_shared<TurnSelection>(*known) : std::make_shared<TurnSelection>();
  RECALLD_CHECK(read(memory, query, *selection));
  // What is damaged may be mended, and is looked at again then.
  if (selection->lost().empty()) keep(memory.id, query.key, selection);
  return selection;
}

namespace {

// Gets a turn that is meant, by its number, and where its tokens lie.
using Meant = std::function<void(uint64_t turn, uint64_t position, uint64_t tokens)>;

// Goes through the turns of a memory, in order: by blocks of the index, and by rows of turns between them. Damage is
// told to the selection.
class Reading {
 public:
  Reading(const Catalog& catalog, const MemoryRecord& memory, const TurnQuery& query, TurnSelection& selection,
          std::optional<uint64_t> position, Meant meant)
      : catalog_(catalog),
        memory_(memory),
        query_(query),
        selection_(selection),
        position_(position),
        meant_(std::move(meant)) {}

  // Turns [from, end), by whatever tells of them.
  Expected<void> turns(uint64_t from, uint64_t end) {
    if (from < end) RECALLD_CHECK(query_.condition ? by_blocks(from, end) : by_rows(from, end));
    finish(end == memory_.journal.next_turn);
    return {};
  }

 private:
  // Turns [from, end), by their rows.
  Expected<void> by_rows(uint64_t from, uint64_t end) {
    std::optional<Error> failed;
    walk_rows(
        catalog_, Family::turns, memory_.id, from, end,
        [&](uint64_t turn, std::string_view key, const Expected<std::string_view>& value) {
          if (!value && value.error().kind != ErrorKind::corrupt) {
            failed = value.error();
            return false;
          }
          if (key.size() != row_key(0, 0).size()) return true;  // a later piece of its content
          const auto row = value ? decode_turn_head(*value) : std::nullopt;
          if (!row) {
            if (!damage_)
              damage_ = value ? "the row of turn " + std::to_string(turn) + " is none; run recall verify"
                              : value.error().message;
            return true;
          }
          passed(row->first_position);
          position_ = row->first_position + row->tokens;
          if (query_.matches(turn, row->turn)) meant_(turn, row->first_position, row->tokens);
          return true;
        },
        [&](uint64_t turn, const Error& error) {
          if (error.kind != ErrorKind::corrupt) failed = error;
          if (!damage_) damage_ = error.message;
          return failed ? end : turn + 1;
        });
    if (failed) return std::unexpected(*std::move(failed));
    return {};
  }

  // Turns [from, end), by their blocks where they have such.
  Expected<void> by_blocks(uint64_t from, uint64_t end) {
    AttributeBlocks blocks(catalog_, memory_.id);
    while (from < end) {
      RECALLD_TRY(const auto* const block, blocks.find(from));
      const uint64_t next = block == nullptr ? end : std::min(end, std::max(from, block->number));
      if (from < next) {
        RECALLD_CHECK(by_rows(from, next));
        from = next;
        if (block == nullptr || from == end) continue;
      }
      const uint64_t block_end = std::min(end, block->head.end);
      RECALLD_TRY(const auto places, blocks.match(*block, *query_.condition));
      if (!places || !take(blocks, *block, *places, from, block_end)) RECALLD_CHECK(by_rows(from, block_end));
      from = block_end;
    }
    return {};
  }

  void finish(bool memory_ends) {
    // Without a row behind it, only where the memory ends tells how far the damage goes.
    if (memory_ends)
      passed(memory_.journal.next_position);
    else if (damage_)
      passed(position_.value_or(0) + 1);
  }

  // Turns [from, end) of a block; false when its row is damaged.
  bool take(AttributeBlocks& blocks, const AttributeBlocks::Block& block, const Places& places, uint64_t from,
            uint64_t end) {
    const BlockHead& head = block.head;
    if (head.turns == 0) return true;
    const bool whole = from <= block.number && end >= head.end;
    if (whole && places.none()) {
      passed(head.first_position);
      position_ = head.end_position;
      return true;
    }
    const TurnsView* const view = blocks.turns(block);
    if (view == nullptr) return false;
    for (uint64_t place = 0; place < view->turns.size(); ++place) {
      const TurnsView::Turn& turn = view->turns[place];
      if (turn.number < from) continue;
      if (turn.number >= end) break;
      passed(turn.position);
      position_ = turn.end_position();
      if (places.has(place)) meant_(turn.number, turn.position, turn.tokens);
    }
    return true;
  }

  // The tokens of the next turn begin here.
  void passed(uint64_t position) {
    // A row that is missing although its tokens are no gap is damage, too.
    if (!damage_ && position_ && *position_ < position &&
        memory_.gaps().token_of(*position_) != memory_.gaps().token_of(position))
      damage_ = "the row of a turn is missing; run recall verify";
    if (!damage_) return;
    const uint64_t first = position_.value_or(position - std::min<uint64_t>(position, 1));
    selection_.lose({first, position - first}, *damage_);
    damage_.reset();
  }

  const Catalog& catalog_;
  const MemoryRecord& memory_;
  const TurnQuery& query_;
  TurnSelection& selection_;
  std::optional<uint64_t> position_;   // where the tokens of the next turn begin, unless some were forgotten before it
  std::optional<std::string> damage_;  // before the next row that is whole
  Meant meant_;
};

}  // namespace

Expected<void> TurnSelector::read(const MemoryRecord& memory, const TurnQuery& query, TurnSelection& selection) const {
  const uint64_t from = std::max(selection.end_turn(), query.first_turn);
  const uint64_t end = std::min(memory.journal.next_turn, query.end_turn);
  std::optional<uint64_t> position;
  if (from == selection.end_turn()) position = selection.end_position();
  Reading reading(catalog_, memory, query, selection, position,
                  [&](uint64_t, uint64_t first, uint64_t tokens) { selection.add(first, tokens); });
  RECALLD_CHECK(reading.turns(from, end));
  selection.looked_at(memory.journal.next_turn, memory.journal.next_position);
  return {};
}

Expected<std::vector<TurnRange>> TurnSelector::turns(const MemoryRecord& memory, const TurnQuery& query) const {
  std::vector<TurnRange> ranges;
  TurnSelection damage;
  std::optional<uint64_t> position;
  if (query.first_turn == 0) position = 0;
  Reading reading(catalog_, memory, query, damage, position, [&](uint64_t turn, uint64_t, uint64_t) {
    if (!ranges.empty() && ranges.back().last + 1 == turn)
      ranges.back().last = turn;
    else
      ranges.push_back({turn, turn});
  });
  RECALLD_CHECK(reading.turns(query.first_turn, std::min(memory.journal.next_turn, query.end_turn)));
  if (!damage.lost().empty())
    return fail(ErrorKind::corrupt, "find the turns of memory " + std::to_string(memory.id) +
                                        " that are meant: " + damage.lost().front().cause);
  return ranges;
}

// ---- What is kept

std::shared_ptr<const TurnSelection> TurnSelector::find(MemoryId id, const Hash128& filter) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::ranges::find_if(kept_, [&](const Kept& each) { return each.memory == id && each.filter == filter; });
  if (found == kept_.end()) return nullptr;
  kept_.splice(kept_.begin(), kept_, found);
  return found->selection;
}

void TurnSelector::keep(MemoryId id, const Hash128& filter, std::shared_ptr<const TurnSelection> selection) {
  if (selection->bytes() > bytes_max_) return;
  const std::lock_guard lock(mutex_);
  const auto found =
      std::ranges::find_if(kept_, [&](const Kept& each) { return each.memory == id && each.filter == filter; });
  if (found != kept_.end()) {
    if (found->selection->end_turn() > selection->end_turn()) return;  // another search was faster
    kept_bytes_ -= found->selection->bytes();
    kept_.erase(found);
  }
  kept_bytes_ += selection->bytes();
  kept_.push_front({id, filter, std::move(selection)});
  for (; kept_bytes_ > bytes_max_; kept_.pop_back()) kept_bytes_ -= kept_.back().selection->bytes();
}

void TurnSelector::forget(MemoryId id) {
  const std::lock_guard lock(mutex_);
  std::erase_if(kept_, [&](const Kept& each) {
    if (each.memory != id) return false;
    kept_bytes_ -= each.selection->bytes();
    return true;
  });
}

uint64_t TurnSelector::kept_bytes() const {
  const std::lock_guard lock(mutex_);
  return kept_bytes_;
}

}  // namespace recalld
