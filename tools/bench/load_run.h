// Many clients appending to shared memories, searching them and reading them back at once, and everything that they
// see checked: what `load` measures and what its smaller form in the tests asserts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace recalld::bench {

struct LoadOptions {
  std::filesystem::path socket;
  size_t clients = 64;   // each with a connection and a thread of its own; four of them a memory, each in two memories
  double seconds = 60;   // of appending and searching; the reading back of everything comes on top
  uint64_t seed = 1;     // of the contents and of the order in which a client does things
  std::string prefix{};  // of the memories' names
};

struct LoadReport {
  uint64_t appends = 0;   // requests, of one to three turns
  uint64_t turns = 0;     // acknowledged, and found again afterwards unless `violations` says otherwise
  uint64_t searches = 0;  // and the results that they brought
  uint64_t results = 0;
  double seconds = 0;
  std::vector<double> append_ms;  // from sending a request to having its reply, sorted
  std::vector<double> search_ms;
  double append_bytes = 0;  // of contents, a request, on average

  // What must not be: at most violations_kept_max of them in words, and how many there were.
  static constexpr size_t violations_kept_max = 20;
  std::vector<std::string> violations;
  uint64_t violation_count = 0;
};

// Runs the clients against the daemon at `socket`. Checked while they run: no request fails; every text that a search
// returns is cut, byte for byte, from what the clients wrote, by the turns that it names; turns read back are the ones
// that were acknowledged under their numbers. Checked afterwards, over all turns of all memories: they are numbered
// without a gap, each client's stand in the order in which it sent them, none is missing, and none is there twice.
LoadReport run_load(const LoadOptions& options);

// The value below which `share` of the sorted `values` lie; 0 when there are none.
double percentile_of(const std::vector<double>& values, double share);

}  // namespace recalld::bench
