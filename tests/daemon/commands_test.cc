#include "daemon/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>
#include <thread>

#include "tests/support/checkpoints.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    EngineOptions options;
    options.data = directory_.path() / "data";
    options.model = default_checkpoint();
    auto engine = Engine::open(std::move(options));
    if (!engine) throw std::runtime_error(engine.error().message);
    engine_ = *std::move(engine);
    call_ = commands_of(*engine_);
  }

  // Calls a method and waits for its answer.
  Json call(std::string_view method, Json params = Json::object()) {
    const Json request = {{"jsonrpc", "2.0"}, {"id", 1}, {"method", method}, {"params", std::move(params)}};
    std::promise<std::string> reply;
    serve_line(request.dump(), call_, [&reply](std::string line) { reply.set_value(std::move(line)); });
    return Json::parse(reply.get_future().get());
  }
  static Json turns(size_t count) {
    Json turns = Json::array();
    for (size_t i = 0; i < count; ++i)
      turns.push_back(
          {{"role", "user"}, {"content", "Crate " + std::to_string(i) + " holds rope, tar and wet sails."}});
    return turns;
  }

  TempDir directory_;
  std::unique_ptr<Engine> engine_;
  Call call_;
};

TEST_F(CommandsTest, EveryMethodReachesTheEngineAndAnswers) {
  const Json m = {{"memory", "m"}};
  const Json appended = call("append", {{"memory", "m"}, {"turns", turns(20)}, {"wait", "searchable"}});
  EXPECT_EQ(appended["result"]["last_turn"], 19) << appended;
  EXPECT_EQ(
      call("search", {{"memory", "m"}, {"query", "Which crate holds rope?"}, {"limit", 2}})["result"]["results"].size(),
      2u);
  EXPECT_EQ(call("memories.list")["result"]["memories"][0]["memory"], "m");
  EXPECT_EQ(call("memories.get", m)["result"]["turns"], 20);
  EXPECT_EQ(call("turns.list", {{"memory", "m"}, {"limit", 3}})["result"]["turns"].size(), 3u);
  EXPECT_EQ(call("chunks.list", {{"memory", "m"}, {"first", 1}, {"limit", 1}})["result"]["chunks"][0]["chunk"], 1);
  EXPECT_EQ(call("chunks.get", {{"memory", "m"}, {"chunk", 2}})["result"]["token_ids"].size(), 64u);
  EXPECT_EQ(call("stats")["result"]["turns"], 20);
  EXPECT_EQ(call("health")["result"]["ready"], true);
  EXPECT_EQ(call("version")["result"]["protocol"], 1);
  EXPECT_EQ(call("forget", {{"memory", "m"}, {"turns", {0, {5, 6}}}})["result"]["turn_count"], 3);
  EXPECT_EQ(call("verify", m)["result"]["problem_count"], 0);
  const Json exported = call("export", m)["result"];
  EXPECT_EQ(exported["records"].front()["type"], "memory");
  EXPECT_EQ(exported["records"].back(), (Json{{"type", "end"}, {"turns", 17}, {"chunks", 0}}));
  const Json imported = call("import", {{"memory", "n"}, {"records", exported["records"]}})["result"];
  EXPECT_EQ(imported["turns"], 17);
  EXPECT_EQ(imported["next_turn"], 20);
  const std::string backup = directory_.path() / "backup";
  EXPECT_EQ(call("backup", {{"directory", backup}})["result"]["directory"], backup);
  EXPECT_TRUE(call("reencode", {{"model", backup}}).contains("error")) << "there is no model";
  EXPECT_EQ(call("stats")["result"]["jobs"].is_array(), true);
  const Json deleted = call("memories.delete", m)["result"];
  EXPECT_EQ(deleted["turns"], 17);
  EXPECT_EQ(deleted["receipt"]["memory"], "m");
  EXPECT_EQ(call("memories.get", m)["error"]["data"]["kind"], "not_found");
}

