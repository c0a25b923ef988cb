#include "daemon/successor.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "daemon/filter.h"
#include "memstore/data_directory.h"

namespace recalld {
namespace {

constexpr size_t page_turns = 1'000;
constexpr size_t page_bytes = size_t{1} << 20;
constexpr size_t page_memories = 1'000;
constexpr const char* model_file = "MODEL";  // in DATA/next
constexpr const char* ready_file = "READY";  // in DATA/next

}  // namespace

Expected<std::unique_ptr<Successor>> Successor::open(const std::filesystem::path& data, const RecordShape& shape,
                                                     uint64_t memory_budget_bytes) {
  StoreOptions options;
  options.shape = shape;
  options.read_metadata = metadata_attributes;
  options.memory_budget_bytes = memory_budget_bytes;
  std::filesystem::path directory = DataDirectory::next(data);
  RECALLD_TRY(const auto stamp, DataDirectory::stamp(directory));
  if (stamp && stamp->model != shape.model)
    return fail(ErrorKind::invalid_request,
                "encode the store anew: " + directory.string() + " is being made for another model (model " +
                    hex(stamp->model) + ", yours is " + hex(shape.model) +
                    "). Go on with that one; or drop what has been made for it, with recall reencode --cancel while "
                    "recalld runs, or by removing that directory while it does not");
  auto store = Store::open(directory, std::move(options));
  if (!store)
    return std::unexpected(std::move(store).error().within(
        "open the store that is made for another model (recall reencode --cancel drops it)"));
  return std::unique_ptr<Successor>(new Successor(std::move(directory), shape, *std::move(store)));
}

Expected<void> Successor::remember(const std::filesystem::path& model) const {
  return write_durably(directory_, model_file, model.string());
}

Expected<void> Successor::mark_ready() const {
  return write_durably(directory_, ready_file, "everything that there was is encoded\n");
}

bool successor_is_ready(const std::filesystem::path& data) {
  std::error_code problem;
  return std::filesystem::exists(DataDirectory::next(data) / ready_file, problem);
}

std::filesystem::path model_of_successor(const std::filesystem::path& data) {
  std::ifstream in(DataDirectory::next(data) / model_file);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// ---- Following the journal

Expected<bool> Successor::copy_some(const Store& from, const Tokenizer& tokenizer) {
  // Who forgets here holds this for as long as it takes to erase.
  const std::unique_lock lock(copying_, std::try_to_lock);
  if (!lock) return fail(ErrorKind::busy, "copy turns for another model: some are being forgotten there; try again");
  if (after_ == 0) {  // a pass over all memories begins, if something may be new
    RECALLD_TRY(const StoreStats there, from.stats());
    const std::array seen{there.memories, there.turns, there.tokens};
    if (!copied_ && seen == seen_) return false;
    seen_ = seen;
    copied_ = false;
  }
  RECALLD_TRY(const auto ids, from.memory_ids(after_, 1));
  if (ids.empty()) {
    after_ = 0;
    RECALLD_CHECK(drop_extra_memories(from));
    return true;
  }
  const Expected<bool> more = follow(from, tokenizer, ids.front());
  if (!more) {
    if (more.error().kind != ErrorKind::corrupt) return more;
    // One damaged memory must not keep the others back.
    if (damage_ != more.error().message)
      spdlog::error("copy memory {} for another model: {} (it is left behind)", ids.front(), more.error().message);
    damage_ = more.error().message;
  }
  if (more && *more)
    copied_ = true;
  else
    after_ = ids.front();
  return true;
}

Expected<void> Successor::copy_all(const Store& from, const Tokenizer& tokenizer) {
  after_ = 0;
  copied_ = operations_too_ = true;
  damage_.clear();
  for (bool more = true; more;) {
    RECALLD_TRY(more, copy_some(from, tokenizer));
  }
  if (!damage_.empty())
    return fail(ErrorKind::corrupt, "copy the journal for another model: " + damage_ +
                                        "; start recalld with the model that wrote the store and run recall verify, "
                                        "which names what is damaged");
  RECALLD_TRY(const StoreStats there, from.stats());
  RECALLD_TRY(const StoreStats here, store_->stats());
  if (there.memories != here.memories || there.turns != here.turns)
    return fail(ErrorKind::internal, "copy the journal for another model: " + std::to_string(there.turns) +
                                         " turns in " + std::to_string(there.memories) + " memories became " +
                                         std::to_string(here.turns) + " in " + std::to_string(here.memories));
  return {};
}

// Copies the next page of a memory; false when there was none.
Expected<bool> Successor::follow(const Store& from, const Tokenizer& tokenizer, MemoryId id) {
  const auto there = from.memory(id);
  if (!there && there.error().kind == ErrorKind::not_found) return false;  // removed meanwhile
  RECALLD_TRY(const MemoryInfo source, there);
  auto here = store_->memory(source.name);
  if (here && here->created_us != source.created_us) {  // another one of the same name, made since
    RECALLD_CHECK(store_->erase(source.name));
    here = store_->memory(source.name);
  }
  if (!here && here.error().kind == ErrorKind::not_found)
    here = store_->restore_memory(source.name, source.created_us, source.updated_us);
  RECALLD_TRY(const MemoryInfo copy, here);

  if (copy.next_turn < source.next_turn) {
    RECALLD_TRY(auto turns, from.turns(id, copy.next_turn, page_turns, page_bytes));
    if (turns.empty()) {  // the last ones are forgotten
      RECALLD_CHECK(store_->restore_end(copy.id, source.next_turn, source.updated_us));
      return true;
    }
    std::vector<NewTurn> anew;
    for (StoredTurn& turn : turns) {
      Tokens tokens = tokenizer.encode_turn(turn_prefix(turn.value), turn.value.content);
      anew.push_back({std::move(turn.value), std::move(tokens.ids), std::move(tokens.ends), turn.turn});
    }
    RECALLD_CHECK(store_->restore_turns(copy.id, copy.next_turn, anew, source.updated_us));
    return true;
  }
  if (copy.turns != source.turns) RECALLD_CHECK(drop_extra_turns(from, id, copy.id));
  if (operations_too_) RECALLD_CHECK(copy_operations(from, id, copy.id));
  return false;
}

Expected<void> Successor::copy_operations(const Store& from, MemoryId from_id, MemoryId id) {
  std::optional<Hash128> after;
  while (true) {
    RECALLD_TRY(const auto operations, from.operations(from_id, after, page_turns));
    if (!operations.empty()) RECALLD_CHECK(store_->restore_operations(id, operations));
    if (operations.size() < page_turns) return {};
    after = hash128(as_bytes(operations.back().id));
  }
}

// ---- Forgetting

// Forgets here what is not there: what was forgotten while this store was not open.
Expected<void> Successor::drop_extra_turns(const Store& from, MemoryId from_id, MemoryId id) {
  RECALLD_TRY(const MemoryInfo copy, store_->memory(id));
  std::vector<TurnRange> extra;
  std::vector<StoredTurn> there;
  size_t at = 0;
  uint64_t next_there = 0;
  for (uint64_t next = 0; next < copy.next_turn;) {
    RECALLD_TRY(const auto here, store_->turns(id, next, page_turns, page_bytes));
    if (here.empty()) break;
    for (const StoredTurn& turn : here) {
      while (at == there.size() || there[at].turn < turn.turn) {
        if (at < there.size()) {
          ++at;
          continue;
        }
        RECALLD_TRY(there, from.turns(from_id, std::max(next_there, turn.turn), page_turns, page_bytes));
        at = 0;
        if (there.empty()) break;
        next_there = there.back().turn + 1;
      }
      if (at < there.size() && there[at].turn == turn.turn) continue;
      if (!extra.empty() && extra.back().last + 1 == turn.turn)
        extra.back().last = turn.turn;
      else
        extra.push_back({turn.turn, turn.turn});
    }
    next = here.back().turn + 1;
  }
  if (extra.empty()) return {};
  RECALLD_CHECK(store_->forget(id, extra));
  RECALLD_CHECK(store_->swap(id, true));
  RECALLD_CHECK(store_->erase_forgotten(id));
  return {};
}

// One that was removed there may have left its name to another, which is not a copy of it.
Expected<void> Successor::drop_extra_memories(const Store& from) {
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto ids, store_->memory_ids(after, page_memories));
    for (const MemoryId id : ids) {
      RECALLD_TRY(const MemoryInfo copy, store_->memory(id));
      const auto there = from.memory(copy.name);
      if (!there && there.error().kind != ErrorKind::not_found) return std::unexpected(there.error());
      if (!there || there->created_us != copy.created_us) RECALLD_CHECK(erase_if_there(copy.name));
    }
    if (ids.size() < page_memories) return {};
    after = ids.back();
  }
}

