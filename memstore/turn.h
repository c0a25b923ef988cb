// A turn: one appended message, and the text that the model reads for it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace recalld {

enum class Role : uint8_t { user = 0, assistant = 1, system = 2, tool = 3 };

std::string_view name(Role role);                      // "user", ...
std::optional<Role> role_from_name(std::string_view);  // nothing for any other word
std::string_view speaker(Role role);                   // "User", ...

struct Turn {
  Role role = Role::user;
  std::optional<std::string> name;  // of the speaker
  std::string content;              // UTF-8, not empty, at most 1 MiB; NUL bytes allowed
  int64_t time_us = 0;              // microseconds since 1970, UTC
  std::string metadata;             // a flat JSON object as text, or empty
};

// Turns first to last of a memory, both included.
struct TurnRange {
  uint64_t first = 0;
  uint64_t last = 0;
  bool operator==(const TurnRange&) const = default;
};

// What stands before the content in the token stream: "NAME: ", NAME being the turn's name or its role's speaker.
std::string turn_prefix(const Turn& turn);

// The turn in the memory's stream: prefix, content, newline. Chunk texts are cut from this.
std::string stream_text(const Turn& turn);

}  // namespace recalld
