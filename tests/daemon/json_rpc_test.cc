#include "daemon/json_rpc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/exchanges.h"

namespace recalld {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

void echo_or_fail(std::string_view method, Json& params, const RequestId&, Answer answer) {
  if (method == "fail") return answer(std::unexpected(rpc_error({ErrorKind::not_found, "nothing there"})));
  answer(params.dump());
}

// The reply to a line whose requests are all answered at once.
std::string reply_to(std::string_view line, const Call& call = echo_or_fail) {
  std::string reply = "no reply";
  serve_line(line, call, [&reply](std::string text) { reply = std::move(text); });
  return reply;
}

std::string message_of(const std::string& reply) {
  return Json::parse(reply).at("error").at("message");
}

TEST(JsonRpc, LinesAreAnsweredAsTheTableSays) {
  for (const auto& [sent, received] : read_exchanges("tests/daemon/rpc_lines.txt"))
    EXPECT_EQ(reply_to(sent), received) << sent;
}

TEST(JsonRpc, WhatIsNotJsonInUtf8IsAParseErrorThatNamesTheByte) {
  for (const std::string_view line :
       {std::string_view("{nonsense"), std::string_view("[1,2"), std::string_view("{\"a\":1}}"),
        std::string_view("\"\xff\xfe\""), std::string_view("\"\xed\xa0\x80\""), std::string_view("\"\\ud800\""),
        std::string_view("\"a\0b\"", 5), std::string_view("{}\0{}", 5), std::string_view("1e999"),
        std::string_view("   ")}) {
    const Json reply = Json::parse(reply_to(line));
    EXPECT_EQ(reply.at("error").at("code"), code_parse_error) << line;
    EXPECT_EQ(reply.at("id"), nullptr);
    EXPECT_THAT(reply.at("error").at("message").get<std::string>(), StartsWith("the line is not JSON in UTF-8: byte "));
  }
}

TEST(JsonRpc, AParseErrorDoesNotRepeatTheLine) {
  EXPECT_LT(reply_to("\"" + std::string(1 << 20, 'x') + "\xff\"").size(), 1000u);
}

TEST(JsonRpc, NestingAndValuesAreBounded) {
  const auto nested = [](size_t levels) {
    return R"({"jsonrpc":"2.0","id":1,"method":"echo","params":{"a":)" + std::string(levels, '[') +
           std::string(levels, ']') + "}}";
  };
  EXPECT_THAT(reply_to(nested(json_depth_max - 2)), HasSubstr("result"));
  EXPECT_EQ(message_of(reply_to(nested(json_depth_max - 1))), "the line is nested deeper than 32 levels");
  EXPECT_EQ(message_of(reply_to(std::string(8 << 20, '['))), "the line is nested deeper than 32 levels");

  std::string many = "[0";
  for (size_t i = 0; i < json_values_max; ++i) many += ",0";
  EXPECT_EQ(message_of(reply_to(many + "]")), "the line holds more than 1000000 values; send them in several lines");
}

TEST(JsonRpc, ABatchIsBoundedInRequests) {
  const std::string request = R"({"jsonrpc":"2.0","id":1,"method":"echo"})";
  std::string batch = "[" + request;
  for (size_t i = 1; i < batch_requests_max; ++i) batch += "," + request;
  EXPECT_EQ(Json::parse(reply_to(batch + "]")).size(), batch_requests_max);
  EXPECT_EQ(message_of(reply_to(batch + "," + request + "]")), "a batch holds at most 1000 requests, got 1001");
}

TEST(JsonRpc, ABatchIsBoundedInBytesOfItsReplies) {
  const Call large = [](std::string_view, Json&, const RequestId&, Answer answer) {
    answer("\"" + std::string(batch_reply_bytes_max / 4, 'x') + "\"");
  };
  std::string batch = "[";
  for (int i = 0; i < 8; ++i)
    batch += (i ? "," : "") + (R"({"jsonrpc":"2.0","method":"m","id":)" + std::to_string(i)) + "}";
  const Json replies = Json::parse(reply_to(batch + "]", large));
  ASSERT_EQ(replies.size(), 8u);
  for (size_t i = 0; i < replies.size(); ++i) {
    EXPECT_EQ(replies[i].at("id"), i);
    EXPECT_EQ(replies[i].contains("result"), i < 4) << i;
  }
  EXPECT_EQ(replies[7].at("error").at("data").at("kind"), "full");
}

TEST(JsonRpc, ABatchWaitsForItsLastAnswerAndKeepsItsOrder) {
  std::vector<Answer> answers;
  const Call later = [&answers](std::string_view, Json&, const RequestId&, Answer answer) {
    answers.push_back(std::move(answer));
  };
  std::string reply;
  serve_line(R"([{"jsonrpc":"2.0","id":1,"method":"m"},{"jsonrpc":"2.0","id":2,"method":"m"}])", later,
             [&reply](std::string text) { reply = std::move(text); });
  ASSERT_EQ(answers.size(), 2u);
  answers[1]("\"second\"");
  EXPECT_EQ(reply, "");
  answers[0]("\"first\"");
  EXPECT_EQ(reply, R"([{"jsonrpc":"2.0","id":1,"result":"first"},{"jsonrpc":"2.0","id":2,"result":"second"}])");
}

TEST(JsonRpc, AnIntegerBeyond64BitsIsNotRounded) {
  Json seen;
  const Call keep = [&seen](std::string_view, Json& params, const RequestId&, Answer answer) {
    seen = params;
    answer("0");
  };
  reply_to(R"({"jsonrpc":"2.0","id":1,"method":"m","params":{"n":18446744073709551616,"f":1e3}})", keep);
  EXPECT_FALSE(seen.at("n").is_number());
  EXPECT_TRUE(seen.at("f").is_number_float());
}

TEST(JsonRpc, EveryKindOfErrorHasItsCode) {
  const std::pair<ErrorKind, int> codes[] = {{ErrorKind::invalid_request, -32602},
                                             {ErrorKind::not_found, -32001},
                                             {ErrorKind::corrupt, -32002},
                                             {ErrorKind::io, -32003},
                                             {ErrorKind::full, -32004},
                                             {ErrorKind::device, -32005},
                                             {ErrorKind::busy, -32006},
                                             {ErrorKind::internal, -32603}};
  for (const auto& [kind, code] : codes) EXPECT_EQ(rpc_error({kind, ""}).code, code) << name(kind);
}

TEST(JsonRpc, MessagesAreAlwaysUtf8) {
  EXPECT_EQ(error_line({-1, ErrorKind::io, "open \xff: no"}),
            "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-1,\"message\":\"open \xef\xbf\xbd: no\","
            "\"data\":{\"kind\":\"io\"}}}");
}

}  // namespace
}  // namespace recalld
