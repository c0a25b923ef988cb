#include "daemon/gpu_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <system_error>

#include "model/gpu_build.h"

namespace recalld {
namespace {

namespace fs = std::filesystem;

constexpr char variable[] = "RECALLD_CUDA_LIBRARY";
constexpr char file_name[] = "librecalld_cuda.so";

// A file that cannot be looked at counts as there: loading it says why.
bool is_there(const fs::path& file) {
  std::error_code error;
  return fs::exists(file, error) || error;
}

Expected<fs::path> find_library(const Environment& environment) {
  const auto places = gpu_library_places(environment);
  const auto found = std::ranges::find_if(places, is_there);
  if (found != places.end()) return *found;
  if (!environment.variable(variable).empty())
    return fail(ErrorKind::device,
                std::string("open the GPU: ") + variable + " names " + places[0].string() + ", which is not there");
  std::string looked;
  for (const fs::path& place : places) looked.append(looked.empty() ? "" : " or ").append(place.parent_path().string());
  return fail(ErrorKind::not_found, std::string("open the GPU: there is no ") + file_name + " in " + looked +
                                        ": this recalld was built or installed without CUDA; build it where nvcc is");
}

std::string loader_error() {
  const char* const cause = dlerror();
  return cause != nullptr ? cause : "unknown cause";
}

template <class Function>
Expected<Function> symbol(void* library, const fs::path& file, const char* name) {
  if (void* const address = dlsym(library, name)) return reinterpret_cast<Function>(address);
  return fail(ErrorKind::device,
              "load " + file.string() + ": it has no " + name +
                  ", so it is no part of recalld, or of another version; install both from one build");
}

}  // namespace

std::vector<fs::path> gpu_library_places(const Environment& environment) {
  if (const std::string named = environment.variable(variable); !named.empty()) return {fs::absolute(named)};
  const fs::path directory = environment.executable.parent_path();
  return {directory / file_name, (directory / RECALLD_LIBRARY_DIRECTORY / file_name).lexically_normal()};
}

Expected<std::unique_ptr<Gpu>> open_gpu(const Environment& environment, const GpuOptions& options, const char* driver) {
  RECALLD_TRY(const fs::path file, find_library(environment));
  if (dlopen(driver, RTLD_NOW | RTLD_LOCAL) == nullptr)
    return fail(ErrorKind::not_found, "open the GPU: there is no NVIDIA driver (" + loader_error() + "); install one");
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return fail(ErrorKind::device, "load " + file.string() + ": " + loader_error() +
                                       "; install CUDA's libraries (cuBLASLt), and this one anew");
  RECALLD_TRY(const auto build, symbol<GpuBuild>(library, file, "recalld_gpu_build"));
  if (const std::string_view of_library = build(); of_library != gpu_build)
    return fail(ErrorKind::device, "load " + file.string() + ": it is of build \"" + std::string(of_library) +
                                       "\", this recalld of \"" + gpu_build + "\"; install both from one build");
  RECALLD_TRY(const auto open, symbol<OpenGpu>(library, file, "recalld_open_gpu"));
  return open(options);
}

}  // namespace recalld
