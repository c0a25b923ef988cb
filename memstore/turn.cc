#include "memstore/turn.h"

#include <array>
#include <utility>

namespace recalld {
namespace {

struct RoleNames {
  std::string_view name;
  std::string_view speaker;
};
constexpr std::array<RoleNames, 4> role_names{
    {{"user", "User"}, {"assistant", "Assistant"}, {"system", "System"}, {"tool", "Tool"}}};

}  // namespace

std::string_view name(Role role) {
  return role_names.at(std::to_underlying(role)).name;
}

std::string_view speaker(Role role) {
  return role_names.at(std::to_underlying(role)).speaker;
}

std::optional<Role> role_from_name(std::string_view name) {
  for (size_t i = 0; i < role_names.size(); ++i) {
    if (role_names[i].name == name) return static_cast<Role>(i);
  }
  return std::nullopt;
}

std::string turn_prefix(const Turn& turn) {
  std::string prefix(turn.name ? std::string_view(*turn.name) : speaker(turn.role));
  return prefix += ": ";
}

std::string stream_text(const Turn& turn) {
  std::string text = turn_prefix(turn);
  text += turn.content;
  return text += '\n';
}

}  // namespace recalld
