// What a store must hold: a plain account of what was acknowledged, and how a store differs from it.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "memstore/store.h"

namespace recalld::crash {

using Random = std::mt19937_64;

inline uint64_t below(Random& random, uint64_t bound) {
  return random() % bound;
}
inline bool happens(Random& random, uint64_t one_in) {
  return below(random, one_in) == 0;
}

RecordShape shape(uint32_t landmark_dim);

// A turn of about this many bytes: text of 1 to 4 bytes a character, NUL bytes too, and tokens of any length.
NewTurn make_turn(Random& random, size_t bytes);

// What a model would leave behind for a chunk: numbers that follow from all tokens up to its end, as `past` sums them
// up, and from nothing else.
struct Encoded {
  std::vector<Bf16> landmark;
  std::vector<std::byte> kv;

  Encoded(const Hash128& past, const RecordShape& shape);
  EncodedChunkView view() const { return {landmark, kv}; }
};
std::string state_of(const Hash128& past, const RecordShape& shape);

struct MemoryModel {
  struct Operation {
    Hash128 digest{};
    Appended reply;
  };

  MemoryId id = 0;
  std::vector<std::shared_ptr<const NewTurn>> turns;
  std::vector<uint64_t> first_tokens;  // of each turn
  std::vector<uint32_t> tokens;
  std::vector<Hash128> past{Hash128{}};  // of the first 0, 1, 2, ... chunks
  std::map<std::string, Operation> operations;
  uint64_t encoded_chunks = 0;
  uint64_t state_chunks = 0;  // covered by the newest state
  std::set<uint64_t> states;  // chunks that each of them covers
  uint64_t content_bytes = 0;
  int64_t created_us = 0;
  int64_t updated_us = 0;

  void add(const NewTurn& turn);
  void add_state(uint64_t chunks);
  uint64_t waiting_chunks() const { return tokens.size() / chunk_tokens - encoded_chunks; }
};

struct Model {
  std::map<std::string, MemoryModel> memories;
  MemoryId next_memory = 1;
  std::map<MemoryId, MemoryModel> erased;  // as they were

  Expected<Appended> append(const AppendBatch& batch);  // as Store::append answers it
};

// One sentence for each thing in which the store is not as the model has it; none: it holds exactly this. Reads through
// every function of the store, and repeats all operations.
std::vector<std::string> differences(Store& store, const Model& model, const RecordShape& shape);

// A reply that is not the expected one, in words; empty: it is.
std::string difference(const Expected<Appended>& got, const Expected<Appended>& expected);

}  // namespace recalld::crash
