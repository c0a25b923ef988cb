#include "tools/bench/gpu_setup.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "daemon/gpu_library.h"
#include "daemon/options.h"
#include "tools/bench/daemon_process.h"

namespace recalld::bench {
namespace {

Environment environment_of_recalld() {
  Environment environment = process_environment();
  environment.executable = built_recalld();
  return environment;
}

}  // namespace

std::filesystem::path served_model() {
  // A directory of its own, so that none is asked of the environment. Nothing is made there.
  const std::string nowhere = std::filesystem::temp_directory_path() / "recalld-bench";
  const std::array arguments{"recalld", "--data", nowhere.c_str(), "--socket", nowhere.c_str()};
  return must(read_options(arguments, environment_of_recalld()), "read options").options.model;
}

std::unique_ptr<Gpu> open_served_gpu(uint64_t budget_bytes, size_t encode_states) {
  auto gpu = open_gpu(environment_of_recalld(),
                      {.model = served_model(), .budget_bytes = budget_bytes, .encode_states = encode_states});
  if (!gpu && gpu.error().kind == ErrorKind::not_found) throw NoGpu(gpu.error().message);
  return must(std::move(gpu), "have a GPU");
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

int Goals::conclude() const {
  const bool meant = card_.find("H200") != std::string::npos;
  if (wrong_) std::printf("a check failed that must hold on every card\n");
  if (slow_) std::printf("goals of speed were missed%s\n", meant ? "" : ", which are meant for an H200");
  std::printf("card: %s\n", card_.c_str());
  return wrong_ || (slow_ && meant) ? 1 : 0;
}

}  // namespace recalld::bench
