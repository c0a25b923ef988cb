// Reads the exchanges with the daemon that a text file shows: each line "> SENT" with the line "< RECEIVED" after it.
// Every other line is prose.
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace recalld {

struct Exchange {
  std::string sent;
  std::string received;
};

// `name` is a path from the root of the source tree. Throws when the file is missing, shows nothing, or shows a line
// without its other half.
inline std::vector<Exchange> read_exchanges(std::string_view name) {
  const std::string path = std::string(RECALLD_SOURCE_DIR "/").append(name);
  std::ifstream in(path);
  std::vector<Exchange> exchanges;
  bool open = false;  // sent, and not yet followed by what comes back
  for (std::string line; std::getline(in, line);) {
    const bool sent = line.starts_with("> "), received = line.starts_with("< ");
    if (!sent && !received) continue;
    if (open != received) throw std::runtime_error(path + ": out of place: " + line);
    if (sent)
      exchanges.push_back({line.substr(2), {}});
    else
      exchanges.back().received = line.substr(2);
    open = sent;
  }
  if (exchanges.empty() || open) throw std::runtime_error(path + ": missing, empty or cut off");
  return exchanges;
}

}  // namespace recalld
