// The options of recall that say which turns are meant: --role, --name, --before, --after, --where and --filter.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "client/messages.h"

namespace recalld::client {

// Empty: not given.
struct FilterOptions {
  std::string role;
  std::string name;
  std::string before;
  std::string after;
  std::vector<std::string> where;  // KEY=VALUE of the metadata
  std::string filter;

  // Adds the options to a command; `which` begins what is said of them, such as "All turns".
  void add(CLI::App& command, const std::string& which);

  // All of it as one filter; null when there is none.
  Expected<Json> read() const;

  // What the daemon says of a condition, under the name of the option that it came from.
  Error named(Error error) const;
};

}  // namespace recalld::client
