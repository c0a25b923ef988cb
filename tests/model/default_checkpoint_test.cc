// What every clone, build and installation carries.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/checkpoints.h"

namespace recalld {
namespace {

// Expects a checkpoint and its card in `directory`; bytes of all of it.
uint64_t expect_checkpoint(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    names.push_back(file.path().filename());
    bytes += file.file_size();
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("MODEL_CARD.md", "config.json", "fusion.json",
                                                     "meaning.safetensors", "model.safetensors", "tokenizer.model"));
  return bytes;
}

TEST(ShippedCheckpoints, TheDefaultIsACheckpointAndItsCardAndOfAtMost24Megabytes) {
  EXPECT_LE(expect_checkpoint(default_checkpoint()), 24'000'000u);
}

TEST(ShippedCheckpoints, TheOneOfSlidingWindowsIsToo) {
  const auto directory = swa_checkpoint();
  expect_checkpoint(directory);
  EXPECT_LT(std::filesystem::file_size(directory / "model.safetensors"), 12'000'000u);
}

}  // namespace
}  // namespace recalld
