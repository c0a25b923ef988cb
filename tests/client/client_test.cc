#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "fake_daemon.h"

namespace recalld::client {
namespace {

using ::testing::HasSubstr;

std::string result_line(const Json& id, const Json& result) {
  return Json{{"jsonrpc", "2.0"}, {"id", id}, {"result", result}}.dump() + "\n";
}

std::string error_line(const Json& id, int code, const std::string& message, const Json& data = nullptr) {
  Json error{{"code", code}, {"message", message}};
  if (!data.is_null()) error["data"] = data;
  return Json{{"jsonrpc", "2.0"}, {"id", id}, {"error", error}}.dump() + "\n";
}

FakeDaemon::Script always(const Json& result) {
  return [result](const std::string& line) { return FakeDaemon::Answer{result_line(Json::parse(line)["id"], result)}; };
}

Client connected(const FakeDaemon& daemon, ClientOptions options = {}) {
  auto client = Client::connect(daemon.socket(), options);
  if (!client) throw std::runtime_error(client.error().message);
  return std::move(*client);
}

TEST(Client, WithoutADaemonSaysHowToStartOne) {
  const TempDir directory;
  const auto socket = directory.path() / "none.sock";
  const auto client = Client::connect(socket);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().kind, ErrorKind::io);
  EXPECT_THAT(client.error().message, HasSubstr("recalld --socket " + socket.string()));
}

TEST(Client, SocketPathThatIsTooLongIsRefusedWithItsLength) {
  const auto client = Client::connect("/" + std::string(200, 'x'));
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().kind, ErrorKind::invalid_request);
  EXPECT_THAT(client.error().message, HasSubstr("201"));
}

TEST(Client, AppendSendsOneLineAndReadsTheReply) {
  const FakeDaemon daemon(always(
      {{"memory", "a/b"}, {"first_turn", 3}, {"last_turn", 4}, {"tokens", 17}, {"searchable_through", nullptr}}));
  Client client = connected(daemon);
  Turn first;
  first.content = "line one\nline two";
  Turn second;
  second.role = "assistant";
  second.content = "yes";
  second.name = "Ada";
  second.time = "2026-01-02T03:04:05Z";
  second.metadata = {{"mood", "calm"}};
  const auto reply = client.append({"a/b", {first, second}, "op-1", true});
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->first_turn, 3u);
  EXPECT_EQ(reply->last_turn, 4u);
  EXPECT_EQ(reply->tokens, 17u);
  EXPECT_FALSE(reply->searchable_through);

  ASSERT_EQ(daemon.lines().size(), 1u);
  const Json expected{{"jsonrpc", "2.0"},
                      {"id", 1},
                      {"method", "append"},
                      {"params",
                       {{"memory", "a/b"},
                        {"turns",
                         {{{"role", "user"}, {"content", "line one\nline two"}},
                          {{"role", "assistant"},
                           {"content", "yes"},
                           {"name", "Ada"},
                           {"time", "2026-01-02T03:04:05Z"},
                           {"metadata", {{"mood", "calm"}}}}}},
                        {"operation_id", "op-1"},
                        {"wait", "searchable"}}}};
  EXPECT_EQ(Json::parse(daemon.lines()[0]), expected);
}

TEST(Client, SearchReadsResultsWithTheirSources) {
  const FakeDaemon daemon(
      always({{"results",
               {{{"chunk", 7},
                 {"score", 2.5},
                 {"text", "the key is under the mat"},
                 {"tokens", {448, 512}},
                 {"turns", {{{"turn", 9}, {"role", "user"}, {"name", "Ana"}, {"time", "T"}, {"cut", "after"}}}}}}},
              {"searchable_through", 11},
              {"took_ms", 1.5}}));
  Client client = connected(daemon);
  const auto reply = client.search({.memory = "m", .query = "key?", .limit = 3});
  ASSERT_TRUE(reply) << reply.error().message;
  ASSERT_EQ(reply->results.size(), 1u);
  EXPECT_EQ(reply->results[0].chunk, 7u);
  EXPECT_EQ(reply->results[0].tokens.end, 512u);
  EXPECT_EQ(reply->results[0].turns.at(0).name, "Ana");
  EXPECT_FALSE(reply->results[0].turns.at(0).cut_before);
  EXPECT_TRUE(reply->results[0].turns.at(0).cut_after);
  EXPECT_EQ(reply->searchable_through, 11u);
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"], (Json{{"memory", "m"}, {"query", "key?"}, {"limit", 3}}));
}

