// What benchmarks of stores begin and end with: how many chunks, in which directory, and percentiles of what they
// timed.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace recalld::bench {

// The arguments "[chunks] [data directory]". Without a directory there is a temporary one, which goes with this object.
class BenchData {
 public:
  BenchData(int argc, char** argv, uint64_t chunks_default)
      : chunks_(argc > 1 ? std::stoull(argv[1]) : chunks_default),
        keep_(argc > 2),
        directory_(keep_ ? std::filesystem::path(argv[2])
                         : std::filesystem::temp_directory_path() /
                               ("recalld-bench-" + std::filesystem::path(argv[0]).filename().string() + "-" +
                                std::to_string(getpid()))) {}
  ~BenchData() {
    std::error_code ignored;
    if (!keep_) std::filesystem::remove_all(directory_, ignored);
  }
  BenchData(const BenchData&) = delete;
  BenchData& operator=(const BenchData&) = delete;

  uint64_t chunks() const { return chunks_; }
  const std::filesystem::path& directory() const { return directory_; }

 private:
  const uint64_t chunks_;
  const bool keep_;
  const std::filesystem::path directory_;
};

// values: not empty · share: 0 to 1
inline double percentile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
}

}  // namespace recalld::bench
