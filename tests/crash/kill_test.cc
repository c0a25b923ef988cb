// The real daemon, killed again and again. RECALLD_CRASH_SEED and RECALLD_CRASH_KILLS choose how often.
#include "tests/crash/kill.h"

#include <gtest/gtest.h>

#include <iostream>

#include "tests/crash/settings.h"
#include "tests/support/temp_dir.h"

namespace recalld::crash {
namespace {

TEST(Kill, LosesNothingThatWasAcknowledgedAtAnyMoment) {
  const TempDir directory;
  const KillOptions options{.seed = setting("RECALLD_CRASH_SEED", 1), .kills = setting("RECALLD_CRASH_KILLS", 20)};
  const KillResult result = kill_again_and_again(directory.path(), options);
  std::cout << "kills: seed " << options.seed << ", kills " << result.kills << " (at start " << result.kills_at_start
            << "), turns " << result.turns << ", forgotten " << result.forgotten << ", chunks " << result.chunks
            << ", erased chunks " << result.chunks_gone << ", losses " << result.failures.size() << std::endl;
  for (const std::string& failure : result.failures)
    ADD_FAILURE() << "seed " << options.seed << ", after kill " << result.kills << ": " << failure;
}

}  // namespace
}  // namespace recalld::crash
