#include "tests/crash/workload.h"

#include <algorithm>
#include <utility>

namespace recalld::crash {
namespace {

constexpr size_t memories_max = 5;  // names that are used
constexpr uint64_t put_chunks_max = 16;

std::vector<std::string> names_where(const Model& model, const std::function<bool(const MemoryModel&)>& wanted) {
  std::vector<std::string> names;
  for (const auto& [name, memory] : model.memories) {
    if (wanted(memory)) names.push_back(name);
  }
  return names;
}

// One to three appends, as a commit thread would write them together.
std::vector<AppendBatch> make_group(Random& random, const Model& model, const WorkloadOptions& options) {
  std::vector<AppendBatch> group;
  for (uint64_t left = 1 + below(random, 3); left > 0; --left) {
    AppendBatch batch;
    batch.memory = "agent/" + std::to_string(below(random, memories_max));
    batch.now_us = static_cast<int64_t>(random() >> 12);
    const auto memory = model.memories.find(batch.memory);
    const bool known = memory != model.memories.end() && !memory->second.operations.empty();
    if (known && happens(random, 6)) {
      // A client that repeats itself, now and then with other content.
      const auto& operations = memory->second.operations;
      const auto operation = std::next(operations.begin(), static_cast<ptrdiff_t>(below(random, operations.size())));
      batch.operation_id = operation->first;
      batch.operation_digest = happens(random, 4) ? hash128(as_bytes("others")) : operation->second.digest;
    } else if (happens(random, 2)) {
      batch.operation_id = "operation " + std::to_string(random());
      batch.operation_digest = hash128(as_bytes(batch.operation_id));
    }
    for (uint64_t turns = 1 + below(random, 4); turns > 0; --turns) {
      const bool large = options.large_turns != 0 && happens(random, options.large_turns);
      batch.turns.push_back(
          make_turn(random, large ? 70'000 + below(random, 80'000) : 1 + below(random, options.turn_bytes_max)));
    }
    group.push_back(batch);
    if (!batch.operation_id.empty() && happens(random, 8)) group.push_back(std::move(batch));  // twice in one group
  }
  return group;
}

// One turn, a few in a row, several ranges, now and then all of them; some were never there or are forgotten already.
std::vector<TurnRange> some_turns(Random& random, const MemoryModel& memory) {
  if (happens(random, 12)) return {{0, memory.next_turn}};
  std::vector<TurnRange> ranges;
  for (uint64_t left = 1 + (happens(random, 3) ? below(random, 4) : 0); left > 0; --left) {
    // What was said last is often not encoded yet.
    const uint64_t newest = happens(random, 3) ? memory.next_turn - std::min<uint64_t>(memory.next_turn, 4) : 0;
    const uint64_t first = newest + below(random, memory.next_turn - newest + 1);
    ranges.push_back({first, first + (happens(random, 2) ? 0 : below(random, 4))});
  }
  return ranges;
}

GenerationModel& generation(MemoryModel& memory, bool of_next) {
  return of_next ? *memory.next : memory.serving;
}

// As it is now.
Expected<StreamInfo> stream_of(const Store& store, MemoryId id, bool of_next) {
  RECALLD_TRY(const MemoryInfo info, store.memory(id));
  if (of_next && !info.next) return fail(ErrorKind::not_found, "there is no next generation");
  return of_next ? *info.next : info.serving;
}

}  // namespace

Step append_step(const Model& model, std::vector<AppendBatch> group) {
  Model after = model;
  std::vector<Expected<Appended>> expected;
  for (const AppendBatch& batch : group) expected.push_back(after.append(batch));
  Step step{.what = "append", .run = {}, .outcomes = {model, std::move(after)}, .appended = group};
  step.writes = std::ranges::any_of(expected, [](const auto& reply) { return reply && !reply->repeated; });
  step.run = [group = std::move(group), expected = std::move(expected)](
                 Store& store, std::vector<std::string>& complaints) -> Expected<void> {
    RECALLD_TRY(const auto replies, store.append(group));
    for (size_t i = 0; i < group.size(); ++i) {
      const std::string wrong = difference(replies.at(i), expected[i]);
      if (!wrong.empty()) complaints.push_back("append to " + group[i].memory + ": " + wrong);
    }
    return {};
  };
  return step;
}

