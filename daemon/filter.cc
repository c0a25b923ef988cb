#include "daemon/filter.h"

#include <algorithm>
#include <compare>
#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/shorten.h"
#include "daemon/arguments.h"
#include "daemon/protocol_parts.h"
#include "daemon/rfc3339.h"

namespace recalld {
namespace {

// The turn that is judged. Its metadata is parsed when the first condition asks for it.
class Subject {
 public:
  Subject(uint64_t number, const Turn& turn) : number_(number), turn_(turn) {}

  Json role() const { return Json(name(turn_.role)); }
  Json speaker_name() const { return turn_.name ? Json(*turn_.name) : Json(nullptr); }
  Json time() const { return Json(turn_.time_us); }
  Json turn() const { return Json(number_); }
  // A key that is not there counts as null.
  Json metadata(const std::string& key) {
    if (!metadata_) {
      metadata_ = Json::parse(turn_.metadata, nullptr, /*allow_exceptions=*/false);
      if (!metadata_->is_object()) metadata_ = Json::object();
    }
    const auto found = metadata_->find(key);
    return found == metadata_->end() ? Json(nullptr) : *found;
  }

 private:
  uint64_t number_;
  const Turn& turn_;
  std::optional<Json> metadata_;
};

using Condition = std::function<bool(Subject&)>;
// A condition in both forms: as a search without an index asks it of a turn, and as the index is asked.
struct BothForms {
  Condition holds;
  TurnCondition demands;
};
using Value = std::function<Json(Subject&)>;

// Numbers by their value, texts byte by byte, and nothing with anything of another type. A long double holds every
// integer of 64 bits and every double exactly.
std::partial_ordering compare(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) {
    const auto exact = [](const Json& number) {
      if (number.is_number_unsigned()) return static_cast<long double>(number.get<uint64_t>());
      if (number.is_number_integer()) return static_cast<long double>(number.get<int64_t>());
      return static_cast<long double>(number.get<double>());
    };
    return exact(a) <=> exact(b);
  }
  if (a.is_string() && b.is_string())
    return a.get_ref<const std::string&>().compare(b.get_ref<const std::string&>()) <=> 0;
  if (a.type() == b.type() && a == b) return std::partial_ordering::equivalent;
  return std::partial_ordering::unordered;
}

bool is_one_of(const Json& value, const Json::array_t& set) {
  return std::ranges::any_of(set, [&](const Json& each) { return compare(value, each) == 0; });
}

// The value of a JSON primitive; nothing for null.
std::optional<AttributeValue> attribute_value(const Json& value) {
  if (value.is_null()) return std::nullopt;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  return Incomparable{};
}

struct Operator {
  std::string_view name;
  bool takes_list = false;
  bool orders = false;                                                        // and so needs numbers or texts
  bool (*holds)(const Json& value, const Json::array_t& operands) = nullptr;  // one operand unless it takes a list
};
constexpr Operator equal{"eq", false, false,
                         [](const Json& v, const Json::array_t& o) { return compare(v, o[0]) == 0; }};
constexpr Operator unequal{"ne", false, false,
                           [](const Json& v, const Json::array_t& o) { return compare(v, o[0]) != 0; }};
constexpr Operator in{"in", true, false, [](const Json& v, const Json::array_t& o) { return is_one_of(v, o); }};
constexpr Operator not_in{"nin", true, false, [](const Json& v, const Json::array_t& o) { return !is_one_of(v, o); }};
constexpr Operator above{"gt", false, true, [](const Json& v, const Json::array_t& o) { return compare(v, o[0]) > 0; }};
constexpr Operator from{"gte", false, true,
                        [](const Json& v, const Json::array_t& o) { return compare(v, o[0]) >= 0; }};
constexpr Operator below{"lt", false, true, [](const Json& v, const Json::array_t& o) { return compare(v, o[0]) < 0; }};
constexpr Operator to{"lte", false, true, [](const Json& v, const Json::array_t& o) { return compare(v, o[0]) <= 0; }};

// The same comparison, as the index is asked.
TurnCondition comparison(const TurnCondition& of, const Operator& op, const Json::array_t& operands) {
  using Test = TurnCondition::Test;
  TurnCondition demand = of;
  for (const Json& each : operands) demand.operands.push_back(attribute_value(each));
  if (op.name == above.name) demand.test = Test::above;
  if (op.name == from.name) demand.test = Test::from;
  if (op.name == below.name) demand.test = Test::below;
  if (op.name == to.name) demand.test = Test::to;
  if (op.name != unequal.name && op.name != not_in.name) return demand;
  return {.kind = TurnCondition::Kind::none, .inside = {std::move(demand)}};
}

// One that is a group of one is that one.
TurnCondition joined(TurnCondition::Kind kind, std::vector<TurnCondition> inside) {
  if (inside.size() == 1) return std::move(inside.front());
  return {.kind = kind, .inside = std::move(inside)};
}

// One member of a filter: what it looks at, and what that may be compared with.
struct Field {
  std::initializer_list<Operator> operators;
  bool plain = true;  // a value that stands alone means eq
  std::string_view expected;
  bool (*accept)(Json& operand, bool orders) = nullptr;  // false: of another type; may bring it into the value's form
};

bool accept_role(Json& operand, bool) {
  return operand.is_string() && role_from_name(operand.get_ref<const std::string&>()).has_value();
}
bool accept_name(Json& operand, bool) {
  if (operand.is_null()) return true;
  if (!operand.is_string()) return false;
  const std::string& name = operand.get_ref<const std::string&>();
  return !name.empty() && name.size() <= name_bytes_max;
}
bool accept_time(Json& operand, bool) {
  if (!operand.is_string()) return false;
  const auto time_us = parse_rfc3339(operand.get_ref<const std::string&>());
  if (time_us) operand = *time_us;
  return time_us.has_value();
}
bool accept_turn(Json& operand, bool) {
  return operand.is_number_unsigned() && operand.get<uint64_t>() <= number_max;
}
bool accept_metadata(Json& operand, bool orders) {
  if (orders) return operand.is_string() || operand.is_number();
  return operand.is_primitive() && !operand.is_binary();
}

constexpr auto role_operators = {equal, unequal, in, not_in};
constexpr auto time_operators = {from, above, to, below};
constexpr auto turn_operators = {from, above, to, below, equal, in};
constexpr auto metadata_operators = {equal, unequal, in, not_in, above, from, below, to};

const Field role_field{role_operators, true, R"("user", "assistant", "system" or "tool")", accept_role};
const Field name_field{role_operators, true, "a name of 1 to 200 bytes, or null for turns without one", accept_name};
const Field time_field{time_operators, false, R"(a time of RFC 3339, such as "2026-01-02T03:04:05Z")", accept_time};
const Field turn_field{turn_operators, true, "an integer from 0 to 9007199254740992", accept_turn};
const Field metadata_field{metadata_operators, true,
                           "a string, a number that fits 64 bits, true, false or null (to order by: a string or a "
                           "number)",
                           accept_metadata};

constexpr std::string_view metadata_prefix = "metadata.";

std::string names_of(const Field& field) {
  std::string names;
  for (const Operator& each : field.operators) names.append(names.empty() ? "" : ", ").append(each.name);
  return names;
}

std::unexpected<Error> refuse(const std::string& path, std::string_view why) {
  return fail(ErrorKind::invalid_request, path + ": " + std::string(why));
}

// Reads one filter, and counts what it costs.
class Reader {
 public:
  // Conditions joined by and.
  Expected<BothForms> group(Json& value, const std::string& path, size_t depth) {
    if (depth > filter_depth_max)
      return refuse(path, "the filter is nested deeper than " + std::to_string(filter_depth_max) + " levels");
    if (!value.is_object()) return refuse(path, "expected an object of conditions, got " + described(value));
    if (value.empty())
      return refuse(path, R"(expected at least one condition, such as {"role":"tool"}; none would mean every turn)");
    std::vector<Condition> all;
    std::vector<TurnCondition> demands;
    for (auto& [key, member] : value.items()) {
      RECALLD_TRY(BothForms both, this->condition(key, member, path + "." + shortened(key), depth));
      all.push_back(std::move(both.holds));
      demands.push_back(std::move(both.demands));
    }
    TurnCondition demand = joined(TurnCondition::Kind::all, std::move(demands));
    if (all.size() == 1) return BothForms{std::move(all.front()), std::move(demand)};
    return BothForms{[all = std::move(all)](Subject& subject) {
                       return std::ranges::all_of(all, [&](const Condition& each) { return each(subject); });
                     },
                     std::move(demand)};
  }

