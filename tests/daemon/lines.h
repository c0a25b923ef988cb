// Reads a table of lines: each "> " line with the "< " line below it; comments begin with "#".
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace recalld {

struct Exchange {
  std::string sent;
  std::string received;
};

inline std::vector<Exchange> read_exchanges(const std::string& name) {
  const std::string path = RECALLD_SOURCE_DIR "/tests/daemon/" + name;
  std::ifstream in(path);
  std::vector<Exchange> exchanges;
  bool open = false;  // sent, and not yet followed by what comes back
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line.starts_with('#')) continue;
    if (open != line.starts_with("< ") || (!open && !line.starts_with("> ")))
      throw std::runtime_error(path + ": out of place: " + line);
    if (open)
      exchanges.back().received = line.substr(2);
    else
      exchanges.push_back({line.substr(2), {}});
    open = !open;
  }
  if (exchanges.empty() || open) throw std::runtime_error(path + ": missing, empty or cut off");
  return exchanges;
}

}  // namespace recalld
