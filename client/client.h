// A connection to a running recalld: typed calls for what agents do most, raw calls for everything else, pipelining.
//
// One Client is one connection, used by one thread at a time; open as many as you like. Calls block. No function
// throws. A daemon's refusal comes back as the Error that it names (data.kind on the wire); a connection that breaks
// comes back as Error::io, and every later call on it fails with the same error: connect again.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Relative, because this header is installed too, where the project's root is not on the include path.
#include "../base/descriptor.h"
#include "../base/error.h"

namespace recalld::client {

using Json = nlohmann::json;

// ---- Bounds. The first three are the daemon's own (docs/protocol.md).
inline constexpr size_t line_bytes_max = size_t{8} << 20;     // of one request
inline constexpr size_t content_bytes_max = size_t{1} << 20;  // of one turn
inline constexpr size_t requests_in_flight_max = 64;          // on one connection
inline constexpr size_t reply_bytes_max = size_t{256} << 20;  // of one reply: longer ones are not believed

// ---- Requests and replies. Field names are those of docs/protocol.md.
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
  std::string memory{};
  std::string query{};
  std::optional<uint64_t> limit{};
  std::optional<uint64_t> max_tokens{};
  std::string mode{};  // empty: the daemon's default
  bool explain = false;
};

struct TokenRange {
  uint64_t first = 0;
  uint64_t end = 0;  // exclusive
};

struct SearchReply {
  struct Source {
    uint64_t turn = 0;
    std::string role;
    std::optional<std::string> name;
    std::string time;
  };
  struct Result {
    uint64_t chunk = 0;
    double score = 0;
    std::string text;
    TokenRange tokens;
    std::vector<Source> turns;
    Json why = nullptr;  // an object when explain was asked for
  };
  std::vector<Result> results;  // best first
  std::optional<uint64_t> searchable_through;
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
  std::optional<uint64_t> kv_bytes;
};

struct ChunksReply {
  std::vector<Chunk> chunks;
  std::optional<std::string> next_cursor;
};

struct Memory {
  std::string memory;
  uint64_t turns = 0;
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
Json params(const PageRequest& request, std::string_view name_key = "memory");

// Reads a reply's result; fails with Error::internal when a field is missing or of another type (another version).
// Instantiated for every reply type above.
template <class Reply>
Expected<Reply> decode(const Json& result);

// The socket that recalld listens on when it is not told otherwise: $RECALLD_SOCKET, $XDG_RUNTIME_DIR/recalld.sock,
// $XDG_DATA_HOME/recalld/recalld.sock or ~/.local/share/recalld/recalld.sock, the first that is set to a usable value.
std::filesystem::path default_socket();

struct ClientOptions {
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds reply_timeout{120'000};  // for one reply, and for sending one request; 0: no limit
};

class Client {
 public:
  // Fails with Error::io when nobody listens on `socket`; the message says how to start the daemon.
  static Expected<Client> connect(const std::filesystem::path& socket, ClientOptions options = {});

  // ---- Raw calls: any method of the protocol.
  Expected<Json> call(std::string_view method, Json params = Json::object());

  // Sends a request and returns its number at once; wait() takes the reply. At most requests_in_flight_max may be
  // without a taken reply (Error::full beyond that). Appends to one memory take effect in the order of submission.
  Expected<uint64_t> submit(std::string_view method, Json params = Json::object());
  Expected<Json> wait(uint64_t request);

  // ---- Typed calls
  Expected<AppendReply> append(const AppendRequest& request);
  Expected<SearchReply> search(const SearchRequest& request);
  Expected<MemoriesReply> memories(const PageRequest& request = {});
  Expected<Memory> memory(std::string_view name);
  Expected<void> delete_memory(std::string_view name);
  Expected<TurnsReply> turns(const PageRequest& request);
  Expected<ChunksReply> chunks(const PageRequest& request);
  Expected<Chunk> chunk(std::string_view memory, uint64_t chunk);
  Expected<Json> stats();  // the daemon's figures under their names on the wire
  Expected<Health> health();
  Expected<Version> version();

 private:
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;
  struct Ready {
    bool read = false;
    bool write = false;
  };

  Client(Descriptor descriptor, std::string socket, ClientOptions options);

  Deadline reply_deadline() const;
  Expected<void> send_line(std::string_view line);
  Expected<void> receive(Deadline deadline);  // reads once and sorts the replies that are complete
  Expected<Ready> wait_ready(bool also_write, Deadline deadline);
  Expected<void> read_available();
  Expected<void> take_line(std::string_view line);
  std::unexpected<Error> broken(Error error);  // remembers that this connection is of no more use

  Descriptor descriptor_;
  std::string socket_;
  ClientOptions options_;
  uint64_t last_request_ = 0;
  std::set<uint64_t> unanswered_;
  std::map<uint64_t, Expected<Json>> answered_;  // and not yet taken by wait()
  std::string received_;                         // the beginning of a line whose end has not come yet
  std::optional<Error> broken_;
};

}  // namespace recalld::client
