// Replies as text for people. Stored text goes through printable(), so that none of it can steer the terminal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "client/append_stream.h"
#include "client/client.h"

namespace recalld::client {

struct Style {
  bool colour = false;
  size_t columns = 0;  // to wrap at; 0: not at all
  bool marks = false;  // without colours: bold and underlined text may stand for them

  // Of standard output: colours on a terminal only, and not under NO_COLOR or TERM=dumb. Marks on a terminal that
  // NO_COLOR alone keeps from colours.
  static Style of_standard_output();
};

// "turn 3", "turns 3-5"
std::string turn_range(uint64_t first, uint64_t last);

// `max_tokens` is what the search was limited to: a reply without results may be its doing.
std::string report(const SearchReply& reply, const Style& style, std::optional<uint64_t> max_tokens = std::nullopt);
// What an answer was read from, without the answer.
std::string report(const GenerateReply& reply, const Style& style);
std::string report(const MemoriesReply& reply, const Style& style, bool first_page);
std::string report(const Memory& memory, const Style& style);
std::string report(const TurnsReply& reply, const Style& style);
std::string report(const ChunksReply& reply, const Style& style);
std::string report(const Chunk& chunk, const Style& style);
std::string report(const Receipt& receipt, const Style& style);
std::string report(const DeleteReply& reply, const Style& style);
std::string report(const VerifyReply& reply, const Style& style);
std::string report(const BackupReply& reply, const Style& style);
std::string report(const Job& job, const Style& style);  // one line
std::string report(const Version& version, const Style& style);
std::string report(const Health& health, const Style& style);

// "Appended 812 turns (20,411 tokens) to notes as turns 0-811 in 0.35 s; ..."
std::string report(const AppendStream::Total& total, std::string_view memory, double seconds);

// Any JSON object as aligned lines "name  value"; sizes in bytes also readably; its jobs below, a line each.
std::string report(const Json& object, const Style& style);

}  // namespace recalld::client
