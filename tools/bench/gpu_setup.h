// What the benchmarks of the GPU share: the library opened as the recalld beside them opens it, and goals that are
// meant for one card.
#pragma once

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/gpu.h"

namespace recalld::bench {

// There is no GPU, or nothing of recalld that could use one: main says so and returns `skipped`.
struct NoGpu : std::runtime_error {
  using std::runtime_error::runtime_error;
};
inline constexpr int skipped = 77;

// The checkpoint that the recalld beside the running program takes by itself.
std::filesystem::path served_model();

// The library that this recalld opens, on that checkpoint. Throws NoGpu, or GaveUp where a GPU cannot be used.
std::unique_ptr<Gpu> open_served_gpu(uint64_t budget_bytes = 0, size_t encode_states = 0);

double median(std::vector<double> values);  // not empty

// Says of each bound whether it was held, and of all of them at the end. Bounds of speed are meant for an H200: on
// another card one that is missed is no failure.
class Goals {
 public:
  explicit Goals(std::string card) : card_(std::move(card)) {}

  const char* fast(bool held) { return note(held, slow_); }
  const char* right(bool held) { return note(held, wrong_); }
  int conclude() const;  // prints; the exit status

 private:
  static const char* note(bool held, bool& missed) {
    missed |= !held;
    return held ? "held" : "MISSED";
  }

  const std::string card_;
  bool slow_ = false, wrong_ = false;
};

}  // namespace recalld::bench
