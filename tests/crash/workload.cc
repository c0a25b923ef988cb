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

Step put_step(Random& random, const Model& model, const std::string& name, const RecordShape& shape) {
  const MemoryModel& memory = model.memories.at(name);
  const uint64_t first = memory.encoded_chunks;
  const uint64_t count = 1 + below(random, std::min(put_chunks_max, memory.waiting_chunks()));
  const bool with_state = happens(random, 3);
  std::vector<Encoded> chunks;
  for (uint64_t i = first; i < first + count; ++i) chunks.emplace_back(memory.past[i + 1], shape);
  Model after = model;
  after.memories.at(name).encoded_chunks += count;
  if (with_state) after.memories.at(name).add_state(first + count);
  return {.what = "put chunks of " + name,
          .run = [=, id = memory.id, state = state_of(memory.past[first + count], shape)](
                     Store& store, std::vector<std::string>&) -> Expected<void> {
            std::vector<EncodedChunkView> views;
            for (const Encoded& chunk : chunks) views.push_back(chunk.view());
            return store.put(id, first, views, with_state ? std::optional(as_bytes(state)) : std::nullopt);
          },
          .outcomes = {model, std::move(after)},
          .encoded = name};
}

Step put_state_step(const Model& model, const std::string& name, const RecordShape& shape) {
  const MemoryModel& memory = model.memories.at(name);
  const uint64_t chunks = memory.encoded_chunks;
  Model after = model;
  after.memories.at(name).add_state(chunks);
  return {.what = "put the state of " + name,
          .run = [=, id = memory.id, state = state_of(memory.past[chunks], shape)](
                     Store& store, std::vector<std::string>&) { return store.put_state(id, chunks, as_bytes(state)); },
          .outcomes = {model, std::move(after)}};
}

Step erase_step(const Model& model, const std::string& name) {
  Model after = model;
  const auto memory = after.memories.find(name);
  after.erased[memory->second.id] = std::move(memory->second);
  after.memories.erase(memory);
  return {.what = "erase " + name,
          .run = [name](Store& store, std::vector<std::string>&) { return store.erase(name); },
          .outcomes = {model, std::move(after)}};
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

Step next_step(Random& random, const Model& model, const WorkloadOptions& options) {
  const auto pick = [&](const std::vector<std::string>& names) { return names[below(random, names.size())]; };
  const auto any = names_where(model, [](const MemoryModel&) { return true; });
  const auto waiting = names_where(model, [](const MemoryModel& memory) { return memory.waiting_chunks() > 0; });
  const auto ahead =
      names_where(model, [](const MemoryModel& memory) { return memory.encoded_chunks > memory.state_chunks; });
  const uint64_t die = below(random, 20);
  if (die < 9 && !waiting.empty()) return put_step(random, model, pick(waiting), options.shape);
  if (die < 11 && !ahead.empty()) return put_state_step(model, pick(ahead), options.shape);
  if (die < 13 && options.erases && any.size() > 1) return erase_step(model, pick(any));
  return append_step(model, make_group(random, model, options));
}

}  // namespace recalld::crash