TEST(Client, SearchOfSeveralMemoriesReadsWhatEachHas) {
  const FakeDaemon daemon(always({{"results",
                                   {{{"memory", "b"},
                                     {"chunk", 7},
                                     {"chunks", {6, 7}},
                                     {"score", 2.5},
                                     {"text", "the key"},
                                     {"tokens", {384, 512}},
                                     {"turns", Json::array()},
                                     {"duplicates", 2}}}},
                                  {"searchable_through", {{"a", nullptr}, {"b", 11}}},
                                  {"took_ms", 1.5}}));
  Client client = connected(daemon);
  const auto reply = client.search({.query = "key?", .expand = "chunks", .memories = {"a", "b"}});
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->results.at(0).memory, "b");
  EXPECT_EQ(reply->results.at(0).chunks, (std::vector<uint64_t>{6, 7}));
  EXPECT_EQ(reply->results.at(0).duplicates, 2u);
  ASSERT_EQ(reply->memories.value().size(), 2u);
  EXPECT_FALSE(reply->memories->at(0).searchable_through);
  EXPECT_EQ(reply->memories->at(1).searchable_through, 11u);
  EXPECT_EQ(Json::parse(daemon.lines().at(0))["params"],
            (Json{{"memory", {"a", "b"}}, {"query", "key?"}, {"expand", "chunks"}}));
}

TEST(Client, ErrorCarriesTheDaemonsKindAndMessage) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json id = Json::parse(line)["id"];
    return FakeDaemon::Answer{error_line(id, -32002, "no memory named m", {{"kind", "not_found"}})};
  });
  Client client = connected(daemon);
  const auto reply = client.memory("m");
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().kind, ErrorKind::not_found);
  EXPECT_EQ(reply.error().message, "no memory named m");
}

TEST(Client, ErrorWithoutAKindFallsBackOnTheCode) {
  const FakeDaemon daemon([](const std::string& line) {
    const Json request = Json::parse(line);
    const int code = request["method"] == "health" ? -32603 : -32601;
    return FakeDaemon::Answer{error_line(request["id"], code, "no")};
  });
  Client client = connected(daemon);
  EXPECT_EQ(client.health().error().kind, ErrorKind::internal);
  EXPECT_EQ(client.call("no.such").error().kind, ErrorKind::invalid_request);
}

TEST(Client, RepliesInAnyOrderReachTheirRequests) {
  std::string held;
  const FakeDaemon daemon([held](const std::string& line) mutable {
    const Json id = Json::parse(line)["id"];
    held = result_line(id, {{"echo", id}}) + held;  // the first request is answered last
    return FakeDaemon::Answer{id == 3 ? held : ""};
  });
  Client client = connected(daemon);
  std::vector<uint64_t> requests;
  for (int i = 0; i < 3; ++i) requests.push_back(client.submit("health").value());
  for (const uint64_t request : requests) EXPECT_EQ(client.wait(request).value()["echo"], request);
  EXPECT_EQ(client.wait(requests[0]).error().kind, ErrorKind::invalid_request) << "a reply is taken once";
}

TEST(Client, NotificationsBetweenRepliesAreSkipped) {
  const FakeDaemon daemon([](const std::string& line) {
    return FakeDaemon::Answer{"{\"jsonrpc\":\"2.0\",\"method\":\"token\",\"params\":{}}\n\n" +
                              result_line(Json::parse(line)["id"], 5)};
  });
  Client client = connected(daemon);
  EXPECT_EQ(client.call("x").value(), 5);
}

TEST(Client, TooManyRequestsInFlightAreRefusedAndServedOnceOneIsTaken) {
  const FakeDaemon daemon(always(1));
  Client client = connected(daemon);
  for (size_t i = 0; i < requests_in_flight_max; ++i) ASSERT_TRUE(client.submit("health"));
  EXPECT_EQ(client.submit("health").error().kind, ErrorKind::full);
  EXPECT_TRUE(client.wait(1));
  EXPECT_TRUE(client.submit("health"));
}

