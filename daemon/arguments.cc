#include "daemon/arguments.h"

#include <algorithm>

#include "base/shorten.h"

namespace recalld {

std::string described(const Json& value) {
  switch (value.type()) {
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array of " + std::to_string(value.size());
    case Json::value_t::string:
      return json_string(shortened(value.get_ref<const std::string&>()));
    case Json::value_t::binary:
      return "an integer of more than 64 bits";  // see the builder of json_rpc.cc
    default:
      return value.dump();
  }
}

Arguments::Arguments(Json& value, std::string path) : value_(value), path_(std::move(path)) {
  if (!value.is_object())
    error_ = Error{ErrorKind::invalid_request, path_ + ": expected an object, got " + described(value)};
}

std::string Arguments::text(std::string_view argument, size_t bytes_min, size_t bytes_max) {
  required(argument);
  return optional_text(argument, bytes_min, bytes_max).value_or("");
}

std::optional<std::string> Arguments::optional_text(std::string_view argument, size_t bytes_min, size_t bytes_max) {
  Json* value = take(argument);
  if (!value) return std::nullopt;
  const std::string expected =
      "a string of " + std::to_string(bytes_min) + " to " + std::to_string(bytes_max) + " bytes";
  if (!value->is_string()) {
    refuse(argument, expected, *value);
    return std::nullopt;
  }
  std::string& text = value->get_ref<std::string&>();
  if (text.size() < bytes_min || text.size() > bytes_max) {
    refuse(argument, "expected " + expected + ", got " + std::to_string(text.size()));
    return std::nullopt;
  }
  return std::move(text);
}

uint64_t Arguments::integer(std::string_view argument, uint64_t min, uint64_t max) {
  required(argument);
  return optional_integer(argument, min, max).value_or(min);
}

std::optional<uint64_t> Arguments::optional_integer(std::string_view argument, uint64_t min, uint64_t max) {
  const Json* value = take(argument);
  if (!value) return std::nullopt;
  if (value->is_number_unsigned()) {
    const uint64_t number = value->get<uint64_t>();
    if (number >= min && number <= max) return number;
  }
  refuse(argument, "an integer from " + std::to_string(min) + " to " + std::to_string(max), *value);
  return std::nullopt;
}

std::optional<double> Arguments::optional_number(std::string_view argument, double min, double max) {
  const Json* value = take(argument);
  if (!value) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= min && number <= max) return number;
  }
  refuse(argument, "a number from " + Json(min).dump() + " to " + Json(max).dump(), *value);
  return std::nullopt;
}

std::optional<bool> Arguments::optional_flag(std::string_view argument) {
  const Json* value = take(argument);
  if (!value) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  refuse(argument, "true or false", *value);
  return std::nullopt;
}

Json::array_t Arguments::array(std::string_view argument, size_t items_max) {
  Json* value = required(argument);
  if (!value) return {};
  if (!value->is_array() || value->empty() || value->size() > items_max) {
    refuse(argument, "an array of 1 to " + std::to_string(items_max), *value);
    return {};
  }
  return std::move(value->get_ref<Json::array_t&>());
}

Json* Arguments::take(std::string_view argument) {
  if (std::ranges::find(known_, argument) == known_.end()) known_.push_back(argument);
  if (error_) return nullptr;
  const auto found = value_.find(argument);
  return found == value_.end() ? nullptr : &*found;
}

Json* Arguments::required(std::string_view argument) {
  Json* value = take(argument);
  if (!value && !error_) refuse(argument, "this argument is missing");
  return value;
}

void Arguments::refuse(std::string_view argument, std::string_view expected, const Json& got) {
  refuse(argument, "expected " + std::string(expected) + ", got " + described(got));
}

void Arguments::refuse(std::string_view argument, std::string message) {
  refuse(Error{ErrorKind::invalid_request, std::move(message)}.within(path_of(argument)));
}

void Arguments::refuse(Error error) {
  if (!error_) error_ = std::move(error);
}

std::string Arguments::path_of(std::string_view argument) const {
  return path_.empty() ? std::string(argument) : path_ + "." + std::string(argument);
}

void Arguments::refuse_the_rest() {
  if (error_) return;
  for (const auto& member : value_.items()) {
    if (std::ranges::find(known_, member.key()) != known_.end()) continue;
    std::string names;
    for (const std::string_view name : known_) names.append(names.empty() ? "" : ", ").append(name);
    return refuse(shortened(member.key()),
                  names.empty() ? "unknown argument: there are none here" : "unknown argument; there are " + names);
  }
}

}  // namespace recalld
