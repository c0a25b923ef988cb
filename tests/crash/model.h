// What a store must hold: a plain account of what was acknowledged, and how a store differs from it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memstore/layout.h"
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

// Chunks whose landmarks make a page, at the multiples of which generations part.
uint64_t page_chunks(const RecordShape& shape);

// What a model would leave behind for a chunk: numbers that follow from all tokens up to its end, as `past` sums them
// up, and from nothing else.
struct Encoded {
  std::vector<Bf16> landmark;
  std::vector<std::byte> kv;

  Encoded(const Hash128& past, const RecordShape& shape);
  EncodedChunkView view() const { return {landmark, kv}; }
};
std::string state_of(const Hash128& past, const RecordShape& shape);

// One generation of a memory's encodings.
struct GenerationModel {
  struct Token {
    uint64_t position = 0;  // among all tokens that the memory ever got
    uint64_t turn = 0;
    uint32_t id = 0;
  };

  std::vector<Extent> extents;
  std::vector<Token> tokens;
  std::vector<Hash128> past{Hash128{}};  // of the first 0, 1, 2, ... chunks
  uint64_t chunks = 0;                   // encoded
  uint64_t state_chunks = 0;             // covered by the newest state that was made for it

  void add(std::span<const Token> more);
  void take(const std::set<uint64_t>& turns, uint64_t from);  // their tokens from this one on
  uint64_t waiting_chunks() const { return tokens.size() / chunk_tokens - chunks; }
  StreamId stream() const { return extents.back().stream; }
  uint64_t first_chunk() const { return extents.back().first_chunk; }  // in a stream of its own
  // One past the position of the last encoded token.
  uint64_t end_position() const { return chunks == 0 ? 0 : tokens[chunks * chunk_tokens - 1].position + 1; }
  std::vector<uint32_t> ids() const;

 private:
  void sum_up();
};

struct MemoryModel {
  struct Operation {
    Hash128 digest{};
    Appended reply;
  };

  // Bytes by which what should be gone would be recognised.
  struct Traces {
    std::vector<std::pair<std::string, std::string>> texts;  // what it is of, and the bytes
    std::set<Hash128> pasts;                                 // of chunks: their K/V, landmarks and states
    void add(const Traces& more);
  };

  MemoryId id = 0;
  std::map<uint64_t, std::shared_ptr<const NewTurn>> turns;  // by number
  uint64_t next_turn = 0;
  uint64_t next_position = 0;
  GenerationModel serving;
  std::optional<GenerationModel> next;
  std::map<std::string, Operation> operations;
  std::set<std::pair<StreamId, uint64_t>> states;  // and the chunks that each of them covers
  uint64_t content_bytes = 0;
  int64_t created_us = 0;
  int64_t updated_us = 0;
  Traces doomed;  // of what was forgotten and not erased

  uint64_t tokens() const { return next ? next->tokens.size() : serving.tokens.size(); }
  void add(const NewTurn& turn);
  void add_state(GenerationModel& to, uint64_t chunks);
  std::set<uint64_t> states_of(const GenerationModel& generation) const;  // that it can go on from

  // As the functions of the store. `page_chunks`: of a page of landmarks; `new_stream` is for a next generation.
  struct Forgetting {
    Forgotten reply;
    uint64_t erasures = 0;  // that it asks for
  };
  Forgetting forget(std::span<const TurnRange> ranges, uint64_t page_chunks, StreamId new_stream);
  std::optional<uint64_t> swap(bool at_once);  // how many erasures it asks for; nothing when it changes nothing

  Traces everything() const;  // that it holds now
  // Adds the chunks of a generation from this one on to those that should be gone.
  void doom(const GenerationModel& generation, uint64_t first_chunk);
};

struct Model {
  std::map<std::string, MemoryModel> memories;
  uint64_t next_number = 1;                 // of a memory, stream or erasure
  std::map<MemoryId, MemoryModel> removed;  // as they were; nothing of them comes back
  std::set<MemoryId> to_erase;              // of which bytes are left
  std::map<MemoryId, MemoryModel::Traces> gone;

  Expected<Appended> append(const AppendBatch& batch);  // as Store::append answers it
  Forgotten forget(const std::string& memory, std::span<const TurnRange> ranges, uint64_t page_chunks);
  bool swap(const std::string& memory, bool at_once);
  void remove(const std::string& memory);
  void erase_forgotten(MemoryId id);

  // What is not encoded or erased that should be: then more lies on the disk than a memory holds.
  bool settled() const;
};

// One sentence for each thing in which the store is not as the model has it; none: it holds exactly this. Reads through
// every function of the store, and repeats all operations.
std::vector<std::string> differences(Store& store, const Model& model, const RecordShape& shape);

// A reply that is not the expected one, in words; empty: it is.
std::string difference(const Expected<Appended>& got, const Expected<Appended>& expected);
std::string difference(const Expected<Forgotten>& got, const Forgotten& expected);

}  // namespace recalld::crash
