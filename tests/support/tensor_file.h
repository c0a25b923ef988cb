// Checkpoints that tests make or change: bf16 tensors added to a safetensors file.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/bf16.h"

namespace recalld {

struct NewTensor {
  std::string name;
  std::vector<size_t> shape;
  std::vector<Bf16> values;
};

// The file is made where there is none; a tensor of the same name is replaced.
inline void add_tensors(const std::filesystem::path& file, std::span<const NewTensor> tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  if (std::filesystem::exists(file)) {
    std::stringstream text;
    text << std::ifstream(file, std::ios::binary).rdbuf();
    const std::string bytes = text.str();
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    header = nlohmann::json::parse(bytes.substr(sizeof(header_bytes), header_bytes));
    data = bytes.substr(sizeof(header_bytes) + header_bytes);
  }
  for (const NewTensor& tensor : tensors) {
    const size_t first = data.size();
    data.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * sizeof(Bf16));
    header[tensor.name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {first, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = text.size();
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  out << text << data;
}

}  // namespace recalld
