// Reading blocks of attributes, and judging the turns of a block by them.
#include <algorithm>
#include <span>
#include <utility>

#include "memstore/attribute_index.h"
#include "memstore/rows.h"

namespace recalld {
namespace {

// Ends an evaluation: the block's turns must be judged by their own rows.
std::unexpected<Error> damaged_block() {
  return fail(ErrorKind::corrupt, "read attributes: a row is damaged or missing; run recall verify");
}

bool passes(TurnCondition::Test test, const ComparedValue& value, const ComparedValue& bound) {
  using Test = TurnCondition::Test;
  if (value.kind != bound.kind) return false;
  const auto order = value.order(bound);
  return test == Test::above   ? order > 0
         : test == Test::from  ? order >= 0
         : test == Test::below ? order < 0
                               : order <= 0;
}

// The value of an attribute; null: none.
bool passes(const TurnCondition& condition, const ComparedValue* value) {
  const auto is = [&](const std::optional<AttributeValue>& operand) {
    if (!operand || value == nullptr) return !operand && value == nullptr;
    return value->equals(ComparedValue::of(*operand));
  };
  if (condition.test == TurnCondition::Test::one_of) return std::ranges::any_of(condition.operands, is);
  return value != nullptr && passes(condition.test, *value, ComparedValue::of(*condition.operands.front()));
}

// Whether a turn of a view meets a condition, by its attributes there.
bool meets(const TurnsView& view, const TurnsView::Turn& turn, const TurnCondition& condition) {
  const auto met = [&](const TurnCondition& inside) { return meets(view, turn, inside); };
  switch (condition.kind) {
    case TurnCondition::Kind::all:
      return std::ranges::all_of(condition.inside, met);
    case TurnCondition::Kind::any:
      return std::ranges::any_of(condition.inside, met);
    case TurnCondition::Kind::none:
      return std::ranges::none_of(condition.inside, met);
    case TurnCondition::Kind::attribute: {
      const std::span attributes = std::span(view.attributes).subspan(turn.first, turn.end - turn.first);
      const auto found = std::ranges::find(attributes, condition.attribute, &TurnsView::Member::name);
      return passes(condition, found == attributes.end() ? nullptr : &found->value);
    }
    case TurnCondition::Kind::turn: {
      const ComparedValue number = ComparedValue::of(turn.number);
      return passes(condition, &number);
    }
  }
  return false;
}

}  // namespace

// ---- Blocks

std::string AttributeBlocks::prefix(MemoryId id) {
  return row_key(id);
}

// Reads the first row of a block; false when there is none that is whole.
Expected<bool> AttributeBlocks::go_to(uint64_t block) {
  const std::string key = block_key(id_, block);
  const auto found = rows_.seek(key);
  if (!found && found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
  if (!found || !*found || rows_.key() != key) return false;
  block_.number = block;
  block_.row = rows_.value();
  const auto head = decode_block_head(block_.row, block);
  if (head) block_.head = *head;
  return head.has_value();
}

Expected<const AttributeBlocks::Block*> AttributeBlocks::find(uint64_t turn) {
  loaded_.clear();
  turns_.reset();
  RECALLD_TRY(const bool begins, go_to(turn));  // as most do that are read in order
  if (begins && block_.head.end > turn) return &block_;
  const auto before = rows_.seek_before(block_key(id_, turn));
  if (!before && before.error().kind != ErrorKind::corrupt) return std::unexpected(before.error());
  if ((before && *before) || (!before && rows_.on_row())) {
    RECALLD_TRY(const bool whole, go_to(number_of(rows_.key())));
    if (whole && block_.head.end > turn) return &block_;
  }
  for (uint64_t at = turn;;) {
    const auto found = rows_.seek(block_key(id_, at));
    if (!found && found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
    if (!found && !rows_.on_row()) return nullptr;
    if (found && !*found) return nullptr;
    const uint64_t number = number_of(rows_.key());
    RECALLD_TRY(const bool whole, go_to(number));
    if (whole && block_.head.end > turn) return &block_;
    at = number + 1;
  }
}

Expected<AttributeBlocks::Place> AttributeBlocks::place_of(uint64_t turn) {
  loaded_.clear();
  turns_.reset();
  for (uint64_t at = turn;;) {
    const auto found = rows_.seek_before(end_key(id_, at));
    if (!found && found.error().kind != ErrorKind::corrupt) return std::unexpected(found.error());
    if (found ? !*found : !rows_.on_row()) return Place{};
    const uint64_t number = number_of(rows_.key());
    RECALLD_TRY(const bool whole, go_to(number));
    if (whole && block_.head.end > turn) return Place{number, block_.head.end};
    if (whole) return Place{block_.head.end, 0};
    if (number == 0) return Place{};
    at = number - 1;
  }
}

const TurnsView* AttributeBlocks::turns(const Block& block) {
  if (!turns_) turns_ = view_turns(block.head, block.number);
  return turns_ ? &*turns_ : nullptr;
}

Expected<std::optional<std::string>> AttributeBlocks::row(const std::string& key) {
  RECALLD_TRY(const bool found, rows_.seek(key));
  if (!found || rows_.key() != key) return std::nullopt;
  return std::string(rows_.value());
}

Expected<AttributeBlocks::Loaded*> AttributeBlocks::load(const Block& block, const std::string& attribute) {
  const auto [place, fresh] = loaded_.try_emplace(attribute);
  Loaded& loaded = place->second;
  if (!fresh || !block.head.lists(attribute_mark(attribute))) return &loaded;
  RECALLD_TRY(auto found, row(attribute_key(id_, block.number, attribute)));
  if (!found) return damaged_block();
  loaded.summary_row = *std::move(found);
  loaded.summary = decode_summary(loaded.summary_row);
  if (!loaded.summary) return damaged_block();
  return &loaded;
}

Expected<const Column*> AttributeBlocks::column(const Block& block, const std::string& attribute, Loaded& loaded) {
  if (loaded.column) return &*loaded.column;
  std::string_view bytes = loaded.summary->column;
  if (!loaded.summary->whole()) {
    RECALLD_TRY(auto found, row(column_key(id_, block.number, attribute)));
    if (!found) return damaged_block();
    loaded.column_row = *std::move(found);
    bytes = loaded.column_row;
  }
  loaded.column = Column::decode(bytes, block.head.turns);
  if (!loaded.column) return damaged_block();
  return &*loaded.column;
}

// ---- Judging

Expected<std::optional<Places>> AttributeBlocks::match(const Block& block, const TurnCondition& condition) {
  auto places = evaluate(block, condition);
  if (places) return std::optional(*std::move(places));
  if (places.error().kind != ErrorKind::corrupt) return std::unexpected(std::move(places).error());
  return std::nullopt;
}

Expected<Places> AttributeBlocks::evaluate(const Block& block, const TurnCondition& condition) {
  Places places(block.head.turns);
  if (block.head.open || condition.kind == TurnCondition::Kind::turn) {
    const TurnsView* const view = turns(block);
    if (view == nullptr) return damaged_block();
    for (uint64_t place = 0; place < view->turns.size(); ++place)
      if (meets(*view, view->turns[place], condition)) places.add(place);
    return places;
  }
  switch (condition.kind) {
    case TurnCondition::Kind::all:
      places.add_all();
      for (const TurnCondition& each : condition.inside) {
        if (places.none()) break;
        RECALLD_TRY(const Places met, evaluate(block, each));
        places.keep(met);
      }
      break;
    case TurnCondition::Kind::any:
    case TurnCondition::Kind::none:
      for (const TurnCondition& each : condition.inside) {
        RECALLD_TRY(const Places met, evaluate(block, each));
        places.add(met);
      }
      if (condition.kind == TurnCondition::Kind::none) places.flip();
      break;
    case TurnCondition::Kind::attribute:
      return evaluate_attribute(block, condition);
    case TurnCondition::Kind::turn:
      break;
  }
  return places;
}

Expected<Places> AttributeBlocks::evaluate_attribute(const Block& block, const TurnCondition& condition) {
  using Test = TurnCondition::Test;
  Places places(block.head.turns);
  RECALLD_TRY(Loaded* const loaded, load(block, condition.attribute));
  const bool there = loaded->summary.has_value();
  const bool summary_alone = there && !loaded->summary->whole();
  bool read = true;
  if (condition.test != Test::one_of) {
    if (!there) return places;
    const ComparedValue bound = ComparedValue::of(*condition.operands.front());
    if (summary_alone) {
      const auto answer = loaded->summary->ordered(condition.test, bound, block.head.turns);
      if (answer == ColumnSummary::Answer::all) places.add_all();
      if (answer != ColumnSummary::Answer::ask) return places;
    }
    RECALLD_TRY(const Column* const of, column(block, condition.attribute, *loaded));
    if (!of->add_ordered(condition.test, bound, places)) return damaged_block();
    return places;
  }
  for (const auto& operand : condition.operands) {
    if (!operand) {  // those without a value
      Places with(block.head.turns);
      if (there && (!summary_alone || loaded->summary->turns < block.head.turns)) {
        RECALLD_TRY(const Column* const of, column(block, condition.attribute, *loaded));
        read = of->add_all(with);
      } else if (there) {
        with.add_all();
      }
      with.flip();
      places.add(with);
    } else if (there) {
      const ComparedValue value = ComparedValue::of(*operand);
      if (summary_alone && !loaded->summary->may_have(value)) continue;
      RECALLD_TRY(const Column* const of, column(block, condition.attribute, *loaded));
      read = of->add_equal(value, places);
    }
    if (!read) return damaged_block();
  }
  return places;
}

}  // namespace recalld
