// What the methods of the protocol share: how a memory's name, a turn, a time and a cursor are read and written.
// Readers take their argument out of an Arguments, which remembers the first mistake (arguments.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "daemon/arguments.h"
#include "daemon/json_rpc.h"
#include "daemon/requests.h"

namespace recalld {

using Reply = nlohmann::ordered_json;  // members stand as docs/protocol.md lists them

inline constexpr size_t memory_bytes_max = 200;
inline constexpr uint64_t number_max = uint64_t{1} << 53;  // of turns, chunks, tokens: what JSON readers hold exactly

// ---- Arguments
std::string take_memory(Arguments& arguments, std::string_view argument = "memory");
// The query of a search or the prompt of an answer: more than spaces.
std::string take_question(Arguments& arguments, std::string_view argument);
std::optional<int64_t> take_time(Arguments& arguments, std::string_view argument);  // microseconds since 1970
// The turn that `arguments` is about: role, content, name, time, metadata. `has_time`: whether there was one.
Turn take_turn(Arguments& arguments, bool& has_time);
// "wait": whether to answer only when all is done, which is the default; "none" answers as soon as it is begun.
bool take_wait(Arguments& arguments);

// "memory" of a search: a name, an array of names, or the beginning of names and "*".
void take_searched(Arguments& arguments, SearchRequest& request);

// Cursors: a letter for the listing, a colon, and where the next page begins.
std::string cursor(char listing, std::string_view position);

// ---- Replies
std::string text_of(const Reply& reply);
Reply or_null(const std::optional<uint64_t>& number);
// Adds the text of a passage, where it stands and who said it.
void put_passage(Reply& out, const Passage& passage);
// Adds "unreadable", where there are such chunks.
void put_unreadable(Reply& out, const std::vector<Unreadable>& chunks);
Reply memory_info(const MemoryInfo& info);
Reply job_view(const JobView& job);
// Adds role, name, content, time and metadata.
void put_turn(Reply& out, const Turn& turn);

}  // namespace recalld
