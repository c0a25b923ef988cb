#include "daemon/filter.h"

#include <gtest/gtest.h>

#include "daemon/rfc3339.h"

namespace recalld {
namespace {

// A small memory: one turn of each role, with and without names and metadata.
const std::vector<Turn>& turns() {
  const auto at = [](std::string_view time) { return parse_rfc3339(time).value(); };
  static const std::vector<Turn> all{
      {Role::user, {}, "a", at("2026-01-01T00:00:00Z"), ""},
      {Role::assistant, "Ana", "b", at("2026-01-02T00:00:00Z"), R"({"mood":"calm","n":1})"},
      {Role::system, {}, "c", at("2026-01-03T00:00:00Z"), R"({"mood":null,"n":2.5})"},
      {Role::tool, "grep", "d", at("2026-01-04T00:00:00.000001Z"), R"({"n":-3,"draft":true,"a.b":"x","":"none"})"},
      {Role::user, "Bo", "e", at("2026-01-05T00:00:00Z"), R"({"n":18446744073709551615,"mood":"2"})"},
  };
  return all;
}

// The numbers of the turns that a filter means, or its error.
std::string meant(std::string_view json) {
  Json value = Json::parse(json);
  const auto filter = read_query(value, "filter");
  if (!filter) return filter.error().message;
  std::string out;
  for (size_t i = 0; i < turns().size(); ++i)
    if (filter->matches(i, turns()[i])) out += std::to_string(i);
  return out;
}

TEST(Filter, RolesAndNamesAreComparedWhole) {
  EXPECT_EQ(meant(R"({"role":"user"})"), "04");
  EXPECT_EQ(meant(R"({"role":{"ne":"user"}})"), "123");
  EXPECT_EQ(meant(R"({"role":{"in":["tool","system"]}})"), "23");
  EXPECT_EQ(meant(R"({"role":{"nin":["tool","system"]}})"), "014");
  EXPECT_EQ(meant(R"({"name":"Ana"})"), "1");
  EXPECT_EQ(meant(R"({"name":"ana"})"), "");
}

TEST(Filter, ATurnWithoutANameHasTheNameNull) {
  EXPECT_EQ(meant(R"({"name":null})"), "02");
  EXPECT_EQ(meant(R"({"name":{"ne":"Ana"}})"), "0234");
  EXPECT_EQ(meant(R"({"name":{"nin":["Ana",null]}})"), "34");
}

TEST(Filter, TimesAreComparedToTheMicrosecondWhateverTheirOffset) {
  EXPECT_EQ(meant(R"({"time":{"lt":"2026-01-04T00:00:00.000001Z"}})"), "012");
  EXPECT_EQ(meant(R"({"time":{"lte":"2026-01-04T01:00:00.000001+01:00"}})"), "0123");
  EXPECT_EQ(meant(R"({"time":{"gt":"2026-01-04T00:00:00Z"}})"), "34");
  EXPECT_EQ(meant(R"({"time":{"gte":"2026-01-02T00:00:00Z","lt":"2026-01-04T00:00:00Z"}})"), "12");
}

TEST(Filter, TurnsAreComparedByTheirNumber) {
  EXPECT_EQ(meant(R"({"turn":3})"), "3");
  EXPECT_EQ(meant(R"({"turn":{"eq":0}})"), "0");
  EXPECT_EQ(meant(R"({"turn":{"in":[0,4,9]}})"), "04");
  EXPECT_EQ(meant(R"({"turn":{"gt":1,"lt":3}})"), "2");
  EXPECT_EQ(meant(R"({"turn":{"gte":1,"lte":3}})"), "123");
}

TEST(Filter, MetadataIsComparedByTypeAndValue) {
  EXPECT_EQ(meant(R"({"metadata.mood":"calm"})"), "1");
  EXPECT_EQ(meant(R"({"metadata.draft":true})"), "3");
  EXPECT_EQ(meant(R"({"metadata.draft":{"ne":true}})"), "0124");
  EXPECT_EQ(meant(R"({"metadata.n":{"in":[1,"2.5",2.5]}})"), "12");
  EXPECT_EQ(meant(R"({"metadata.n":1.0})"), "1") << "numbers are equal by value";
  EXPECT_EQ(meant(R"({"metadata.n":"1"})"), "");
  EXPECT_EQ(meant(R"({"metadata.mood":2})"), "") << "a text is no number";
  EXPECT_EQ(meant(R"({"metadata.a.b":"x"})"), "3") << "a key may hold points";
  EXPECT_EQ(meant(R"({"metadata.":"none"})"), "3") << "and may be empty";
}

TEST(Filter, AMissingKeyCountsAsNull) {
  EXPECT_EQ(meant(R"({"metadata.mood":null})"), "023");
  EXPECT_EQ(meant(R"({"metadata.mood":{"ne":null}})"), "14");
}

TEST(Filter, OrderHoldsOnlyBetweenValuesOfOneKind) {
  EXPECT_EQ(meant(R"({"metadata.n":{"gt":1}})"), "24");
  EXPECT_EQ(meant(R"({"metadata.n":{"lte":1}})"), "13");
  EXPECT_EQ(meant(R"({"metadata.n":{"gt":18446744073709551614}})"), "4") << "no rounding among large integers";
  EXPECT_EQ(meant(R"({"metadata.n":{"gt":-4,"lt":-2.5}})"), "3");
  EXPECT_EQ(meant(R"({"metadata.mood":{"gt":"b"}})"), "1");
  EXPECT_EQ(meant(R"({"metadata.mood":{"lt":"b"}})"), "4");
  EXPECT_EQ(meant(R"({"metadata.mood":{"lt":9}})"), "");
}

TEST(Filter, MembersAreJoinedByAnd) {
  EXPECT_EQ(meant(R"({"role":"user","name":"Bo"})"), "4");
  EXPECT_EQ(meant(R"({"role":"user","turn":{"lt":4}})"), "0");
}

TEST(Filter, AndOrAndNotNest) {
  EXPECT_EQ(meant(R"({"or":[{"role":"tool"},{"turn":0}]})"), "03");
  EXPECT_EQ(meant(R"({"and":[{"role":"user"},{"turn":{"gt":0}}]})"), "4");
  EXPECT_EQ(meant(R"({"not":{"role":"user"}})"), "123");
  EXPECT_EQ(meant(R"({"not":{"or":[{"role":"user"},{"and":[{"role":"tool"},{"name":"grep"}]}]}})"), "12");
  EXPECT_EQ(meant(R"({"or":[{"turn":1},{"turn":2}],"not":{"turn":2}})"), "1");
}

TEST(Filter, ValuesAreBoundedOverTheWholeFilter) {
  Json value = {{"turn", {{"in", Json::array()}}}};
  for (size_t i = 0; i < filter_values_max - 1; ++i) value["turn"]["in"].push_back(i);
  value["role"] = "user";
  EXPECT_EQ(meant(value.dump()), "04");
  value["turn"]["in"].push_back(0);
  EXPECT_EQ(meant(value.dump()), "filter.turn.in[999]: the filter compares with more than 1000 values");

  Json filters = Json::array();
  for (size_t i = 0; i < filter_values_max; ++i) filters.push_back({{"turn", i}});
  EXPECT_EQ(meant(Json{{"or", filters}}.dump()), "01234");
  filters.push_back({{"turn", 0}});
  EXPECT_EQ(meant(Json{{"or", filters}}.dump()),
            "filter.or: expected an array of 1 to 1000 filters, got an array of 1001");
}

TEST(Filter, ALongKeyIsCutBetweenCharactersInAMessage) {
  const std::string before(63, 'k'), key = before + "é" + "tail";  // its 64th byte is the first of two of é
  EXPECT_TRUE(meant(R"({")" + key + R"(":1})").starts_with("filter." + before + "…: unknown condition"));
  EXPECT_TRUE(meant(R"({"turn":{")" + key + R"(":1}})").starts_with("filter.turn." + before + "…: unknown comparison"));
}

TEST(Filter, ACopyOutlivesWhatItWasReadFrom) {
  TurnQuery copy;
  {
    Json value = Json::parse(R"({"metadata.mood":{"in":["calm","wild"]}})");
    const auto filter = read_query(value, "filter");
    ASSERT_TRUE(filter);
    copy = *filter;
  }
  EXPECT_TRUE(copy.matches(1, turns()[1]));
  EXPECT_FALSE(copy.matches(0, turns()[0]));
}

}  // namespace
}  // namespace recalld
