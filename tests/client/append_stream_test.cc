#include "client/append_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fake_daemon.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;

// Appends as the daemon would, one token a byte; refuses every request that holds the word "refused".
FakeDaemon::Script counting_daemon() {
  uint64_t turns = 0;
  return [turns](const std::string& line) mutable {
    const Json request = Json::parse(line);
    const Json& params = request["params"];
    Json reply{{"jsonrpc", "2.0"}, {"id", request["id"]}};
    if (line.find("refused") != std::string::npos) {
      reply["error"] = {{"code", -32602}, {"message", "turns[0].content: no"}, {"data", {{"kind", "invalid_request"}}}};
      return FakeDaemon::Answer{reply.dump() + "\n"};
    }
    uint64_t tokens = 0;
    for (const Json& turn : params["turns"]) tokens += turn["content"].get_ref<const std::string&>().size();
    const uint64_t first = turns;
    turns += params["turns"].size();
    reply["result"] = {{"memory", params["memory"]},
                       {"first_turn", first},
                       {"last_turn", turns - 1},
                       {"tokens", tokens},
                       {"searchable_through", nullptr}};
    return FakeDaemon::Answer{reply.dump() + "\n"};
  };
}

Turn turn_of(std::string content) {
  Turn turn;
  turn.content = std::move(content);
  return turn;
}

TEST(AppendStream, CutsByTurnsAndKeepsTheirOrder) {
  const FakeDaemon daemon(counting_daemon());
  Client client = Client::connect(daemon.socket()).value();
  AppendStream stream(client, "m", {});
  const uint64_t count = AppendStream::request_turns_max * 3 + 1;
  for (uint64_t i = 0; i < count; ++i) ASSERT_TRUE(stream.add(turn_of(std::to_string(i)), {i + 1, i + 1}));
  const auto total = stream.finish();
  ASSERT_TRUE(total) << total.error().message;
  EXPECT_EQ(total->turns, count);
  EXPECT_EQ(total->requests, 4u);
  EXPECT_EQ(total->first_turn, 0u);
  EXPECT_EQ(total->last_turn, count - 1);
  EXPECT_EQ(total->end_byte, count);

  uint64_t next = 0;
  for (const std::string& line : daemon.lines()) {
    const Json turns = Json::parse(line)["params"]["turns"];
    for (const Json& turn : turns) EXPECT_EQ(turn["content"], std::to_string(next++));
  }
  EXPECT_EQ(next, count);
}

TEST(AppendStream, CutsByBytesAndSendsALongTurnAlone) {
  const FakeDaemon daemon(counting_daemon());
  Client client = Client::connect(daemon.socket()).value();
  AppendStream stream(client, "m", {});
  ASSERT_TRUE(stream.add(turn_of("short"), {1, 0}));
  ASSERT_TRUE(stream.add(turn_of(std::string(AppendStream::request_bytes_max * 2, 'x')), {2, 0}));
  ASSERT_TRUE(stream.add(turn_of("short"), {3, 0}));
  ASSERT_TRUE(stream.finish());
  ASSERT_EQ(daemon.lines().size(), 3u);
  for (const std::string& line : daemon.lines()) EXPECT_EQ(Json::parse(line)["params"]["turns"].size(), 1u);
}

TEST(AppendStream, SameInputGetsTheSameOperationIds) {
  std::vector<std::string> ids[2];
  for (auto& run : ids) {
    const FakeDaemon daemon(counting_daemon());
    Client client = Client::connect(daemon.socket()).value();
    AppendStream stream(client, "m", {.operation_prefix = "load"});
    for (int i = 0; i < 300; ++i) ASSERT_TRUE(stream.add(turn_of(std::string(500, 'a')), {}));
    ASSERT_TRUE(stream.finish());
    for (const std::string& line : daemon.lines()) {
      const Json params = Json::parse(line)["params"];
      run.push_back(params["operation_id"].get<std::string>() + ":" + std::to_string(params["turns"].size()));
    }
  }
  EXPECT_GT(ids[0].size(), 3u);
  EXPECT_THAT(ids[0][0], HasSubstr("load-0:"));
  EXPECT_EQ(ids[0], ids[1]);
}