Expected<void> Successor::forget_missing(const Store& from) {
  const std::lock_guard lock(copying_);
  RECALLD_CHECK(drop_extra_memories(from));
  for (MemoryId after = 0;;) {
    RECALLD_TRY(const auto ids, store_->memory_ids(after, page_memories));
    for (const MemoryId id : ids) {
      RECALLD_TRY(const MemoryInfo copy, store_->memory(id));
      const auto there = from.memory(copy.name);
      if (!there && there.error().kind == ErrorKind::not_found) continue;  // removed meanwhile, which will be told
      RECALLD_TRY(const MemoryInfo source, there);
      RECALLD_CHECK(drop_extra_turns(from, source.id, id));
    }
    if (ids.size() < page_memories) break;
    after = ids.back();
  }
  // What an earlier process did not finish here.
  RECALLD_TRY(const auto left, store_->to_erase());
  for (const MemoryId id : left) RECALLD_CHECK(store_->erase_forgotten(id));
  return {};
}

Expected<void> Successor::forget(const std::string& memory, int64_t created_us, std::span<const TurnRange> turns) {
  const std::lock_guard lock(copying_);
  const auto copy = store_->memory(memory);
  if (!copy && copy.error().kind == ErrorKind::not_found) return {};
  RECALLD_TRY(const MemoryInfo here, copy);
  if (here.created_us != created_us) return {};
  RECALLD_CHECK(store_->forget(here.id, turns));
  RECALLD_CHECK(store_->swap(here.id, true));  // nobody searches here: what follows is encoded in its turn
  RECALLD_CHECK(store_->erase_forgotten(here.id));
  return {};
}

Expected<void> Successor::remove(const std::string& memory, int64_t created_us) {
  const std::lock_guard lock(copying_);
  const auto copy = store_->memory(memory);
  if (copy && copy->created_us != created_us) return {};
  return erase_if_there(memory);
}

Expected<void> Successor::erase_if_there(const std::string& memory) {
  Expected<void> erased = store_->erase(memory);
  if (!erased && erased.error().kind == ErrorKind::not_found) return {};
  return erased;
}

}  // namespace recalld
