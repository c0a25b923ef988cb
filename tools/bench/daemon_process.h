// A recalld of our own for the length of a benchmark: started on a directory, watched, stopped.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "client/client.h"

namespace recalld::bench {

class DaemonProcess {
 public:
  // Starts `binary` on `data` and waits until it answers `health`; flags are passed on.
  DaemonProcess(const std::filesystem::path& binary, const std::filesystem::path& data, std::vector<std::string> flags);
  ~DaemonProcess();  // SIGTERM, then waits

  client::Client connect() const;  // exits with a message when it fails: a benchmark has nothing else to do then
  double seconds_to_first_answer() const { return seconds_to_first_answer_; }

  uint64_t resident_bytes() const;                               // VmRSS now
  uint64_t resident_bytes_max() const { return resident_max_; }  // of the samples, every 20 ms
  void stop();

 private:
  std::filesystem::path socket_;
  pid_t pid_ = -1;
  double seconds_to_first_answer_ = 0;
  std::atomic<uint64_t> resident_max_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread sampler_;
};

// The recalld that was built beside the running program.
std::filesystem::path built_recalld();

// Prints why and exits: a benchmark has no caller to hand an error to.
[[noreturn]] void give_up(const char* what, const std::string& why);

// Unwraps, or gives up.
template <class T>
T must(Expected<T> value, const char* what) {
  if (!value) give_up(what, value.error().message);
  if constexpr (!std::is_void_v<T>) return *std::move(value);
}

}  // namespace recalld::bench
