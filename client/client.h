// A connection to a running recalld: typed calls for what agents do most, raw calls for everything else, pipelining.
//
// One Client is one connection, used by one thread at a time; open as many as you like. Calls block. No function
// throws. A daemon's refusal comes back as the Error that it names (data.kind on the wire); a connection that breaks
// comes back as Error::io, and every later call on it fails with the same error: connect again.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Relative, because this header is installed too, where the project's root is not on the include path.
#include "../base/descriptor.h"
#include "../base/error.h"
#include "messages.h"

namespace recalld::client {

// The socket that recalld listens on when it is not told otherwise: $RECALLD_SOCKET, $XDG_RUNTIME_DIR/recalld.sock,
// $XDG_DATA_HOME/recalld/recalld.sock or ~/.local/share/recalld/recalld.sock, the first that is set to a usable value.
std::filesystem::path default_socket();

struct ClientOptions {
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds reply_timeout{120'000};  // for one reply, and for sending one request; 0: no limit
  std::function<bool()> stop{};  // may be unset; asked several times a second: true ends waiting with Error::busy
};

class Client {
 public:
  using OnText = std::function<void(std::string_view text)>;

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
  // With request.stream, `on_text` is told the text piece by piece before the reply is returned.
  Expected<GenerateReply> generate(const GenerateRequest& request, OnText on_text = {});
  // The same by hand: wait() has the reply as JSON. cancel() ends it with what is written so far, and wait() has that;
  // false: it had ended.
  Expected<uint64_t> submit_generate(const GenerateRequest& request, OnText on_text = {});
  Expected<bool> cancel(uint64_t request);
  Expected<MemoriesReply> memories(const PageRequest& request = {});
  Expected<Memory> memory(std::string_view name);
  Expected<DeleteReply> delete_memory(std::string_view name, bool wait = true);
  Expected<TurnsReply> turns(const PageRequest& request);
  Expected<ChunksReply> chunks(const PageRequest& request);
  Expected<Chunk> chunk(std::string_view memory, uint64_t chunk);
  Expected<Receipt> forget(const ForgetRequest& request);
  Expected<VerifyReply> verify(const VerifyRequest& request = {});
  Expected<ExportReply> export_page(const ExportRequest& request);
  Expected<ImportReply> import_records(const ImportRequest& request);
  Expected<BackupReply> backup(std::string_view directory);  // an absolute path on the daemon's machine
  Expected<Job> reencode(std::string_view model);            // an absolute path on the daemon's machine
  Expected<Job> cancel_reencode();
  Expected<Jobs> jobs();
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
  void take_notification(const Json& line) const;
  std::unexpected<Error> broken(Error error);  // remembers that this connection is of no more use

  Descriptor descriptor_;
  std::string socket_;
  ClientOptions options_;
  uint64_t last_request_ = 0;
  std::set<uint64_t> unanswered_;
  std::map<uint64_t, Expected<Json>> answered_;  // and not yet taken by wait()
  std::map<uint64_t, OnText> listeners_;         // of unanswered generations
  std::string received_;                         // the beginning of a line whose end has not come yet
  std::optional<Error> broken_;
};

}  // namespace recalld::client
