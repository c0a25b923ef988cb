// Cuts the power of a store at one point after another of a workload, and looks at what is left.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace recalld::crash {

struct SweepOptions {
  uint64_t first_seed = 1;
  uint64_t points_max = 300;  // stops when so many have been tried
  uint64_t stride = 1;        // of the points of a seed's workload every so many-th
  uint64_t only_point = 0;    // of the first seed alone; 0: all
};

struct SweepResult {
  uint64_t last_seed = 0;
  uint64_t points = 0;                // at which the power was cut, also while a store recovered from it
  uint64_t recovery_points = 0;       // these alone
  uint64_t forgettings = 0;           // of turns, in the workloads that were cut short
  uint64_t traces = 0;                // of what was gone that were looked for
  uint64_t controls = 0;              // of what was there that were looked for as well
  uint64_t controls_found = 0;        // fewer: tables are compressed
  std::vector<std::string> failures;  // each with its seed and point: "seed 3, point 214: ..."
};

// Each seed is a workload of its own. `directory` is empty, and used for the little that a store keeps outside segments
// and catalog. Stops after a few failures.
SweepResult sweep_power_cuts(const std::filesystem::path& directory, const SweepOptions& options);

}  // namespace recalld::crash