Step put_step(Random& random, const Model& model, const std::string& name, bool of_next, const RecordShape& shape) {
  Model after = model;
  MemoryModel& memory = after.memories.at(name);
  GenerationModel& to = generation(memory, of_next);
  const uint64_t first = to.chunks;
  const uint64_t count = 1 + below(random, std::min(put_chunks_max, to.waiting_chunks()));
  std::vector<Encoded> chunks;
  for (uint64_t i = first; i < first + count; ++i) chunks.emplace_back(to.past[i + 1], shape);
  to.chunks += count;
  std::optional<std::string> state;
  if (happens(random, 3)) {
    state = state_of(to.past[to.chunks], shape);
    memory.add_state(to, to.chunks);
  }
  return {.what = "put chunks of " + name + (of_next ? ", next generation" : ""),
          .run = [=, id = memory.id](Store& store, std::vector<std::string>&) -> Expected<void> {
            RECALLD_TRY(const StreamInfo stream, stream_of(store, id, of_next));
            std::vector<EncodedChunkView> views;
            for (const Encoded& chunk : chunks) views.push_back(chunk.view());
            return store.put(stream, views, state ? std::optional(as_bytes(*state)) : std::nullopt);
          },
          .outcomes = {model, std::move(after)},
          .encoded = name};
}

Step put_state_step(const Model& model, const std::string& name, bool of_next, const RecordShape& shape) {
  Model after = model;
  MemoryModel& memory = after.memories.at(name);
  GenerationModel& to = generation(memory, of_next);
  const uint64_t chunks = to.chunks, states = to.state_chunks;
  memory.add_state(to, chunks);
  return {.what = "put the state of " + name + (of_next ? ", next generation" : ""),
          .run = [=, id = memory.id, state = state_of(to.past[chunks], shape)](
                     Store& store, std::vector<std::string>&) -> Expected<void> {
            RECALLD_TRY(const StreamInfo stream, stream_of(store, id, of_next));
            return store.put_state(stream, chunks, as_bytes(state));
          },
          .outcomes = {model, after},
          .writes = to.state_chunks != states};
}

Step forget_step(const Model& model, const std::string& name, std::vector<TurnRange> turns, const RecordShape& shape) {
  Model after = model;
  const Forgotten expected = after.forget(name, turns, page_chunks(shape));
  return {.what = "forget turns of " + name,
          .run = [=, turns = std::move(turns)](Store& store, std::vector<std::string>& complaints) -> Expected<void> {
            const std::string found = difference(store.find_turns(expected.id, turns), expected);
            if (!found.empty() && expected.turn_count > 0) complaints.push_back("find turns of " + name + ": " + found);
            RECALLD_TRY(const Forgotten forgotten, store.forget(expected.id, turns));
            const std::string wrong = difference(forgotten, expected);
            if (!wrong.empty()) complaints.push_back("forget turns of " + name + ": " + wrong);
            return {};
          },
          .outcomes = {model, std::move(after)},
          .forgets = expected.turn_count > 0,
          .writes = expected.turn_count > 0};
}

Step swap_step(const Model& model, const std::string& name, bool at_once) {
  Model after = model;
  const bool expected = after.swap(name, at_once);
  return {
      .what = "swap the generations of " + name,
      .run = [=, id = model.memories.at(name).id](Store& store,
                                                  std::vector<std::string>& complaints) -> Expected<void> {
        RECALLD_TRY(const bool swapped, store.swap(id, at_once));
        if (swapped != expected)
          complaints.push_back("the next generation of " + name + (swapped ? " serves too early" : " does not serve"));
        return {};
      },
      .outcomes = {model, std::move(after)},
      .writes = expected};
}

Step remove_step(const Model& model, const std::string& name) {
  Model after = model;
  after.remove(name);
  return {.what = "remove " + name,
          .run = [name](Store& store, std::vector<std::string>&) -> Expected<void> {
            RECALLD_CHECK(store.remove(name));
            return {};
          },
          .outcomes = {model, std::move(after)}};
}

Step erase_step(const Model& model, const std::string& name) {
  Model removed = model;
  removed.remove(name);
  Model after = removed;
  after.erase_forgotten(model.memories.at(name).id);
  return {.what = "erase " + name,
          .run = [name](Store& store, std::vector<std::string>&) { return store.erase(name); },
          .outcomes = {model, std::move(removed), std::move(after)}};
}

Step erase_forgotten_step(const Model& model, MemoryId memory) {
  Model after = model;
  after.erase_forgotten(memory);
  return {.what = "erase what was forgotten of memory " + std::to_string(memory),
          .run = [memory](Store& store, std::vector<std::string>&) -> Expected<void> {
            RECALLD_CHECK(store.erase_forgotten(memory));
            return {};
          },
          .outcomes = {model, std::move(after)},
          .writes = model.to_erase.contains(memory)};
}

