// Which files of a directory hold some bytes.
#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

namespace recalld {

// Every regular file at any depth in which `words` stand as they are, uncompressed.
inline std::vector<std::filesystem::path> files_with(const std::filesystem::path& directory, std::string_view words) {
  std::vector<std::filesystem::path> files;
  for (const auto& file : std::filesystem::recursive_directory_iterator(directory)) {
    if (!file.is_regular_file()) continue;
    std::ostringstream text;
    text << std::ifstream(file.path(), std::ios::binary).rdbuf();
    if (text.str().contains(words)) files.push_back(file.path());
  }
  return files;
}

}  // namespace recalld
