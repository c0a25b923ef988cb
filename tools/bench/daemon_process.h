// A recalld of our own for the length of a benchmark: started on a directory, watched, stopped.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "client/client.h"

namespace recalld::bench {

class DaemonProcess {
 public:
  // Starts `binary` on `data` and waits until it answers `health`; flags are passed on.
  DaemonProcess(const std::filesystem::path& binary, const std::filesystem::path& data, std::vector<std::string> flags);
  ~DaemonProcess();  // SIGTERM, then waits

  const std::filesystem::path& socket() const { return socket_; }
  client::Client connect() const;  // waits for replies as long as they take
  double seconds_to_first_answer() const { return seconds_to_first_answer_; }

  uint64_t resident_bytes() const;      // now (VmRSS)
  uint64_t resident_bytes_max() const;  // the most that it ever was (VmHWM)
  void stop();

 private:
  uint64_t status_bytes(const char* key) const;

  std::filesystem::path socket_;
  pid_t pid_ = -1;
  double seconds_to_first_answer_ = 0;
};

// The recalld that was built beside the running program.
std::filesystem::path built_recalld();

// Throws GaveUp, which a benchmark's main prints: by then the daemons that were started have been stopped.
struct GaveUp : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void give_up(const char* what, const std::string& why);

// Unwraps, or gives up.
template <class T>
T must(Expected<T> value, const char* what) {
  if (!value) give_up(what, value.error().message);
  if constexpr (!std::is_void_v<T>) return *std::move(value);
}

}  // namespace recalld::bench
