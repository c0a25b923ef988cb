// What tests of the command line share: daemons that answer it, what it sent them, and a terminal for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "client/client.h"
#include "fake_daemon.h"
#include "tests/support/shell.h"

namespace recalld::client {

inline FakeDaemon::Answer answer(const std::string& line, const Json& result) {
  return {Json{{"jsonrpc", "2.0"}, {"id", Json::parse(line)["id"]}, {"result", result}}.dump() + "\n"};
}

inline FakeDaemon::Answer refuse(const std::string& line, const std::string& message, const std::string& kind) {
  const Json error{{"code", -32000}, {"message", message}, {"data", {{"kind", kind}}}};
  return {Json{{"jsonrpc", "2.0"}, {"id", Json::parse(line)["id"]}, {"error", error}}.dump() + "\n"};
}

// Answers appends as the daemon would, to a memory that there is not yet, in which every turn is a chunk. Of these
// `encoded` are encoded whenever somebody asks; an append that waits for more of them is not answered.
inline FakeDaemon::Script appending(uint64_t encoded = UINT64_MAX, const std::string& problem = "") {
  uint64_t turns = 0;
  return [turns, encoded, problem](const std::string& line) mutable -> FakeDaemon::Answer {
    const Json method = Json::parse(line)["method"];
    const Json params = Json::parse(line).value("params", Json::object());
    const uint64_t done = std::min(encoded, turns);
    if (method == "memories.get" && turns == 0) return refuse(line, "there is no memory", "not_found");
    if (method == "memories.get") {
      return answer(line, {{"memory", "m"},
                           {"turns", turns},
                           {"next_turn", turns},
                           {"tokens", 64 * turns},
                           {"chunks", turns},
                           {"encoded_chunks", done},
                           {"content_bytes", turns},
                           {"created", "c"},
                           {"updated", "u"},
                           {"searchable_through", done == 0 ? Json(nullptr) : Json(done - 1)}});
    }
    if (method == "health") {
      Json health{{"ready", true}, {"waiting_chunks", turns - done}};
      if (!problem.empty()) health["problem"] = problem;
      return answer(line, health);
    }
    const uint64_t first = turns;
    turns += params["turns"].size();
    if (params.value("wait", "") == "searchable" && encoded < turns) return {};
    return answer(line, {{"memory", params["memory"]},
                         {"first_turn", first},
                         {"last_turn", turns - 1},
                         {"tokens", 5},
                         {"searchable_through", nullptr}});
  };
}

inline Json sent(const FakeDaemon& daemon, size_t line = 0) {
  return Json::parse(daemon.lines().at(line));
}

inline std::string at(const FakeDaemon& daemon) {
  return "--socket '" + daemon.socket().string() + "' ";
}

inline FakeDaemon::Script always(const Json& result) {
  return [result](const std::string& line) { return answer(line, result); };
}

// For a command within quotes.
inline std::string at_plain(const FakeDaemon& daemon) {
  return "--socket " + daemon.socket().string() + " ";
}

inline Json memory(uint64_t turns) {
  return {{"memory", "m"},  {"turns", turns}, {"next_turn", turns},  {"tokens", 9 * turns},        {"chunks", 1},
          {"created", "c"}, {"updated", "u"}, {"encoded_chunks", 1}, {"content_bytes", 30 * turns}};
}

// Of turns that were forgotten, or would be.
inline Json receipt(uint64_t turn_count) {
  return {{"memory", "m"},
          {"turns", turn_count == 0 ? Json::array() : Json::array({{4, 4}, {10, 20}})},
          {"turn_count", turn_count},
          {"tokens", 300},
          {"content_bytes", 900},
          {"chunks", 5},
          {"files", {{{"file", "kv/000001.seg"}, {"records", 5}, {"bytes", 81920}}}},
          {"complete", true},
          {"time", "2026-01-02T03:04:05Z"}};
}

// The command with a terminal at standard input, on which `typed` was typed.
inline Outcome on_terminal(const std::string& typed, const std::string& command) {
  return shell("printf '" + typed + "' | script -q -e -c \"" + command + "\" /dev/null");
}

}  // namespace recalld::client
