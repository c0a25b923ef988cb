// Runs the command line as a user does, from a shell. The test defines RECALL_BINARY.
#pragma once

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace recalld {

struct Outcome {
  int code = -1;       // exit status, or 128 and the signal
  std::string output;  // of both streams
};

// Runs a shell command in which $RECALL is the command line.
inline Outcome shell(const std::string& command) {
  FILE* pipe = popen(("RECALL='" RECALL_BINARY "'; { " + command + "\n} 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("start a shell");
  Outcome outcome;
  std::array<char, 4096> buffer{};
  for (size_t got = 0; (got = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    outcome.output.append(buffer.data(), got);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

}  // namespace recalld