 private:
  Expected<BothForms> condition(const std::string& key, Json& value, const std::string& path, size_t depth) {
    const auto attribute = [](std::string_view name) {
      return TurnCondition{.kind = TurnCondition::Kind::attribute, .attribute = std::string(name)};
    };
    if (key == "role") return field(role_field, &Subject::role, attribute(role_attribute), value, path);
    if (key == "name") return field(name_field, &Subject::speaker_name, attribute(name_attribute), value, path);
    if (key == "time") return field(time_field, &Subject::time, attribute(time_attribute), value, path);
    if (key == "turn") return field(turn_field, &Subject::turn, {.kind = TurnCondition::Kind::turn}, value, path);
    if (key.starts_with(metadata_prefix)) {
      const std::string name = key.substr(metadata_prefix.size());
      return field(
          metadata_field, [name](Subject& subject) { return subject.metadata(name); }, attribute(key), value, path);
    }
    if (key == "and" || key == "or") return list(key == "and", value, path, depth);
    if (key == "not") {
      RECALLD_TRY(BothForms inside, group(value, path, depth + 1));
      return BothForms{[holds = std::move(inside.holds)](Subject& subject) { return !holds(subject); },
                       {.kind = TurnCondition::Kind::none, .inside = {std::move(inside.demands)}}};
    }
    return refuse(path, "unknown condition; there are role, name, time, turn, metadata.KEY, and, or, not");
  }

