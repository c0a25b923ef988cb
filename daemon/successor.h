// The store that is made in DATA/next for another model: its journal follows the one that serves, turn by turn, in the
// tokens of the other model. Knows nothing of how chunks are encoded.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include "base/error.h"
#include "memstore/store.h"
#include "model/tokenizer.h"

namespace recalld {

// Any thread may call forget(), remove() and forget_missing(); the copying functions are called by one thread at a
// time.
class Successor {
 public:
  // Opens DATA/next, or makes it. Fails with invalid_request when it was begun for another model, with busy when it is
  // open already.
  static Expected<std::unique_ptr<Successor>> open(const std::filesystem::path& data, const RecordShape& shape,
                                                   uint64_t memory_budget_bytes);

  // Copies a page of turns, or finds that there is none: false when all that `from` held when it last looked is here.
  Expected<bool> copy_some(const Store& from, const Tokenizer& tokenizer);

  // Copies until nothing is left, and makes sure that nothing is here that is not there.
  Expected<void> copy_all(const Store& from, const Tokenizer& tokenizer);

  // To be told after the turns were forgotten, or the memory removed, where they came from. A memory is known by its
  // name and the time when it was made: one that was removed may have left its name to another. Nothing of them is left
  // on disk on return.
  Expected<void> forget(const std::string& memory, int64_t created_us, std::span<const TurnRange> turns);
  Expected<void> remove(const std::string& memory, int64_t created_us);

  // Forgets and removes all that is not there any more. For what was forgotten while nobody could tell.
  Expected<void> forget_missing(const Store& from);

  // Keeps the directory of the model beside the store, so that a restart can go on.
  Expected<void> remember(const std::filesystem::path& model) const;
  // Notes that the store can take the place of the other one without a search missing what could be found before.
  Expected<void> mark_ready() const;

  Store& store() { return *store_; }
  const RecordShape& shape() const { return shape_; }

 private:
  Successor(std::filesystem::path directory, const RecordShape& shape, std::unique_ptr<Store> store)
      : directory_(std::move(directory)), shape_(shape), store_(std::move(store)) {}

  Expected<bool> follow(const Store& from, const Tokenizer& tokenizer, MemoryId id);
  Expected<void> drop_extra_turns(const Store& from, MemoryId from_id, MemoryId id);
  Expected<void> drop_extra_memories(const Store& from);
  Expected<void> erase_if_there(const std::string& memory);
  Expected<void> copy_operations(const Store& from, MemoryId from_id, MemoryId id);

  const std::filesystem::path directory_;
  const RecordShape shape_;
  const std::unique_ptr<Store> store_;
  std::mutex copying_;              // between reading a turn there and writing it here, nothing is forgotten here
  MemoryId after_ = 0;              // the memory that was looked at last in this pass
  bool copied_ = true;              // something, in this pass
  bool operations_too_ = false;     // they are needed when the store changes places
  std::array<uint64_t, 3> seen_{};  // sums over the other store when the last pass began
  std::string damage_;              // of a memory that could not be copied
};

// The directory of the model that DATA/next is being made with, as remember() kept it; empty when there is none.
std::filesystem::path model_of_successor(const std::filesystem::path& data);

// Whether DATA/next has been marked ready.
bool successor_is_ready(const std::filesystem::path& data);

}  // namespace recalld
