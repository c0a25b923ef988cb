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

constexpr uint64_t checkpoint_bytes_max = 24'000'000;

TEST(DefaultCheckpoint, IsACheckpointAndItsCardAndOfAtMost24Megabytes) {
  std::vector<std::string> names;
  uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(default_checkpoint())) {
    names.push_back(file.path().filename());
    bytes += file.file_size();
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("MODEL_CARD.md", "config.json", "fusion.json",
                                                     "meaning.safetensors", "model.safetensors", "tokenizer.model"));
  EXPECT_LE(bytes, checkpoint_bytes_max);
}

}  // namespace
}  // namespace recalld