TEST(Client, TextThatIsNotUtf8IsRefusedBeforeItIsSent) {
  const FakeDaemon daemon(always(1));
  Client client = connected(daemon);
  EXPECT_EQ(client.call("search", {{"query", "\xff"}}).error().kind, ErrorKind::invalid_request);
  EXPECT_TRUE(client.call("health")) << "the connection is still good";
  EXPECT_EQ(daemon.lines().size(), 1u);
}

TEST(Client, RequestOverTheLineLimitIsRefusedBeforeItIsSent) {
  const FakeDaemon daemon(always(1));
  Client client = connected(daemon);
  EXPECT_EQ(client.call("x", {{"t", std::string(line_bytes_max, 'x')}}).error().kind, ErrorKind::invalid_request);
  EXPECT_TRUE(daemon.lines().empty());
}

TEST(Client, ReplyOfSeveralMegabytesComesWhole) {
  const std::string text(5'000'000, 'y');
  const FakeDaemon daemon(always(text));
  Client client = connected(daemon);
  EXPECT_EQ(client.call("x").value(), text);
}

TEST(Client, DaemonThatHangsUpBreaksTheConnectionForGood) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{"{\"half", true}; });
  Client client = connected(daemon);
  EXPECT_EQ(client.call("health").error().kind, ErrorKind::io);
  const auto again = client.call("health");
  ASSERT_FALSE(again);
  EXPECT_THAT(again.error().message, HasSubstr("closed the connection"));
}

TEST(Client, ReplyThatIsNotJsonIsNamedAsAForeignProtocol) {
  const FakeDaemon daemon([](const std::string&) { return FakeDaemon::Answer{"220 mail.example ready\n"}; });
  Client client = connected(daemon);
  EXPECT_THAT(client.call("health").error().message, HasSubstr("does not speak recalld's protocol"));
}

TEST(Client, RefusalOfTheConnectionItselfIsReported) {
  const FakeDaemon daemon([](const std::string&) {
    return FakeDaemon::Answer{error_line(nullptr, -32000, "too many connections", {{"kind", "busy"}}), true};
  });
  Client client = connected(daemon);
  const auto reply = client.call("health");
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().kind, ErrorKind::busy);
  EXPECT_EQ(reply.error().message, "too many connections");
}

TEST(Client, ReplyWithoutAFieldSaysWhichAndAsksForTheVersion) {
  const FakeDaemon daemon(always({{"memory", "m"}, {"first_turn", 0}}));
  Client client = connected(daemon);
  const auto reply = client.append({"m", {Turn{.content = "x"}}, "", false});
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().kind, ErrorKind::internal);
  EXPECT_THAT(reply.error().message, HasSubstr("last_turn"));
}

TEST(Client, SilentDaemonEndsInATimeoutAndALateReplyIsStillTaken) {
  bool asked = false;
  const FakeDaemon daemon([asked](const std::string& line) mutable {
    if (!std::exchange(asked, true)) return FakeDaemon::Answer{};
    return FakeDaemon::Answer{result_line(1, "late") + result_line(Json::parse(line)["id"], "on time")};
  });
  ClientOptions options;
  options.reply_timeout = std::chrono::milliseconds(50);
  Client client = connected(daemon, options);
  const uint64_t first = client.submit("health").value();
  EXPECT_EQ(client.wait(first).error().kind, ErrorKind::busy);
  const uint64_t second = client.submit("health").value();
  EXPECT_EQ(client.wait(second).value(), "on time");
  EXPECT_EQ(client.wait(first).value(), "late");
}

TEST(Client, MovedClientKeepsItsConnection) {
  const FakeDaemon daemon(always(1));
  Client client = connected(daemon);
  ASSERT_TRUE(client.call("x"));
  Client moved = std::move(client);
  EXPECT_TRUE(moved.call("x"));
}

Json receipt_json() {
  return {{"memory", "m"},
          {"turns", {{4, 4}, {10, 20}}},
          {"turn_count", 12},
          {"tokens", 300},
          {"content_bytes", 900},
          {"chunks", 5},
          {"files", {{{"file", "kv/000001.seg"}, {"records", 5}, {"bytes", 81920}}}},
          {"complete", false},
          {"time", "2026-01-02T03:04:05Z"},
          {"job", 7}};
}

