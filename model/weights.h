// Tensors of a safetensors file, mapped into memory and read where they lie.
//
// The format: 8 bytes little-endian length of a JSON header, the header (name → dtype, shape, data_offsets), the data.
// A matrix may be stored as I8 beside a tensor NAME_scale (F32, [rows]): it stands for the BF16 matrix whose element is
// scale[row] * q, rounded to nearest even; open() expands it.
#pragma once

#include <cstddef>
#include <deque>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/bf16.h"

namespace recalld {

// Const functions may be called from any thread. Spans live as long as the object.
class Weights {
 public:
  // io: the file cannot be read. corrupt: the header, an extent or the scale of an I8 matrix is not what the format
  // demands.
  static Expected<Weights> open(const std::filesystem::path& file);
  Weights(Weights&& other) noexcept;
  Weights& operator=(Weights&& other) noexcept;
  ~Weights();

  bool has(std::string_view name) const;

  // The tensor `name` of exactly this shape. invalid_request names the tensor and both shapes or types.
  Expected<std::span<const Bf16>> bf16(std::string_view name, const std::vector<size_t>& shape) const;
  Expected<std::vector<float>> floats(std::string_view name, const std::vector<size_t>& shape) const;  // BF16 or F32
  // Of any shape.
  Expected<std::vector<size_t>> shape(std::string_view name) const;
  Expected<std::vector<float>> all_floats(std::string_view name) const;  // BF16 or F32
  Expected<std::vector<int32_t>> all_ints(std::string_view name) const;  // I32

  ByteView file() const { return file_; }  // the whole mapping

 private:
  struct Tensor {
    std::string type;
    std::vector<size_t> shape;
    ByteView data;
  };

  Weights() = default;
  Expected<void> expand(const std::string& name, Tensor& tensor);
  Expected<const Tensor*> find(std::string_view name) const;
  Expected<const Tensor*> find(std::string_view name, const std::vector<size_t>& shape) const;
  static Expected<std::vector<float>> to_floats(std::string_view name, const Tensor& tensor);

  ByteView file_;  // mapped
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::deque<std::vector<Bf16>> expanded_;  // matrices that the file has as I8
};

}  // namespace recalld
