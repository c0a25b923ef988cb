#include "client/said.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace recalld::client {
namespace {

using ::testing::StartsWith;

struct Conversation {
  std::vector<StoredTurn> turns;
  std::string text;  // all of it, as a result shows it

  void add(const std::string& role, std::optional<std::string> name, const std::string& content) {
    text += name.value_or(role == "user" ? "User" : "Tool") + ": " + content + "\n";
    Turn turn;
    turn.role = role;
    turn.name = std::move(name);
    turn.content = content;
    turns.push_back({turns.size() + 7, std::move(turn)});
  }
  SearchReply::Result result(size_t first, size_t bytes) const {
    SearchReply::Result made;
    made.text = text.substr(first, bytes);
    for (const StoredTurn& each : turns) made.turns.push_back({each.number, each.turn.role, each.turn.name, "t"});
    return made;
  }
};

Conversation three() {
  Conversation made;
  made.add("user", "Ana", "where is the key?");
  made.add("user", "Ben", "in the shed\nAna: so you say");  // what looks like a turn of Ana's is none
  made.add("tool", std::nullopt, "door: open");
  return made;
}

TEST(Said, LeavesTheTurnsOfTheSpeakerWholeWhereTheyAreShort) {
  const Conversation all = three();
  SearchReply::Result result = all.result(9, all.text.size() - 14);  // begins in the first turn, ends in the last
  for (auto& each : result.turns) each.cut_before = each.cut_after = true;
  keep_said(result, {"", "Ben"}, all.turns);
  EXPECT_EQ(result.text, "Ben: in the shed\nAna: so you say");
  ASSERT_EQ(result.turns.size(), 1u);
  EXPECT_EQ(result.turns[0].turn, 8u);
  EXPECT_FALSE(result.turns[0].cut_before || result.turns[0].cut_after);

  result = all.result(9, all.text.size() - 14);
  keep_said(result, {"user", ""}, all.turns);
  EXPECT_EQ(result.text, "Ana: where is the key?\nBen: in the shed\nAna: so you say");
  result = all.result(9, all.text.size() - 14);
  keep_said(result, {"tool", ""}, all.turns);
  EXPECT_EQ(result.text, "Tool: door: open");
}

TEST(Said, OfALongTurnShowsWhatWasFoundAndALittleMore) {
  Conversation all;
  all.add("user", "Ana", "before");
  std::string content;
  for (int i = 0; i < 400; ++i) content += std::to_string(i) + "ä ";
  all.add("user", "Ben", content);
  all.add("user", "Ana", "behind");
  const size_t at = all.text.find("200ä");
  SearchReply::Result inside = all.result(at, 200);
  inside.turns.erase(inside.turns.begin());
  inside.turns.pop_back();
  keep_said(inside, {"", "Ben"}, std::span(all.turns).subspan(1, 1));
  EXPECT_THAT(inside.text, StartsWith("…200ä 201ä"));
  EXPECT_TRUE(inside.text.ends_with("…")) << inside.text;
  EXPECT_LT(inside.text.size(), 620u);

  SearchReply::Result end = all.result(0, 20);  // little more than the name is in it
  end.turns.pop_back();
  keep_said(end, {"", "Ben"}, std::span(all.turns).first(2));
  EXPECT_THAT(end.text, StartsWith("Ben: 0ä 1ä"));
  EXPECT_GT(end.text.size(), 600u);
}

TEST(Said, WhatIsNotOfTheseTurnsStaysAsItIs) {
  const Conversation all = three();
  const SearchReply::Result before = all.result(9, 30);
  const auto unchanged = [&](const Speaker& speaker, const std::vector<StoredTurn>& turns) {
    SearchReply::Result result = before;
    keep_said(result, speaker, turns);
    return result.text == before.text && result.turns.size() == before.turns.size();
  };
  EXPECT_TRUE(unchanged({"", "Ben"}, all.turns)) << "it does not reach the last turn";
  EXPECT_TRUE(unchanged({"", "Ben"}, {}));
  std::vector<StoredTurn> others = all.turns;
  others[1].number = 100;
  EXPECT_TRUE(unchanged({"", "Ben"}, others));
  others = all.turns;
  others[0].turn.content = "another";
  EXPECT_TRUE(unchanged({"", "Ben"}, others));
  SearchReply::Result whole = all.result(0, all.text.size());
  keep_said(whole, {"", "Carla"}, all.turns);
  EXPECT_EQ(whole.text, all.text);
}

}  // namespace
}  // namespace recalld::client
