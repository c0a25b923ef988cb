#include "daemon/fusion.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "base/quote.h"
#include "base/shorten.h"

namespace recalld {
namespace {

using Json = nlohmann::json;

constexpr double common_words = 10;   // BM25 that a chunk has by a few of them
constexpr double telling_words = 15;  // BM25 from which on what a text is about adds little
constexpr double weight_max = 1e6;    // with greater ones, sums might be no finite numbers

size_t at(Feature feature) {
  return static_cast<size_t>(feature);
}

// How one part stands among the candidates that set it.
class Standing {
 public:
  Standing(const std::vector<Candidate>& candidates, auto part) {
    double count = 0;
    for (const Candidate& each : candidates) count += Fusion::sets_standing(each);
    for (const Candidate& each : candidates)
      if (Fusion::sets_standing(each)) mean_ += part(each) / count;
    for (const Candidate& each : candidates) {
      if (!Fusion::sets_standing(each)) continue;
      deviation_ += (part(each) - mean_) * (part(each) - mean_) / count;
      best_ = std::max(best_, part(each));
    }
    deviation_ = std::sqrt(deviation_);
  }
  double of(double value) const { return deviation_ > negligible ? (value - mean_) / deviation_ : 0; }
  double best() const { return best_; }
  double top(double value) const { return 1 / (1 + std::max(0.0, of(best_) - of(value))); }

 private:
  static constexpr double negligible = 1e-9;
  double mean_ = 0, deviation_ = 0, best_ = -std::numeric_limits<double>::infinity();
};

// Of a part that not every candidate has the lowest that one has which sets the standing; 0 where nobody has it.
double lowest_of(const std::vector<Candidate>& candidates, std::optional<double> Candidate::*part) {
  double lowest = std::numeric_limits<double>::infinity();
  for (const Candidate& each : candidates)
    if (Fusion::sets_standing(each)) lowest = std::min(lowest, (each.*part).value_or(lowest));
  return std::isinf(lowest) ? 0 : lowest;
}

void set_features(std::vector<Candidate>& candidates) {
  const double lowest_tokens = lowest_of(candidates, &Candidate::tokens);
  const double lowest_meaning = lowest_of(candidates, &Candidate::meaning);
  const double lowest_topic = lowest_of(candidates, &Candidate::topic);
  const auto bm25 = [](const Candidate& each) { return each.bm25; };
  const auto words = [](const Candidate& each) { return each.bm25 + each.context; };
  const auto landmark = [](const Candidate& each) { return each.landmark; };
  const auto tokens = [&](const Candidate& each) { return each.tokens.value_or(lowest_tokens); };
  const auto meaning = [&](const Candidate& each) { return each.meaning.value_or(lowest_meaning); };
  const auto topic = [&](const Candidate& each) { return each.topic.value_or(lowest_topic); };
  const Standing of_bm25(candidates, bm25), of_words(candidates, words), of_landmark(candidates, landmark),
      of_tokens(candidates, tokens), of_meaning(candidates, meaning), of_topic(candidates, topic);

  // Where even the best match has only common words, these tell next to nothing.
  const double share = of_bm25.best() / common_words;
  const double tells = 1 - std::exp(-share * share);
  const double of_telling = of_bm25.best() / telling_words;
  const double untold = std::exp(-of_telling * of_telling);

  std::map<std::pair<size_t, uint64_t>, const Candidate*> place;  // by memory and chunk
  double lowest_landmark = std::numeric_limits<double>::infinity();
  for (const Candidate& each : candidates) {
    if (!Fusion::sets_standing(each)) continue;  // so that the number of results that is wanted changes no score
    place.emplace(std::pair(each.memory, each.chunk), &each);
    lowest_landmark = std::min(lowest_landmark, each.landmark);
  }
  for (Candidate& each : candidates) {
    double near_landmark = lowest_landmark, near_tokens = lowest_tokens;
    for (const uint64_t beside : {each.chunk - 1, each.chunk + 1}) {  // there is no chunk 2^64 - 1
      const auto found = place.find({each.memory, beside});
      if (found == place.end()) continue;
      near_landmark = std::max(near_landmark, landmark(*found->second));
      near_tokens = std::max(near_tokens, tokens(*found->second));
    }
    Features& f = each.features;
    f[at(Feature::bm25)] = tells * each.bm25;
    f[at(Feature::context)] = tells * each.context;
    f[at(Feature::landmark)] = of_landmark.of(each.landmark);
    f[at(Feature::tokens)] = of_tokens.of(tokens(each));
    f[at(Feature::near_landmark)] = of_landmark.of(near_landmark);
    f[at(Feature::near_tokens)] = of_tokens.of(near_tokens);
    f[at(Feature::landmark_top)] = of_landmark.top(each.landmark);
    f[at(Feature::lexical_top)] = of_words.top(words(each));
    f[at(Feature::meaning)] = of_meaning.of(meaning(each));
    f[at(Feature::topic)] = untold * of_topic.of(topic(each));
    f[at(Feature::best_bm25)] = of_bm25.best();
    f[at(Feature::best_tokens)] = of_tokens.best();
    f[at(Feature::best_landmark)] = of_landmark.of(of_landmark.best());
  }
}

// Takes numbers out of fusion.json; the first thing wrong is kept.
class Numbers {
 public:
  explicit Numbers(std::string path) : path_(std::move(path)) {}