Json memory_json() {
  return {{"memory", "m"},  {"turns", 2},     {"next_turn", 4},      {"tokens", 9},        {"chunks", 0},
          {"created", "c"}, {"updated", "u"}, {"encoded_chunks", 0}, {"content_bytes", 30}};
}

Json sent(const FakeDaemon& daemon, size_t line = 0) {
  return Json::parse(daemon.lines().at(line));
}

TEST(Client, ForgetSendsNumbersAndRangesOrAFilter) {
  const FakeDaemon daemon(always(receipt_json()));
  Client client = connected(daemon);
  const auto receipt = client.forget({.memory = "m", .turns = {{4, 4}, {10, 20}}, .wait = false});
  ASSERT_TRUE(receipt) << receipt.error().message;
  EXPECT_EQ(receipt->turns, (std::vector<TurnRange>{{4, 4}, {10, 20}}));
  EXPECT_EQ(receipt->turn_count, 12u);
  EXPECT_EQ(receipt->files.at(0).file, "kv/000001.seg");
  EXPECT_EQ(receipt->files.at(0).bytes, 81920u);
  EXPECT_FALSE(receipt->complete);
  EXPECT_FALSE(receipt->dry_run);
  EXPECT_EQ(receipt->job, 7u);
  EXPECT_EQ(sent(daemon)["method"], "forget");
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"turns", {4, {10, 20}}}, {"wait", "none"}}));

  ASSERT_TRUE(client.forget({.memory = "m", .filter = {{"role", "tool"}}, .dry_run = true}));
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"memory", "m"}, {"filter", {{"role", "tool"}}}, {"dry_run", true}}));
}

TEST(Client, DeleteReturnsTheMemoryAndItsReceipt) {
  Json reply = memory_json();
  reply["receipt"] = receipt_json();
  const FakeDaemon daemon(always(reply));
  Client client = connected(daemon);
  const auto deleted = client.delete_memory("m");
  ASSERT_TRUE(deleted) << deleted.error().message;
  EXPECT_EQ(deleted->memory.content_bytes, 30u);
  EXPECT_EQ(deleted->memory.next_turn, 4u);
  EXPECT_EQ(deleted->receipt.chunks, 5u);
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}}));
  ASSERT_TRUE(client.delete_memory("m", false));
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"memory", "m"}, {"wait", "none"}}));
}

TEST(Client, VerifyReadsProblemsAndCounts) {
  const FakeDaemon daemon(always({{"memories", 1},
                                  {"turns", 2},
                                  {"chunks", 3},
                                  {"states", 4},
                                  {"bytes", 5},
                                  {"problems",
                                   {{{"memory", "m"},
                                     {"part", "kv"},
                                     {"first", 6},
                                     {"last", 7},
                                     {"message", "checksum mismatch"},
                                     {"repairable", true},
                                     {"repaired", false}}}},
                                  {"problem_count", 8},
                                  {"repaired_count", 9}}));
  Client client = connected(daemon);
  const auto reply = client.verify({.memory = "m", .repair = true});
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->problems.at(0).part, "kv");
  EXPECT_EQ(reply->problems.at(0).last, 7u);
  EXPECT_TRUE(reply->problems.at(0).repairable);
  EXPECT_EQ(reply->problem_count, 8u);
  EXPECT_EQ(reply->repaired_count, 9u);
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"repair", true}}));
  ASSERT_TRUE(client.verify());
  EXPECT_EQ(sent(daemon, 1)["params"], Json::object());
}

