#include "client/unique_json.h"

#include <set>
#include <vector>

namespace recalld::client {

UniqueJson parse_unique(std::string_view text) {
  UniqueJson out;
  std::vector<std::set<std::string>> keys;  // of the objects around what is being read
  const auto look = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second && !out.twice) out.twice = key;
    }
    return true;
  };
  out.value = Json::parse(text, look, /*allow_exceptions=*/false);
  return out;
}

}  // namespace recalld::client
