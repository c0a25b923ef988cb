#include "model/meaning.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "base/quote.h"
#include "model/weights.h"

namespace recalld {
namespace {

constexpr float beside_share = 0.75F;  // of what a chunk beside has
constexpr float length_max = 1e6F;     // of a vector: sums of longer ones might be no finite numbers

// Eight sums, which the compiler makes a vector of.
double dot(std::span<const float> a, std::span<const float> b) {
  std::array<float, 8> sums{};
  size_t i = 0;
  for (; i + sums.size() <= a.size(); i += sums.size())
    for (size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < a.size(); ++i) sums[0] += a[i] * b[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

bool are_finite(const std::vector<float>& values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

}  // namespace

Expected<std::optional<Meaning>> Meaning::of_checkpoint(const std::filesystem::path& directory, size_t pieces) {
  const std::filesystem::path file = directory / "meaning.safetensors";
  std::error_code none;
  if (!std::filesystem::exists(file, none)) return std::optional<Meaning>();
  const auto refused = [&](const std::string& why) {
    return fail(
        ErrorKind::invalid_request,
        "read " + in_quotes(file.string()) + ": " + why +
            "; tools/train/meaning.py makes it for a tokenizer, and without it hybrid searches do without meaning");
  };
  RECALLD_TRY(const Weights weights, Weights::open(file));
  const auto shape = weights.shape("vectors");
  if (!shape) return refused(shape.error().message);
  if (shape->size() != 2 || (*shape)[0] != pieces || (*shape)[1] == 0)
    return refused("vectors: expected a row for each of the " + std::to_string(pieces) + " pieces");
  const auto vectors = weights.bf16("vectors", *shape);
  if (!vectors) return refused(vectors.error().message);
  auto tells = weights.floats("weights", {pieces});
  if (!tells) return refused(tells.error().message);
  Meaning meaning;
  meaning.dimensions_ = (*shape)[1];
  meaning.weights_ = std::move(*tells);
  for (const Bf16 value : *vectors) meaning.units_.push_back(to_float(value));
  if (!are_finite(meaning.units_)) return refused("vectors: expected finite numbers");
  if (!std::ranges::all_of(meaning.weights_, [](float weight) { return weight >= 0 && weight <= 1; }))
    return refused("weights: expected numbers from 0 to 1");
  for (uint32_t piece = 0; piece < pieces; ++piece) {
    const auto length = static_cast<float>(std::sqrt(dot(meaning.unit(piece), meaning.unit(piece))));
    if (!(length <= length_max))
      return refused("vectors: expected none that is longer than 1000000, got one for piece " + std::to_string(piece));
    meaning.lengths_.push_back(length);
    for (size_t i = 0; i < meaning.dimensions_; ++i)
      meaning.units_[piece * meaning.dimensions_ + i] /= std::max(length, 1e-30F);
  }
  return std::optional(std::move(meaning));
}

void Meaning::add(uint32_t piece, std::vector<float>& sum) const {
  const float much = weights_[piece] * lengths_[piece];
  const std::span<const float> vector = unit(piece);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += much * vector[i];
}

Meaning::Question::Question(const Meaning& meaning, std::span<const uint32_t> tokens)
    : meaning_(meaning), sum_(meaning.dimensions_), row_of_(meaning.pieces()) {
  float all = 0;
  for (const uint32_t piece : tokens) {
    if (piece >= meaning.pieces() || meaning.weights_[piece] <= 0) continue;
    meaning.add(piece, sum_);
    if (asked_.size() == distinct_max || std::ranges::find(asked_, piece) != asked_.end()) continue;
    asked_.push_back(piece);
    weights_.push_back(meaning.weights_[piece]);
    all += weights_.back();
  }
  for (float& weight : weights_) weight /= all;
}

Meaning::Chunk Meaning::Question::look(std::span<const uint32_t> tokens) {
  Chunk chunk{.best = std::vector<float>(asked_.size())};
  std::vector<float> sum(sum_.size());
  for (const uint32_t piece : tokens) {
    if (piece >= meaning_.pieces() || meaning_.weights_[piece] <= 0) continue;
    meaning_.add(piece, sum);
    if (row_of_[piece] == 0) {
      for (const uint32_t asked : asked_)
        rows_.push_back(static_cast<float>(dot(meaning_.unit(asked), meaning_.unit(piece))));
      row_of_[piece] = static_cast<uint32_t>(rows_.size() / std::max<size_t>(asked_.size(), 1));
    }
    const float* row = rows_.data() + (row_of_[piece] - 1) * asked_.size();
    for (size_t i = 0; i < asked_.size(); ++i) chunk.best[i] = std::max(chunk.best[i], row[i]);
  }
  const double lengths = std::sqrt(dot(sum, sum) * dot(sum_, sum_));
  if (lengths > 0) chunk.topic = dot(sum, sum_) / lengths;
  return chunk;
}

double Meaning::Question::share(const Chunk& chunk, const Chunk* before, const Chunk* after) const {
  double found = 0;
  for (size_t i = 0; i < asked_.size(); ++i) {
    float best = chunk.best[i];
    for (const Chunk* beside : {before, after})
      if (beside != nullptr) best = std::max(best, beside_share * beside->best[i]);
    found += static_cast<double>(weights_[i] * best);
  }
  return found;
}

}  // namespace recalld
