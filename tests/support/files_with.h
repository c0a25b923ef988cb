// Which files of a directory hold some bytes.
#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
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

// How many of these stand in any of the files. Reads each file once.
inline size_t count_in_files(const std::filesystem::path& directory, const std::vector<std::string>& all_words) {
  std::vector<bool> there(all_words.size());
  for (const auto& file : std::filesystem::recursive_directory_iterator(directory)) {
    if (!file.is_regular_file()) continue;
    std::ostringstream text;
    text << std::ifstream(file.path(), std::ios::binary).rdbuf();
    const std::string_view bytes = text.view();
    for (size_t i = 0; i < all_words.size(); ++i)
      if (!there[i])
        there[i] = ::memmem(bytes.data(), bytes.size(), all_words[i].data(), all_words[i].size()) != nullptr;
  }
  return static_cast<size_t>(std::ranges::count(there, true));
}

}  // namespace recalld
