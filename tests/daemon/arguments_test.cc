#include "daemon/arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace recalld {
namespace {

// Reads one argument and gives the error of the whole, or "" when there is none.
template <class Read>
std::string error_of(Json value, Read read, std::string path = "") {
  Arguments arguments(value, std::move(path));
  read(arguments);
  const auto done = arguments.done(true);
  return done ? "" : done.error().message;
}

TEST(Arguments, TextIsTakenWithinItsBytes) {
  const auto read = [](Arguments& arguments) { arguments.text("word", 1, 4); };
  EXPECT_EQ(error_of({{"word", "four"}}, read), "");
  EXPECT_EQ(error_of({{"word", ""}}, read), "word: expected a string of 1 to 4 bytes, got 0");
  EXPECT_EQ(error_of({{"word", "\u00e9\u00e9!"}}, read), "word: expected a string of 1 to 4 bytes, got 5");
  EXPECT_EQ(error_of({{"word", 7}}, read), "word: expected a string of 1 to 4 bytes, got 7");
  EXPECT_EQ(error_of({{"word", nullptr}}, read), "word: expected a string of 1 to 4 bytes, got null");
  EXPECT_EQ(error_of(Json::object(), read), "word: this argument is missing");
}

TEST(Arguments, IntegersAreWholeAndWithinTheirBounds) {
  const auto read = [](Arguments& arguments) { arguments.integer("count", 1, 10); };
  EXPECT_EQ(error_of({{"count", 10u}}, read), "");
  EXPECT_EQ(error_of({{"count", 0u}}, read), "count: expected an integer from 1 to 10, got 0");
  EXPECT_EQ(error_of({{"count", 11u}}, read), "count: expected an integer from 1 to 10, got 11");
  EXPECT_EQ(error_of({{"count", -1}}, read), "count: expected an integer from 1 to 10, got -1");
  EXPECT_EQ(error_of({{"count", 2.5}}, read), "count: expected an integer from 1 to 10, got 2.5");
  EXPECT_EQ(error_of({{"count", "3"}}, read), "count: expected an integer from 1 to 10, got \"3\"");
  EXPECT_EQ(error_of({{"count", Json::array({1, 2})}}, read),
            "count: expected an integer from 1 to 10, got an array of 2");
}

TEST(Arguments, OptionalOnesMayBeMissingButNotWrong) {
  Json none = Json::object();
  Arguments arguments(none, "");
  EXPECT_FALSE(arguments.optional_text("a", 0, 9));
  EXPECT_FALSE(arguments.optional_integer("b", 0, 9));
  EXPECT_FALSE(arguments.optional_flag("c"));
  EXPECT_EQ(arguments.optional_choice<int>("d", {{"x", 1}, {"y", 2}}), 1);
  EXPECT_TRUE(arguments.done(true));
  EXPECT_EQ(error_of({{"c", 1}}, [](Arguments& wrong) { wrong.optional_flag("c"); }),
            "c: expected true or false, got 1");
}

TEST(Arguments, AChoiceNamesTheWords) {
  const auto read = [](Arguments& arguments) { arguments.choice<int>("d", {{"x", 1}, {"y", 2}}); };
  EXPECT_EQ(error_of({{"d", "y"}}, read), "");
  EXPECT_EQ(error_of({{"d", "z"}}, read), "d: expected \"x\" or \"y\", got \"z\"");
  EXPECT_EQ(error_of({{"d", Json::object()}}, read), "d: expected \"x\" or \"y\", got an object");
}

TEST(Arguments, AnArrayIsNeitherEmptyNorTooLong) {
  const auto read = [](Arguments& arguments) { arguments.array("list", 2); };
  EXPECT_EQ(error_of({{"list", Json::array({1, 2})}}, read), "");
  EXPECT_EQ(error_of({{"list", Json::array()}}, read), "list: expected an array of 1 to 2, got an array of 0");
  EXPECT_EQ(error_of({{"list", Json::array({1, 2, 3})}}, read), "list: expected an array of 1 to 2, got an array of 3");
}

TEST(Arguments, TheFirstMistakeIsTheOneReportedUnderItsPath) {
  const auto read = [](Arguments& arguments) {
    arguments.text("a", 1, 9);
    arguments.text("b", 1, 9);
  };
  EXPECT_EQ(error_of({{"a", 1}, {"b", 2}}, read, "turns[3]"), "turns[3].a: expected a string of 1 to 9 bytes, got 1");
  EXPECT_EQ(error_of("text", read, "turns[3]"), "turns[3]: expected an object, got \"text\"");
}

TEST(Arguments, WhatNobodyAskedForIsRefusedByName) {
  EXPECT_EQ(error_of({{"colour", "red"}}, [](Arguments& arguments) { arguments.optional_flag("explain"); }),
            "colour: unknown argument; there are explain");
  EXPECT_EQ(error_of({{"colour", "red"}}, [](Arguments&) {}), "colour: unknown argument: there are none here");
}

TEST(Arguments, AClientsOwnWordsAreShownShortened) {
  const std::string message =
      error_of({{"count", std::string(5000, 'x')}}, [](Arguments& arguments) { arguments.integer("count", 0, 1); });
  EXPECT_EQ(message, "count: expected an integer from 0 to 1, got \"" + std::string(64, 'x') + "…\"");
  std::string umlauts = "x";
  for (int i = 0; i < 40; ++i) umlauts += "ä";
  const auto count = [](Arguments& arguments) { arguments.integer("count", 0, 1); };
  EXPECT_EQ(error_of({{"count", umlauts}}, count),
            "count: expected an integer from 0 to 1, got \"" + umlauts.substr(0, 63) + "…\"")
      << "whole characters";
}

}  // namespace
}  // namespace recalld
