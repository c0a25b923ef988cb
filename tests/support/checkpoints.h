// The checkpoints that tests open. Each is a directory that --model takes, but for the variant, which has no tokenizer.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace recalld {

inline std::filesystem::path golden_files(const char* name) {
  return std::filesystem::path(RECALLD_SOURCE_DIR) / "tests/golden" / name;
}

// What recalld runs when nothing else is named. It is replaced now and then by one that is trained better: a test that
// opens it expects nothing of what it finds or answers.
inline std::filesystem::path default_checkpoint() {
  return std::filesystem::path(RECALLD_SOURCE_DIR) / "model/default";
}

// The second architecture's. It may be replaced, likewise.
inline std::filesystem::path swa_checkpoint() {
  return std::filesystem::path(RECALLD_SOURCE_DIR) / "model/swa-hsa";
}

// Matrices in bf16, no positional decay, and it stays: for what depends on weights, answers or ranks.
inline std::filesystem::path starter_checkpoint() {
  return golden_files("starter");
}

// Small, with random weights and the switches that the others leave off.
inline std::filesystem::path variant_checkpoint() {
  return golden_files("variant");
}

// A checkpoint with a tokenizer, and what the reference mathematics makes of it: golden.safetensors,
// tokenizer_golden.json.
struct GoldenCheckpoint {
  std::string name;
  std::filesystem::path model;
  std::filesystem::path golden;
  // How far the weights of a token's chunks may be off with bf16 products. They go with e^(stick_slope * score), so
  // that where several chunks lie near the best one an error of their scores shows several times.
  double bf16_weights_error = 2e-2;
};

// The starter, those that are shipped, and "Given": a directory of all these files that RECALLD_GOLDEN_DIR names when
// the tests run.
inline std::vector<GoldenCheckpoint> golden_checkpoints() {
  std::vector<GoldenCheckpoint> all{{"Starter", starter_checkpoint(), starter_checkpoint()},
                                    {"Default", default_checkpoint(), golden_files("default")},
                                    {"SwaHsa", swa_checkpoint(), golden_files("swa-hsa"), 1e-1}};
  if (const char* given = std::getenv("RECALLD_GOLDEN_DIR")) all.push_back({"Given", given, given});
  return all;
}

}  // namespace recalld
