// What the daemon is told at its start: flags over the configuration file over defaults (XDG Base Directory).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "daemon/device.h"
#include "model/ramba.h"

namespace recalld {

// The store gets three quarters of the budget and works from 8 MiB up.
inline constexpr uint64_t memory_budget_bytes_min = uint64_t{16} << 20;
inline constexpr uint64_t memory_budget_bytes_default = uint64_t{256} << 20;
inline constexpr uint64_t gpu_budget_bytes_min = uint64_t{64} << 20;
inline constexpr size_t threads_max = 1024;

struct Options {
  std::filesystem::path data;  // absolute, as all of these
  std::filesystem::path socket;
  std::filesystem::path model;
  Device device = Device::automatic;
  uint64_t gpu_budget_bytes = 0;  // 0: half of what is free on the GPU, at most 8 GiB
  Precision precision = Precision::automatic;
  uint64_t memory_budget_bytes = memory_budget_bytes_default;
  size_t threads = 0;  // 0: one a core
  std::string log_level = "info";
  bool reencode = false;  // flags only: they are for one start
  bool repair = false;
};

// What the process finds around it.
struct Environment {
  std::function<std::string(const char* name)> variable;  // "" when it is not set
  std::filesystem::path executable;                       // the running one, absolute
};
Environment process_environment();

struct CommandLine {
  Options options;
  std::string print;  // not empty: print this (--help, --version) and stop; options are not filled in then
};

// `arguments` begins with the program's name. Fails with invalid_request (the message names the flag, or the file, its
// line and the key) or io when the configuration file cannot be read.
Expected<CommandLine> read_options(std::span<const char* const> arguments, const Environment& environment);

// "67108864", "64MiB", "1GiB": bytes, or KiB, MiB, GiB, TiB.
Expected<uint64_t> parse_bytes(std::string_view text);

}  // namespace recalld
