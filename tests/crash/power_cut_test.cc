// A store whose power is cut at one point after another. RECALLD_CRASH_SEED, RECALLD_CRASH_POINTS and
// RECALLD_CRASH_STRIDE choose how far this goes; RECALLD_CRASH_POINT repeats one point of the seed alone.
#include "tests/crash/power_cut.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <iostream>
#include <string>

#include "tests/crash/settings.h"
#include "tests/support/temp_dir.h"

namespace recalld::crash {
namespace {

TEST(PowerCut, LosesNothingThatWasAcknowledgedAtAnyPoint) {
  spdlog::set_level(spdlog::level::off);  // the store tells of each erasure that the power broke off
  const TempDir directory(std::filesystem::is_directory("/dev/shm") ? "/dev/shm"
                                                                    : std::filesystem::temp_directory_path());
  const SweepOptions options{.first_seed = setting("RECALLD_CRASH_SEED", 1),
                             .points_max = setting("RECALLD_CRASH_POINTS", 300),
                             .stride = setting("RECALLD_CRASH_STRIDE", 17),
                             .only_point = setting("RECALLD_CRASH_POINT", 0)};
  const SweepResult result = sweep_power_cuts(directory.path(), options);
  std::cout << "power cuts: seeds " << options.first_seed << " to " << result.last_seed << ", points " << result.points
            << " (during recovery " << result.recovery_points << "), forgettings " << result.forgettings << ", traces "
            << result.traces << " (of what is there " << result.controls << ", found " << result.controls_found
            << "), losses " << result.failures.size() << std::endl;
  for (const std::string& failure : result.failures) ADD_FAILURE() << failure;
  if (result.controls >= 20) {
    EXPECT_GT(result.controls_found, result.controls / 2) << "looking for traces finds nothing";
  }
}

}  // namespace
}  // namespace recalld::crash
