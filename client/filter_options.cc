#include "client/filter_options.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/shorten.h"
#include "client/cli.h"
#include "client/unique_json.h"

namespace recalld::client {
namespace {

// A day means its beginning, in UTC; anything else is for the daemon to judge.
std::string moment(const std::string& text) {
  constexpr std::string_view day = "dddd-dd-dd";
  const bool is_day = std::ranges::equal(
      text, day, [](char is, char wanted) { return wanted == 'd' ? is >= '0' && is <= '9' : is == wanted; });
  return is_day ? text + "T00:00:00Z" : text;
}

// A number, true, false, null or a text in quotes as in JSON; all else is a text as it stands.
Json value_of(const std::string& text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_primitive() && !value.is_discarded() ? value : Json(text);
}

// The JSON of --filter.
Expected<Json> object_of(const std::string& text) {
  UniqueJson given = parse_unique(text);
  if (!given.value.is_object())
    return fail(ErrorKind::invalid_request,
                R"(--filter: expected a JSON object such as {"metadata.draft":true}, got ')" + shortened(text) + "'");
  if (given.twice)
    return fail(ErrorKind::invalid_request, "--filter: the key '" + shortened(*given.twice) +
                                                "' appears twice in one object; join conditions that must all hold by "
                                                R"({"and":[...]})");
  return std::move(given.value);
}

}  // namespace

void FilterOptions::add(CLI::App& command, const std::string& which) {
  // An empty value is refused and not taken for none: with fewer conditions more turns would be meant.
  command.add_option("--role", role, which + " of this role: user, assistant, system or tool")
      ->check(not_empty("user, assistant, system or tool"));
  command.add_option("--name", name, which + " of this speaker")->check(not_empty("a name"));
  command.add_option("--before", before, which + " before this time, such as 2026-01-31 (UTC) or RFC 3339")
      ->check(not_empty("a day, such as 2026-01-31, or a time of RFC 3339"));
  command.add_option("--after", after, which + " at this time or later")
      ->check(not_empty("a day, such as 2026-01-31, or a time of RFC 3339"));
  command.add_option("--where", where, which + " with this in their metadata, as KEY=VALUE")->allow_extra_args(false);
  command.add_option("--filter", filter, "A filter as docs/protocol.md describes it, as JSON")
      ->check(not_empty("a JSON object"));
  command.footer("Several options together mean the turns that fit all of them.");
}

Expected<Json> FilterOptions::read() const {
  Json conditions = Json::object();
  if (!role.empty()) conditions["role"] = role;
  if (!name.empty()) conditions["name"] = name;
  if (!before.empty()) conditions["time"]["lt"] = moment(before);
  if (!after.empty()) conditions["time"]["gte"] = moment(after);
  Json::array_t all;
  for (const std::string& each : where) {
    const size_t at = each.find('=');
    if (at == std::string::npos || at == 0)
      return fail(ErrorKind::invalid_request,
                  "--where: expected KEY=VALUE, such as draft=true, got '" + shortened(each) + "'");
    const std::string key = "metadata." + each.substr(0, at);
    // The same key twice: both must hold.
    if (conditions.contains(key))
      all.push_back({{key, value_of(each.substr(at + 1))}});
    else
      conditions[key] = value_of(each.substr(at + 1));
  }
  if (!filter.empty()) {
    RECALLD_TRY(Json given, object_of(filter));
    all.push_back(std::move(given));
  }
  if (all.empty()) return conditions.empty() ? Json(nullptr) : conditions;
  if (!conditions.empty()) all.insert(all.begin(), std::move(conditions));
  if (all.size() == 1) return std::move(all.front());
  return Json{{"and", std::move(all)}};
}

Error FilterOptions::named(Error error) const {
  if (!filter.empty()) return error;
  const auto is_of = [&](std::string_view condition) {
    return error.message.starts_with(std::string(condition) + ":");
  };
  constexpr std::array<std::pair<std::string_view, std::string_view>, 2> options{
      {{"filter.role", "--role"}, {"filter.name", "--name"}}};
  for (const auto& [condition, option] : options)
    if (is_of(condition)) error.message.replace(0, condition.size(), option);
  // A day was sent as its beginning: told is what was typed.
  const auto expected_time = [&](std::string_view option, const std::string& typed) {
    error.message = std::string(option) +
                    ": expected a day, such as 2026-01-31, or a time of RFC 3339, such as 2026-01-31T18:05:00Z, got '" +
                    shortened(typed) + "'";
  };
  if (is_of("filter.time.lt")) expected_time("--before", before);
  if (is_of("filter.time.gte")) expected_time("--after", after);
  return error;
}

}  // namespace recalld::client