TEST_F(CommandsTest, AGenerationTellsItsTextUnderItsIdAndIsCancelledByIt) {
  call("append", {{"memory", "m"}, {"turns", turns(40)}, {"wait", "searchable"}});
  std::mutex mutex;
  std::vector<std::string> told;
  std::atomic<bool> began = false;
  const Call of_client = commands_of(*engine_, {.connection = 5, .notify = [&](std::string line) {
                                                  const std::lock_guard lock(mutex);
                                                  told.push_back(std::move(line));
                                                  began = true;
                                                }});
  std::promise<std::string> reply;
  serve_line(
      R"({"jsonrpc":"2.0","id":"a \"1\"","method":"generate","params":{"memory":"m","prompt":"Tell me.","max_tokens":1024,)"
      R"("temperature":2,"seed":3,"stream":true}})",
      of_client, [&reply](std::string line) { reply.set_value(std::move(line)); });
  while (!began) std::this_thread::yield();
  const Json none = call("cancel", {{"id", "a \"1\""}});
  EXPECT_EQ(none["result"]["cancelled"], false) << "it is another client's";
  std::promise<std::string> cancelled;
  serve_line(R"({"jsonrpc":"2.0","id":2,"method":"cancel","params":{"id":"a \"1\""}})", of_client,
             [&cancelled](std::string line) { cancelled.set_value(std::move(line)); });
  EXPECT_EQ(cancelled.get_future().get(), R"({"jsonrpc":"2.0","id":2,"result":{"cancelled":true}})");
  const Json result = Json::parse(reply.get_future().get())["result"];
  EXPECT_EQ(result["finish"], "cancelled");
  EXPECT_EQ(result["seed"], 3);
  EXPECT_EQ(result["chunks"].size(), 8u);
  std::string text;
  for (const std::string& line : told) {
    const Json notification = Json::parse(line);
    EXPECT_EQ(notification["method"], "generate.text");
    EXPECT_EQ(notification["params"]["id"], "a \"1\"");
    text += notification["params"]["text"];
  }
  EXPECT_EQ(result["text"], text);
}

TEST_F(CommandsTest, AnUnknownMethodIsAnsweredWithThoseThatThereAre) {
  const Json error = call("dream", {{"memory", "m"}})["error"];
  EXPECT_EQ(error["code"], code_method_not_found);
  EXPECT_EQ(error["message"],
            "method: there is no \"dream\"; there are append, search, generate, cancel, memories.list, memories.get, "
            "memories.delete, "
            "turns.list, chunks.list, chunks.get, forget, verify, export, import, backup, reencode, stats, health, "
            "version");
}

TEST_F(CommandsTest, WrongArgumentsNeverReachTheEngine) {
  EXPECT_THAT(call("append", {{"memory", "m"}, {"turns", {{{"role", "bot"}}}}})["error"]["message"].get<std::string>(),
              HasSubstr("turns[0].role"));
  EXPECT_EQ(call("memories.list")["result"]["memories"].size(), 0u);
}

TEST_F(CommandsTest, PagesFollowOneAnotherToTheEnd) {
  call("append", {{"memory", "m"}, {"turns", turns(25)}, {"wait", "searchable"}});
  const auto numbers = [this](std::string_view method, std::string_view list, std::string_view number) {
    std::vector<uint64_t> all;
    Json params = {{"memory", "m"}, {"limit", 4}};
    while (true) {
      const Json result = call(method, params)["result"];
      EXPECT_LE(result[list].size(), 4u);
      for (const Json& each : result[list]) all.push_back(each[number]);
      if (!result.contains("next_cursor")) return all;
      params["cursor"] = result["next_cursor"];
    }
  };
  const auto check = [](const std::vector<uint64_t>& all) {
    for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], i);
    return all.size();
  };
  EXPECT_EQ(check(numbers("turns.list", "turns", "turn")), 25u);
  EXPECT_EQ(check(numbers("chunks.list", "chunks", "chunk")),
            call("memories.get", {{"memory", "m"}})["result"]["chunks"]);
}

TEST_F(CommandsTest, APageEndsOnceItsTextsPassTheBound) {
  Json long_turns = Json::array();
  for (int i = 0; i < 6; ++i)
    long_turns.push_back({{"role", "user"}, {"content", std::string(content_bytes_max, 'x')}});
  ASSERT_TRUE(call("append", {{"memory", "m"}, {"turns", long_turns}}).contains("result"));
  const Json page = call("turns.list", {{"memory", "m"}})["result"];
  EXPECT_LT(page["turns"].size(), 6u);
  EXPECT_EQ(page["next_cursor"], "t:" + std::to_string(page["turns"].size()));
}

}  // namespace
}  // namespace recalld
