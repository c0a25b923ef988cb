// Requests and replies as typed values: what commands hand to the engine and get back. No JSON here (protocol.h has
// it).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/request_defaults.h"
#include "daemon/fusion.h"
#include "memstore/store.h"
#include "memstore/turn.h"
#include "model/gpu.h"

namespace recalld {

// Takes the reply to a request, once; it must not block.
template <class Reply>
using Done = std::move_only_function<void(Expected<Reply>)>;

// ---- Limits, all checked by the protocol before the engine sees a request.
inline constexpr size_t line_bytes_max = size_t{8} << 20;
inline constexpr size_t content_bytes_max = size_t{1} << 20;
inline constexpr size_t name_bytes_max = 200;  // of a turn's speaker
inline constexpr size_t metadata_bytes_max = size_t{16} << 10;
inline constexpr size_t operation_id_bytes_max = 200;
inline constexpr size_t append_turns_max = 10'000;  // of one request
inline constexpr size_t query_bytes_max = size_t{16} << 10;
inline constexpr size_t search_limit_max = 128;
inline constexpr size_t search_memories_max = 64;  // that are searched together
inline constexpr size_t search_widen_max = 512;    // tokens that a result is widened by, on each side
inline constexpr size_t page_limit_max = 1'000;
inline constexpr size_t page_bytes_max = size_t{4} << 20;
inline constexpr size_t forget_ranges_max = 10'000;   // of one request
inline constexpr size_t import_records_max = 10'000;  // of one request
inline constexpr size_t filter_depth_max = 8;         // and, or and not inside one another
inline constexpr size_t filter_values_max = 1'000;    // that a filter compares turns with
inline constexpr size_t generate_tokens_max = 1'024;  // that one generation writes
inline constexpr double temperature_max = 2;
inline constexpr size_t path_bytes_max = 4'095;  // of a directory on the daemon's machine
inline constexpr size_t problems_max = 1'000;    // that a verification lists one by one

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

// What chunks are ranked by.
enum class SearchMode { hybrid, landmark, lexical };

// What a result is: a chunk, chunks that touch, or the whole turns that a chunk lies in.
enum class Expand { none, chunks, turns };

// Where the time of a hybrid search went before its results were read.
struct RankingTimes {
  double query_ms = 0;         // the model read the query
  double encode_ms = 0;        // chunks that were not stored yet were encoded, for this search alone
  double landmarks_ms = 0;     // all landmarks were scored
  double words_ms = 0;         // words were looked up, as far as the search waited for it,
  double words_beside_ms = 0;  // and so long that went on meanwhile, beside the model
  double meaning_ms = 0;       // the meaning of chunks was compared with the question's
  double fetch_ms = 0;         // K/V was fetched,
  double tokens_ms = 0;        // and the question's tokens were compared with those of chunks
};

struct SearchRequest {
  std::string memory;
  std::string query;
  SearchMode mode = SearchMode::hybrid;
  size_t limit = search_limit_default;
  std::optional<uint64_t> max_tokens;
  std::optional<double> min_score;  // of a hybrid search: results below are left out
  bool explain = false;
  std::optional<TurnQuery> filter = {};  // unset: all turns are meant
  Expand expand = Expand::none;
  // Instead of `memory`, several that are searched together:
  std::vector<std::string> memories = {};  // by name, no name twice
  std::optional<std::string> prefix = {};  // all whose names begin so
  bool together() const { return prefix || !memories.empty(); }
};

struct SearchReply {
  struct Why {
    // Of the rankings that the mode has; the ranks are there where the chunk was among the first of one.
    std::optional<double> landmark_score;  // dot product with the query over the root of the retrieval width
    std::optional<size_t> landmark_rank;   // from 1
    std::optional<double> bm25;            // of the chunk's words
    std::optional<double> context_bm25;    // of its words and its neighbours'
    std::optional<size_t> lexical_rank;    // from 1
    std::optional<double> token_score;     // the question's tokens against the chunk's keys
    std::optional<Features> features;      // what the score was computed from
    std::optional<RankingTimes> took;      // of the search, the same in each result
    size_t rank = 0;                       // from 1
    bool stored = false;                   // false: an open or waiting chunk, encoded for this search only
    // What the chunk was ranked by, each by itself.
    struct Part {
      std::string_view name;  // a literal
      double score = 0;
      size_t rank = 0;  // from 1, among all chunks that were compared
      double best = 0;  // of the scores of these
    };
    std::vector<Part> parts{};
    size_t layer = 0;  // of all heads below: the first HSA layer
    struct Match {
      std::string text;  // of the token that a head of the first HSA layer looks at most
      uint64_t token = 0;
      size_t head = 0;
      double weight = 0;  // its share of that head's attention inside the chunk
      std::string
          piece{};  // what the token is in the vocabulary, where it has no text: it is a later byte of a character
    };
    std::vector<Match> matches;  // one a head, the strongest first
    // A token of the query and the token of the chunk that one head looks at on its behalf.
    struct Pair {
      std::string query;  // the text of the query's token, or its piece where it is one byte of a character or a space
      std::string text;   // of the chunk's
      uint64_t token = 0;
      size_t head = 0;
      double weight = 0;    // its share of that head's attention inside the chunk
      std::string piece{};  // as in a match
    };
    std::vector<Pair> pairs{};  // the strongest first, at most search_pairs_max
    // A token of the chunk, with its share of all that the query's tokens look at inside the chunk.
    struct Weighed {
      uint64_t token = 0;
      size_t byte = 0;  // where its text begins in the result's
      std::string text;
      double weight = 0;
    };
    std::vector<Weighed> tokens{};  // in the order of the text, the heaviest, at most search_weighed_max
  };
  struct Result {
    uint64_t chunk = 0;  // the best one in it
    double score = 0;    // of that one
    Passage passage;
    std::optional<Why> why;
    std::vector<uint64_t> chunks{};  // all that were found in it, by number; empty with Expand::none
    size_t duplicates = 0;           // results that say the same and were left out
    std::string memory{};            // where several are searched together
  };
  // Of each memory that was searched together with others.
  struct OfMemory {
    std::string memory;
    std::optional<uint64_t> searchable_through;
    std::vector<Unreadable> unreadable;
  };
  std::vector<Result> results;         // best first
  std::vector<Unreadable> unreadable;  // chunks that damage kept from being considered, by number
  uint64_t unindexed_chunks = 0;       // that no word finds yet: an earlier version encoded them
  std::optional<uint64_t> searchable_through;
  double took_ms = 0;
  // Instead of `unreadable` and `searchable_through`, where several are searched together; by name or as asked.
  std::optional<std::vector<OfMemory>> memories{};
};
inline constexpr size_t search_pairs_max = 16;
inline constexpr size_t search_weighed_max = 16;
inline constexpr size_t search_explained_max = 64;  // tokens of a query that are explained, the first ones

// ---- Generating

// A request that is under way, as its client knows it: by its id, as JSON text, on a connection.
struct Caller {
  uint64_t connection = 0;
  std::string id;
  auto operator<=>(const Caller&) const = default;
};

struct GenerateRequest {
  std::string memory;
  std::string prompt;
  size_t max_tokens = generate_tokens_default;
  double temperature = temperature_default;  // 0: always the best token
  double top_p = top_p_default;
  std::optional<uint64_t> seed;  // of what is random; unset: another one each time
  bool stream = false;
  Caller caller;
  // Each piece of the text as it is written; unset: nobody listens. It must not block.
  std::function<void(std::string text)> on_text;
};

// Why an answer ended.
enum class Finish {
  newline,     // the model wrote the newline piece
  max_tokens,  // it was to be no longer
  cancelled,
};

struct GenerateReply {
  // A chunk that the answer was read from.
  struct Source {
    uint64_t chunk = 0;
    double weight = 0;  // its share of the chunks' weights, over all tokens written and all layers that read
    Passage passage;
  };
  // Turns of which tokens lie in no chunk that was read, and why. Turns that are forgotten may stand between them.
  struct Unread {
    TurnRange turns;
    enum class Reason {
      open_chunk,  // their last chunk is not complete
      encoding,    // more chunks wait to be encoded than an answer encodes itself
      forgetting,  // turns before them are being forgotten
    } reason = Reason::open_chunk;
  };
  std::string text;
  uint64_t tokens = 0;
  Finish finish = Finish::newline;
  std::vector<Source> chunks;                  // the heaviest first, at most generate_sources_max
  std::vector<Unreadable> unreadable;          // chunks that damage kept from being considered, by number
  std::optional<uint64_t> searchable_through;  // the last turn that the answer could be read from
  std::optional<Unread> unread;                // those behind it
  std::optional<uint64_t> seed;                // that repeats the answer, with a temperature
  double took_ms = 0;
};
inline constexpr size_t generate_sources_max = 8;

struct CancelReply {
  bool cancelled = false;  // false: no such request is under way
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
  std::vector<uint32_t> token_ids;        // [64]
  std::vector<std::string> token_texts;   // [64] the bytes of each token in the text; a later piece of a character: ""
  std::vector<std::string> token_pieces;  // [64] what each is in the vocabulary
  uint64_t kv_bytes = 0;                  // of the record as read and verified
};

// ---- Forgetting

struct ForgetRequest {
  std::string memory;
  std::vector<TurnRange> turns;  // in any order, may overlap; or else
  std::optional<TurnQuery> filter = {};
  bool dry_run = false;
  bool wait = true;  // false: answer as soon as the turns are gone from every read
};

// What was removed, and from where.
struct Receipt {
  std::string memory;
  std::vector<TurnRange> turns{};  // by number, apart from each other
  uint64_t turn_count = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
  uint64_t chunks = 0;  // whose landmarks and K/V were erased: those of the turns, and all after them
  struct File {
    std::string file;  // relative to the data directory
    uint64_t records = 0;
    uint64_t bytes = 0;
  };
  std::vector<File> files{};      // segments that K/V was erased from, then the catalog
  bool dry_run = false;           // nothing was done: this is what would be
  bool complete = false;          // nothing is left on disk
  int64_t time_us = 0;            // of completion, else of the answer
  std::optional<uint64_t> job{};  // while it is not complete: its number in stats
};

struct DeleteRequest {
  std::string memory;
  bool wait = true;
};

struct DeleteReply {
  MemoryInfo memory;  // what it was
  Receipt receipt;
};

// ---- Verifying and mending

struct VerifyRequest {
  std::optional<std::string> memory;  // all, when there is none
  bool repair = false;
  bool wait = true;
};

struct VerifyReply {
  uint64_t memories = 0;
  uint64_t turns = 0;
  uint64_t chunks = 0;  // entries, landmarks and K/V
  uint64_t states = 0;
  uint64_t bytes = 0;             // read and checked
  std::vector<Problem> problems;  // the first problems_max
  uint64_t problem_count = 0;
  uint64_t repaired_count = 0;
  uint64_t unindexed_chunks = 0;  // that no word finds yet, and turns that filters read by themselves: no damage, and
  uint64_t unindexed_turns = 0;   // being indexed
  std::optional<uint64_t> job;    // with wait false: its number in stats, where the outcome will stand
};

// ---- Export and import: a memory as a stream of records (docs/export-format.md)

struct ExportHeader {
  std::string memory;
  int64_t created_us = 0;
  int64_t updated_us = 0;
  uint64_t next_turn = 0;  // the number that the next appended turn gets
  std::string model_hash;  // of the encodings; empty: none follow
};
struct ExportOperation {
  std::string operation_id;
  Hash128 digest{};
  uint64_t first_turn = 0;
  uint64_t last_turn = 0;
  uint64_t tokens = 0;
};
struct ExportChunk {
  uint64_t chunk = 0;
  std::string landmark;  // bytes, as stored
  std::string kv;        // bytes, as stored
};
struct ExportState {
  uint64_t chunks = 0;
  std::string state;  // bytes, as stored
};
struct ExportEnd {
  uint64_t turns = 0;
  uint64_t chunks = 0;
};
// In this order: the header, turns, operations, chunks, states, the end.
using ExportRecord = std::variant<ExportHeader, StoredTurn, ExportOperation, ExportChunk, ExportState, ExportEnd>;

struct ExportRequest {
  std::string memory;
  bool encodings = false;
  std::string after;  // from the cursor; empty: the beginning
  size_t limit = 1'000;
};
struct ExportReply {
  std::vector<ExportRecord> records;
  std::optional<std::string> next_after;
};

struct ImportRequest {
  std::string memory;  // made when it does not exist; it must not hold other turns than the export's
  std::vector<ExportRecord> records;
};
struct ImportReply {
  MemoryInfo memory;      // as it is now
  uint64_t imported = 0;  // records that were new
  uint64_t present = 0;   // records that were there already
  uint64_t ignored = 0;   // chunks and states of no use here: of another model, or older than what is there
};

// ---- Backup, another model, and work that goes on behind the replies

struct BackupRequest {
  std::string directory;  // absolute; must not exist
};
struct BackupReply {
  std::string directory;
  uint64_t files = 0;
  uint64_t bytes = 0;
  uint64_t shared_bytes = 0;  // of these, reflinked rather than copied
  double took_ms = 0;
};

struct ReencodeRequest {
  std::string model;    // absolute directory of the checkpoint
  bool cancel = false;  // instead: drop what has been encoded with another model
};

struct JobView {
  uint64_t job = 0;
  std::string kind;    // forget, delete, verify, reencode
  std::string memory;  // empty: all
  std::string state;   // running, done, failed
  uint64_t done = 0;   // chunks, or rows
  uint64_t total = 0;
  int64_t started_us = 0;
  std::string message;  // why it failed, or what it found
};

struct GpuStats {
  std::string name;
  GpuUsage usage;
  uint64_t cache_slots = 0;   // for chunks
  uint64_t cache_hits = 0;    // chunks that were attended to and lay there already; since the start, as what follows
  uint64_t cache_misses = 0;  // chunks that were read for it
  uint64_t chunks_read_bytes = 0;
};

struct StatsReply {
  std::vector<JobView> jobs;  // those that run and the last ones that ended, oldest first
  StoreStats store;
  std::string model_directory;
  std::string model_hash;
  std::string model_precision;  // e.g. "bf16 products (AMX), 2 threads"
  std::string device;           // "cpu" or "cuda"
  std::optional<GpuStats> gpu;  // with "cuda"
  uint64_t resident_bytes = 0;  // of the process, now
  uint64_t memory_budget_bytes = 0;
  uint64_t state_cache_bytes = 0;  // recurrent states in RAM
  uint64_t appends_waiting = 0;    // not yet durable
  uint64_t searches = 0;           // answered since the start
  uint64_t generations = 0;        // likewise
  uint64_t tokens_generated = 0;   // since the start
  uint64_t tokens_encoded = 0;     // since the start
  double encode_tokens_per_s = 0;  // while encoding, since the start
  double uptime_s = 0;
};

struct HealthReply {
  bool ready = true;
  uint64_t waiting_chunks = 0;
  std::string problem;  // why encoding stands still, or what is damaged; empty: nothing is wrong
};

struct VersionReply {
  std::string version;  // of recalld
  unsigned protocol = 1;
  std::string model_hash;
};

}  // namespace recalld