// Turns as an import brings them: with numbers, of which some are left out.
Step restore_step(Random& random, const Model& model, const std::string& name, const WorkloadOptions& options) {
  const MemoryModel& memory = model.memories.at(name);
  AppendBatch batch{name, {}, {}, {}, memory.updated_us};
  uint64_t number = memory.next_turn;
  for (uint64_t turns = 1 + below(random, 3); turns > 0; --turns) {
    batch.turns.push_back(make_turn(random, 1 + below(random, options.turn_bytes_max)));
    batch.turns.back().number = number += below(random, 3);
    ++number;
  }
  Model turns = model;
  (void)turns.append(batch);
  Model after = turns;
  const uint64_t end = number + below(random, 3);
  const auto updated_us = static_cast<int64_t>(random() >> 12);
  after.memories.at(name).next_turn = end;
  after.memories.at(name).updated_us = updated_us;
  return {.what = "restore turns of " + name,
          .run = [=, id = memory.id, next_turn = memory.next_turn](Store& store,
                                                                   std::vector<std::string>&) -> Expected<void> {
            RECALLD_CHECK(store.restore_turns(id, next_turn, batch.turns, batch.now_us));
            RECALLD_CHECK(store.restore_end(id, end, updated_us));
            return {};
          },
          .outcomes = {model, std::move(turns), std::move(after)}};
}

Step retry_step(const Model& model, const Step& broken_off) {
  std::vector<AppendBatch> group;
  for (const AppendBatch& batch : broken_off.appended) {
    if (!batch.operation_id.empty()) group.push_back(batch);
  }
  Step step = append_step(model, std::move(group));
  step.what = "append again";
  return step;
}

std::optional<Step> settling_step(Random& random, const Model& model, const WorkloadOptions& options) {
  for (const auto& [name, memory] : model.memories) {
    if (memory.next)
      return memory.next->waiting_chunks() > 0 ? put_step(random, model, name, true, options.shape)
                                               : swap_step(model, name, false);
    if (memory.serving.waiting_chunks() > 0) return put_step(random, model, name, false, options.shape);
  }
  if (!model.to_erase.empty()) return erase_forgotten_step(model, *model.to_erase.begin());
  return std::nullopt;
}

Step next_step(Random& random, const Model& model, const WorkloadOptions& options) {
  const auto pick = [&](const std::vector<std::string>& names) { return names[below(random, names.size())]; };
  const auto any = names_where(model, [](const MemoryModel&) { return true; });
  const auto waits = [](const GenerationModel& generation) { return generation.waiting_chunks() > 0; };
  const auto is_ahead = [](const GenerationModel& generation) { return generation.chunks > generation.state_chunks; };
  const auto waiting = names_where(model, [&](const MemoryModel& memory) { return waits(memory.serving); });
  const auto ahead = names_where(model, [&](const MemoryModel& memory) { return is_ahead(memory.serving); });
  const auto rebuilding = names_where(model, [](const MemoryModel& memory) { return memory.next.has_value(); });
  const uint64_t die = below(random, 32);
  // Forgetting has more steps, which come one after the other.
  if (options.forgets && die < 12) {
    if (!rebuilding.empty() && die < 5) {
      const std::string name = pick(rebuilding);
      const GenerationModel& next = *model.memories.at(name).next;
      if (waits(next)) return put_step(random, model, name, true, options.shape);
      if (is_ahead(next) && happens(random, 3)) return put_state_step(model, name, true, options.shape);
    }
    if (!rebuilding.empty() && die < 7) return swap_step(model, pick(rebuilding), happens(random, 3));
    if (!model.to_erase.empty() && die < 9)
      return erase_forgotten_step(
          model, *std::next(model.to_erase.begin(), static_cast<ptrdiff_t>(below(random, model.to_erase.size()))));
    if (!any.empty()) {
      const std::string name = pick(any);
      return forget_step(model, name, some_turns(random, model.memories.at(name)), options.shape);
    }
  }
  if (die < 20 && !waiting.empty()) return put_step(random, model, pick(waiting), false, options.shape);
  if (die < 22 && !ahead.empty()) return put_state_step(model, pick(ahead), false, options.shape);
  if (die < 25 && options.erases && any.size() > 1)
    return happens(random, 2) ? erase_step(model, pick(any)) : remove_step(model, pick(any));
  if (die < 26 && !any.empty()) return restore_step(random, model, pick(any), options);
  return append_step(model, make_group(random, model, options));
}

}  // namespace recalld::crash
