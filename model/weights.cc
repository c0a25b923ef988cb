#include "model/weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/descriptor.h"

namespace recalld {
namespace {

using Json = nlohmann::json;

constexpr size_t header_bytes_max = size_t{100} << 20;  // as the format's own library has it

size_t element_bytes(std::string_view type) {
  if (type == "BF16" || type == "F16") return 2;
  if (type == "F32" || type == "I32") return 4;
  if (type == "F64" || type == "I64") return 8;
  if (type == "I8" || type == "U8" || type == "BOOL") return 1;
  return 0;
}

std::string shape_text(const std::vector<size_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Expected<ByteView> map_file(const std::filesystem::path& path) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() < 0) return std::unexpected(system_error("open " + path.string(), errno));
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) return std::unexpected(system_error("stat " + path.string(), errno));
  if (!S_ISREG(status.st_mode) || status.st_size < 8)
    return fail(ErrorKind::corrupt, path.string() + " is no safetensors file: it is shorter than its own header");
  const auto bytes = static_cast<size_t>(status.st_size);
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (data == MAP_FAILED) return std::unexpected(system_error("map " + path.string(), errno));
  return ByteView(static_cast<const std::byte*>(data), bytes);
}

}  // namespace

Weights::Weights(Weights&& other) noexcept
    : file_(std::exchange(other.file_, {})),
      tensors_(std::move(other.tensors_)),
      expanded_(std::move(other.expanded_)) {}

Weights& Weights::operator=(Weights&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(tensors_, other.tensors_);
  std::swap(expanded_, other.expanded_);
  return *this;
}

Weights::~Weights() {
  if (!file_.empty()) ::munmap(const_cast<std::byte*>(file_.data()), file_.size());
}

Expected<Weights> Weights::open(const std::filesystem::path& path) {
  const auto corrupt = [&](const std::string& what) {
    return fail(ErrorKind::corrupt, path.string() + " is damaged: " + what + "; restore the checkpoint");
  };
  Weights weights;
  RECALLD_TRY(weights.file_, map_file(path));
  ByteReader reader(as_text(weights.file_));
  const uint64_t header_bytes = reader.u64();
  if (header_bytes > header_bytes_max || header_bytes > reader.rest().size())
    return corrupt("its header ends beyond the file");
  const Json header = Json::parse(reader.take(header_bytes), nullptr, false);
  if (!header.is_object()) return corrupt("its header is not a JSON object");
  const ByteView data = weights.file_.subspan(8 + header_bytes);

  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto fields = entry.is_object() ? entry : Json::object();
    const auto type = fields.find("dtype"), shape = fields.find("shape"), offsets = fields.find("data_offsets");
    if (type == fields.end() || !type->is_string() || shape == fields.end() || !shape->is_array() ||
        offsets == fields.end() || !offsets->is_array() || offsets->size() != 2)
      return corrupt("tensor " + name + " lacks dtype, shape or data_offsets");
    Tensor tensor;
    tensor.type = type->get<std::string>();
    uint64_t elements = 1;
    for (const Json& extent : *shape) {
      if (!extent.is_number_unsigned()) return corrupt("tensor " + name + " has a shape that is no list of numbers");
      tensor.shape.push_back(extent.get<size_t>());
      if (__builtin_mul_overflow(elements, tensor.shape.back(), &elements) || elements > data.size() * 8)
        return corrupt("tensor " + name + " is larger than the file");
    }
    if (!(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned())
      return corrupt("tensor " + name + " has data_offsets that are no numbers");
    const auto begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
    if (begin > end || end > data.size()) return corrupt("tensor " + name + " lies beyond the end of the file");
    const size_t width = element_bytes(tensor.type);
    if (width == 0) return corrupt("tensor " + name + " has the unknown dtype " + tensor.type);
    if (end - begin != elements * width) return corrupt("tensor " + name + " has another length than its shape");
    if ((8 + header_bytes + begin) % width != 0) return corrupt("tensor " + name + " is not aligned");
    tensor.data = data.subspan(begin, end - begin);
    weights.tensors_.emplace(name, std::move(tensor));
  }
  for (auto& [name, tensor] : weights.tensors_)
    if (tensor.type == "I8")
      if (auto expanded = weights.expand(name, tensor); !expanded) return corrupt(expanded.error().message);
  return weights;
}

