// Requests to recalld and its replies as typed values. Field names are those of docs/protocol.md.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Relative, because this header is installed too, where the project's root is not on the include path.
#include "../base/error.h"

namespace recalld::client {

using Json = nlohmann::json;

// ---- Bounds. All but the last are the daemon's own (docs/protocol.md).
inline constexpr size_t line_bytes_max = size_t{8} << 20;     // of one request
inline constexpr size_t content_bytes_max = size_t{1} << 20;  // of one turn
inline constexpr size_t requests_in_flight_max = 64;          // on one connection
inline constexpr size_t forget_ranges_max = 10'000;           // of one request
inline constexpr size_t reply_bytes_max = size_t{256} << 20;  // of one reply: longer ones are not believed

struct Turn {
  std::string role = "user";  // user, assistant, system or tool
  std::string content{};      // UTF-8, 1 byte to 1 MiB
  std::optional<std::string> name{};
  std::optional<std::string> time{};  // RFC 3339; unset: the daemon's clock
  Json metadata = nullptr;            // a flat object, or null for none
};

struct AppendRequest {
  std::string memory{};
  std::vector<Turn> turns{};
  std::string operation_id{};  // empty: none
  bool wait_searchable = false;
};

struct AppendReply {
  std::string memory;
  uint64_t first_turn = 0;
  uint64_t last_turn = 0;
  uint64_t tokens = 0;
  std::optional<uint64_t> searchable_through;
};

struct SearchRequest {
  std::string memory{};  // a name, or the beginning of names and "*"
  std::string query{};
  std::optional<uint64_t> limit{};
  std::optional<uint64_t> max_tokens{};
  std::string mode{};  // empty: the daemon's default
  bool explain = false;
  std::string expand{};                 // empty: the daemon's default
  std::vector<std::string> memories{};  // searched together, instead of `memory`; empty: none
  Json filter = nullptr;                // which turns are meant; null: all
  std::optional<double> min_score{};    // of a hybrid search: what is less likely is left out
};

struct TokenRange {
  uint64_t first = 0;
  uint64_t end = 0;  // exclusive
};

// Turns first to last, both included.
struct TurnRange {
  uint64_t first = 0;
  uint64_t last = 0;
  bool operator==(const TurnRange&) const = default;
};

// Chunks that damage kept from being read.
struct Unreadable {
  uint64_t first = 0;
  uint64_t last = 0;
  std::string message;
  std::string memory{};  // where several are searched together
};

struct SearchReply {
  struct Source {
    uint64_t turn = 0;
    std::string role;
    std::optional<std::string> name;
    std::string time;
    // Whether the turn goes on before the text, or behind it.
    bool cut_before = false;
    bool cut_after = false;
  };
  struct Result {
    uint64_t chunk = 0;
    double score = 0;
    std::string text;
    TokenRange tokens;
    std::vector<Source> turns;
    Json why = nullptr;  // an object when explain was asked for
    // Where chunks are expanded: all that were found in the text, and how many results that say the same were left out.
    std::vector<uint64_t> chunks{};
    uint64_t duplicates = 0;
    std::string memory{};  // where several are searched together
  };
  // How far a search of several memories covers one of them.
  struct Through {
    std::string memory;
    std::optional<uint64_t> searchable_through;
  };
  std::vector<Result> results;               // best first
  std::optional<uint64_t> unindexed_chunks;  // that no word finds yet, where there are any
  std::optional<uint64_t> searchable_through;
  double took_ms = 0;
  std::vector<Unreadable> unreadable{};
  std::optional<std::vector<Through>> memories{};  // instead of searchable_through, where several are searched together
};

struct GenerateRequest {
  std::string memory{};
  std::string prompt{};
  std::optional<uint64_t> max_tokens{};
  std::optional<double> temperature{};  // unset or 0: always the best token
  std::optional<double> top_p{};
  std::optional<uint64_t> seed{};
  bool stream = false;
};

struct GenerateReply {
  // A chunk that the answer was read from.
  struct Chunk {
    uint64_t chunk = 0;
    double weight = 0;
    std::string text;
    TokenRange tokens;
    std::vector<SearchReply::Source> turns;
  };
  // Turns that were not read whole.
  struct Unread {
    TurnRange turns;
    std::string reason;  // open_chunk, encoding or forgetting
  };
  std::string text;
  uint64_t tokens = 0;
  std::string finish;         // newline, max_tokens or cancelled
  std::vector<Chunk> chunks;  // the heaviest first
  std::vector<Unreadable> unreadable;
  std::optional<uint64_t> searchable_through;  // the last turn that the answer could be read from
  std::optional<Unread> unread;                // those behind it
  std::optional<uint64_t> seed;
  double took_ms = 0;
};

// A page of a listing: it begins at `cursor`, the previous page's next_cursor, or at entry number `first`.
struct PageRequest {
  std::string memory{};  // for memories(): the prefix of the names
  std::optional<uint64_t> limit{};
  std::string cursor{};
  std::optional<uint64_t> first{};  // not for memories()
};

struct StoredTurn {
  uint64_t number = 0;
  Turn turn;
};

struct TurnsReply {
  std::vector<StoredTurn> turns;
  std::optional<std::string> next_cursor;
};

struct Chunk {
  uint64_t chunk = 0;
  std::string text;
  TokenRange tokens;
  uint64_t first_turn = 0;
  uint64_t last_turn = 0;
  uint64_t kv_segment = 0;  // the number of DATA/kv/NNNNNN.seg
  uint64_t kv_slot = 0;
  std::string kv_crc32c;  // as hexadecimal digits
  double landmark_norm = 0;
  uint64_t generation = 0;