TEST(Client, ExportAndImportCarryRecordsAsTheyAre) {
  const Json record{{"type", "turn"}, {"turn", 3}, {"content", "x"}, {"later", {1, 2}}};
  Json imported = memory_json();
  imported["imported"] = 1;
  imported["present"] = 2;
  const FakeDaemon daemon([&](const std::string& line) {
    const Json request = Json::parse(line);
    return FakeDaemon::Answer{result_line(request["id"], request["method"] == "export"
                                                             ? Json{{"records", {record}}, {"next_cursor", "x:dGlk"}}
                                                             : imported)};
  });
  Client client = connected(daemon);
  const auto page = client.export_page({.memory = "m", .encodings = true, .limit = 5, .cursor = "x:b25l"});
  ASSERT_TRUE(page) << page.error().message;
  EXPECT_EQ(page->records, std::vector<Json>{record});
  EXPECT_EQ(page->next_cursor, "x:dGlk");
  EXPECT_EQ(sent(daemon)["params"], (Json{{"memory", "m"}, {"encodings", true}, {"limit", 5}, {"cursor", "x:b25l"}}));
  const auto reply = client.import_records({"n", page->records});
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->imported, 1u);
  EXPECT_EQ(reply->present, 2u);
  EXPECT_EQ(reply->memory.turns, 2u);
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"memory", "n"}, {"records", {record}}}));
}

TEST(Client, BackupReencodeAndJobsAreTyped) {
  const Json job{{"job", 3},   {"kind", "reencode"}, {"state", "running"},       {"done", 1},
                 {"total", 9}, {"started", "s"},     {"message", "then restart"}};
  const FakeDaemon daemon([&](const std::string& line) {
    const Json request = Json::parse(line);
    Json result = job;
    if (request["method"] == "stats") result = {{"jobs", {job}}};
    if (request["method"] == "backup")
      result = {{"directory", "/b"}, {"files", 1}, {"bytes", 2}, {"shared_bytes", 3}, {"took_ms", 4.5}};
    return FakeDaemon::Answer{result_line(request["id"], result)};
  });
  Client client = connected(daemon);
  EXPECT_EQ(client.backup("/b").value().shared_bytes, 3u);
  EXPECT_EQ(client.reencode("/m").value().message, "then restart");
  EXPECT_EQ(client.cancel_reencode().value().memory, "");
  EXPECT_EQ(client.jobs().value().jobs.at(0).total, 9u);
  EXPECT_EQ(sent(daemon, 0)["params"], (Json{{"directory", "/b"}}));
  EXPECT_EQ(sent(daemon, 1)["params"], (Json{{"model", "/m"}}));
  EXPECT_EQ(sent(daemon, 2)["params"], (Json{{"cancel", true}}));
}

TEST(Client, WaitingEndsWhenItIsStoppedAndTheReplyIsStillTakenLater) {
  bool stop = true;
  const FakeDaemon daemon([asked = false](const std::string& line) mutable {
    if (!std::exchange(asked, true)) return FakeDaemon::Answer{};
    return FakeDaemon::Answer{result_line(1, "late") + result_line(Json::parse(line)["id"], "on time")};
  });
  ClientOptions options;
  options.reply_timeout = std::chrono::milliseconds(0);
  options.stop = [&stop] { return stop; };
  Client client = connected(daemon, options);
  const uint64_t first = client.submit("health").value();
  const auto stopped = client.wait(first);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().kind, ErrorKind::busy);
  EXPECT_THAT(stopped.error().message, HasSubstr("stopped waiting"));
  stop = false;
  EXPECT_EQ(client.call("health").value(), "on time");
  EXPECT_EQ(client.wait(first).value(), "late");
}

class DefaultSocket : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"RECALLD_SOCKET", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"}) unsetenv(name);
    setenv("HOME", "/home/somebody", 1);
  }
};

TEST_F(DefaultSocket, FollowsTheVariablesInTheirOrder) {
  EXPECT_EQ(default_socket(), "/home/somebody/.local/share/recalld/recalld.sock");
  setenv("XDG_DATA_HOME", "/data", 1);
  EXPECT_EQ(default_socket(), "/data/recalld/recalld.sock");
  setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(default_socket(), "/run/user/7/recalld.sock");
  setenv("RECALLD_SOCKET", "here.sock", 1);
  EXPECT_EQ(default_socket(), "here.sock");
}

TEST_F(DefaultSocket, IgnoresEmptyAndRelativeDirectories) {
  setenv("XDG_RUNTIME_DIR", "", 1);
  setenv("XDG_DATA_HOME", "relative", 1);
  setenv("RECALLD_SOCKET", "", 1);
  EXPECT_EQ(default_socket(), "/home/somebody/.local/share/recalld/recalld.sock");
}

}  // namespace
}  // namespace recalld::client
