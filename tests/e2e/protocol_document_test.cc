// Holds docs/protocol.md to what the daemon does: every example in it is sent, in order, to a fresh daemon
// that runs the starter, whose words they show.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/daemon_process.h"
#include "tests/support/exchanges.h"
#include "tests/support/raw_client.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using Json = nlohmann::ordered_json;

// Members whose value depends on the machine, the clock or the model's precision: only their type is compared. So is
// everything in "matches", "pairs" and a "why"'s "tokens", where close weights may change places.
const std::set<std::string> varying{"score",
                                    "landmark_score",
                                    "token_score",
                                    "best",
                                    "took_ms",
                                    "weight",
                                    "created",
                                    "updated",
                                    "time",
                                    "crc32c",
                                    "landmark_norm",
                                    "resident_bytes",
                                    "file_io",
                                    "model_directory",
                                    "model_precision",
                                    "uptime_s",
                                    "model_hash",
                                    "encode_tokens_per_s",
                                    "kv_bytes_on_disk",
                                    "catalog_bytes_on_disk",
                                    "landmark_cache_bytes",
                                    "entry_cache_bytes",
                                    "block_cache_bytes",
                                    "memtable_bytes",
                                    "records",
                                    "bytes",
                                    "digest"};

// Where `got` differs from `shown`; "" when it does not.
std::string difference(const Json& shown, const Json& got, const std::string& path = "reply") {
  if (shown.type() != got.type() && !(shown.is_number() && got.is_number())) return path + " is of another type";
  if (shown.is_object()) {
    std::vector<std::string> shown_keys, got_keys;
    for (const auto& member : shown.items()) shown_keys.push_back(member.key());
    for (const auto& member : got.items()) got_keys.push_back(member.key());
    if (shown_keys != got_keys) return path + " has other members";
    for (const std::string& key : shown_keys) {
      const bool looks = path.contains(".matches") || path.contains(".pairs") || path.contains(".tokens[") ||
                         path.contains(".features") || path.contains(".took");
      if ((varying.contains(key) || looks) && shown[key].is_primitive()) {
        if (shown[key].is_number() == got[key].is_number() && shown[key].is_string() == got[key].is_string()) continue;
        return path + "." + key + " is of another type";
      }
      if (auto inside = difference(shown[key], got[key], path + "." + key); !inside.empty()) return inside;
    }
    return "";
  }
  if (shown.is_array()) {
    if (shown.size() != got.size()) return path + " has " + std::to_string(got.size()) + " elements";
    for (size_t i = 0; i < shown.size(); ++i)
      if (auto inside = difference(shown[i], got[i], path + "[" + std::to_string(i) + "]"); !inside.empty())
        return inside;
    return "";
  }
  return shown == got ? "" : path + " is " + got.dump();
}

TEST(ProtocolDocument, EveryExampleIsWhatTheDaemonDoes) {
  const TempDir directory;
  DaemonProcess daemon(directory.path(), with_starter({"--device", "cpu"}));
  daemon.connect();
  RawClient client(daemon.socket());
  for (const auto& [sent, received] : read_exchanges("docs/protocol.md")) {
    ASSERT_TRUE(client.send(sent + "\n"));
    const std::string got = client.line().value_or("nothing");
    EXPECT_EQ(difference(Json::parse(received), Json::parse(got)), "") << "> " << sent << "\n< " << got;
  }
}

}  // namespace
}  // namespace recalld