Expected<void> Weights::expand(const std::string& name, Tensor& tensor) {
  const auto scale = tensors_.find(name + "_scale");
  if (tensor.shape.size() != 2 || scale == tensors_.end() || scale->second.type != "F32" ||
      scale->second.shape != std::vector<size_t>{tensor.shape[0]})
    return fail(ErrorKind::corrupt,
                "tensor " + name + " is I8 and needs to be a matrix with the scales of its rows in " + name + "_scale");
  std::vector<float> scales(tensor.shape[0]);
  if (!scales.empty()) std::memcpy(scales.data(), scale->second.data.data(), scale->second.data.size());
  if (!std::ranges::all_of(scales, [](float each) { return std::isfinite(each); }))
    return fail(ErrorKind::corrupt, "tensor " + name + "_scale has a scale that is no finite number");
  std::vector<Bf16>& values = expanded_.emplace_back(tensor.data.size());
  const auto* const codes = reinterpret_cast<const int8_t*>(tensor.data.data());
  const size_t columns = tensor.shape[1];
  for (size_t row = 0; row < scales.size(); ++row)
    for (size_t column = 0; column < columns; ++column)
      values[row * columns + column] = to_bf16(scales[row] * static_cast<float>(codes[row * columns + column]));
  tensor.type = "BF16";
  tensor.data = std::as_bytes(std::span(values));
  return {};
}

bool Weights::has(std::string_view name) const {
  return tensors_.contains(name);
}

Expected<const Weights::Tensor*> Weights::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    return fail(ErrorKind::invalid_request, "the checkpoint has no tensor " + std::string(name));
  return &found->second;
}

Expected<const Weights::Tensor*> Weights::find(std::string_view name, const std::vector<size_t>& shape) const {
  RECALLD_TRY(const Tensor* tensor, find(name));
  if (tensor->shape != shape)
    return fail(ErrorKind::invalid_request, "tensor " + std::string(name) + ": config.json asks for " +
                                                shape_text(shape) + ", the checkpoint has " +
                                                shape_text(tensor->shape));
  return tensor;
}

Expected<std::span<const Bf16>> Weights::bf16(std::string_view name, const std::vector<size_t>& shape) const {
  RECALLD_TRY(const Tensor* tensor, find(name, shape));
  if (tensor->type != "BF16")
    return fail(ErrorKind::invalid_request,
                "tensor " + std::string(name) + ": expected BF16, the checkpoint has " + tensor->type);
  return std::span(reinterpret_cast<const Bf16*>(tensor->data.data()), tensor->data.size() / sizeof(Bf16));
}

Expected<std::vector<float>> Weights::to_floats(std::string_view name, const Tensor& tensor) {
  std::vector<float> values;
  if (tensor.type == "BF16") {
    const std::span halves(reinterpret_cast<const Bf16*>(tensor.data.data()), tensor.data.size() / sizeof(Bf16));
    values.reserve(halves.size());
    for (const Bf16 half : halves) values.push_back(to_float(half));
  } else if (tensor.type == "F32") {
    values.resize(tensor.data.size() / sizeof(float));
    if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  } else {
    return fail(ErrorKind::invalid_request,
                "tensor " + std::string(name) + ": expected BF16 or F32, the checkpoint has " + tensor.type);
  }
  return values;
}

Expected<std::vector<float>> Weights::floats(std::string_view name, const std::vector<size_t>& shape) const {
  RECALLD_TRY(const Tensor* tensor, find(name, shape));
  return to_floats(name, *tensor);
}

Expected<std::vector<float>> Weights::all_floats(std::string_view name) const {
  RECALLD_TRY(const Tensor* tensor, find(name));
  return to_floats(name, *tensor);
}

Expected<std::vector<int32_t>> Weights::all_ints(std::string_view name) const {
  RECALLD_TRY(const Tensor* tensor, find(name));
  if (tensor->type != "I32")
    return fail(ErrorKind::invalid_request,
                "tensor " + std::string(name) + ": expected I32, the file has " + tensor->type);
  std::vector<int32_t> values(tensor->data.size() / sizeof(int32_t));
  if (!values.empty()) std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
  return values;
}

Expected<std::vector<size_t>> Weights::shape(std::string_view name) const {
  RECALLD_TRY(const Tensor* tensor, find(name));
  return tensor->shape;
}

}  // namespace recalld