  // Of chunk() alone: every token, and the size of the K/V record as it was read and verified.
  std::vector<uint64_t> token_ids;
  std::vector<std::string> token_texts;
  std::vector<std::string> token_pieces;
  std::optional<uint64_t> kv_bytes;
};

struct ChunksReply {
  std::vector<Chunk> chunks;
  std::optional<std::string> next_cursor;
};

struct Memory {
  std::string memory;
  uint64_t turns = 0;
  uint64_t next_turn = 0;  // the number that the next appended turn gets: more than turns once some were forgotten
  uint64_t tokens = 0;
  uint64_t chunks = 0;  // complete
  uint64_t encoded_chunks = 0;
  uint64_t content_bytes = 0;
  std::string created;
  std::string updated;
  std::optional<uint64_t> searchable_through;
};

struct MemoriesReply {
  std::vector<Memory> memories;
  std::optional<std::string> next_cursor;
};

// Either turns or a filter.
struct ForgetRequest {
  std::string memory{};
  std::vector<TurnRange> turns{};
  Json filter = nullptr;
  bool dry_run = false;  // only tell what would be removed
  bool wait = true;      // false: do not wait until nothing is left on disk
};

// What was removed, and from where.
struct Receipt {
  std::string memory;
  std::vector<TurnRange> turns;
  uint64_t turn_count = 0;
  uint64_t tokens = 0;
  uint64_t content_bytes = 0;
  uint64_t chunks = 0;  // whose landmarks and K/V were erased
  struct File {
    std::string file;  // relative to the data directory
    uint64_t records = 0;
    uint64_t bytes = 0;
  };
  std::vector<File> files;
  bool complete = false;  // nothing is left on disk
  std::string time;
  bool dry_run = false;         // nothing was done
  std::optional<uint64_t> job;  // its number in stats, while it is not complete
};

struct DeleteReply {
  Memory memory;  // what it was
  Receipt receipt;
};

struct VerifyRequest {
  std::string memory{};  // empty: all
  bool repair = false;
  bool wait = true;
};

struct VerifyReply {
  struct Problem {
    std::string memory;  // empty: of none
    std::string part;
    uint64_t first = 0;
    uint64_t last = 0;
    std::string message;
    bool repairable = false;
    bool repaired = false;
  };
  uint64_t memories = 0;
  uint64_t turns = 0;
  uint64_t chunks = 0;
  uint64_t states = 0;
  uint64_t bytes = 0;
  std::vector<Problem> problems;  // the first ones
  uint64_t problem_count = 0;     // all of them
  // Chunks by their words, and turns by their attributes, where there are any.
  std::optional<uint64_t> unindexed_chunks = {};
  std::optional<uint64_t> unindexed_turns = {};
  uint64_t repaired_count = 0;
  std::optional<uint64_t> job;
};

// Records are the lines of an export as docs/export-format.md describes them.
struct ExportRequest {
  std::string memory{};
  bool encodings = false;
  std::optional<uint64_t> limit{};
  std::string cursor{};
};

struct ExportReply {
  std::vector<Json> records;
  std::optional<std::string> next_cursor;
};

struct ImportRequest {
  std::string memory{};
  std::vector<Json> records{};
};

struct ImportReply {
  Memory memory;  // as it is now
  uint64_t imported = 0;
  uint64_t present = 0;  // records that were there already
};

struct BackupReply {
  std::string directory;
  uint64_t files = 0;
  uint64_t bytes = 0;
  uint64_t shared_bytes = 0;  // of these, shared with the store by the file system
  double took_ms = 0;
};

// Work that goes on behind the replies.
struct Job {
  uint64_t job = 0;
  std::string kind;    // forget, delete, verify or reencode
  std::string memory;  // empty: all
  std::string state;   // running, done or failed
  uint64_t done = 0;
  uint64_t total = 0;
  std::string started;
  std::string message;  // empty: none
};

struct Jobs {
  std::vector<Job> jobs;  // of stats, oldest first
};

struct Health {
  bool ready = false;
  uint64_t waiting_chunks = 0;
  std::string problem;  // empty: nothing is wrong
};

struct Version {
  std::string version;
  uint64_t protocol = 0;
  std::string model_hash;
};

// The params object of a request, as call() and submit() take it.
Json params(const AppendRequest& request);
Json params(const SearchRequest& request);
Json params(const GenerateRequest& request);
Json params(const PageRequest& request, std::string_view name_key = "memory");
Json params(const ForgetRequest& request);
Json params(const VerifyRequest& request);
Json params(const ExportRequest& request);
Json params(const ImportRequest& request);

// Reads a reply's result; fails with Error::internal when a field is missing or of another type (another version).
// Instantiated for every reply type above.
template <class Reply>
Expected<Reply> decode(const Json& result);

}  // namespace recalld::client