TEST(AppendStream, RefusalNamesTheLinesAndCountsWhatWasStored) {
  const FakeDaemon daemon(counting_daemon());
  Client client = Client::connect(daemon.socket()).value();
  AppendStream stream(client, "m", {.source = "chat.txt"});
  const std::string filler(AppendStream::request_bytes_max - 200, 'x');  // one turn a request
  ASSERT_TRUE(stream.add(turn_of(filler), {10, 1}));
  ASSERT_TRUE(stream.add(turn_of("refused " + filler), {12, 2}));
  ASSERT_TRUE(stream.add(turn_of(filler), {14, 3}));
  const auto total = stream.finish();
  ASSERT_FALSE(total);
  EXPECT_EQ(total.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(total.error().message, HasSubstr("chat.txt, line 12: turns[0].content: no"));
  EXPECT_EQ(stream.total().turns, 2u) << "the request behind the refused one was carried out";

  EXPECT_EQ(stream.add(turn_of(filler), {16, 4}).error().message, total.error().message) << "nothing more is sent";
  EXPECT_FALSE(stream.finish());
  EXPECT_EQ(daemon.lines().size(), 3u);
}

TEST(AppendStream, ReportsEveryAcknowledgement) {
  const FakeDaemon daemon(counting_daemon());
  Client client = Client::connect(daemon.socket()).value();
  std::vector<uint64_t> seen;
  AppendStream::Options options;
  options.on_reply = [&](const AppendStream::Total& total) { seen.push_back(total.end_byte); };
  AppendStream stream(client, "m", std::move(options));
  for (uint64_t i = 1; i <= 4; ++i) ASSERT_TRUE(stream.add(turn_of(std::string(20'000, 'x')), {i, i * 100}));
  ASSERT_TRUE(stream.finish());
  EXPECT_EQ(seen, (std::vector<uint64_t>{100, 200, 300, 400}));
}

TEST(AppendStream, NothingToAppendSendsNothing) {
  const FakeDaemon daemon(counting_daemon());
  Client client = Client::connect(daemon.socket()).value();
  AppendStream stream(client, "m", {});
  EXPECT_EQ(stream.finish().value().turns, 0u);
  EXPECT_TRUE(daemon.lines().empty());
}

TEST(AppendStream, SettlingSendsNoUnfinishedRequest) {
  const FakeDaemon daemon(counting_daemon());
  Client client = Client::connect(daemon.socket()).value();
  AppendStream stream(client, "m", {.operation_prefix = "load"});
  const uint64_t count = AppendStream::request_turns_max + 7;
  for (uint64_t i = 0; i < count; ++i) ASSERT_TRUE(stream.add(turn_of("x"), {i + 1, i + 1}));
  const auto total = stream.settle();
  ASSERT_TRUE(total) << total.error().message;
  ASSERT_EQ(daemon.lines().size(), 1u);
  const uint64_t sent = Json::parse(daemon.lines()[0])["params"]["turns"].size();
  EXPECT_LT(sent, count);
  EXPECT_EQ(total->turns, sent);
  EXPECT_EQ(total->end_line, sent);
  EXPECT_EQ(stream.turns_in_flight(), 0u);
}

TEST(AppendStream, FlushingSendsWhatWaitsAndUnderAnOperationPrefixNothing) {
  for (const std::string prefix : {"", "load"}) {
    const FakeDaemon daemon(counting_daemon());
    Client client = Client::connect(daemon.socket()).value();
    AppendStream stream(client, "m", {.operation_prefix = prefix});
    ASSERT_TRUE(stream.add(turn_of("one"), {1, 4}));
    ASSERT_TRUE(stream.flush());
    EXPECT_EQ(stream.total().turns, prefix.empty() ? 1u : 0u);
    EXPECT_EQ(stream.turns_waiting(), prefix.empty() ? 0u : 1u);
    ASSERT_TRUE(stream.add(turn_of("two"), {2, 8}));
    const auto total = stream.finish();
    ASSERT_TRUE(total) << total.error().message;
    EXPECT_EQ(total->turns, 2u);
    EXPECT_EQ(total->requests, prefix.empty() ? 2u : 1u);
    EXPECT_EQ(total->end_line, 2u);
  }
}

TEST(AppendStream, RepeatedRequestsAreCountedApart) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json request = Json::parse(line);
    const int last_turn = request["params"]["operation_id"] == "load-0" ? 6 : 7;
    const Json result{
        {"memory", "m"}, {"first_turn", 0}, {"last_turn", last_turn}, {"tokens", 3}, {"searchable_through", nullptr}};
    return FakeDaemon::Answer{Json{{"jsonrpc", "2.0"}, {"id", request["id"]}, {"result", result}}.dump() + "\n"};
  });
  Client client = Client::connect(daemon.socket()).value();
  AppendStream stream(client, "m", {.operation_prefix = "load", .turns_there = 7});
  for (uint64_t i = 0; i < AppendStream::request_turns_max + 1; ++i)
    ASSERT_TRUE(stream.add(turn_of("x"), {i + 1, i + 1}));
  const auto total = stream.finish();
  ASSERT_TRUE(total) << total.error().message;
  EXPECT_EQ(total->turns, AppendStream::request_turns_max + 1);
  ASSERT_EQ(daemon.lines().size(), 2u);
  EXPECT_EQ(total->repeated_turns, Json::parse(daemon.lines()[0])["params"]["turns"].size());
  EXPECT_EQ(total->tokens, 6u);
  EXPECT_EQ(total->repeated_tokens, 3u);
}

TEST(AppendStream, TurnsWithoutAnAnswerAreCountedAsUncertain) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{}; });
  Client client = Client::connect(daemon.socket(), {.reply_timeout = std::chrono::milliseconds(50)}).value();
  AppendStream stream(client, "m", {});
  for (uint64_t i = 0; i < AppendStream::request_turns_max + 1; ++i)
    ASSERT_TRUE(stream.add(turn_of("x"), {i + 1, i + 1}));
  EXPECT_FALSE(stream.finish());
  EXPECT_EQ(stream.turns_in_flight(), AppendStream::request_turns_max + 1);
  EXPECT_EQ(stream.total().turns, 0u);
}

}  // namespace
}  // namespace recalld::client