  // Filters joined by and or by or.
  Expected<BothForms> list(bool all, Json& value, const std::string& path, size_t depth) {
    if (!value.is_array() || value.empty() || value.size() > filter_values_max)
      return refuse(
          path, "expected an array of 1 to " + std::to_string(filter_values_max) + " filters, got " + described(value));
    std::vector<Condition> inside;
    std::vector<TurnCondition> demands;
    for (size_t i = 0; i < value.size(); ++i) {
      RECALLD_TRY(BothForms both, group(value[i], path + "[" + std::to_string(i) + "]", depth + 1));
      inside.push_back(std::move(both.holds));
      demands.push_back(std::move(both.demands));
    }
    return BothForms{[all, inside = std::move(inside)](Subject& subject) {
                       const auto holds = [&](const Condition& each) { return each(subject); };
                       return all ? std::ranges::all_of(inside, holds) : std::ranges::any_of(inside, holds);
                     },
                     joined(all ? TurnCondition::Kind::all : TurnCondition::Kind::any, std::move(demands))};
  }

  // A value that stands alone, or an object of comparisons joined by and.
  Expected<BothForms> field(const Field& field, Value value_of, const TurnCondition& of, Json& value,
                            const std::string& path) {
    std::vector<std::pair<const Operator*, Json::array_t>> comparisons;
    if (!value.is_object()) {
      if (!field.plain) return refuse(path, "expected an object with " + names_of(field) + ", got " + described(value));
      RECALLD_CHECK(take(field, false, value, path));
      comparisons.emplace_back(&equal, Json::array_t{std::move(value)});
    } else {
      if (value.empty()) return refuse(path, "expected at least one of " + names_of(field));
      for (auto& [name, operand] : value.items()) {
        const std::string place = path + "." + shortened(name);
        const auto found = std::ranges::find(field.operators, std::string_view(name), &Operator::name);
        if (found == field.operators.end()) return refuse(place, "unknown comparison; there are " + names_of(field));
        RECALLD_TRY(Json::array_t operands, this->operands(field, *found, operand, place));
        comparisons.emplace_back(found, std::move(operands));
      }
    }
    std::vector<TurnCondition> demands;
    for (const auto& [op, operands] : comparisons) demands.push_back(comparison(of, *op, operands));
    return BothForms{[value_of = std::move(value_of), comparisons = std::move(comparisons)](Subject& subject) {
                       const Json found = value_of(subject);
                       return std::ranges::all_of(
                           comparisons, [&](const auto& each) { return each.first->holds(found, each.second); });
                     },
                     joined(TurnCondition::Kind::all, std::move(demands))};
  }

