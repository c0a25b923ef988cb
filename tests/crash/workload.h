// What is done to a store while its power may go, step by step, driven by a seed.
//
// To put another operation of the store into the sweep: add a function that makes its Step, and a line in next_step().
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/crash/model.h"

namespace recalld::crash {

struct Step {
  std::string what;  // for people

  // Does it; fails when the store does. What the store answers wrongly is added to `complaints`.
  std::function<Expected<void>(Store& store, std::vector<std::string>& complaints)> run;

  // What the store may hold when the step is broken off: nothing of it, then further and further on. The last one is
  // what it holds when the step succeeds.
  std::vector<Model> outcomes;

  std::vector<AppendBatch> appended{};  // by this step, when it is an append
  std::string encoded{};                // the memory whose chunks it puts, when it does
  bool forgets = false;                 // turns that there are
  bool writes = true;                   // false: it may succeed on a disk that takes no writes
};

struct WorkloadOptions {
  RecordShape shape;
  size_t turn_bytes_max = 1500;
  uint64_t large_turns = 0;  // one turn in so many is of 70 to 150 KB; 0: none
  bool erases = true;        // memories
  bool forgets = true;       // turns
};

Step next_step(Random& random, const Model& model, const WorkloadOptions& options);

// ---- The steps that next_step() chooses from
Step append_step(const Model& model, std::vector<AppendBatch> group);
// Of the serving generation or the next one.
Step put_step(Random& random, const Model& model, const std::string& memory, bool of_next, const RecordShape& shape);
Step put_state_step(const Model& model, const std::string& memory, bool of_next, const RecordShape& shape);
Step forget_step(const Model& model, const std::string& memory, std::vector<TurnRange> turns, const RecordShape& shape);
Step swap_step(const Model& model, const std::string& memory, bool at_once);
Step remove_step(const Model& model, const std::string& memory);
Step erase_step(const Model& model, const std::string& memory);  // removes it, and its bytes
Step erase_forgotten_step(const Model& model, MemoryId memory);
Step restore_step(Random& random, const Model& model, const std::string& memory, const WorkloadOptions& options);

// What a daemon that is left alone does next; nothing once all is encoded and erased.
std::optional<Step> settling_step(Random& random, const Model& model, const WorkloadOptions& options);

// What a client does that got no answer: the appends of the step that carry an operation_id, again.
Step retry_step(const Model& model, const Step& broken_off);

}  // namespace recalld::crash
