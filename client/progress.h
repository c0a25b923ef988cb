// One line on a terminal that shows how far a load, or other work, has come. Writes nothing anywhere else.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace recalld::client {

// The line itself, at most `columns` characters wide: a bar when the total is known, else bytes alone; rate; time left.
std::string progress_line(uint64_t bytes, std::optional<uint64_t> bytes_total, uint64_t turns, uint64_t tokens,
                          double seconds, size_t columns);

// The same for any work: the share of it that is done, from 0 to 1, when that is known, and what has been counted.
std::string progress_line(std::optional<double> share, std::string counts, double seconds, size_t columns);

class Progress {
 public:
  // Shows itself when `descriptor` is a terminal.
  explicit Progress(int descriptor, std::optional<uint64_t> bytes_total = std::nullopt);
  ~Progress();  // takes the line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Redraws at most ten times a second.
  void show(uint64_t bytes, uint64_t turns, uint64_t tokens);
  void show(std::optional<double> share, const std::string& counts);

 private:
  bool due(bool complete);  // whether to draw now
  void draw(const std::string& line);
  double seconds() const;
  size_t columns() const;

  int descriptor_;
  bool enabled_;
  std::optional<uint64_t> bytes_total_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point next_draw_;
};

}  // namespace recalld::client