  Expected<Json::array_t> operands(const Field& field, const Operator& op, Json& value, const std::string& path) {
    if (!op.takes_list) {
      RECALLD_CHECK(take(field, op.orders, value, path));
      return Json::array_t{std::move(value)};
    }
    if (!value.is_array() || value.empty())
      return refuse(path, "expected an array of at least one value, got " + described(value));
    for (size_t i = 0; i < value.size(); ++i)
      RECALLD_CHECK(take(field, op.orders, value[i], path + "[" + std::to_string(i) + "]"));
    return std::move(value.get_ref<Json::array_t&>());
  }

  // Brings one operand into the form of the field's values.
  Expected<void> take(const Field& field, bool orders, Json& operand, const std::string& path) {
    if (++values_ > filter_values_max)
      return refuse(path, "the filter compares with more than " + std::to_string(filter_values_max) + " values");
    if (field.accept(operand, orders)) return {};
    return refuse(path, "expected " + std::string(field.expected) + ", got " + described(operand));
  }

  size_t values_ = 0;
};

// Takes over what a filter that has been read demands of the numbers of turns.
void narrow(const Json& group, TurnQuery& query) {
  const auto at_least = [&](uint64_t turn) { query.first_turn = std::max(query.first_turn, turn); };
  const auto before = [&](uint64_t turn) { query.end_turn = std::min(query.end_turn, turn); };
  const auto within = [&](std::string_view comparison, const Json& operand) {
    if (operand.is_array()) return;  // in: they may lie far apart
    const uint64_t turn = operand.get<uint64_t>();
    if (comparison == "eq" || comparison == "gte") at_least(turn);
    if (comparison == "gt") at_least(turn + 1);
    if (comparison == "eq" || comparison == "lte") before(turn + 1);
    if (comparison == "lt") before(turn);
  };
  for (const auto& [key, value] : group.items()) {
    if (key == "turn") {
      if (!value.is_object()) within("eq", value);
      if (value.is_object())
        for (const auto& [comparison, operand] : value.items()) within(comparison, operand);
    }
    if (key == "and")
      for (const Json& each : value) narrow(each, query);
  }
}

}  // namespace

Expected<TurnQuery> read_query(Json& value, std::string path) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);  // members in order
  TurnQuery query;
  query.key = hash128(as_bytes(text));
  const Json conditions = value;
  RECALLD_TRY(BothForms both, Reader().group(value, path, 1));
  // Shared, because a function is copied with the request, and what it calls is never changed.
  query.matches = [condition = std::make_shared<const Condition>(std::move(both.holds))](uint64_t number,
                                                                                         const Turn& turn) {
    Subject subject(number, turn);
    return (*condition)(subject);
  };
  query.condition = std::make_shared<const TurnCondition>(std::move(both.demands));
  narrow(conditions, query);
  return query;
}

std::vector<Attribute> metadata_attributes(std::string_view metadata) {
  std::vector<Attribute> attributes;
  const Json members = Json::parse(metadata, nullptr, /*allow_exceptions=*/false);
  if (!members.is_object()) return attributes;
  for (const auto& [key, value] : members.items()) {
    auto read = attribute_value(value);
    if (read) attributes.push_back({std::string(metadata_prefix) + key, *std::move(read)});
  }
  return attributes;
}

}  // namespace recalld
