// Kills the daemon again and again while clients append, and looks at what it kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace recalld::crash {

struct KillOptions {
  uint64_t seed = 1;
  uint64_t kills = 20;
};

struct KillResult {
  uint64_t kills = 0;
  uint64_t kills_at_start = 0;  // of these, before the daemon answered anybody
  uint64_t turns = 0;           // acknowledged and not forgotten
  uint64_t forgotten = 0;       // turns
  uint64_t chunks_gone = 0;     // looked for in all files after the last forgetting
  uint64_t chunks = 0;          // encoded and compared with a clean encoding
  std::vector<std::string> failures;
};

// Starts the real daemon with its data in `directory`, which is empty. Clients on connections of their own append to
// memories of their own and to one that they share, and forget turns of theirs. Between two kills every acknowledged
// turn is read back, and no forgotten one. In the end the daemon must have encoded everything by itself, as a daemon
// does that was never killed and never saw the forgotten turns, and have erased these. Stops at a failure.
KillResult kill_again_and_again(const std::filesystem::path& directory, const KillOptions& options);

}  // namespace recalld::crash