  // A member that is `optional` may be missing: `value` stays then.
  void take(const Json& object, std::string_view member, double& value, double least, bool optional = false) {
    known_.insert(member);
    const auto found = object.find(member);
    if (found == object.end() && optional) return;
    if (found == object.end()) return wrong(member, "the member is missing");
    if (!found->is_number() || !std::isfinite(found->get<double>())) return wrong(member, "expected a number");
    value = found->get<double>();
    if (std::abs(value) > weight_max) return wrong(member, "expected a number from -1000000 to 1000000");
    if (value < least)
      wrong(member, "expected a number that is not below 0, as a better part alone must not make a chunk worse");
  }
  // Called last: a misspelt member that is optional would otherwise count as 0.
  void refuse_others(const Json& object) {
    for (const auto& [member, value] : object.items())
      if (!known_.contains(member)) wrong(shortened(member), "there is no such weight");
  }
  const std::string& problem() const { return problem_; }

 private:
  void wrong(std::string_view member, std::string_view why) {
    if (problem_.empty()) problem_.append(path_).append(".").append(member).append(": ").append(why);
  }
  std::string path_;
  std::set<std::string_view> known_;
  std::string problem_;
};

std::unexpected<Error> refused(std::string why) {
  return fail(ErrorKind::invalid_request, std::move(why));
}

}  // namespace

Fusion::Fusion() {
  order_[at(Feature::bm25)] = order_[at(Feature::context)] = 0.2;
  order_[at(Feature::landmark)] = 0.5;
}

Expected<Fusion> Fusion::of_checkpoint(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / "fusion.json";
  std::error_code none;
  if (!std::filesystem::exists(file, none)) return Fusion();
  std::ifstream in(file);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) return fail(ErrorKind::io, "read " + in_quotes(file.string()) + ": it cannot be read");
  auto fusion = parse(text.str());
  if (!fusion)
    return refused("read " + in_quotes(file.string()) + ": " + fusion.error().message +
                   "; tools/train/fusion.py makes it, and without it built-in weights serve");
  return fusion;
}

Expected<Fusion> Fusion::parse(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded() || !json.is_object()) return refused("it is not a JSON object");
  if (json.value("format", Json()) != Json(1)) return refused("format: this version reads format 1");
  if (json.value("depth", Json()) != Json(depth))
    return refused("depth: the weights must be learned from the best " + std::to_string(depth) + " of each ranking");
  for (const char* part : {"order", "score"})
    if (!json.contains(part) || !json[part].is_object()) return refused(std::string(part) + ": expected an object");
  Fusion fusion;
  Numbers order("order"), score("score");
  constexpr double any = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < order_features; ++i)
    order.take(json["order"], feature_names[i], fusion.order_[i], 0, i >= at(Feature::meaning));
  score.take(json["score"], "slope", fusion.slope_, 0);
  score.take(json["score"], "rivals", fusion.rivals_, any);
  score.take(json["score"], "bias", fusion.bias_, any);
  for (size_t i = order_features; i < feature_count; ++i)
    score.take(json["score"], feature_names[i], fusion.search_[i - order_features], any);
  order.refuse_others(json["order"]);
  score.refuse_others(json["score"]);
  for (const Numbers& part : {order, score})
    if (!part.problem().empty()) return refused(part.problem());
  return fusion;
}

void Fusion::rank(std::vector<Candidate>& candidates) const {
  if (candidates.empty()) return;
  // One order of summation, so that a filter, which brings candidates in another one, changes no bit of a score.
  std::ranges::sort(candidates, {}, [](const Candidate& each) { return std::pair(each.memory, each.chunk); });
  set_features(candidates);
  double best = std::numeric_limits<double>::lowest();
  for (Candidate& each : candidates) {
    each.score = 0;
    for (size_t i = 0; i < order_features; ++i) each.score += order_[i] * each.features[i];
    if (sets_standing(each)) best = std::max(best, each.score);
  }
  std::ranges::sort(candidates, [](const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.memory != b.memory ? a.memory < b.memory : a.chunk < b.chunk;
  });
  double sum = 1e-300;  // did no candidate set it, which no ranking gives
  for (const Candidate& each : candidates)
    if (sets_standing(each)) sum += std::exp(each.score - best);
  double of_search = rivals_ * (best + std::log(sum)) + bias_;
  for (size_t i = order_features; i < feature_count; ++i)
    of_search += search_[i - order_features] * candidates.front().features[i];
  for (Candidate& each : candidates) each.score = 1 / (1 + std::exp(-(slope_ * each.score + of_search)));
}

}  // namespace recalld
