// Requests and replies as typed values: what commands hand to the engine and get back. No JSON here (protocol.h has
// it).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "memstore/store.h"
#include "memstore/turn.h"

namespace recalld {

// ---- Limits, all checked by the protocol before the engine sees a request.
inline constexpr size_t line_bytes_max = size_t{8} << 20;
inline constexpr size_t content_bytes_max = size_t{1} << 20;
inline constexpr size_t name_bytes_max = 200;  // of a turn's speaker
inline constexpr size_t metadata_bytes_max = size_t{16} << 10;
inline constexpr size_t operation_id_bytes_max = 200;
inline constexpr size_t append_turns_max = 10'000;  // of one request
inline constexpr size_t query_bytes_max = size_t{16} << 10;
inline constexpr size_t search_limit_max = 128;
inline constexpr size_t page_limit_max = 1'000;
inline constexpr size_t page_bytes_max = size_t{4} << 20;

struct AppendRequest {
  struct NewTurn {
    Turn turn;              // time_us counts only when has_time
    bool has_time = false;  // else the daemon's clock
  };
  std::string memory;
  std::vector<NewTurn> turns;
  std::string operation_id;  // empty: none
  bool wait_searchable = false;
};

struct AppendReply {
  std::string memory;
  uint64_t first_turn = 0;
  uint64_t last_turn = 0;
  uint64_t tokens = 0;                         // of these turns
  std::optional<uint64_t> searchable_through;  // the last turn that a search would cover now
};

struct SearchRequest {
  std::string memory;
  std::string query;
  size_t limit = 8;
  std::optional<uint64_t> max_tokens;
  bool explain = false;
};

struct SearchReply {
  struct Why {
    double landmark_score = 0;  // dot product with the query over the root of the retrieval width
    size_t rank = 0;            // from 1
    bool stored = false;        // false: an open or waiting chunk, encoded for this search only
    struct Match {
      std::string text;  // of the token that a head of the first HSA layer looks at most
      uint64_t token = 0;
      size_t head = 0;
      double weight = 0;  // its share of that head's attention inside the chunk
    };
    std::vector<Match> matches;  // one a head, the strongest first
  };
  struct Result {
    uint64_t chunk = 0;
    double score = 0;
    Passage passage;
    std::optional<Why> why;
  };
  std::vector<Result> results;  // best first
  std::optional<uint64_t> searchable_through;
  double took_ms = 0;
};

struct MemoriesListRequest {
  std::string prefix;
  std::string after;  // from the cursor: the last name of the page before
  size_t limit = 100;
};

struct MemoryView {
  MemoryInfo info;
  std::optional<uint64_t> searchable_through;
};

struct MemoriesListReply {
  std::vector<MemoryView> memories;
  std::optional<std::string> next_after;
};

struct TurnsListRequest {
  std::string memory;
  uint64_t first = 0;  // from the cursor
  size_t limit = 100;
};

struct TurnsListReply {
  std::vector<StoredTurn> turns;
  std::optional<uint64_t> next_first;
};

struct ChunksListRequest {
  std::string memory;
  uint64_t first = 0;  // from the cursor
  size_t limit = 100;
};

// A chunk that is encoded and stored.
struct ChunkView {
  uint64_t chunk = 0;
  Passage passage;
  ChunkEntry entry;
  double landmark_norm = 0;  // Euclidean
};

struct ChunksListReply {
  std::vector<ChunkView> chunks;
  std::optional<uint64_t> next_first;
};

struct ChunkDetail {
  ChunkView view;
  std::vector<uint32_t> token_ids;       // [64]
  std::vector<std::string> token_texts;  // [64] the bytes of each token in the text; a later piece of a character: ""
  uint64_t kv_bytes = 0;                 // of the record as read and verified
};

struct StatsReply {
  StoreStats store;
  std::string model_directory;
  std::string model_hash;
  std::string model_precision;  // e.g. "bf16 products (AMX), 2 threads"
  std::string device;           // "cpu"
  uint64_t resident_bytes = 0;  // of the process, now
  uint64_t memory_budget_bytes = 0;
  uint64_t state_cache_bytes = 0;  // recurrent states in RAM
  uint64_t appends_waiting = 0;    // not yet durable
  uint64_t searches = 0;           // answered since the start
  uint64_t tokens_encoded = 0;     // since the start
  double encode_tokens_per_s = 0;  // while encoding, since the start
  double uptime_s = 0;
};

struct HealthReply {
  bool ready = true;
  uint64_t waiting_chunks = 0;
  std::string problem;  // why encoding stands still; empty: nothing is wrong
};

struct VersionReply {
  std::string version;  // of recalld
  unsigned protocol = 1;
  std::string model_hash;
};

}  // namespace recalld
